"""Fine-tuning against training from scratch: runs of equal budget, paired figures, nothing trained twice."""

import importlib.util
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from script_runs import run_forked

from hf_crystal.training import TargetArguments, load_recipe
from hf_crystal.training.property_models import build_property_model

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["training.num_train_epochs=1", "training.swa_epochs=0"]


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location(
        "compare_pretraining", ROOT / "scripts/compare_pretraining.py"
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_difference_is_paired_over_crystals_and_averaged_over_seeds(script):
    hardness = np.linspace(0.0, 100.0, 50)  # of crystals: the same for both ways, far larger than their difference
    scratch = np.stack([hardness + 0.5, hardness + 0.7])
    errors = {"scratch": scratch, "pretrained": scratch - 0.1 - 0.01 * np.sin(hardness)}
    for values in errors.values():
        values[:, 3] = np.nan  # unknown label
    result = script.compare_target(TargetArguments(name="energy", unit="eV"), errors)
    assert result["n"] == 49
    assert result["difference"] == pytest.approx(-0.1, abs=0.002)
    low, high = result["difference_interval"]
    assert -0.105 < low < result["difference"] < high < -0.095
    assert result["scratch_mae_of_seeds"][1] - result["scratch_mae_of_seeds"][0] == pytest.approx(0.2)
    assert result["relative_difference"] == pytest.approx(result["difference"] / result["scratch_mae"])


@pytest.mark.slow
def test_runs_are_of_equal_budget_and_not_repeated(script, recipe_file, tmp_path, capsys, monkeypatch):
    run = {"run": lambda command, check: run_forked(*command[1:])}
    monkeypatch.setattr(script, "subprocess", SimpleNamespace(**{**vars(subprocess), **run}))
    recipe = load_recipe(recipe_file)
    build_property_model(recipe.model, recipe.data.targets).save_pretrained(tmp_path / "start")
    settings = [*SHORT, f"model.pretrained={tmp_path / 'start'}"]
    words = [str(recipe_file), "--output-dir", str(tmp_path / "runs"), "--seeds", "5"]
    words += [word for setting in settings for word in ("--set", setting)]
    assert script.main(script.make_parser().parse_args(words)) == 0
    comparison = json.loads((tmp_path / "runs/comparison.json").read_text())
    assert (comparison["pretrained"], comparison["seeds"], comparison["steps"]) == ("start", [5], [5])
    records = {way: json.loads((tmp_path / f"runs/{way}-5/run.json").read_text()) for way in script.WAYS}
    assert records["scratch"]["recipe"]["model"]["pretrained"] is None
    for index, target in enumerate(comparison["targets"]):
        for way, record in records.items():  # the figures of the training, from the saved model
            assert target[f"{way}_mae"] == pytest.approx(record["test"]["targets"][index]["mae"], rel=1e-5)
    assert records["pretrained"]["pretraining"] == comparison
    assert "from scratch; difference" in capsys.readouterr().out
    written = (tmp_path / "runs/scratch-5/run.json").stat().st_mtime_ns
    assert script.main(script.make_parser().parse_args(words)) == 0
    assert (tmp_path / "runs/scratch-5/run.json").stat().st_mtime_ns == written
    assert script.main(script.make_parser().parse_args([*words, "--set", "training.batch_size=4"])) == 2
    assert "another `training` section" in capsys.readouterr().err


def test_recipe_without_a_pretrained_model_is_refused(script, recipe_file, tmp_path, capsys):
    words = [str(recipe_file), "--output-dir", str(tmp_path)]
    assert script.main(script.make_parser().parse_args(words)) == 2
    assert "nothing to compare with" in capsys.readouterr().err


def test_elastic_recipe_starts_from_the_embedded_checkpoint():
    recipe = load_recipe(ROOT / "scripts/recipes/crystalformer-elastic.yaml", ["data.path=unused"])
    model = build_property_model(recipe.model, recipe.data.targets)
    assert model.is_calibrated
    assert model.config.target_names == ["log10_bulk_modulus", "log10_shear_modulus"]
