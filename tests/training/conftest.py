"""Recipes for the made-up crystals, and a Trainer on them."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from hf_crystal.training import load_recipe
from hf_crystal.training.property_run import prepare_property_task
from hf_crystal.training.trainer import CrystalTrainer


def _write_recipe(folder: Path, values: dict) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="session")
def recipe_file(crystal_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipe of a model that trains in a second: 4 epochs of 5 steps, the last one averaged."""
    values = {
        "description": "made-up crystals",
        "model": {
            "model_type": "crystalformer",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "num_radial_basis": 8,
            "head_hidden_size": 16,
            "cutoff_sigmas": 3.5,
        },
        "data": {
            "path": str(crystal_table),
            "targets": [{"name": "energy", "unit": "eV/atom"}, {"name": "gap", "unit": "eV"}],
        },
        "training": {
            "batch_size": 8,
            "num_train_epochs": 4,
            "swa_epochs": 1,
            "learning_rate": 2.0e-3,
            "decay_steps": 20,
            "per_device_eval_batch_size": 4,
            "logging_steps": 1,
            "seed": 7,
        },
    }
    return _write_recipe(tmp_path_factory.mktemp("recipe"), values)


@pytest.fixture(scope="session")
def generator_recipe(crystal_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipe of a generator: 2 epochs of 6 steps, the last one averaged."""
    values = {
        "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
        "data": {"path": str(crystal_table), "conditions": {"formation_energy": "energy", "band_gap": "gap"}},
        "training": {
            "batch_size": 8,
            "num_train_epochs": 2,
            "swa_epochs": 1,
            "optimizer": "muon",
            "warmup_steps": 2,
            "eval_steps": 4,
            "logging_steps": 1,
            "validity_samples": 2,
        },
    }
    return _write_recipe(tmp_path_factory.mktemp("generator"), values)


@pytest.fixture
def make_trainer(recipe_file: Path, tmp_path: Path):
    """Function building a CrystalTrainer from recipe overrides; returns it with its task."""

    def make(*overrides: str, folder: str = "run", max_hours: float | None = None, **kwargs):
        recipe = load_recipe(recipe_file, overrides)
        task = prepare_property_task(recipe)
        trainer = CrystalTrainer(
            model=task.model,
            args=dataclasses.replace(recipe.training, output_dir=str(tmp_path / folder), max_hours=max_hours),
            data_collator=task.collator,
            train_dataset=task.splits["train"],
            eval_dataset=task.splits["validation"],
            processing_class=task.feature_extractor,
            **kwargs,
        )
        return trainer, task

    return make
