"""Vectors of crystals and atoms from the encoders, and the nearest crystals of a table.

```python
from hf_crystal import embed
from hf_crystal.embeddings import EmbeddingTable

vectors = embed(["a.cif", structure])                        # (2, C)
of_atoms = embed(structure, level="atom")                    # (N, C)
table = EmbeddingTable(names, vectors)
table.nearest(embed("query.cif"), k=5)                       # names and distances
```
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from .crystals.elements import reduced_formula
from .crystals.record import CrystalInputError
from .typing import CrystalLike, Device, PropertyModelLike

if TYPE_CHECKING:
    from .encoders.feature_extraction_crystal import CrystalFeatureExtractor

__all__ = ["EmbeddedCrystal", "EmbeddingTable", "Neighbor", "embed", "iterate_embeddings"]

Level = Literal["crystal", "atom"]
Metric = Literal["euclidean", "cosine"]
_BATCHES_PER_CHUNK = 16  # crystals are sorted by size within so many batches, which saves padding
_ENTRIES_PER_BLOCK = 20_000_000  # distances held at a time


@dataclass(frozen=True)
class EmbeddedCrystal:
    """One crystal's vectors.

    Attributes:
        formula: reduced formula; empty after an error.
        embedding: `(C,)` for level "crystal", `(N, C)` for level "atom"; None after an error.
        error: why the crystal could not be read, or None.
    """

    formula: str
    embedding: np.ndarray | None
    error: str | None = None


def embed(
    structures: CrystalLike | Iterable[CrystalLike],
    model: PropertyModelLike | None = None,
    *,
    level: Level = "crystal",
    batch_size: int = 16,
    device: Device | None = None,
) -> Any:
    """Vectors of crystals, or of their atoms, from the last block of an encoder.

    The vector of a crystal is the mean of those of its atoms: the input of the property head. Neither depends on
    rotation, origin, cell or order of the atoms.

    Args:
        structures: one crystal or a list, in any form that `CrystalFeatureExtractor` takes.
        model: see `hf_crystal.loading.load_property_model`.
        level: "crystal" or "atom".
        batch_size: crystals per forward pass at most.
        device: torch device.

    Returns:
        float32 arrays. Level "crystal": `(C,)` for one crystal, `(B, C)` for a list. Level "atom": `(N, C)`, or a
        list of them, atoms in the order given.

    Raises:
        CrystalInputError: a crystal cannot be read; use `iterate_embeddings` to skip it.
        ValueError: an empty list, an unknown level, a batch size below 1.
    """
    from .encoders.feature_extraction_crystal import is_many

    items: list[Any] = list(structures) if is_many(structures) else [structures]
    if not items:
        raise ValueError("no crystals given: the list is empty")
    results: list[Any] = []
    found = iterate_embeddings(items, model, level=level, batch_size=batch_size, device=device)
    for index, result in enumerate(found):
        if result.error is not None:
            raise CrystalInputError(result.error, index=index if len(items) > 1 else None)
        results.append(result.embedding)
    if not is_many(structures):
        return results[0]
    return np.stack(results) if level == "crystal" else results


def iterate_embeddings(
    structures: Iterable[Any],
    model: PropertyModelLike | None = None,
    *,
    level: Level = "crystal",
    batch_size: int = 16,
    feature_extractor: "CrystalFeatureExtractor | None" = None,
    device: Device | None = None,
) -> Iterator[EmbeddedCrystal]:
    """Embed a stream of crystals; one that cannot be read gives its reason and the others are embedded.

    Args:
        structures: crystals in any accepted form; read as they are needed.
        model, level, batch_size, device: as in `embed`.
        feature_extractor: replaces the model's own.

    Yields:
        `EmbeddedCrystal`, in order.

    Raises:
        ValueError: an unknown level, a batch size below 1.
    """
    if level not in ("crystal", "atom") or batch_size < 1:
        raise ValueError(
            f"level is {level!r}, batch_size {batch_size}; accepted: 'crystal' or 'atom', a positive number"
        )
    from .loading import load_property_model

    loaded, extractor = load_property_model(model, feature_extractor, device)
    stream = iter(structures)
    while chunk := list(itertools.islice(stream, batch_size * _BATCHES_PER_CHUNK)):
        items: list[Any] = []
        for structure in chunk:
            try:
                items.append(extractor.extract(structure))
            except CrystalInputError as error:
                items.append(error.reason)
        yield from _embed_chunk(loaded, extractor, items, level, batch_size)


def _embed_chunk(
    model: Any, extractor: Any, items: list[Any], level: Level, batch_size: int
) -> Iterator[EmbeddedCrystal]:
    """Vectors of what was read (dicts of arrays; a text is the reason of a failure), in order."""
    import torch

    readable = [index for index, item in enumerate(items) if not isinstance(item, str)]
    readable.sort(key=lambda index: -len(items[index]["atomic_numbers"]))
    found: dict[int, EmbeddedCrystal] = {}
    for start in range(0, len(readable), batch_size):
        indices = readable[start : start + batch_size]
        batch = extractor.pad([items[index] for index in indices]).to(model.device)
        with torch.no_grad():
            output = model.encoder(**batch)
        for row, index in enumerate(indices):
            numbers = items[index]["atomic_numbers"]
            vectors = (
                output.pooler_output[row] if level == "crystal" else output.last_hidden_state[row][: len(numbers)]
            )
            found[index] = EmbeddedCrystal(reduced_formula(numbers.tolist()), vectors.float().cpu().numpy().copy())
    for index, item in enumerate(items):
        yield EmbeddedCrystal("", None, item) if isinstance(item, str) else found[index]


@dataclass(frozen=True)
class Neighbor:
    """One entry of a table, as near to a query.

    Attributes:
        index: row in the table.
        name: name in the table.
        distance: Euclidean, or 1 - cosine.
    """

    index: int
    name: str
    distance: float


class EmbeddingTable:
    """Vectors of many crystals and the search among them: exact, by comparing with all of them.

    Args:
        names: one per crystal.
        embeddings: array `(rows, C)`.
        model: name of the model whose vectors these are, if it is known.

    Raises:
        ValueError: lengths or shape do not fit.
    """

    def __init__(self, names: Sequence[str], embeddings: ArrayLike, model: str | None = None):
        self.names = [str(name) for name in names]
        self.model = model
        self.embeddings = np.asarray(embeddings, dtype=np.float32)
        if self.embeddings.ndim != 2 or len(self.embeddings) != len(self.names) or not len(self.names):
            raise ValueError(
                f"{len(self.names)} names and embeddings of shape {self.embeddings.shape}; expected one row per name"
            )

    def __len__(self) -> int:
        return len(self.names)

    def save(self, path: str | Path) -> None:
        """Write a parquet file with the columns `source` and `embedding` (a list of float32)."""
        import pyarrow
        import pyarrow.parquet

        width = self.embeddings.shape[1]
        vectors = pyarrow.FixedSizeListArray.from_arrays(self.embeddings.reshape(-1), width)
        table = pyarrow.table({"source": self.names, "embedding": vectors})
        if self.model is not None:
            table = table.replace_schema_metadata({"model": self.model})
        pyarrow.parquet.write_table(table, path, compression="zstd")

    @classmethod
    def load(cls, path: str | Path) -> "EmbeddingTable":
        """Read a parquet file that `save` or `hf-crystal embed` wrote; rows without a vector are left out.

        Raises:
            ValueError: no such file, not a parquet file, or without the columns `source` and `embedding` of one width.
        """
        import pyarrow
        import pyarrow.parquet

        if not Path(path).exists():
            raise ValueError(f"no such table of embeddings: {path}")
        try:
            table = pyarrow.parquet.read_table(path)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path} is not a parquet file: {error}") from error
        if not {"source", "embedding"} <= set(table.column_names):
            raise ValueError(f"{path} has columns {table.column_names[:12]}; needed are source and embedding")
        table = table.filter(table["embedding"].is_valid())
        vectors = table["embedding"].combine_chunks()
        lengths = {len(row) for row in vectors}
        if len(lengths) != 1 or not pyarrow.types.is_floating(vectors.type.value_type):
            raise ValueError(f"{path}: the embeddings are not vectors of one length; level 'atom' cannot be searched")
        flat = vectors.flatten().to_numpy(zero_copy_only=False)
        model = (table.schema.metadata or {}).get(b"model")
        return cls(table["source"].to_pylist(), flat.reshape(len(table), lengths.pop()), model and model.decode())

    def nearest(self, queries: ArrayLike, k: int = 5, *, metric: Metric = "euclidean") -> Any:
        """The `k` nearest entries, nearest first; equal distances in the order of the table.

        Args:
            queries: vector `(C,)`, or array `(Q, C)`.
            k: how many; fewer if the table is smaller.
            metric: "euclidean", or "cosine" (1 - cosine of the angle).

        Returns:
            `list[Neighbor]` for one vector, else a list of such lists.

        Raises:
            ValueError: another width than the table's, an unknown metric, `k` below 1.
        """
        given = np.asarray(queries, dtype=np.float32)
        rows = np.atleast_2d(given)
        if rows.ndim != 2 or rows.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"queries have shape {given.shape}; the table has vectors of {self.embeddings.shape[1]}, so it is of "
                "another model"
            )
        if k < 1 or metric not in ("euclidean", "cosine"):
            raise ValueError(f"k is {k}, metric {metric!r}; accepted: at least 1, 'euclidean' or 'cosine'")
        step = max(1, _ENTRIES_PER_BLOCK // len(self))
        found = [
            neighbors
            for start in range(0, len(rows), step)
            for neighbors in self._nearest_block(rows[start : start + step], min(k, len(self)), metric)
        ]
        return found if given.ndim == 2 else found[0]

    def _nearest_block(self, queries: np.ndarray, k: int, metric: Metric) -> list[list[Neighbor]]:
        table = self.embeddings
        if metric == "cosine":
            queries, table = _unit(queries), _unit(table)
            distances = 1.0 - queries @ table.T
        else:
            # the expansion of the square loses digits near zero: it only finds candidates
            distances = (queries**2).sum(1)[:, None] - 2.0 * queries @ table.T + (table**2).sum(1)
        spare = min(k + 16, len(table))
        candidates = np.argpartition(distances, spare - 1, axis=1)[:, :spare]
        found = []
        for query, rows in zip(queries, candidates, strict=True):
            rows = np.sort(rows)
            difference = np.linalg.norm(table[rows].astype(np.float64) - query, axis=1)
            exact = difference if metric == "euclidean" else 0.5 * difference**2
            order = np.argsort(exact, kind="stable")[:k]
            found.append([Neighbor(int(rows[i]), self.names[rows[i]], float(exact[i])) for i in order])
        return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
