"""Training on energies, forces and stresses: energies of elements, batches, runs, and the script's figures."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from tiny_models import IRON, NACL, SRTIO3, save_tiny_model

from hf_crystal.loading import load_property_model
from hf_crystal.training.forces import (
    ForceCollator,
    ForceRecipe,
    fit_element_energies,
    force_rows,
    potential_from,
    predict_forces,
    train_forces,
    vectors_from,
)

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "train_forces.py"
ENERGIES = {11: -1.0, 17: -2.0, 38: -3.0, 22: -7.0, 8: -4.0, 26: -8.0}


def table_rows() -> list[dict]:
    """Shaken crystals with forces towards where the atoms were, and an energy that rises on the way."""
    rng, rows = np.random.default_rng(0), []
    for index in range(24):
        crystal = (NACL, SRTIO3, IRON)[index % 3]
        cell, numbers = np.array(crystal["lattice"]), crystal["atomic_numbers"]
        moves = 0.1 * rng.normal(size=(len(numbers), 3))
        energy = sum(ENERGIES[number] for number in numbers) + float((moves**2).sum())
        rows.append(
            {
                "lattice": cell.ravel().tolist(),
                "frac_coords": (np.array(crystal["frac_coords"]) + moves @ np.linalg.inv(cell)).ravel().tolist(),
                "atomic_numbers": numbers,
                "energy": energy,
                "forces": (-2 * moves).ravel().tolist(),
                "stress": (0.01 * rng.normal(size=9)).tolist(),
                "split": "train" if index < 18 else "test",
            }
        )
    return rows


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("forces") / "forces.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table_rows()), path)
    return path


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> dict[str, Path]:
    names = ("crystalformer", "crystalframer")
    return {name: save_tiny_model(tmp_path_factory.mktemp(name), name) for name in names}


def recipe_for(kind: str, table: Path, pretrained: dict[str, Path], **training) -> ForceRecipe:
    name = "crystalformer" if kind == "potential" else "crystalframer"
    settings = {
        "batch_size": 6,
        "optimizer": "muon",
        "muon_learning_rate": 0.05,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "learning_rate": 0.02,
        **training,
    }
    model = {"kind": kind, "pretrained": str(pretrained[name])}
    return ForceRecipe.from_dict({"model": model, "data": {"path": str(table)}, "training": settings})


def test_energies_of_elements_are_found_below_outliers():
    numbers = [row["atomic_numbers"] for row in table_rows()] + [[8], [22], [11]]
    energies = np.array([np.mean([ENERGIES[number] for number in own]) for own in numbers])
    energies[3] += 5.0
    found = fit_element_energies(numbers, energies)
    assert found == pytest.approx({"Na": -1, "Cl": -2, "Sr": -3, "Ti": -7, "O": -4, "Fe": -8}, abs=0.05)
    for wrong in ([], [0.0], [*energies[:-1], np.nan]):
        with pytest.raises(ValueError, match="one finite energy for each"):
            fit_element_energies(numbers, wrong)


def test_batches_hold_what_is_known_in_units_of_the_loss():
    first, second = table_rows()[:2]
    batch = ForceCollator()([{**first, "stress": None}, second])
    np.testing.assert_allclose(batch["labels"].ravel(), [first["energy"] / 2, second["energy"] / 5], rtol=1e-6)
    np.testing.assert_allclose(batch["forces"][0, :2].ravel(), first["forces"], rtol=1e-6)
    assert batch["forces"][0, 2:].isnan().all() and batch["stress"][0].isnan().all()
    np.testing.assert_allclose(batch["stress"][1].ravel(), second["stress"], rtol=1e-6)
    vectors = ForceCollator(kind="vectors")([first, second])
    assert torch.equal(vectors["labels"][1], batch["forces"][1]) and "forces" not in vectors
    with pytest.raises(ValueError, match="forces of row 1 are 3 numbers; expected 15"):
        ForceCollator()([first, {**second, "forces": [0.0] * 3}])


def test_a_potential_goes_on_with_a_property_and_vectors_with_an_encoder(pretrained):
    source, extractor = load_property_model(pretrained["crystalformer"])
    batch = extractor([NACL, IRON])
    model = potential_from(
        pretrained["crystalformer"], "formation_energy", element_energies={"Na": 1, "Cl": 3, "Fe": 0}
    )
    with torch.no_grad():
        torch.testing.assert_close(
            model.eval()(**batch).logits[:, 0], source(**batch).logits[:, 0] + torch.tensor([2.0, 0.0])
        )
    with pytest.raises(ValueError, match="is a crystalframer that predicts"):
        potential_from(pretrained["crystalframer"], "formation_energy")
    with pytest.raises(ValueError, match="'band_gap' in eV/atom is needed"):
        potential_from(pretrained["crystalformer"], "band_gap")
    framer, _ = load_property_model(pretrained["crystalframer"])
    states = vectors_from(pretrained["crystalframer"]).encoder.state_dict()
    assert all(torch.equal(value, states[name]) for name, value in framer.encoder.state_dict().items())
    with pytest.raises(ValueError, match="is a crystalformer; vectors need frames"):
        vectors_from(pretrained["crystalformer"])


@pytest.mark.parametrize("kind", ["potential", "vectors"])
def test_a_run_trains_and_its_folder_is_evaluated_by_the_script(kind, table, pretrained, tmp_path, monkeypatch):
    recipe = recipe_for(kind, table, pretrained, num_train_epochs=12)
    record = train_forces(recipe, tmp_path / "run")
    losses = [entry["loss"] for entry in record["training_curve"]]
    assert len(losses) == 36 and np.mean(losses[-6:]) < 0.8 * np.mean(losses[:3])
    assert json.loads((tmp_path / "run/run.json").read_text())["rows"] == 18
    assert ForceRecipe.load(tmp_path / "run/recipe.yaml").to_dict() == recipe.to_dict()
    with pytest.raises(FileExistsError, match="checkpoints of another run"):
        train_forces(recipe, tmp_path / "run")

    words = ["evaluate", "--data", str(table), "--output", str(tmp_path / "errors.json"), str(tmp_path / "run/model")]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    script = runpy.run_path(str(SCRIPT))
    assert script["main"](script["make_parser"]().parse_args(words)) == 0
    errors = json.loads((tmp_path / "errors.json").read_text())
    rows = force_rows(recipe.data, "test")
    nothing = np.abs(np.concatenate([np.array(row) for row in rows["forces"]])).mean()
    assert errors["no force"]["forces"]["mae"] == pytest.approx(nothing)
    predicted = predict_forces(script["load_model"](str(tmp_path / "run/model")), rows)
    mae = np.abs(
        np.concatenate([own["forces"].ravel() - row["forces"] for own, row in zip(predicted, rows, strict=True)])
    ).mean()
    assert errors[str(tmp_path / "run/model")]["forces"]["mae"] == pytest.approx(mae)
    if kind == "potential":
        words = [
            "relax",
            "--data",
            str(table),
            "--output",
            str(tmp_path / "relaxed.json"),
            str(tmp_path / "run/model"),
        ]
        words += ["--crystals", "2", "--steps", "2", "--max-force", "9", "--figure", str(tmp_path / "steps.png")]
        assert script["main"](script["make_parser"]().parse_args(words)) == 0
        relaxed = json.loads((tmp_path / "relaxed.json").read_text())
        assert relaxed["crystals"] == 2 and relaxed["back"] <= 2
        assert (tmp_path / "steps.png").stat().st_size > 1000
        for crystal in relaxed["results"]:
            assert 0.03 < crystal["rattled"] < 0.5
            assert crystal["trajectory"][-1][1] <= crystal["trajectory"][0][1]


def test_rows_that_are_too_large_or_too_hot_are_left_out(table, pretrained):
    data = recipe_for("potential", table, pretrained).data
    data.max_atoms, data.max_force = 2, 0.3
    rows = force_rows(data, "train", for_training=True)
    assert 0 < len(rows) < 12 and max(rows["num_atoms"]) == 2
    assert max(np.abs(row).max() for row in rows["forces"]) <= 0.3
    with pytest.raises(ValueError, match="split 'val': the data has splits"):
        force_rows(data, "val")
    data.max_atoms = 1
    with pytest.raises(ValueError, match="no row with max_atoms=1"):
        force_rows(data, "train", for_training=True)


def test_recipes_of_the_repository_are_read():
    for path in SCRIPT.parent.glob("recipes_forces/*.yaml"):
        assert ForceRecipe.load(path).model["kind"] in ("potential", "vectors")
    with pytest.raises(ValueError, match="model: unknown key 'pretrain'"):
        ForceRecipe.from_dict({"model": {"pretrain": "x"}, "data": {}, "training": {}})
