# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""`CrystalFeatureExtractor`: crystals in any accepted form to padded tensors."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple, TypeGuard

import numpy as np
from transformers import BatchFeature
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.utils import logging

from ..crystals.occupancy import as_composition
from ..crystals.reading import CrystalLike, as_record
from ..crystals.record import CRYSTAL_COLUMNS, MAX_COORDINATE, SPECIES_COLUMN, CrystalInputError, CrystalRecord

logger = logging.get_logger(__name__)

__all__ = ["CrystalBatch", "CrystalError", "CrystalFeatureExtractor"]

# fields of a record that change what its columns mean, or have to agree with them
_MORE_FIELDS = frozenset(
    ("occupancies", SPECIES_COLUMN, "pbc", "positions", "cart_coords", "cartesian_coords", "symbols", "units", "unit")
)
MIXED = "disordered crystals are read with mixtures of elements on their sites, weighted by occupancy"
# pair differences that fit in memory at once: 2 million rows of 3 doubles are 48 MB
_MAX_BATCH_PAIRS = 2_000_000


class CrystalError(NamedTuple):
    """One crystal that was left out of a batch.

    Attributes:
        index (`int`): its place in the list that was given.
        name (`str`, *optional*): file name, id or formula, where one is known.
        reason (`str`): what is wrong with it.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    name: str | None
    reason: str


class CrystalBatch(BatchFeature):
    """`BatchFeature` that knows what was left out: `errors` and `kept` are attributes, not entries for the model.

    Attributes:
        errors (`list[CrystalError]`): crystals left out, with reasons.
        kept (`list[int]`): indices, in the list that was given, of the rows of the batch.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        tensor_type: str | None = None,
        errors: list[CrystalError] | None = None,
        kept: list[int] | None = None,
    ):
        super().__init__(data, tensor_type=tensor_type)
        self.errors = errors or []
        self.kept = kept or []

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data, "errors": self.errors, "kept": self.kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def is_many(structures: object) -> TypeGuard[Iterable[Any]]:
    """Whether the argument is a list of crystals rather than one."""
    if isinstance(structures, str | bytes | bytearray | Mapping | CrystalRecord):
        return False
    # Structure and Atoms are sequences too, of sites
    return isinstance(structures, list | tuple) or (
        isinstance(structures, Iterable) and not hasattr(structures, "lattice") and not hasattr(structures, "cell")
    )


