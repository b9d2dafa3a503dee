"""Trainings on crystals with partly occupied sites, by a recipe and on a table; what their models record and say."""

import json

import pandas
import pytest
from pyarrow import parquet
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


def test_a_recipe_trains_on_mixtures_and_its_model_does_not_warn_of_them(table, recipe_file, tmp_path):
    words = ["train", "property", "--config", str(recipe_file), "--data", str(table), "--output-dir", str(tmp_path)]
    assert run([*words, "--set", "training.num_train_epochs=2"]) == 0
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["trained_disordered"] == config["trained_elements"]["Xe"] == 14
    assert json.loads((tmp_path / "run.json").read_text())["rows"]["train"] == 42
    (result,) = load_property_pipeline(tmp_path / "model")([ALLOY])
    assert result["disorder"] == "mix" and "mixtures" not in " ".join(result["warnings"])
    (result,) = load_property_pipeline(save_tiny_model(tmp_path / "ordered"))([ALLOY])
    assert "mixtures" in " ".join(result["warnings"])


@pytest.mark.slow
def test_a_table_is_fine_tuned_on_beside_the_formula(table, tmp_path):
    words = ["train", "property", "--from", str(save_tiny_model(tmp_path / "tiny")), "--data", str(table)]
    words += ["--target", "energy", "--unit", "eV", "--folds", "2", "--epochs", "1"]
    assert run([*words, "--output-dir", str(tmp_path / "run")]) == 0
    (target,) = json.loads((tmp_path / "run/result.json").read_text())["test"]["targets"]
    assert target["n"] == 66 and target["composition_mae"] > 0
    assert json.loads((tmp_path / "run/all/model/config.json").read_text())["trained_disordered"] > 14
