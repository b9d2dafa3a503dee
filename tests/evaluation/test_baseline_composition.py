"""The composition-only baseline sees element fractions, trains on the recipe's rows, and lands beside the model's."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from hf_crystal.evaluation.composition_baseline import element_fractions

pytest.importorskip("sklearn", reason="the baseline needs scikit-learn (extra metrics)")
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "baseline_composition.py"


@pytest.fixture(scope="module")
def baseline():
    specification = importlib.util.spec_from_file_location("baseline_composition", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def run(baseline, tmp_path):
    """Runs the script on a small table: y is twice the share of oxygen, z is unknown for every third crystal."""
    import pyarrow
    from pyarrow import parquet

    rows = []
    for index in range(60):
        oxygen = index % 4
        numbers = [8] * oxygen + [12] * (5 - oxygen)
        rows.append(
            {
                "split": ("train", "train", "val", "test")[index % 4 if index < 8 else index // 15],
                "lattice": (np.eye(3) * 6).reshape(-1).tolist(),
                "frac_coords": [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5], [0.5, 0.5, 0.5]],
                "atomic_numbers": numbers,
                "y": 2 * oxygen / 5,
                "z": None if index % 3 == 0 else 1.0,
            }
        )
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "table.parquet")
    (tmp_path / "recipe.yaml").write_text(
        "model: {model_type: crystalformer}\n"
        "data:\n  targets:\n  - {name: y, unit: eV}\n  - {name: z, unit: GPa}\n"
        "training: {seed: 1}\n"
    )

    def call(*words):
        base = [str(tmp_path / "recipe.yaml"), "--data", str(tmp_path / "table.parquet"), "--num-trees", "20"]
        return baseline.main(baseline.make_parser().parse_args([*base, *map(str, words)]))

    return call


def test_fractions_sum_to_one_and_stand_at_their_element():
    fractions = element_fractions([[8, 8, 22], [118]])
    assert fractions.shape == (2, 118)
    np.testing.assert_allclose(fractions.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(fractions[0, [7, 21]], [2 / 3, 1 / 3], rtol=1e-6)
    assert fractions[1, 117] == 1


def test_learns_what_composition_decides_and_counts_known_labels(run, tmp_path):
    assert run("--output", tmp_path / "out.json") == 0
    figures = json.loads((tmp_path / "out.json").read_text())
    y, z = figures["targets"]
    assert y["mae"] < 0.05 < y["baseline_mae"]
    assert (y["name"], y["unit"], z["name"], z["unit"]) == ("y", "eV", "z", "GPa")
    assert z["n"] < y["n"]
    assert figures["data"]["train_rows"]["z"] < figures["data"]["train_rows"]["y"]
    assert figures["data"]["path"] == "table.parquet"


def test_lands_beside_the_figures_of_a_model(run, baseline, tmp_path):
    assert run("--output", tmp_path / "out.json") == 0
    measured = json.loads((tmp_path / "out.json").read_text())["targets"]
    keys = ("name", "unit", "n", "mae", "rmse", "baseline_mae")
    model = {"test": {"targets": [{key: target[key] for key in keys} for target in measured]}, "seed": 3}
    (tmp_path / "run.json").write_text(json.dumps(model))
    words = ["--from", str(tmp_path / "out.json"), "--add-to", str(tmp_path / "run.json")]
    assert baseline.main(baseline.make_parser().parse_args(words)) == 0
    written = json.loads((tmp_path / "run.json").read_text())
    assert [row["composition_mae"] for row in written["test"]["targets"]] == [row["mae"] for row in measured]
    assert written["test"]["targets"][0]["composition_mae_interval"] == measured[0]["mae_interval"]
    assert written["composition_baseline"]["num_trees"] == 20
    assert written["seed"] == 3


def test_other_rows_or_targets_are_refused(baseline, capsys, tmp_path):
    row = {"name": "y", "unit": "eV", "n": 10, "mae": 1.0, "rmse": 1.0, "baseline_mae": 1.0}
    for change, message in (
        ({"n": 11}, "target 'y': the baseline has n 11, the model 10"),
        ({"unit": "meV"}, "target 'y': the baseline has unit meV, the model eV"),
        ({"name": "x"}, "target 'y': the baseline has x"),
    ):
        (tmp_path / "run.json").write_text(json.dumps({"targets": [row]}))
        (tmp_path / "out.json").write_text(json.dumps({"targets": [{**row, **change}]}))
        words = ["--from", str(tmp_path / "out.json"), "--add-to", str(tmp_path / "run.json")]
        assert baseline.main(baseline.make_parser().parse_args(words)) == 2
        assert message in capsys.readouterr().err