class CrystalFeatureExtractor(FeatureExtractionMixin):
    r"""Turn crystals into the tensors that Crystalformer and CrystalFramer read.

    Accepts one crystal or a list of: pymatgen `Structure`, ASE `Atoms`, path to a CIF / POSCAR / extended XYZ / JSON
    file, the text of one, or a record dict. Atom order and coordinates stay as given; nothing is wrapped or sorted.
    Records, POSCAR, XYZ and JSON need numpy only. Disordered crystals give `occupancies` beside the other tensors.

    Args:
        max_atomic_number (`int`): largest atomic number accepted; must not exceed the model's `num_elements`.
        min_distance (`float`): Å; crystals with two atoms nearer than this, images included, are refused.
        min_volume_per_atom (`float`): Å³; smaller cells are refused as flat.
        max_atoms (`int`, *optional*): largest cell accepted.
        cell_choice (`"as_given"` or `"primitive"`): `"primitive"` replaces the cell by the standardized primitive one
            found by moyopy (fewer atoms, rotated; atom order changes).
        symprec (`float`): Å; tolerance of the search for the primitive cell.
        float_dtype (`"float32"` or `"float64"`): type of `positions` and `cell`. Not named `dtype`: `pipeline()` hands
            the model's `dtype="auto"` on to `from_pretrained` of the feature extractor.
        pad_to_multiple_of (`int`, *optional*): round the padded number of atoms up, for compiled models.
        kwargs: further attributes, as `FeatureExtractionMixin` stores them.

    Raises:
        ValueError: an option outside the accepted values.

    Example:
        >>> extractor = CrystalFeatureExtractor()
        >>> batch = extractor(["NaCl.cif", structure, record], on_error="skip")
        >>> batch["positions"].shape, batch.errors
    """

    model_input_names = ["atomic_numbers", "positions", "cell", "attention_mask"]

    def __init__(
        self,
        max_atomic_number: int = 118,
        min_distance: float = 0.1,
        min_volume_per_atom: float = 0.5,
        max_atoms: int | None = None,
        cell_choice: Literal["as_given", "primitive"] = "as_given",
        symprec: float = 0.01,
        float_dtype: Literal["float32", "float64"] = "float32",
        pad_to_multiple_of: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if cell_choice not in ("as_given", "primitive"):
            raise ValueError(f"cell_choice is {cell_choice!r}; accepted are 'as_given' and 'primitive'")
        if float_dtype not in ("float32", "float64"):
            raise ValueError(f"float_dtype is {float_dtype!r}; accepted are 'float32' and 'float64'")
        if not 1 <= max_atomic_number <= 118:
            raise ValueError(f"max_atomic_number is {max_atomic_number}; accepted are 1 to 118")
        if min_distance < 0 or min_volume_per_atom < 0:
            raise ValueError(
                f"min_distance is {min_distance}, min_volume_per_atom {min_volume_per_atom}; neither may be negative"
            )
        self.max_atomic_number = max_atomic_number
        self.min_distance = min_distance
        self.min_volume_per_atom = min_volume_per_atom
        self.max_atoms = max_atoms
        self.cell_choice = cell_choice
        self.symprec = symprec
        self.float_dtype = float_dtype
        self.pad_to_multiple_of = pad_to_multiple_of

    def read(self, structure: CrystalLike, *, index: int | None = None) -> CrystalRecord:
        """Read and check one crystal under this extractor's settings.

        Args:
            structure: any accepted form.
            index: place in the caller's list, for the error message.

        Returns:
            `CrystalRecord`; reduced to the primitive cell where `cell_choice` says so.

        Raises:
            CrystalInputError: with `reason`, `index` and `name`.
        """
        record = as_record(
            structure,
            index=index,
            max_atomic_number=self.max_atomic_number,
            min_distance=self.min_distance,
            min_volume_per_atom=self.min_volume_per_atom,
            max_atoms=self.max_atoms if self.cell_choice == "as_given" else None,
            disorder="mix",
            partly_periodic=True,
        )
        if not all(record.pbc):
            logger.warning_once(f"{record.name or record.formula} has pbc={record.pbc}: copies along these axes only.")
        if self.cell_choice == "as_given" or not all(record.pbc):
            return record
        primitive = _primitive(record, self.symprec, index)
        return as_record(primitive, index=index, max_atoms=self.max_atoms, disorder="mix")

    def extract(self, structure: CrystalLike) -> dict[str, np.ndarray]:
        """Arrays of one crystal without batch axis.

        Args:
            structure: any accepted form.

        Returns:
            dict with `atomic_numbers (N,)` int64, `positions (N, 3)` Å and `cell (3, 3)` Å in `float_dtype`, and
            `attention_mask (N,)` int64; of a disordered crystal `occupancies (N, 118)`, element Z in column Z - 1; of
            what does not repeat along all axes `pbc (3,)`.

        Raises:
            CrystalInputError: with `reason` and `name`.
        """
        return self._arrays(self.read(structure))

    def _arrays(self, record: CrystalRecord) -> dict[str, np.ndarray]:
        dtype = np.dtype(self.float_dtype)
        arrays = {
            "atomic_numbers": record.atomic_numbers,
            "positions": record.positions.astype(dtype),
            "cell": record.cell.astype(dtype),
            "attention_mask": np.ones(record.num_atoms, dtype=np.int64),
        }
        if record.occupancies is not None:
            arrays["occupancies"] = record.occupancies.astype(dtype)
        if not all(record.pbc):
            arrays["pbc"] = np.array(record.pbc)
        return arrays

    def extract_all(self, structures: Sequence[Any]) -> list[dict[str, Any]]:
        """`extract` for several crystals: plain-column records are read all at once, ten times faster.

        Args:
            structures: crystals in any accepted form.

        Returns:
            What `extract` gives for each, or `{"error": reason}` where a crystal cannot be read; and `warnings`, a
            list, where something about the reading is doubtful.
        """
        arrays = self._read_rows(list(structures)) if structures and self.cell_choice == "as_given" else None
        if arrays is None:
            return [self._extract_or_reason(structure) for structure in structures]
        counts, numbers, frac, cells = arrays
        dtype = np.dtype(self.float_dtype)
        positions = _cartesian(counts, frac, cells).astype(dtype)
        ends = np.cumsum(counts)[:-1]
        return [
            {
                "atomic_numbers": own_numbers,
                "positions": own_positions,
                "cell": cell,
                "attention_mask": np.ones(len(own_numbers), dtype=np.int64),
            }
            for own_numbers, own_positions, cell in zip(
                np.split(numbers, ends), np.split(positions, ends), cells.astype(dtype), strict=True
            )
        ]

    def _extract_or_reason(self, structure: Any) -> dict[str, Any]:
        try:
            record = self.read(structure)
        except CrystalInputError as error:
            return {"error": error.reason}
        warnings = {"warnings": list(record.warnings)} if record.warnings else {}
        return {**self._arrays(record), **warnings}

    def __call__(
        self,
        structures: CrystalLike | Iterable[CrystalLike],
        *,
        on_error: Literal["raise", "skip", "return"] = "raise",
        return_tensors: str | None = "pt",
        pad_to_multiple_of: int | None = None,
    ) -> Any:
        """Read crystals and pad them to one batch.

        Args:
            structures: one crystal or a list (any iterable) of crystals, forms mixed as you like.
            on_error: `"raise"` stops at the first bad crystal; `"skip"` leaves bad ones out of the batch and lists
                them in `batch.errors`; `"return"` does the same and gives `(batch, errors)`.
            return_tensors: `"pt"`, `"np"` or None (numpy).
            pad_to_multiple_of: overrides the setting of the same name.

        Returns:
            `CrystalBatch`, a `BatchFeature` of `atomic_numbers (B, N)` int64 (0 = padding), `positions (B, N, 3)` Å,
            `cell (B, 3, 3)` Å with lattice vectors in rows, `attention_mask (B, N)` int64; `occupancies (B, N, 118)`
            where a crystal is disordered, `pbc (B, 3)` where one repeats along some axes only. Attributes beside the
            tensors: `errors`, a list of `CrystalError(index, name, reason)`, and `kept`, the indices in the batch.

        Raises:
            CrystalInputError: with `on_error="raise"`, for the first bad crystal.
            ValueError: an empty list, or another value of `on_error`.
        """
        if on_error not in ("raise", "skip", "return"):
            raise ValueError(f"on_error is {on_error!r}; accepted are 'raise', 'skip' and 'return'")
        items: list[Any] = list(structures) if is_many(structures) else [structures]
        if not items:
            raise ValueError("no crystals given: the list is empty")
        arrays = self._read_rows(items) if self.cell_choice == "as_given" else None
        errors: list[CrystalError] = []
        kept = list(range(len(items)))
        mixed: list[np.ndarray | None] = []
        periodic: list[Any] = []
        if arrays is None:
            records, kept = [], []
            for index, item in enumerate(items):
                try:
                    records.append(self.read(item, index=index if len(items) > 1 else None))
                    kept.append(index)
                except CrystalInputError as error:
                    if on_error == "raise":
                        raise
                    errors.append(CrystalError(index, error.name, error.reason))
            arrays = _flatten(records)
            mixed, periodic = [record.occupancies for record in records], [record.pbc for record in records]
        batch = self._pad(*arrays, pad_to_multiple_of or self.pad_to_multiple_of, mixed)
        if not np.all(periodic):
            batch["pbc"] = np.array(periodic)
        features = CrystalBatch(batch, tensor_type=return_tensors, errors=errors, kept=kept)
        return (features, errors) if on_error == "return" else features

    def pad(self, items: Sequence[Mapping[str, Any]], *, return_tensors: str | None = "pt") -> BatchFeature:
        """Pad what `extract` gave for several crystals to one batch.

        Args:
            items: dicts with `atomic_numbers (N,)`, `positions (N, 3)`, `cell (3, 3)`, and `occupancies (N, 118)` of
                disordered ones.
            return_tensors: `"pt"`, `"np"` or None (numpy).

        Returns:
            `BatchFeature` as `__call__` gives it.
        """
        counts = np.array([len(item["atomic_numbers"]) for item in items], dtype=np.int64)
        numbers = np.concatenate([np.asarray(item["atomic_numbers"]) for item in items])
        positions = np.concatenate([np.asarray(item["positions"]) for item in items])
        cells = np.stack([np.asarray(item["cell"]) for item in items])
        mixed = [item.get("occupancies") for item in items]
        batch = self._scatter(counts, numbers, positions, cells, self.pad_to_multiple_of, mixed)
        if any("pbc" in item for item in items):
            batch["pbc"] = np.array([item.get("pbc", (True, True, True)) for item in items])
        return BatchFeature(batch, tensor_type=return_tensors)

    # ------------------------------------------------------------------------------------------------- internals

    def _read_rows(self, items: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
        """Read a list of plain-column records all at once: what a training loop feeds, thousands per second.

        Returns None where any item is something else or fails a check; the slow path then finds out which and why.
        """
        columns = set(CRYSTAL_COLUMNS)
        if not all(isinstance(item, Mapping) and item.keys() >= columns for item in items):
            return None
        if any(not _MORE_FIELDS.isdisjoint(item) and _has_more(item) for item in items):
            return None
        try:
            counts = np.array([len(item["atomic_numbers"]) for item in items], dtype=np.int64)
            numbers = np.array(list(chain.from_iterable(item["atomic_numbers"] for item in items)))
            places = [np.asarray(item["frac_coords"], dtype=np.float64) for item in items]
            frac = np.concatenate([each.reshape(-1) for each in places])
            cells = np.array([item["lattice"] for item in items], dtype=np.float64).reshape(len(items), 3, 3)
        except (TypeError, ValueError):
            return None
        if any(each.ndim != 1 and each.shape[1:] != (3,) for each in places):  # transposed, for instance
            return None
        lengths = np.array([each.size for each in places])
        if numbers.dtype.kind not in "iu" or not np.array_equal(lengths, 3 * counts) or not counts.all():
            return None
        frac = frac.reshape(-1, 3)
        return (counts, numbers, frac, cells) if self.accepts_rows(counts, numbers, frac, cells) else None

    def accepts_rows(self, counts: np.ndarray, numbers: np.ndarray, frac: np.ndarray, cells: np.ndarray) -> bool:
        """All checks of one batch of flat records at once.

        Args:
            counts (`np.ndarray` of shape `(B,)`): atoms of each crystal, none 0.
            numbers (`np.ndarray` of shape `(T,)`): atomic numbers of all atoms, crystal after crystal.
            frac (`np.ndarray` of shape `(T, 3)`): their fractional coordinates.
            cells (`np.ndarray` of shape `(B, 3, 3)`): lattice vectors in rows, Å.

        Returns:
            `bool`: True if every crystal is good; False means that some may not be: `read` each to find out.
        """
        if self.max_atoms is not None and counts.max() > self.max_atoms:
            return False
        # NaN fails these comparisons too
        if not (np.abs(frac).max() <= MAX_COORDINATE and np.abs(cells).max() <= MAX_COORDINATE):
            return False
        if numbers.min() < 1 or numbers.max() > self.max_atomic_number:
            return False
        volumes = np.abs(np.linalg.det(cells))
        edges = np.linalg.norm(cells, axis=2)
        if (volumes < self.min_volume_per_atom * counts).any() or (volumes <= 1e-9 * edges.prod(axis=1)).any():
            return False
        # an image nearer than min_distance is the one of smallest fractional difference where this holds
        reach = self.min_distance * np.linalg.norm(np.linalg.inv(cells), axis=1)
        most = int(counts.max())
        if (reach >= 0.5).any() or len(counts) * most * (most - 1) // 2 > _MAX_BATCH_PAIRS:
            return False
        padded = np.zeros((len(counts), most, 3))
        mask = np.arange(most) < counts[:, None]
        padded[mask] = frac
        first, second = np.triu_indices(most, k=1)
        difference = padded[:, second] - padded[:, first]  # (B, pairs, 3)
        difference -= np.round(difference)
        squared = ((difference @ cells) ** 2).sum(axis=2)
        return not ((squared < self.min_distance**2) & mask[:, second]).any()

    def _pad(
        self,
        counts: np.ndarray,
        numbers: np.ndarray,
        frac: np.ndarray,
        cells: np.ndarray,
        multiple: int | None,
        mixed: Sequence[np.ndarray | None] = (),
    ) -> dict[str, np.ndarray]:
        """Padded arrays from flat fractional ones; Cartesian coordinates are formed in float64."""
        return self._scatter(counts, numbers, _cartesian(counts, frac, cells), cells, multiple, mixed)

    def _scatter(
        self,
        counts: np.ndarray,
        numbers: np.ndarray,
        positions: np.ndarray,
        cells: np.ndarray,
        multiple: int | None,
        mixed: Sequence[np.ndarray | None] = (),
    ) -> dict[str, np.ndarray]:
        """Padded arrays from flat ones; `mixed` has the occupancies of each crystal, None of ordered ones."""
        size = int(counts.max()) if len(counts) else 0
        if multiple:
            size = -(-size // multiple) * multiple
        mask = np.arange(size) < counts[:, None]
        dtype = np.dtype(self.float_dtype)
        padded_numbers = np.zeros(mask.shape, dtype=np.int64)
        padded_positions = np.zeros((*mask.shape, 3), dtype=dtype)
        padded_numbers[mask] = numbers
        padded_positions[mask] = positions
        batch = {
            "atomic_numbers": padded_numbers,
            "positions": padded_positions,
            "cell": cells.astype(dtype),
            "attention_mask": mask.astype(np.int64),
        }
        if any(own is not None for own in mixed):
            logger.warning_once(MIXED)  # once, not for each of a table
            parts = np.split(numbers, np.cumsum(counts)[:-1])
            compositions = [as_composition(part, own) for part, own in zip(parts, mixed, strict=True)]
            batch["occupancies"] = np.zeros((*mask.shape, compositions[0].shape[1]), dtype=dtype)
            batch["occupancies"][mask] = np.concatenate(compositions)
        return batch


def _has_more(item: Mapping[str, Any]) -> bool:
    return any(item.get(name) is not None for name in _MORE_FIELDS)


def _cartesian(counts: np.ndarray, frac: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Positions of shape (T, 3), Å, from flat fractional coordinates."""
    return np.einsum("ni,nij->nj", frac, np.repeat(cells, counts, axis=0))


def _flatten(records: list[CrystalRecord]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts, flat atomic numbers, flat fractional coordinates and cells of a list of records (possibly empty)."""
    counts = np.array([record.num_atoms for record in records], dtype=np.int64)
    numbers = np.concatenate([record.atomic_numbers for record in records] or [np.zeros(0, dtype=np.int64)])
    frac = np.concatenate([record.frac_coords for record in records] or [np.zeros((0, 3))])
    cells = np.array([record.cell for record in records], dtype=np.float64).reshape(-1, 3, 3)
    return counts, numbers, frac, cells


def _primitive(record: CrystalRecord, symprec: float, index: int | None) -> CrystalRecord:
    """The standardized primitive cell of a crystal, found by moyopy.

    Raises:
        CrystalInputError: no cell was found at this tolerance.
        ImportError: moyopy is not installed.
    """
    try:
        import moyopy
    except ImportError as error:
        raise ImportError("cell_choice='primitive' needs moyopy: pip install moyopy") from error
    # moyopy compares numbers only: of a disordered crystal those of its different kinds of sites
    kinds, numbers = None, record.atomic_numbers
    if record.occupancies is not None:
        kinds, numbers = np.unique(np.round(record.occupancies, 6), axis=0, return_inverse=True)
        numbers = numbers + 1
    cell = moyopy.Cell(record.cell.tolist(), record.frac_coords.tolist(), numbers.tolist())
    try:
        found = moyopy.MoyoDataset(cell, symprec=symprec).prim_std_cell
    except (RuntimeError, ValueError) as error:
        raise CrystalInputError(
            f"no primitive cell found at symprec = {symprec} Å ({error}); change symprec or take the cell as given",
            index=index,
            name=record.name or record.formula,
        ) from error
    numbers = np.array(found.numbers, dtype=np.int64)
    places, basis = np.array(found.positions), np.array(found.basis)
    if kinds is None:
        return CrystalRecord(numbers, places, basis, record.name, record.warnings)
    mixed = kinds[numbers - 1]
    return CrystalRecord(mixed.argmax(axis=1) + 1, places, basis, record.name, record.warnings, mixed)
