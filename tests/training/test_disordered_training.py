"""Trainings on crystals with partly occupied sites, by a recipe and on a table; what their models record and say."""

import json

import pandas
import pytest
from pyarrow import parquet
from script_runs import run as run_script
from tiny_models import NACL, save_tiny_model

from hf_crystal.cli.main import run
from hf_crystal.loading import load_property_pipeline

ALLOY = {"cell": NACL["lattice"], "frac_coords": NACL["frac_coords"], "species": [{"Li": 0.5, "Be": 0.3}, {"O": 1.0}]}


@pytest.fixture(scope="module")
def table(crystal_table, tmp_path_factory):
    """The made-up crystals; the first site of every third is half an element that no other crystal has."""
    rows = parquet.read_table(crystal_table).to_pylist()
    for place, row in enumerate(rows):
        numbers = row.pop("atomic_numbers")
        symbols = pandas.Series(numbers).map({3: "Li", 4: "Be"}).fillna("O").tolist()
        row["species"] = [json.dumps({symbol: 1.0}) for symbol in symbols]
        if place % 3 == 0:
            row["species"][0] = json.dumps({symbols[0]: 0.5, "Xe": 0.25})
    path = tmp_path_factory.mktemp("disordered") / "table.parquet"
    pandas.DataFrame(rows).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def trained(table, recipe_file, tmp_path_factory):
    """Folder of a run of a recipe on that table."""
    folder = tmp_path_factory.mktemp("run")
    words = ["train", "property", "--config", str(recipe_file), "--data", str(table), "--output-dir", str(folder)]
    assert run([*words, "--set", "training.num_train_epochs=2"]) == 0
    return folder


def test_a_model_trained_on_mixtures_says_so_and_does_not_warn_of_them(trained, tmp_path):
    config = json.loads((trained / "model/config.json").read_text())
    assert config["trained_disordered"] == config["trained_elements"]["Xe"] == 14
    assert json.loads((trained / "run.json").read_text())["rows"]["train"] == 42
    (result,) = load_property_pipeline(trained / "model")([ALLOY])
    assert result["disorder"] == "mix" and "mixtures" not in " ".join(result["warnings"])
    (result,) = load_property_pipeline(save_tiny_model(tmp_path / "ordered"))([ALLOY])
    assert "mixtures" in " ".join(result["warnings"])


@pytest.mark.slow
def test_runs_are_measured_beside_the_formula(trained, table, tmp_path):
    pytest.importorskip("sklearn", reason="the baseline needs scikit-learn (extra metrics)")
    run_script("evaluate_disordered.py", "measure", trained, trained, "--data", table, "--output", tmp_path / "x.json")
    found = json.loads((tmp_path / "x.json").read_text())
    (energy, _) = json.loads((trained / "run.json").read_text())["test"]["targets"]
    assert found["model"]["mae_of_seeds"] == pytest.approx([energy["mae"]] * 2, rel=1e-5)
    assert found["mean_predictor_mae"] == pytest.approx(energy["baseline_mae"], rel=1e-6)
    best, gain = found[found["best_forest"]]["mae"], found["model_less_best"]
    assert best == min(found["magpie"]["mae"], found["fractions"]["mae"])
    assert gain["mae"] == pytest.approx(found["model"]["mae"] - best)
    assert gain["interval"][0] < gain["mae"] < gain["interval"][1]
    lines = run_script("evaluate_disordered.py", "table", tmp_path / "x.json").splitlines()
    assert len(lines) == 3 and f"| 13 | {found['model']['mae']:.2f} (" in lines[2]


@pytest.mark.slow
def test_best_orderings_take_the_place_of_disordered_crystals(table, tmp_path):
    run_script("evaluate_disordered.py", "prepare", "--orderings", table, tmp_path / "ordered.parquet")
    before, after = (parquet.read_table(path).to_pylist() for path in (table, tmp_path / "ordered.parquet"))
    assert [row["energy"] for row in after] == [row["energy"] for row in before]
    for place, (row, ordered) in enumerate(zip(before, after, strict=True)):
        sites, numbers = row["species"], ordered["atomic_numbers"]
        if place % 3:
            assert "species" not in ordered and len(numbers) == len(sites)
        else:  # a quarter of one site is xenon, and another quarter empty
            assert len(numbers) == 4 * numbers.count(54) * (len(sites) - 0.25) > 0


@pytest.mark.slow
def test_a_table_is_fine_tuned_on_beside_the_formula(table, tmp_path):
    words = ["train", "property", "--from", str(save_tiny_model(tmp_path / "tiny")), "--data", str(table)]
    words += ["--target", "energy", "--unit", "eV", "--folds", "2", "--epochs", "1"]
    assert run([*words, "--output-dir", str(tmp_path / "run")]) == 0
    (target,) = json.loads((tmp_path / "run/result.json").read_text())["test"]["targets"]
    assert target["n"] == 66 and target["composition_mae"] > 0
    assert json.loads((tmp_path / "run/all/model/config.json").read_text())["trained_disordered"] > 14
