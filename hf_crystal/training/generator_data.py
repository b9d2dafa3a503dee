"""Crystals as token rows on disk, and batches of them for the language model."""

import concurrent.futures
import contextlib
import functools
import json
import math
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.utils import logging

from hf_crystal.crystals.record import CHEMICAL_SYMBOLS, CRYSTAL_COLUMNS
from hf_crystal.data.tables import build_tables
from hf_crystal.mat2seq.canonicalize import CanonicalCrystal, CanonicalSettings, canonicalize
from hf_crystal.mat2seq.sequence_text import SEPARATOR

if TYPE_CHECKING:
    import datasets

    from hf_crystal.mat2seq.tokenization_mat2seq import Mat2SeqTokenizer
    from hf_crystal.training.generator_recipe import GeneratorDataArguments

logger = logging.get_logger(__name__)

IGNORED_LABEL = -100
SETTINGS_NAME = "tokens.json"
ROLES = ("train", "validation", "test")
ROWS_PER_BLOCK = 4096  # tokenized at a time


def tokenize_splits(
    data: "GeneratorDataArguments", tokenizer: "Mat2SeqTokenizer", folder: str | Path, seed: int
) -> "datasets.DatasetDict":
    """Token rows of all splits; read from `folder` if they lie there, otherwise made and written to it (Arrow).

    Crystals are read, tokenized and written in blocks, and the rows are memory-mapped: neither has to fit into memory.
    Columns: `material_id`, `input_ids` (begin and end included, no conditions), `answer_start` (place of the first
    token after the composition), `length`, and one float column per condition (NaN = unknown). A crystal without a
    sequence (an element outside the vocabulary, too many atoms) is left out and counted in the log.

    Args:
        data: Section of the recipe.
        tokenizer: The tokenizer; its settings are part of what the rows mean.
        folder: Folder of the Arrow files.
        seed: Chooses the rows where the recipe limits their number.

    Raises:
        ValueError: For missing splits or columns, and for rows that were made with other settings.
    """
    import datasets

    folder = Path(folder)
    described = _describe(data, tokenizer, seed)
    note = folder / SETTINGS_NAME
    if note.is_file():
        found = json.loads(note.read_text(encoding="utf-8"))
        if found["settings"] != described:
            differing = sorted(k for k in described if found["settings"].get(k) != described[k])
            raise ValueError(f"{folder} holds token rows made with other settings ({', '.join(differing)}): remove it")
        return datasets.load_from_disk(str(folder))
    rows = _read_rows(data, seed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        features = _features(rows["train"], data)
        tables = build_tables(Path(scratch, "tables"), _token_rows(rows, tokenizer, data), features)
        splits = datasets.DatasetDict({role: tables[role] for role in ROLES})
        splits.save_to_disk(str(folder))
    left_out = {role: len(rows[role]) - len(splits[role]) for role in ROLES}
    logger.info(f"{sum(map(len, splits.values()))} sequences, crystals left out: {left_out}")
    # written last: a folder without it is incomplete and made anew
    note.write_text(json.dumps({"settings": described, "left_out": left_out}, indent=2) + "\n", encoding="utf-8")
    return datasets.load_from_disk(str(folder))


def element_blocks(rows: "datasets.Dataset", tokenizer: "Mat2SeqTokenizer") -> Iterator[list[list[int]]]:
    """Atomic numbers in the compositions of token rows, each element of a crystal once; blocks of crystals."""
    numbers = {
        index: CHEMICAL_SYMBOLS.index(token)
        for token, index in tokenizer.get_vocab().items()
        if token in CHEMICAL_SYMBOLS[1:]
    }
    for block in rows.select_columns(["input_ids", "answer_start"]).iter(batch_size=ROWS_PER_BLOCK):
        compositions = (ids[:end] for ids, end in zip(block["input_ids"], block["answer_start"], strict=True))
        yield [[numbers[index] for index in ids if index in numbers] for ids in compositions]


def _describe(data: "GeneratorDataArguments", tokenizer: "Mat2SeqTokenizer", seed: int) -> dict[str, Any]:
    """What the token rows depend on, as JSON values without paths."""
    import dataclasses

    values = dataclasses.asdict(data)
    values["path"] = None if data.path is None else Path(data.path).name
    values.pop("num_workers")
    return {**values, "seed": seed, "tokenizer": dataclasses.asdict(tokenizer.settings), "vocab": len(tokenizer)}


def _read_rows(data: "GeneratorDataArguments", seed: int) -> dict[str, "datasets.Dataset"]:
    from hf_crystal.data import load_crystal_dataset

    if data.path is None:
        raise ValueError("data.path is not set: give the table of crystals (--data)")
    splits = load_crystal_dataset(data.path, split_column=data.split_column)
    chosen: dict[str, datasets.Dataset] = {}
    for role, name, limit in zip(
        ROLES,
        (data.train_split, data.validation_split, data.test_split),
        (data.max_train_rows, data.max_validation_rows, data.max_test_rows),
        strict=True,
    ):
        if name not in splits:
            raise ValueError(f"data.{role}_split={name!r}: the data has splits {', '.join(map(str, splits))}")
        rows = splits[name]
        missing = [column for column in data.conditions.values() if column not in rows.column_names]
        if missing:
            raise ValueError(
                f"data.conditions: no column {missing} in the data; it has {', '.join(rows.column_names)}"
            )
        if limit is not None and limit < len(rows):
            rows = rows.select(np.sort(np.random.default_rng(seed).permutation(len(rows))[:limit]))
        chosen[role] = rows
    return chosen


def _canonical(settings: CanonicalSettings, record: Mapping[str, Any]) -> CanonicalCrystal | str:
    try:
        return canonicalize(dict(record), settings=settings)
    except ValueError as error:
        return str(error)


def _features(rows: "datasets.Dataset", data: "GeneratorDataArguments") -> "datasets.Features":
    import datasets

    identifier = rows.features.get("material_id", datasets.Value("string"))
    counts = dict.fromkeys(("answer_start", "length"), datasets.Value("int64"))
    conditions = dict.fromkeys(data.conditions, datasets.Value("float64"))
    ids = datasets.List(datasets.Value("int64"))
    return datasets.Features({"material_id": identifier, "input_ids": ids, **counts, **conditions})


def _token_rows(
    splits: Mapping[str, "datasets.Dataset"], tokenizer: "Mat2SeqTokenizer", data: "GeneratorDataArguments"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Role and token row of each crystal that has a sequence, in order."""
    work = functools.partial(_canonical, tokenizer.settings)
    end_of_composition = tokenizer.convert_tokens_to_ids(SEPARATOR)
    with contextlib.ExitStack() as stack:
        run: Any = map
        if data.num_workers > 1:
            pool = stack.enter_context(concurrent.futures.ProcessPoolExecutor(data.num_workers))
            run = functools.partial(pool.map, chunksize=64)
        for role in ROLES:
            for index, row, crystal in _crystals(splits[role], work, run):
                name = row.get("material_id", str(index))
                try:
                    if isinstance(crystal, str):
                        raise ValueError(crystal)
                    ids = tokenizer.encode(tokenizer.to_text(crystal))
                except ValueError as error:
                    logger.warning_once(f"left out {name}: {error}")
                    continue
                labels = {condition: row[column] for condition, column in data.conditions.items()}
                yield (
                    role,
                    {
                        "material_id": name,
                        "input_ids": ids,
                        "answer_start": ids.index(end_of_composition) + 1,
                        "length": len(ids),
                        **{key: math.nan if value is None else float(value) for key, value in labels.items()},
                    },
                )


def _crystals(rows: "datasets.Dataset", work: Any, run: Any) -> Iterator[tuple[int, dict[str, Any], Any]]:
    """Index, row and canonical crystal (or the reason why there is none), a block at a time."""
    for start in range(0, len(rows), ROWS_PER_BLOCK):
        block = [dict(row) for row in rows.select(range(start, min(start + ROWS_PER_BLOCK, len(rows))))]
        records = [{column: row[column] for column in CRYSTAL_COLUMNS} for row in block]
        for place, (row, crystal) in enumerate(zip(block, run(work, records), strict=True)):
            yield start + place, row, crystal


class Mat2SeqCollator:
    """Token rows → padded batch with labels; conditions, their order and where the composition is learned are random.

    The begin token and the conditions carry no loss: they are given, never generated. The composition is given too
    when a user asks for one, so it carries loss only with `composition_loss_probability`; that keeps a share of
    the rows for learning which compositions exist, without which generation from nothing would not work.

    Args:
        tokenizer: The tokenizer.
        condition_probability: Chance of each known condition to be written in front.
        composition_loss_probability: Chance of a row that its composition is learned.
        given_condition_probability: `condition_probability` of the rows whose composition is given, where conditions
            say little; None for the same.
        seed: Seed of the draws of a row, which depend on it, the epoch and the row only: a resumed run draws the
            same, and so do processes that share a batch.
    """

    def __init__(
        self,
        tokenizer: "Mat2SeqTokenizer",
        condition_probability: float = 0.0,
        composition_loss_probability: float = 0.5,
        seed: int = 0,
        given_condition_probability: float | None = None,
    ):
        self.tokenizer = tokenizer
        self.condition_probability = condition_probability
        self.given_condition_probability = (
            condition_probability if given_condition_probability is None else given_condition_probability
        )
        self.composition_loss_probability = composition_loss_probability
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws of this epoch."""
        self.epoch = epoch

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`, `labels`, each (B, L); -100 carries no loss."""
        pairs = [self._example(row) for row in rows]
        longest = max(len(ids) for ids, _ in pairs)
        batch = {
            "input_ids": torch.full((len(rows), longest), int(self.tokenizer.pad_token_id)),
            "attention_mask": torch.zeros((len(rows), longest), dtype=torch.int64),
            "labels": torch.full((len(rows), longest), IGNORED_LABEL),
        }
        for place, (ids, given) in enumerate(pairs):
            row = torch.tensor(ids)
            batch["input_ids"][place, : len(ids)] = row
            batch["attention_mask"][place, : len(ids)] = 1
            batch["labels"][place, given : len(ids)] = row[given:]
        return batch

    def _example(self, row: Mapping[str, Any]) -> tuple[list[int], int]:
        """Ids with conditions, and the number of ids in front that carry no loss."""
        draw = f"{self.seed} {self.epoch} {row['material_id']}"
        generator = torch.Generator().manual_seed(zlib.crc32(draw.encode()))
        known = [bins.name for bins in self.tokenizer.property_bins if bins.name in row]
        # rows marked "fixed" (validation) look the same every time: no conditions, the composition is given
        draws = (
            [1.0] * (len(known) + 1) if row.get("fixed") else torch.rand(len(known) + 1, generator=generator).tolist()
        )
        learns_composition = draws[-1] < self.composition_loss_probability
        chance = self.condition_probability if learns_composition else self.given_condition_probability
        chosen = [name for name, draw in zip(known, draws, strict=False) if draw < chance]
        if len(chosen) > 1:
            chosen = [chosen[place] for place in torch.randperm(len(chosen), generator=generator).tolist()]
        words = [word for name in chosen for word in self.tokenizer.condition_tokens({name: row[name]})]
        conditions: Any = self.tokenizer.convert_tokens_to_ids(words)
        ids = [row["input_ids"][0], *conditions, *row["input_ids"][1:]]
        return ids, len(conditions) + (1 if learns_composition else row["answer_start"])
