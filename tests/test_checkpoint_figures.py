"""Each embedded checkpoint still has the errors and match rates that its metrics.json says."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from hf_crystal import load_crystal_dataset
from hf_crystal.checkpoints import checkpoint_folder, embedded_checkpoints, embedded_generators
from hf_crystal.crystals.record import CRYSTAL_COLUMNS
from hf_crystal.data import CrystalCollator
from hf_crystal.evaluation import match_rate, regression_metrics
from hf_crystal.evaluation.generator_report import prompts_of
from hf_crystal.evaluation.property_report import predict_rows
from hf_crystal.loading import load_generation_pipeline, load_property_model

pytestmark = pytest.mark.slow
ROWS, COMPOSITIONS = 300, 200


def metrics_of(name):
    return json.loads((checkpoint_folder(name) / "metrics.json").read_text(encoding="utf-8"))


def some(rows, count):
    """The same rows in every run, in the order of the table."""
    return rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[:count]))


def property_rows(data, folder, tmp_path):
    """Test rows of a recipe; the table of the Materials Project is made of a shared one."""
    path = folder / data["path"]
    if data["path"] == "training_table.parquet":
        import pandas as pd

        script = Path(__file__).resolve().parents[1] / "scripts" / "prepare_materials_project.py"
        specification = importlib.util.spec_from_file_location("prepare_materials_project", script)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        table = pd.read_parquet(folder / "materials_project.parquet")
        table = module.with_labels(table[table.split_megnet == "test"]).sample(4 * ROWS, random_state=0)
        path = tmp_path / "table.parquet"
        table[[*CRYSTAL_COLUMNS, *module.LABELS]].assign(split="test").to_parquet(path)
    if not path.is_file():
        pytest.skip(f"the data of this checkpoint, {data['path']}, is not in {folder}")
    rows = load_crystal_dataset(str(path), split_column=data["split_column"])[data["test_split"]]
    columns = [target["column"] for target in data["targets"]]
    known = ~np.isnan(np.array([rows[column] for column in columns], dtype=float)).all(axis=0)
    return some(rows.select(np.flatnonzero(known)), ROWS), columns


def disagreements(predictions, labels, recorded):
    """Targets whose MAE lies outside the recorded interval, as wide as it is for so many rows.

    The recorded interval is of all test rows; one of n rows is √(all/n) times as wide. Twice its half-width is four
    standard deviations: what fails is a fault, not the draw of the rows.
    """
    found = regression_metrics(predictions, labels, target_names=[row["name"] for row in recorded], num_bootstrap=0)
    return [
        f"{row['name']}: {target.mae:.4f} on {target.n} rows, recorded {row['mae']:.4f}"
        for target, row in zip(found.targets, recorded, strict=True)
        if abs(target.mae - row["mae"]) > np.diff(row["mae_interval"])[0] * np.sqrt(row["n"] / target.n)
    ]


@pytest.mark.parametrize("name", embedded_checkpoints())
def test_errors_are_the_recorded_ones(name, data_dir, tmp_path):
    metrics = metrics_of(name)
    rows, columns = property_rows(metrics["recipe"]["data"], data_dir, tmp_path)
    model, extractor = load_property_model(checkpoint_folder(name))
    predictions, labels = predict_rows(model, rows, CrystalCollator(extractor, label_names=columns))
    recorded = metrics["test"]["targets"]
    assert not disagreements(predictions, labels, recorded)
    for place, row in enumerate(recorded):  # and a fault would be seen: 0.3 of the unit added to one target
        shifted = predictions + 0.3 * (np.arange(len(recorded)) == place)
        assert [line.partition(":")[0] for line in disagreements(shifted, labels, recorded)] == [row["name"]]


@pytest.mark.parametrize("name", embedded_generators())
def test_match_rates_are_the_recorded_ones(name, data_dir):
    metrics = metrics_of(name)
    data = metrics["recipe"]["data"]
    path = data_dir / data["path"]
    if not path.is_file():
        pytest.skip(f"the data of this checkpoint, {data['path']}, is not in {data_dir}")
    rows = some(load_crystal_dataset(str(path), split_column=data["split_column"])[data["test_split"]], COMPOSITIONS)
    truths = [dict(row) for row in rows.select_columns(list(CRYSTAL_COLUMNS))]
    generate = load_generation_pipeline(name)
    crystals = [
        item[0] if item else None
        for item in generate.model.generate_crystals_for_prompts(
            generate.tokenizer, prompts_of(truths), temperature=0.0, on_error="return"
        )
    ]
    recorded = metrics["generation"]["greedy"]["match_1"]["match_rate"]
    found = match_rate(crystals, truths)
    # wide enough that only a fault fails, and recorded of so many crystals that its own interval is narrow beside it
    interval = binomtest(found.num_matched, found.num_items).proportion_ci(confidence_level=0.9999, method="wilson")
    assert interval.low <= recorded <= interval.high
