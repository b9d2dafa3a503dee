"""Predictions of many crystals in numbered files, so that a run that was killed goes on where it stopped.

The crystals of all sources are counted from 0; shard s of n has those whose number leaves remainder s. Its folder

    DIR/shard-00003-of-00008/
        _settings.json          what was asked for; another run with other settings is refused; locked while one writes
        part-000000.parquet     results of its first `rows_per_file` crystals, in order
        part-000001.parquet     ...
        _failed-000001.jsonl    which crystals of that file could not be read, and why; only where there are any
        _SUCCESS                how many crystals, files, and crystals without values; written last

grows file by file. A file appears under its name only when it is complete, and which crystals it holds depends on its
number alone: whatever is killed when, no crystal is lost and none comes twice. Readers of tables (`pyarrow`, `pandas`,
Spark) take `DIR` as one table and pass over the names that start with `_`.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import __version__
from .._partial import partial_path
from .progress import track
from .sources import count_crystals, read_crystals
from .writers import FileFormat, Writer, announce_written, open_writer

if TYPE_CHECKING:
    from ..pipelines.pipeline_crystal_property import CrystalPropertyPipeline
    from ..typing import PropertyModel

OnError = Literal["report", "skip", "raise"]
Unseen = Literal["warn", "refuse"]
Disorder = Literal["mix", "orderings", "refuse"]
Finish = Callable[[dict[str, Any]], dict[str, Any]] | None


def columns_of(
    model: "PropertyModel", stability: bool = False, disorder: Disorder = "mix"
) -> tuple[list[str], dict[str, str]]:
    """Names of the output fields, and the Arrow types of those that are not text."""
    targets = model.config.target_names
    spreads = [f"{name}_spread" for name in targets] if disorder == "orderings" else []
    errors = ("standard_error", "low", "high") if model.config.has_errors else ()
    values = [column for name in targets for column in (name, *(f"{name}_{field}" for field in ("unit", *errors)))]
    values += [*spreads, *(["ordering_formula"] if spreads else [])]
    distances = ["e_above_hull", *(f"e_above_hull_{field}" for field in ("unit", *errors))]
    types = {
        "num_atoms": "int64",
        **dict.fromkeys((*targets, *spreads, "e_above_hull", "metal_probability"), "double"),
    }
    types |= {f"{name}_{field}": "double" for name in (*targets, "e_above_hull") for field in errors}
    types["is_metal"] = "bool"
    values += ["metal_probability", "is_metal"] if errors and model.config.gap_index is not None else []
    if stability:
        values += [*distances, "decomposes_to"]
    return ["source", "formula", "num_atoms", *values, "disorder", "model", "model_digest", "warnings", "error"], types


def predict_rows(
    pipe: "CrystalPropertyPipeline",
    model: Mapping[str, str],
    crystals: Iterable[tuple[str, Any]],
    finish: Finish = None,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """One row per crystal, in order.

    Args:
        pipe: a `CrystalPropertyPipeline`.
        model: what it was loaded by, and its digest: `model` and `model_digest`.
        crystals: names and crystals.
        finish: adds fields to each result.
        **options: `batch_size`, `max_batch_atoms`, `num_workers`, `unseen` and `disorder` of the pipeline.

    Yields:
        `source` (the name), what the pipeline gives, and the fields of `model`.
    """
    names: deque[str] = deque()

    def remember() -> Iterator[Any]:
        """Crystals, their names kept for the results."""
        for name, crystal in crystals:
            names.append(name)  # results come back in this order
            yield crystal

    for result in pipe(remember(), **options):
        yield {"source": names.popleft(), **(finish(result) if finish else result), **model}


_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


class Words:
    """Texts about crystals: how often each came, and of which crystal first."""

    _SHOWN = 8
    _KEPT = 1000

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, str, int]] = {}  # crystal, text, count
        self._rest = 0

    def add(self, source: str, text: str) -> None:
        """Count one; texts that differ in numbers only are one."""
        key = _NUMBER.sub("0", text)
        if key in self._found or len(self._found) < self._KEPT:
            source, text, count = self._found.get(key, (source, text, 0))
            self._found[key] = source, text, count + 1
        else:
            self._rest += 1

    @property
    def lines(self) -> list[str]:
        """The most frequent ones."""
        ranked = sorted(self._found.values(), key=lambda found: -found[2])
        lines = []
        for source, text, count in ranked[: self._SHOWN]:
            lines.append(f"{source}{f' and {count - 1} more' * (count > 1)}: {text}")
        rest = self._rest + sum(count for *_, count in ranked[self._SHOWN :])
        return [*lines, *[f"{rest} others"] * bool(rest)]


class Tally:
    """Writes rows and counts those that could not be read.

    Attributes:
        on_error: what becomes of an unreadable crystal: a row with its reason, no row, or the end.
        read (`int`): crystals seen.
        failed (`int`): crystals that could not be read.
        doubtful (`int`): crystals whose result has warnings.
        reasons, doubts (`Words`): why, each with the first crystal.
    """

    def __init__(self, on_error: OnError):
        self.on_error = on_error
        self.read = 0
        self.failed = 0
        self.doubtful = 0
        self.reasons, self.doubts = Words(), Words()

    def write(self, rows: Iterable[dict[str, Any]], writer: Writer) -> None:
        """Write rows until they end.

        Raises:
            ValueError: a crystal could not be read and `on_error` is `"raise"`.
        """
        for row in rows:
            self.read += 1
            if "error" in row:
                self.failed += 1
                self.reasons.add(row["source"], row["error"])
                if self.on_error == "raise":
                    raise ValueError(f"{row['source']}: {row['error']}")
                if self.on_error == "skip":
                    continue
            if row.get("warnings"):
                self.doubtful += 1
                self.doubts.add(row["source"], "; ".join(row["warnings"]))
            writer.write(row)


@dataclass(frozen=True)
class Shard:
    """One shard of the crystals of some sources, and the folder of its results.

    Attributes:
        sources: what `find_sources` returned; standard input cannot be read again and is refused.
        output_dir: folder of all shards.
        num_shards, shard_index: which of how many.
        rows_per_file: crystals per file of results.
        output: format of the files.
    """

    sources: Sequence[str]
    output_dir: Path
    num_shards: int = 1
    shard_index: int = 0
    rows_per_file: int = 10_000
    output: FileFormat = "parquet"

    @property
    def folder(self) -> Path:
        """Where the results of this shard are."""
        return self.output_dir / f"shard-{self.shard_index:05d}-of-{self.num_shards:05d}"

    @property
    def is_complete(self) -> bool:
        """Whether all results are there."""
        return (self.folder / "_SUCCESS").is_file()

    def check_values(self) -> None:
        """Look whether a complete shard has values.

        Raises:
            ValueError: none of its crystals could be read, in whichever call.
        """
        counts = json.loads((self.folder / "_SUCCESS").read_text(encoding="utf-8"))
        if counts["crystals"] and counts.get("failed") == counts["crystals"]:
            raise ValueError(f"no crystal could be read: see {self.folder}/_failed-*.jsonl")

    def part(self, number: int) -> Path:
        """File number `number` of the results."""
        return self.folder / f"part-{number:06d}.{self.output}"

    def count(self) -> int:
        """Crystals of this shard."""
        return len(range(self.shard_index, count_crystals(self.sources), self.num_shards))

    def begin(
        self,
        model: str,
        on_error: OnError,
        stability: str | None = None,
        unseen: Unseen = "warn",
        disorder: Disorder = "mix",
    ) -> None:
        """Make the folder, or check that an earlier run was told the same.

        Raises:
            ValueError: standard input among the sources, another number of shards in the folder, or another run's
                settings differ.
        """
        if "-" in self.sources:
            raise ValueError("standard input (-) cannot be read a second time; --output-dir takes files")
        parts = f"-of-{self.num_shards:05d}"
        found = (path.parent.name for path in self.output_dir.glob("shard-*-of-*/_settings.json"))
        if other := next((name for name in found if not name.endswith(parts)), None):
            raise ValueError(
                f"{self.output_dir} holds {other}, and --num-shards {self.num_shards} would add the same crystals "
                f"again: repeat --num-shards {int(other.rpartition('-')[2])}, or give another --output-dir"
            )
        from ..loading import model_digest

        settings = {
            "model": model,
            "output": self.output,
            "on_error": on_error,
            "rows_per_file": self.rows_per_file,
            "sources": _digest(self.sources),
            "stability": stability,
            "files of the model": model_digest(model),
            "unseen": unseen,
            "disorder": disorder,
            "version of hf_crystal": __version__,
        }
        file = self.folder / "_settings.json"
        if file.is_file():
            earlier = json.loads(file.read_text(encoding="utf-8"))
            for name in ("files of the model", "version of hf_crystal"):  # older folders lack them
                earlier.setdefault(name, settings[name])
            changed = [name for name in settings if earlier.get(name) != settings[name]]
            if (name := "version of hf_crystal") in changed:
                changed[changed.index(name)] = f"{name} ({earlier[name]}, this is {settings[name]})"
            if changed:
                raise ValueError(
                    f"{self.folder} was begun with other {' and '.join(changed)}: repeat that call, give another "
                    "--output-dir, or delete the folder"
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_json(file, settings)

    def predict(self, pipe: "CrystalPropertyPipeline", tally: Tally, finish: Finish = None, **options: Any) -> None:
        """Write the files that are missing, then the mark of success; `begin` comes before.

        Args:
            pipe: a `CrystalPropertyPipeline`.
            tally: decides about unreadable crystals and counts those of this run.
            finish: adds the fields of stability to each result.
            **options: `batch_size`, `max_batch_atoms`, `num_workers`, `unseen` and `disorder` of the pipeline.

        Raises:
            ValueError: the sources hold fewer crystals than were counted at the start.
        """
        with self._alone():
            self._predict(pipe, tally, finish, **options)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes of this machine from the folder; a lock ends with its process."""
        with (self.folder / "_settings.json").open("r+") as file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.folder} is being written by another process: wait, or stop it") from None
            except (ImportError, OSError):  # Windows, or a file system without locks
                pass
            yield

    def _is_whole(self, number: int, total: int, on_error: OnError) -> bool:
        """Whether a file is there with all its rows; of those that may lack some, whether it can be read."""
        rows = _rows_in(self.part(number))
        wanted = min(self.rows_per_file, total - number * self.rows_per_file)
        return rows is not None and (rows == wanted or (on_error == "skip" and rows < wanted))

    def _predict(self, pipe: "CrystalPropertyPipeline", tally: Tally, finish: Finish, **options: Any) -> None:
        settings = json.loads((self.folder / "_settings.json").read_text(encoding="utf-8"))
        total, number = self.count(), 0
        while self._is_whole(number, total, settings["on_error"]):
            number += 1
        done = min(number * self.rows_per_file, total)
        first = self.shard_index + done * self.num_shards
        crystals = islice(read_crystals(self.sources), first, None, self.num_shards)
        failed: list[str] = []  # of one file
        model = {"model": settings["model"], "model_digest": settings.get("files of the model")}

        def watched() -> Iterator[dict[str, Any]]:
            for row in predict_rows(pipe, model, crystals, finish, **options):
                if "error" in row:
                    failed.append(json.dumps({name: row[name] for name in ("source", "error")}) + "\n")
                yield row

        rows = track(watched(), total, "crystal", done)
        columns, types = columns_of(pipe.model, finish is not None, options.get("disorder", "mix"))
        while done < total:
            expected = min(self.rows_per_file, total - done)
            before = tally.read
            with open_writer(self.output, self.part(number), columns, types, announce=False) as writer:
                tally.write(islice(rows, expected), writer)
                if tally.read - before != expected:
                    raise ValueError(f"the sources changed while they were read: {total} crystals were counted")
                if failed:  # before the file has its name: a file that is there is not made again
                    _write_atomically(self.folder / f"_failed-{number:06d}.jsonl", "".join(failed))
                    failed.clear()
            done += expected
            number += 1
        lost = sum(len(file.read_bytes().splitlines()) for file in self.folder.glob("_failed-*.jsonl"))
        _write_json(self.folder / "_SUCCESS", {"crystals": total, "files": number, "failed": lost})
        without = f", {lost} without values: see _failed-*.jsonl" if lost else ""
        announce_written(f"{self.folder} ({total} crystals, {number} file{'s' * (number != 1)}{without})")


def _rows_in(file: Path) -> int | None:
    """Rows of a file of results; None where there is none, or it has no end."""
    if not file.is_file():
        return None
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet

            return int(pyarrow.parquet.read_metadata(file).num_rows)
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            return len(json.loads(text))
        if text and not text.endswith("\n"):
            return None
        if file.suffix == ".csv":
            return sum(1 for _ in csv.reader(io.StringIO(text), strict=True)) - 1
        return text.count("\n")
    except (ValueError, csv.Error, OSError):  # pyarrow's errors are both
        return None


def _digest(sources: Sequence[str]) -> str:
    """Changes where a file is added, taken away, or changes its size."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(os.fsencode(f"{source}|{os.path.getsize(source)}\n"))
    return digest.hexdigest()[:16]


def _write_json(file: Path, content: dict[str, Any]) -> None:
    _write_atomically(file, json.dumps(content, indent=2) + "\n")


def _write_atomically(file: Path, text: str) -> None:
    partial = partial_path(file)
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)
