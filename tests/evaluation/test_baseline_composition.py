"""The composition-only baseline sees Magpie features, trains on the recipe's rows, and lands beside the model's."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from hf_crystal.evaluation.composition_baseline import magpie_features

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


def test_magpie_features_are_statistics_of_element_properties():
    rutile, salt, heavy = magpie_features([[8, 8, 22], [11, 17], [112]]).reshape(3, 22, 6)
    # minimum, maximum, range, mean, mean deviation, mode
    np.testing.assert_allclose(rutile[0], [8, 22, 14, 38 / 3, 56 / 9, 8], rtol=1e-6)  # atomic number
    np.testing.assert_allclose(rutile[4], [4, 16, 12, 12, 16 / 3, 16], rtol=1e-6)  # group
    assert salt[0, 5] == 11  # of equally frequent elements the lowest value
    np.testing.assert_allclose(salt[7, :4], [0.93, 3.16, 2.23, 2.045], rtol=1e-6)  # electronegativity
    assert np.isfinite(heavy).all()  # its electronegativity is unknown
    np.testing.assert_array_equal(magpie_features([[22, 8, 8]]), magpie_features([[8, 22, 8] * 2]))


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
