"""A small table of made-up crystals, a recipe for it, and a Trainer on them."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from hf_crystal.training import load_recipe
from hf_crystal.training.property_run import prepare_property_task, training_arguments
from hf_crystal.training.trainer import CrystalTrainer

SPLIT_SIZES = {"train": 42, "val": 11, "test": 13}


def crystal_rows(split: str, count: int, generator: np.random.Generator) -> list[dict]:
    """Cells of 1 to 4 well-separated atoms with two learnable labels, the second unknown for a third."""
    rows = []
    for index in range(count):
        num_atoms = int(generator.integers(1, 5))
        edges = generator.uniform(4.0, 6.0, 3)
        lattice = np.diag(edges) + generator.uniform(-0.3, 0.3, (3, 3))
        corners = np.array([[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])[:num_atoms]
        numbers = generator.integers(3, 30, num_atoms)
        density = num_atoms / np.prod(edges)
        rows.append(
            {
                "material_id": f"{split}-{index}",
                "split": split,
                "lattice": lattice.reshape(-1).tolist(),
                "frac_coords": (corners + generator.uniform(-0.02, 0.02, corners.shape)).reshape(-1).tolist(),
                "atomic_numbers": numbers.tolist(),
                "energy": float(numbers.mean() / 10 + 40 * density),
                "gap": None if index % 3 == 1 else float(numbers.max() / 5),
            }
        )
    return rows


@pytest.fixture(scope="session")
def crystal_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parquet file with the columns of the real data sets."""
    import pyarrow
    from pyarrow import parquet

    generator = np.random.default_rng(0)
    rows = [row for split, count in SPLIT_SIZES.items() for row in crystal_rows(split, count, generator)]
    path = tmp_path_factory.mktemp("table") / "crystals.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


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
            "num_epochs": 4,
            "swa_epochs": 1,
            "learning_rate": 2.0e-3,
            "decay_steps": 20,
            "eval_batch_size": 4,
            "log_steps": 1,
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
            "num_epochs": 2,
            "swa_epochs": 1,
            "optimizer": "muon",
            "warmup_steps": 2,
            "eval_steps": 4,
            "log_steps": 1,
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
            args=training_arguments(recipe, tmp_path / folder, max_hours=max_hours),
            data_collator=task.collator,
            train_dataset=task.splits["train"],
            eval_dataset=task.splits["validation"],
            processing_class=task.feature_extractor,
            **kwargs,
        )
        return trainer, task

    return make
