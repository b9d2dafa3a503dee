"""Fine-tune a property model on a small table: cross-validation against a formula-only baseline, then all rows."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig
from transformers.utils import logging

from hf_crystal.crystals.elements import reduced_formula
from hf_crystal.data.columns import FILE_COLUMNS, composition_numbers, name_columns
from hf_crystal.evaluation.intervals import mean_interval
from hf_crystal.evaluation.regression import regression_metrics
from hf_crystal.evaluation.run_files import MODEL_FOLDER, RUN_NAME
from hf_crystal.loading import check_property_model, load_property_model
from hf_crystal.training.property_recipe import TrainingRecipe
from hf_crystal.training.property_run import train_property

__all__ = ["FineTuning", "epochs_for"]

logger = logging.get_logger(__name__)

# largest number of training rows, epochs: about 1,000 to 5,000 steps of 16 crystals up to 2,000 rows
_EPOCHS = ((100, 100), (500, 60), (2_000, 30), (10_000, 15))
_FEWEST_ROWS = 20
_TABLE = "rows.parquet"
_ALL_ROWS = "all"


def epochs_for(num_rows: int) -> int:
    """Passes over the training rows where none are asked for; fixed in advance, never chosen by a test error."""
    return next((epochs for most, epochs in _EPOCHS if num_rows <= most), 10)


@dataclass
class FineTuning:
    """What is fine-tuned on what, and how it is tested.

    Attributes:
        data: table of crystals, any form that `load_crystal_dataset` reads.
        target: name of the property; also the column of its labels unless `column` says otherwise.
        unit: unit of the labels and of the predictions.
        output_dir: folder of `fold-N/`, `all/` (a run each), `rows.parquet` and `result.json`.
        pretrained: embedded checkpoint, folder or repository to start from.
        column: column of the labels.
        folds: parts of the cross-validation, drawn by the seed.
        folds_column: column that names the part of each row, in place of drawn ones.
        epochs: passes over the training rows; by default as many as `epochs_for` has for their number.
        seed: of the parts and of each training.
    """

    data: str
    target: str
    unit: str
    output_dir: Path
    pretrained: str
    column: str | None = None
    folds: int = 5
    folds_column: str | None = None
    epochs: int | None = None
    seed: int = 123

    def run(self, say: Callable[[str], None]) -> dict[str, Any]:
        """Cross-validate, then train on all rows; parts that an earlier call finished are not trained again.

        Args:
            say: takes a line at the beginning and when something is finished.

        Returns:
            Record of the last training, as in its `run.json`, whose `test` has the errors of the cross-validation:
            each row predicted once, by a model that has not seen its part. `cross_validation` has them by part.

        Raises:
            ValueError: too few rows, a missing column, or another call's folder.
        """
        rows, parts = self._rows()
        names = sorted(set(parts), key=lambda part: (len(part), part))
        table = self._write_table(rows, parts, names)
        labels = np.asarray(rows[self._column], dtype=np.float64)
        numbers = composition_numbers(rows[:])
        predicted, of_formula, means = (np.full(len(labels), np.nan) for _ in range(3))
        shares = []
        training = len(rows) - len(rows) // len(names)
        epochs = self.epochs or epochs_for(training)
        say(
            f"from {self.pretrained}: {len(rows)} crystals, {len(names)} parts: {epochs} epochs without each (about "
            f"{training} crystals), then with all (one of twenty watches the loss); losses are in {self.output_dir}"
        )
        if importlib.util.find_spec("sklearn") is None:
            say("scikit-learn is not installed, so what the formula alone tells is not measured")
        for place, part in enumerate(names, 1):
            inside = np.asarray([other == part for other in parts])
            folder = self.output_dir / f"fold-{place}"
            self._train(table, f"part {part}", folder)
            predicted[inside] = self._predict(folder, rows.select(np.flatnonzero(inside)))
            of_formula[inside] = _formula_only(numbers, labels, inside, self.seed)
            means[inside] = labels[~inside].mean()
            error = np.abs(predicted - labels)[inside].mean()
            baseline = np.abs(of_formula - labels)[inside].mean()
            shares.append({"part": part, "n": int(inside.sum()), "mae": error, "composition_mae": baseline})
            say(
                f"part {part} ({place} of {len(names)}): MAE {error:.4g} {self.unit}, formula only "
                f"{_words(baseline)}; {inside.sum()} crystals"
            )
        record = self._train(table, _ALL_ROWS, self.output_dir / _ALL_ROWS)
        record["test"] = self._errors(predicted, of_formula, means, labels)
        watching = record["rows"].pop("test", 0)  # those of the validation part, not a test of their own
        record["cross_validation"] = [{k: _finite(v) for k, v in share.items()} for share in shares]
        record["notes"] = (
            f"Errors are those of a cross-validation in {len(names)} parts ({len(labels)} crystals, each predicted "
            "once by a model that has not seen its part); "
            f"this model has seen all but {watching}, which watched the loss."
        )
        text = json.dumps(record, indent=2, allow_nan=False) + "\n"
        for file in (self.output_dir / "result.json", self.output_dir / _ALL_ROWS / MODEL_FOLDER / "metrics.json"):
            file.write_text(text, encoding="utf-8")
        have = tuple(rows.column_names)
        named = [*name_columns(have), *(name for name in have if name.strip().lower() in FILE_COLUMNS)]
        ids = rows[named[0]] if named else list(map(str, range(len(rows))))
        formulas = [reduced_formula(own) for own in numbers]
        self._write_predictions(zip(ids, formulas, parts, labels, predicted, of_formula, strict=True))
        return record

    @property
    def model_folder(self) -> Path:
        """Where the model trained on all rows is."""
        return self.output_dir / _ALL_ROWS / MODEL_FOLDER

    @property
    def _column(self) -> str:
        return self.column or self.target

    def _rows(self) -> tuple[Any, list[str]]:
        """Labeled rows of all splits, and the part of each."""
        from datasets import concatenate_datasets

        from hf_crystal.data import load_crystal_dataset

        splits = load_crystal_dataset(self.data, label_names=[self._column], disorder="mix")
        rows: Any = concatenate_datasets(list(splits.values()))
        missing = [name for name in (self._column, self.folds_column) if name and name not in rows.column_names]
        if missing:
            raise ValueError(f"{self.data} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}")
        known = ~np.isnan(np.asarray(rows[self._column], dtype=np.float64))
        if not known.all():
            logger.warning(f"{(~known).sum()} rows have no label {self._column} and were left out")
        rows = rows.select(np.flatnonzero(known))
        if len(rows) < _FEWEST_ROWS:
            raise ValueError(
                f"{self.data} has {len(rows)} crystals with a label {self._column}; {_FEWEST_ROWS} are needed"
            )
        if self.folds_column is not None:
            parts = [f"{part:g}" if isinstance(part, float) else str(part) for part in rows[self.folds_column]]
            if not 1 < len(set(parts)) <= 50:
                raise ValueError(f"{self.folds_column} has {len(set(parts))} values; 2 to 50 parts are accepted")
        else:
            crystal = _crystal_of_each(rows)
            order = np.random.default_rng(self.seed).permutation(crystal.max() + 1)
            parts = [str(part) for part in (np.argsort(order) % self.folds + 1)[crystal]]
            if repeated := len(rows) - len(order):
                logger.warning(f"{repeated} rows repeat a crystal (formula and volume): equal ones are in one part")
            if len(order) < self.folds:
                raise ValueError(f"{self.data} has {len(order)} different crystals; {self.folds} folds need as many")
        return rows, parts

    def _write_table(self, rows: Any, parts: list[str], names: list[str]) -> Path:
        """Rows with one column of splits for each part and one for all; a few training rows watch the loss."""
        draw = np.random.default_rng(self.seed).random(len(rows))
        watched = np.where(draw <= np.sort(draw)[max(1, len(rows) // 20)], "val", "train")
        for part in names:
            inside = np.asarray([other == part for other in parts])
            split = np.where(inside, "test", watched)
            split[np.flatnonzero(~inside)[:2]] = "val"  # never none
            rows = rows.add_column(f"part {part}", split.tolist())
        rows = rows.add_column(_ALL_ROWS, watched.tolist())
        self.output_dir.mkdir(parents=True, exist_ok=True)
        path = self.output_dir / _TABLE
        fresh = path.with_suffix(".partial")
        rows.to_parquet(str(fresh))
        try:
            # models of other rows or labels must not be taken for those of these
            if path.is_file() and path.read_bytes() != fresh.read_bytes():
                raise self._other_folder()
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
        return path

    def _recipe(self, table: Path, split_column: str, num_rows: int) -> TrainingRecipe:
        config, _ = PreTrainedConfig.get_config_dict(check_property_model(self.pretrained))
        epochs = self.epochs or epochs_for(num_rows)
        target = {"name": self.target, "unit": self.unit, "column": self._column}
        return TrainingRecipe.from_dict(
            {
                "description": f"{self.target}, fine-tuned from {self.pretrained}",
                "model": {"model_type": config["model_type"], "pretrained": self.pretrained},
                "data": {
                    "path": str(table),
                    "split_column": split_column,
                    "test_split": "val" if split_column == _ALL_ROWS else "test",
                    "targets": [target],
                },
                "training": {
                    "batch_size": 16 if num_rows <= 2_000 else 64,
                    "num_train_epochs": epochs,
                    "swa_epochs": max(1, epochs * 3 // 10),
                    "optimizer": "muon",
                    "learning_rate": 1e-3,
                    "muon_learning_rate": 0.005,
                    "decay_steps": 400,
                    "seed": self.seed,
                    # losses are watched, nothing is chosen by them
                    "eval_steps": max(1, epochs * num_rows // (128 if num_rows <= 2_000 else 512)),
                    "drop_last_train_rows": False,
                    "disable_tqdm": not sys.stderr.isatty(),
                },
            }
        )

    def _train(self, table: Path, split_column: str, folder: Path) -> dict[str, Any]:
        """The record of a training, of an earlier call where that finished it."""
        import pyarrow.parquet

        splits = pyarrow.parquet.read_table(table, columns=[split_column])[split_column].to_pylist()
        recipe = self._recipe(table, split_column, splits.count("train"))
        if (folder / RUN_NAME).is_file():
            earlier = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
            wanted = recipe.to_dict()
            changed = [name for name in ("model", "training") if earlier["recipe"][name] != wanted[name]]
            if changed or earlier["recipe"]["data"]["targets"] != wanted["data"]["targets"]:
                raise self._other_folder()
            return dict(earlier)
        return train_property(recipe, folder, resume=(folder / "checkpoints").is_dir())

    def _other_folder(self) -> ValueError:
        return ValueError(f"{self.output_dir} holds another fine-tuning; give another --output-dir")

    def _predict(self, folder: Path, rows: Any) -> np.ndarray:
        from hf_crystal.data import CrystalCollator
        from hf_crystal.evaluation.property_report import predict_rows

        model, extractor = load_property_model(folder / MODEL_FOLDER)
        return predict_rows(model, rows, CrystalCollator(extractor, label_names=[self._column]))[0][:, 0]

    def _errors(self, predicted: np.ndarray, of_formula: np.ndarray, means: np.ndarray, labels: np.ndarray) -> Any:
        names: dict[str, Any] = {"target_names": [self.target], "target_units": [self.unit]}
        found = regression_metrics(predicted, labels, **names).to_dict()
        found["targets"][0]["median_error"] = float(np.median(np.abs(predicted - labels)))
        found["targets"][0]["baseline_mae"] = float(np.abs(means - labels).mean())
        if np.isfinite(of_formula).all():
            formula = regression_metrics(of_formula, labels, **names).to_dict()["targets"][0]
            found["targets"][0]["composition_mae"] = formula["mae"]
            found["targets"][0]["composition_mae_interval"] = formula["mae_interval"]
            # paired: both predict the same crystals
            gains = np.abs(of_formula - labels) - np.abs(predicted - labels)
            found["targets"][0]["gain_over_composition_interval"] = mean_interval(gains)
        return found

    def _write_predictions(self, rows: Iterator[tuple[Any, ...]]) -> None:
        import csv

        with (self.output_dir / "predictions.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("id", "formula", "part", self.target, "predicted", "formula_only"))
            writer.writerows(rows)


def _crystal_of_each(rows: Any) -> np.ndarray:
    """Number of the crystal of each row; those of equal formula and volume per atom are taken to be equal."""
    seen: dict[tuple[str, str], int] = {}
    volumes = [abs(np.linalg.det(np.reshape(lattice, (3, 3)))) for lattice in rows["lattice"]]
    numbers = composition_numbers(rows[:])
    kinds = [(reduced_formula(own), f"{volume / len(own):.3f}") for own, volume in zip(numbers, volumes, strict=True)]
    return np.array([seen.setdefault(kind, len(seen)) for kind in kinds])


def _formula_only(numbers: list[list[int]], labels: np.ndarray, inside: np.ndarray, seed: int) -> np.ndarray:
    """Predictions of the formula alone; NaN where scikit-learn is not installed."""
    from hf_crystal.evaluation.composition_baseline import forest_predictions

    train, test = ([numbers[place] for place in np.flatnonzero(chosen)] for chosen in (~inside, inside))
    try:
        return forest_predictions(train, labels[~inside], test, seed=seed)
    except ImportError:
        return np.full(int(inside.sum()), np.nan)


def _words(error: float) -> str:
    return f"{error:.4g}" if np.isfinite(error) else "not measured (pip install scikit-learn)"


def _finite(value: Any) -> Any:
    return (
        float(value)
        if isinstance(value, float) and np.isfinite(value)
        else None
        if isinstance(value, float)
        else value
    )
