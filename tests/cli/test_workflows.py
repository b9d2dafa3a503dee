"""Whole ways through the command line: convert and predict; train, evaluate, predict and export."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
import yaml
from tiny_models import IRON, NACL, SRTIO3

from hf_crystal.cli.main import run
from hf_crystal.training import generator_run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPE = {
    "model": {
        "model_type": "crystalformer",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_radial_basis": 4,
        "head_hidden_size": 16,
    },
    "data": {
        "source": "file",
        "split_column": "split",
        "validation_split": "val",
        "targets": [{"name": "formation_energy", "unit": "eV/atom", "column": "energy"}],
    },
    "training": {"batch_size": 4, "num_epochs": 2, "swa_epochs": 1, "learning_rate": 1.0e-3},
}


@pytest.fixture
def call(capfd):
    """Run a command that must succeed; standard output."""

    def run_command(*words) -> str:
        capfd.readouterr()
        code = run([str(word) for word in words])
        out, err = capfd.readouterr()
        assert code == 0, err
        return out

    return run_command


@pytest.mark.parametrize(
    ("name", "description"),
    [
        ("cf_a_default", "crystalformer, 4 layers, 128 wide"),
        ("cfr_f3_max_small", "crystalframer, 4 layers, 32 wide"),
    ],
)
def test_official_checkpoint_is_converted_and_predicts(name, description, fixtures_dir, tmp_path, call):
    arrays = np.load(fixtures_dir / f"{name}.npz")
    state = {
        f"model.{key.removeprefix('param/')}": torch.from_numpy(arrays[key])
        for key in arrays.files
        if key.startswith("param/")
    }
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    settings = ["target_names=[e_form]", "target_units=[eV/atom]", "domain=real", "real_scale=1.4"]
    settings += ["real_lower_bound=0.5", "width_slope=0.1", "cell_range=2", "adaptive_cutoff_sigmas=3.5"]
    settings += ["radial_cutoff=14.0", "radial_width_scale=1.0"]
    if name.startswith("cfr_"):
        settings += ["frame_method=max", "angular_width_scale=4.0", "radial_gain=1.0", "angular_gain=1.0"]
    options = [word for setting in settings for word in ("--set", setting)]
    out = call("convert", tmp_path / "last.ckpt", tmp_path / "converted", *options)
    assert out == f"{tmp_path / 'converted'}: {description}, target e_form\n"
    rows = json.loads(call("predict", EXAMPLES / "NaCl.cif", "--model", tmp_path / "converted", "--output", "json"))
    assert rows[0]["e_form_unit"] == "eV/atom"
    assert math.isfinite(rows[0]["e_form"])


def test_train_evaluate_predict_export(tmp_path, call, capfd):
    crystals = [(NACL, -2.1), (SRTIO3, -3.4), (IRON, 0.0)] * 8
    rows = [
        {**crystal, "energy": energy, "split": ("train", "train", "val", "test")[index % 4]}
        for index, (crystal, energy) in enumerate(crystals)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "table.parquet")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    data = ("--data", tmp_path / "table.parquet")
    out = call("train", "property", "--config", tmp_path / "recipe.yaml", "--output-dir", tmp_path / "run", *data)
    assert "\nformation_energy: test MAE " in out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    model = tmp_path / "run" / "model"
    for column in (["--column", "energy"], ["--column", "formation_energy=energy"], []):  # by default of the training
        measured = json.loads(call("evaluate", "property", "--model", model, *data, *column, "--output", "json"))
        assert measured["targets"][0]["mae"] == pytest.approx(record["test"]["targets"][0]["mae"], abs=1e-5)
    for columns, message in (
        (["x"], "no label column x: give the one of each target of the model, formation_energy, in this order"),
        (["energy", "x"], "2 label columns (energy, x): the model has the targets formation_energy; give one column"),
    ):
        words = [word for column in columns for word in ("--column", column)]
        assert run(["evaluate", "property", "--model", str(model), *map(str, data), *words]) == 1
        assert message in capfd.readouterr().err
    assert call("predict", EXAMPLES / "Si.cif", "--model", model, "--output", "csv").count("\n") == 2
    call("export", model, tmp_path / "exported", "--metrics", tmp_path / "run" / "run.json")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert f"**{record['test']['targets'][0]['mae']:.4f}**" in card
    assert "| rows per split | train 12, validation 6, test 6 |" in card


def test_number_of_tokenizing_processes_is_that_of_the_recipe_unless_given(tmp_path, monkeypatch):
    seen: list[int] = []
    monkeypatch.setattr(
        generator_run, "train_generator", lambda recipe, *_, **__: seen.append(recipe.data.num_workers) or {}
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"data": {"path": "table.parquet", "num_workers": 3}}))
    words = ["train", "generator", "--config", str(tmp_path / "recipe.yaml"), "--output-dir", str(tmp_path)]
    for options in ([], ["--num-workers", "2"], ["--set", "data.num_workers=4"]):
        assert run([*words, *options]) == 0
    assert seen == [3, 2, 4]
