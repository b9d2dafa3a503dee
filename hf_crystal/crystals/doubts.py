# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""What is doubtful about input that is none the less accepted, and when a checkpoint is refused; needs numpy only.

Doubtful are a geometry that is hardly meant, and elements that the model was not trained on. A checkpoint is refused
where its settings are of a later version. Its weights are read by name, but what its settings mean may change between
versions of this package. Such a change adds a function `update_v{n}_v{n+1}(values) -> values` to the list beside the
class, and with it the version.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from .record import CHEMICAL_SYMBOLS, COVALENT_RADII, close_pair

__all__ = ["ANIONS", "TrainingDomain", "far_coordinates", "geometry_warnings", "training_domain", "update_checkpoint"]

_FAR = 1.5  # of a fractional coordinate from the middle of the cell
_NEAREST = 0.5  # of the sum of covalent radii
ANIONS = (7, 8, 9, 16, 17, 34, 35, 52, 53)
# of the expected volume; of 30,574 crystals of the Materials Project 0.03 % have less and 1.9 % more, of which four
# fifths have more than four times as much: relaxations that failed
_SMALLEST_VOLUME, _LARGEST_VOLUME = 0.5, 1.9
_THINNEST = 10.0  # of the expected volume: beyond, lengths in a wrong unit are likelier than vacuum
_LEAST_VOLUME = 3.0  # Å³ per atom, expected
_UNKNOWN_VOLUME = 25.0  # Å³ per atom of an element that no known crystal has
_VACUUM = 8.0  # Å without atoms between lattice planes; of 30,000 crystals of the Materials Project 2.3 % have more
_MOST_ATOMS = 64  # of crystals whose pairs are looked at together
_IMAGES = np.array(list(itertools.product((-1, 0, 1), repeat=3)), dtype=np.float64)
_BLOCK = 256  # atoms whose neighbors are looked for together
_MOST_PAIRS = 5  # of elements, named in one warning
Update = Callable[[dict[str, Any]], dict[str, Any]]
# Å³ per atom, index = atomic number to Pu, 0 = not known: in a crystal without anions, and what is added per share of
# anions; scripts/fit_element_volumes.py makes it
_VOLUMES = np.array([
    [
        0.0, 9.8, 16.1, 15.1, 8.1, 6.1, 7.0, -7.5, -5.9, 0.5, 18.3, 30.0, 22.7, 15.9, 14.3, 14.9, 14.7, 18.7, 38.3,
        51.2, 34.3, 21.5, 16.2, 12.9, 11.2, 11.5, 11.0, 9.6, 9.4, 11.4, 14.7, 16.3, 16.9, 19.0, 24.6, 29.5, 48.0,
        63.1, 45.5, 29.8, 22.2, 17.8, 15.1, 13.6, 12.3, 12.3, 14.0, 17.4, 21.7, 23.9, 25.2, 27.1, 42.0, 53.0, 66.0,
        66.3, 54.9, 37.0, 31.6, 35.1, 34.2, 32.7, 32.2, 37.1, 30.3, 29.5, 28.8, 28.1, 27.5, 26.8, 26.4, 25.7, 20.8,
        17.6, 15.6, 14.5, 13.2, 13.4, 14.9, 17.3, 22.6, 26.8, 30.3, 32.0, 0.0, 0.0, 0.0, 0.0, 0.0, 44.7, 33.0, 25.6,
        24.5, 24.2, 26.8,
    ],
    [
        0.0, 5.9, 2.5, -4.3, 3.6, 20.6, 40.0, 26.4, 20.3, 14.1, 0.0, -14.1, -14.8, 0.5, 20.0, 19.6, 11.4, 15.4, 0.0,
        -25.3, -17.1, -3.5, 3.9, 12.5, 11.3, 11.3, 12.0, 9.5, 8.6, 8.9, 8.2, 7.5, 11.0, 20.6, 4.9, 10.7, -10.3,
        -33.6, -28.5, -6.2, 1.6, 10.7, 25.6, 9.1, 9.6, 5.9, 8.7, 13.6, 5.9, 5.5, 7.5, 7.1, -11.4, -7.5, -17.5,
        -22.9, -29.1, -14.4, -7.9, -11.7, -11.8, -3.9, -10.6, -17.6, -10.3, -8.2, -8.7, -8.6, -8.0, -6.5, -10.7,
        -6.5, 1.8, 8.0, 20.7, 14.7, 10.6, 6.3, 8.7, 17.5, 17.6, 16.6, 3.7, 2.7, 0.0, 0.0, 0.0, 0.0, 0.0, -21.7,
        -6.9, -2.0, 9.2, 1.7, -0.4,
    ],
])  # fmt: skip
_VOLUMES = np.pad(_VOLUMES, ((0, 0), (0, len(CHEMICAL_SYMBOLS) - _VOLUMES.shape[1])))


