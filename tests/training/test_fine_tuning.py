"""`hf-crystal train property --data my.csv --target Tc --unit K`: a table, no recipe, an error to rely on."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas
import pytest
from tiny_models import NACL, SRTIO3

import hf_crystal
from hf_crystal.cli.main import run
from hf_crystal.crystals.reading import record_to_structure
from hf_crystal.loading import load_property_pipeline
from hf_crystal.training.fine_tuning import FineTuning, epochs_for

BASE = "crystalformer-mp20"
pytest.importorskip("sklearn", reason="the baseline needs scikit-learn (extra metrics)")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> tuple[Path, Path]:
    """A CSV of 60 crystals of two formulas, whose label is the volume per atom, and the folder of the command."""
    folder = tmp_path_factory.mktemp("tuning")
    rows = []
    for index, scale in enumerate(np.linspace(0.9, 1.1, 60)):
        crystal = (NACL, SRTIO3)[index % 2]
        structure = record_to_structure({**crystal, "lattice": (np.array(crystal["lattice"]) * scale).tolist()})
        label = "" if index == 7 else structure.volume / len(structure)
        rows.append({"id": f"c{index}", "cif": structure.to(fmt="cif"), "part": index % 4 // 2, "V": label})
    pandas.DataFrame(rows).to_csv(folder / "my.csv", index=False)
    words = ["train", "property", "--from", BASE, "--data", str(folder / "my.csv"), "--target", "V"]
    words += ["--unit", "A^3", "--folds-column", "part", "--epochs", "30", "--output-dir", str(folder / "run")]
    assert run(words) == 0
    return folder, words


@pytest.mark.slow
def test_errors_are_of_crystals_not_seen_and_stand_beside_baselines(tuned):
    folder, _ = tuned
    record = json.loads((folder / "run/result.json").read_text())
    (target,) = record["test"]["targets"]
    assert (target["name"], target["unit"], target["n"]) == ("V", "A^3", 59)
    assert [(part["part"], part["n"]) for part in record["cross_validation"]] == [("0", 30), ("1", 29)]
    with (folder / "run/predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == [f"c{index}" for index in range(60) if index != 7]
    errors = [abs(float(row["predicted"]) - float(row["V"])) for row in rows]
    assert np.mean(errors) == pytest.approx(target["mae"])
    low, high = target["mae_interval"]
    assert low < target["mae"] < high
    assert target["mae"] < 0.7 * target["composition_mae"] < target["baseline_mae"]  # the formula cannot tell volumes
    low, high = target["gain_over_composition_interval"]
    assert 0 < low < target["composition_mae"] - target["mae"] < high
    for part in range(2):
        of_part = [error for error, row in zip(errors, rows, strict=True) if row["part"] == str(part)]
        assert np.mean(of_part) == pytest.approx(record["cross_validation"][part]["mae"])
        seen = json.loads((folder / f"run/fold-{part + 1}/run.json").read_text())["rows"]
        assert seen["test"] == len(of_part) and seen["train"] + seen["validation"] == 59 - len(of_part)


@pytest.mark.slow
def test_the_model_predicts_and_has_a_card(tuned, capfd):
    folder, _ = tuned
    model = folder / "run/all/model"
    crystals = hf_crystal.load(folder / "my.csv")
    truth = np.array([record.volume / len(record) for record in crystals])
    predicted = np.array([row["V"] for row in load_property_pipeline(model)(crystals)])
    assert np.abs(predicted - truth).mean() < 0.2 * np.abs(truth - truth.mean()).mean()
    card = (model / "README.md").read_text()
    assert f"base_model: hf_crystal/{BASE}\n" in card and "license: cc-by-4.0" in card
    assert "cross-validation in 2 parts" in card and "V (A^3)" in card
    assert "this model has seen all but 3, which watched the loss" in card and "test 3" not in card
    kcl = {**NACL, "atomic_numbers": [19, 17]}
    other = {**NACL, "atomic_numbers": [11, 8]}  # two elements of the table, together only where the encoder is from
    with pytest.warns(UserWarning, match="K: not in the training data"):
        warned = [row["warnings"] for row in load_property_pipeline(model)([NACL, kcl, other])]
    assert (warned[0], len(warned[1]), warned[2]) == ([], 1, [])
    assert run(["export", str(model), str(folder / "exported")]) == 0
    capfd.readouterr()
    assert run(["predict", str(folder / "my.csv"), "--model", str(model)]) == 0
    mae = json.loads((model / "metrics.json").read_text())["test"]["targets"][0]["mae"]
    assert f"mean absolute error when the model was tested: V {mae:.3g} A^3\n" in capfd.readouterr().err


@pytest.mark.slow
def test_the_same_call_resumes_and_another_is_refused(tuned, capfd):
    folder, words = tuned
    before = (folder / "run/fold-1/run.json").stat().st_mtime_ns
    assert run(words) == 0
    assert (folder / "run/fold-1/run.json").stat().st_mtime_ns == before
    parts = [part["mae"] for part in json.loads((folder / "run/result.json").read_text())["cross_validation"]]
    assert f"mean of the MAE of 2 parts: {np.mean(parts):.4g} A^3\n" in capfd.readouterr().out
    assert run([*words, "--epochs", "31"]) == 1
    assert "holds another fine-tuning; give another --output-dir" in capfd.readouterr().err
    place = words.index("--unit") + 1
    assert run([*words[:place], "m^3", *words[place + 1 :]]) == 1
    assert "holds another fine-tuning" in capfd.readouterr().err
    data = Path(words[words.index("--data") + 1])
    table = pandas.read_csv(data)
    reversed_rows = folder / "reversed.csv"
    table[::-1].to_csv(reversed_rows, index=False)
    assert run([*words[: words.index("--data") + 1], str(reversed_rows), *words[words.index("--data") + 2 :]]) == 1
    assert "holds another fine-tuning" in capfd.readouterr().err
    assert not list((folder / "run").glob("*.partial*"))


def test_equal_crystals_are_in_one_part(tmp_path):
    cells = [np.array(NACL["lattice"]) * (1 + step / 100) for step in range(12)]
    texts = [record_to_structure({**NACL, "lattice": cell.tolist()}).to(fmt="cif") for cell in cells]
    pandas.DataFrame({"cif": texts * 3, "V": range(36)}).to_csv(tmp_path / "thrice.csv", index=False)
    tuning = FineTuning(str(tmp_path / "thrice.csv"), "V", "K", tmp_path / "run", BASE, folds=4)
    _, parts = tuning._rows()
    assert parts[:12] == parts[12:24] == parts[24:]
    assert sorted(map(parts.count, "1234")) == [9] * 4
    with pytest.raises(ValueError, match="12 different crystals; 13 folds need as many"):
        dataclasses.replace(tuning, folds=13)._rows()


def test_more_rows_need_fewer_passes():
    assert [epochs_for(rows) for rows in (50, 200, 2000, 5000, 50_000)] == [100, 60, 30, 15, 10]


@pytest.mark.parametrize(("words", "message"), [
    (["--target", "V"], "--data, --unit: must be given, or a recipe with --config"),
    (["--data", "x.csv", "--target", "V", "--unit", "K", "--folds", "3", "--folds-column", "f"], "give one of"),
    (["--config", "x.yaml", "--folds", "3"], "--folds: for --data and --target without a recipe"),
    (["--config", "x.yaml", "--seed", "3"], "--seed: the recipe has this: training.seed, which --set changes"),
    (["--data", "{tmp}/few.csv", "--target", "V", "--unit", "K"], "has 3 crystals with a label V; 20 are needed"),
    (["--data", "{tmp}/few.csv", "--target", "Tc", "--unit", "K"], "label column 'Tc' is not in the data"),
])  # fmt: skip
def test_what_is_missing_is_named(tmp_path, capfd, words, message):
    text = record_to_structure(NACL).to(fmt="cif")
    pandas.DataFrame({"cif": [text] * 3, "V": [1.0, 2.0, 3.0]}).to_csv(tmp_path / "few.csv", index=False)
    given = [word.format(tmp=tmp_path) for word in words]
    assert run(["train", "property", "--output-dir", str(tmp_path / "run"), *given]) in (1, 2)
    assert message in capfd.readouterr().err