def far_coordinates(frac: np.ndarray) -> list[str]:
    """A warning where fractional coordinates `(n, 3)` of a text may be meant as Cartesian ones, in a list."""
    farthest = float(np.abs(frac - 0.5).max(initial=0.0))
    if not farthest > _FAR:
        return []
    return [f"fractional coordinates reach {np.abs(frac).max():.4g}; Cartesian ones in their place would be misread"]


def geometry_warnings(
    numbers: np.ndarray,
    positions: np.ndarray,
    cells: np.ndarray,
    radius: float | None = None,
    totals: np.ndarray | None = None,
    pbc: np.ndarray | None = None,
) -> list[list[str]]:
    """What is implausible about the geometry of each crystal of a batch.

    Args:
        numbers (`np.ndarray` of shape `(B, N)`): atomic numbers, 0 = padding at the end.
        positions (`np.ndarray` of shape `(B, N, 3)`): Å.
        cells (`np.ndarray` of shape `(B, 3, 3)`): lattice vectors in rows, Å, not singular.
        radius: Å; an atom without neighbor or image of its own within it is named. None: not looked for.
        totals (`np.ndarray` of shape `(B, N)`, *optional*): occupancies of the sites; partly occupied ones may be
            close, as they exclude each other.
        pbc (`np.ndarray` of shape `(B, 3)`, *optional*): periodic axes; without all three there is no volume.

    Returns:
        Per crystal its warnings, mostly none.
    """
    cells = cells.astype(np.float64)
    inverses = np.linalg.inv(cells)
    frac = positions.astype(np.float64) @ inverses
    counts = np.count_nonzero(numbers, axis=1)
    radii = _NEAREST * COVALENT_RADII[numbers]
    if totals is not None:
        radii[totals < 1 - 1e-3] = 0.0
    found: list[list[str]] = [[] for _ in counts]
    volumes = np.abs(np.linalg.det(cells)) / (counts if totals is None else totals.sum(axis=1))
    ratios = volumes / expected_volumes(numbers)
    odd = (ratios < _SMALLEST_VOLUME) | (ratios > _LARGEST_VOLUME)
    heights = 1 / np.linalg.norm(inverses, axis=1)  # between the lattice planes of each pair of edges
    wide = (heights.max(axis=1) > _VACUUM) & (ratios <= _THINNEST)
    if pbc is not None:
        odd, wide = odd & pbc.all(axis=1), wide & pbc.all(axis=1)
    for row in np.flatnonzero(wide):
        places = np.sort(frac[row, : counts[row]] % 1.0, axis=0)
        gaps = np.diff(places, axis=0, append=places[:1] + 1).max(axis=0) * heights[row]
        if gaps.max() > _VACUUM:
            odd[row] = False
            found[row].append(
                f"{gaps.max():.1f} Å without atoms along {'abc'[int(gaps.argmax())]}: a sheet or molecule with "
                "vacuum, read as a bulk crystal; pbc tells which axes repeat"
            )
    for row in np.flatnonzero(odd):
        found[row].append(
            f"volume per atom is {volumes[row]:.3g} Å³, {ratios[row]:.2g} times what crystals of these elements have "
            f"({_SMALLEST_VOLUME:g} to {_LARGEST_VOLUME:g} is usual): far from equilibrium, or lengths not in Å"
        )
    for row in np.flatnonzero(_may_collide(radii, frac, cells, inverses)):
        pair = close_pair(frac[row, : counts[row]], cells[row], radii[row, : counts[row]])
        if pair is not None:
            first, second, distance = pair
            symbols = [CHEMICAL_SYMBOLS[numbers[row, site]] for site in (first, second)]
            bond = (radii[row, first] + radii[row, second]) / _NEAREST
            found[row].append(
                f"{symbols[0]} (atom {first}) and {symbols[1]} (atom {second}) are {distance:.2f} Å apart, less than "
                f"{_NEAREST:g} of the sum of their covalent radii ({bond:.2f} Å)"
            )
    if radius is not None:
        # an atom is a neighbor of its own image along an edge that is short enough
        for row in np.flatnonzero(np.linalg.norm(cells, axis=2).min(axis=1) > radius):
            lone = _lone_atoms(frac[row, : counts[row]], cells[row], radius)
            if lone:
                more = f" and {len(lone) - 1} more atoms" if len(lone) > 1 else ""
                symbol = CHEMICAL_SYMBOLS[numbers[row, lone[0]]]
                found[row].append(
                    f"{symbol} (atom {lone[0]}){more}: no neighbor within {radius:.1f} Å, as far as the model looks"
                )
    return found


def expected_volumes(numbers: np.ndarray) -> np.ndarray:
    """Volume per atom that crystals of these elements have, Å³, shape `(B,)`; `numbers` `(B, N)`, 0 = padding."""
    counts = np.count_nonzero(numbers, axis=1)
    share = np.isin(numbers, ANIONS).sum(axis=1) / counts
    bare, more = _VOLUMES[:, numbers]
    own = np.where(bare == 0, _UNKNOWN_VOLUME, bare + more * share[:, None])
    return np.asarray(own.sum(axis=1, where=numbers > 0) / counts).clip(_LEAST_VOLUME)


def _may_collide(radii: np.ndarray, frac: np.ndarray, cells: np.ndarray, inverses: np.ndarray) -> np.ndarray:
    """Which crystals to look at one by one, shape `(B,)`: those with close atoms, and the large and skewed ones."""
    suspect = np.ones(len(cells), dtype=bool)
    if radii.shape[1] > _MOST_ATOMS:
        return suspect
    largest = 2 * radii.max(axis=1)
    # an image nearer than this differs by less than the reach along each lattice direction
    reach = (largest[:, None] * np.linalg.norm(inverses, axis=1)).max(axis=1)
    first, second = np.triu_indices(radii.shape[1], 1)
    for rows, images in (
        (np.flatnonzero(reach < 0.5), _IMAGES[13:14]),
        (np.flatnonzero((reach >= 0.5) & (reach < 1.5)), _IMAGES),
    ):
        if not len(rows):
            continue
        difference = frac[rows][:, second] - frac[rows][:, first]
        difference -= np.rint(difference)
        difference = difference @ cells[rows]
        shifts = images @ cells[rows]  # (R, images, 3)
        squares = (shifts**2).sum(axis=2)
        # |d + s|² of all images at once
        nearest = (2 * difference @ shifts.transpose(0, 2, 1) + squares[:, None]).min(axis=2)
        nearest += (difference**2).sum(axis=2)
        limits = radii[rows][:, first] + radii[rows][:, second]
        close = ((nearest < limits**2) & (radii[rows][:, second] > 0)).any(axis=1)
        if len(images) > 1:
            close |= np.delete(squares, len(images) // 2, axis=1).min(axis=1) < largest[rows] ** 2
        suspect[rows] = close
    return suspect


def _lone_atoms(frac: np.ndarray, cell: np.ndarray, radius: float) -> list[int]:
    """Atoms without any atom, images included, within `radius` (Å)."""
    places = np.arange(len(frac))
    lone: list[int] = []
    for start in range(0, len(frac), _BLOCK):
        block = places[start : start + _BLOCK]
        difference = frac[None] - frac[block, None]
        difference -= np.rint(difference)
        near = ((difference @ cell) ** 2).sum(axis=2) <= radius**2
        near[np.arange(len(block)), block] = False
        lone += block[~near.any(axis=1)].tolist()
    # few are left, for which the nearest image may be another than the rounded one
    extent = np.floor(radius * np.linalg.norm(np.linalg.inv(cell), axis=0) + 0.5).astype(int).tolist()
    images = np.array(list(itertools.product(*(range(-n, n + 1) for n in extent))))

    def is_lone(atom: int) -> bool:
        difference = frac - frac[atom]
        difference -= np.rint(difference)
        squared = (((difference[:, None] + images) @ cell) ** 2).sum(axis=2)
        squared[atom, len(images) // 2] = np.inf  # itself
        return bool(squared.min() > radius**2)

    return [atom for atom in lone if is_lone(atom)]


def _presence(crystals: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """Which elements each crystal has, bool, shape `(B, 119)`; 0 is padding."""
    counts = [len(numbers) for numbers in crystals]
    present = np.zeros((len(counts), len(CHEMICAL_SYMBOLS)), dtype=bool)
    if counts:
        present[np.repeat(np.arange(len(counts)), counts), np.concatenate([np.asarray(item) for item in crystals])] = 1
    present[:, 0] = False
    return present


def training_domain(blocks: Iterable[Sequence[Sequence[int]]]) -> dict[str, dict[str, Any]]:
    """Config fields that record the elements of training crystals.

    Args:
        blocks: the training crystals in blocks, each crystal as its atomic numbers (0 is skipped).

    Returns:
        `trained_elements`: symbol → number of crystals that hold it; `trained_pairs`: symbol → the symbols after it in
        the periodic table that occur beside it in a crystal, separated by spaces.
    """
    counts = np.zeros(len(CHEMICAL_SYMBOLS), dtype=np.int64)
    together = np.zeros((len(counts), len(counts)), dtype=bool)
    for block in blocks:
        present = _presence(block)
        counts += present.sum(axis=0)
        weights = present.astype(np.float32)
        together |= weights.T @ weights > 0
    seen, partners = np.flatnonzero(counts), np.triu(together, 1)
    return {
        "trained_elements": {CHEMICAL_SYMBOLS[number]: int(counts[number]) for number in seen},
        "trained_pairs": {
            CHEMICAL_SYMBOLS[number]: " ".join(CHEMICAL_SYMBOLS[other] for other in np.flatnonzero(partners[number]))
            for number in seen
            if partners[number].any()
        },
    }


class TrainingDomain:
    """Elements and pairs of elements that a model was trained on.

    Args:
        config: configuration of a model; where `trained_elements` is absent (older checkpoints) nothing is unseen.

    Attributes:
        num_elements (`int`): elements seen, 0 where the config does not record them.
    """

    def __init__(self, config: Any):
        elements = getattr(config, "trained_elements", None) or {}
        pairs = getattr(config, "trained_pairs", None)
        size = len(CHEMICAL_SYMBOLS)
        place = {symbol: number for number, symbol in enumerate(CHEMICAL_SYMBOLS)}
        seen = [place[symbol] for symbol in elements]
        self.num_elements = len(seen)
        self._foreign = np.ones(size, dtype=bool)  # elements never seen
        self._foreign[seen] = False
        self._apart = np.zeros((size, size), dtype=np.float32)  # pairs of seen elements never seen together
        if pairs is not None:
            self._apart[np.ix_(seen, seen)] = 1
            for symbol, others in pairs.items():
                self._apart[place[symbol], [place[other] for other in others.split()]] = 0
            self._apart = np.triu(self._apart, 1)
        name = PurePath(str(getattr(config, "_name_or_path", None) or "")).name
        self._name = name if name not in ("", "model") else "this model"

    def unseen(self, crystals: Sequence[Sequence[int] | np.ndarray]) -> list[list[str]]:
        """What `unseen_elements` and `unseen_pairs` give, per crystal."""
        both = zip(self.unseen_elements(crystals), self.unseen_pairs(crystals), strict=True)
        return [[*elements, *pairs] for elements, pairs in both]

    def unseen_elements(self, crystals: Sequence[Sequence[int] | np.ndarray]) -> list[list[str]]:
        """Warnings of each crystal about elements that no training crystal has.

        Args:
            crystals: atomic numbers of each; 0 is padding.
        """
        found: list[list[str]] = [[] for _ in crystals]
        if not self.num_elements:
            return found
        present = _presence(crystals)
        for row, number in np.argwhere(present & self._foreign):
            found[row].append(
                f"{CHEMICAL_SYMBOLS[number]}: not in the training data of {self._name} "
                f"({self.num_elements} elements); the result is an extrapolation"
            )
        return found

    def unseen_pairs(self, crystals: Sequence[Sequence[int] | np.ndarray]) -> list[list[str]]:
        """Warnings of each crystal about elements that were seen, but never together in a training crystal.

        Args:
            crystals: atomic numbers of each; 0 is padding.
        """
        found: list[list[str]] = [[] for _ in crystals]
        present = _presence(crystals)
        weights = present.astype(np.float32)
        for row in np.flatnonzero(((weights @ self._apart) * weights).any(axis=1)):
            own = np.flatnonzero(present[row])
            pairs = [
                f"{CHEMICAL_SYMBOLS[own[first]]} and {CHEMICAL_SYMBOLS[own[second]]}"
                for first, second in np.argwhere(self._apart[np.ix_(own, own)])
            ]
            more = f" and {len(pairs) - _MOST_PAIRS} more pairs" if len(pairs) > _MOST_PAIRS else ""
            found[row].append(
                f"{', '.join(pairs[:_MOST_PAIRS])}{more}: never together in one crystal of the training data of "
                f"{self._name}; the result is an extrapolation"
            )
        return found


def update_checkpoint(values: Mapping[str, Any], updates: Sequence[Update], what: str) -> dict[str, Any]:
    """Settings of a checkpoint in the newest version, `len(updates) + 1`.

    Args:
        values: Settings as saved. Without a `checkpoint_version` they are of version 1.
        updates: `update_v1_v2`, `update_v2_v3`, … in this order.
        what: What is loaded, for the error.

    Raises:
        ValueError: `checkpoint_version` is newer than this code, or no version at all.
    """
    version, newest = values.get("checkpoint_version", 1), len(updates) + 1
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"checkpoint_version={version!r} of {what}: accepted are the integers 1 to {newest}.")
    if version > newest:
        raise ValueError(
            f"checkpoint_version={version} of {what} is newer than this code, which reads 1 to {newest}: install the "
            "version of hf_crystal that wrote it, or a later one."
        )
    updated = dict(values)
    for update in updates[version - 1 :]:
        updated = update(updated)
    return {**updated, "checkpoint_version": newest}
