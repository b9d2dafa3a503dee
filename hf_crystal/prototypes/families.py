"""Crystals of equal anonymous contents, and which of them are alike once their elements change places.

Slots are the elements of a crystal by (count, atomic number). The label of a crystal is its space group and the slot
on each Wyckoff position: crystals of one prototype share it.
"""

import itertools
import string
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_crystal.crystals.elements import CHEMICAL_SYMBOLS
from hf_crystal.mat2seq.sequence_text import SEPARATOR

__all__ = ["Counts", "Family", "contents", "families", "read_contents"]

Counts = tuple[int, ...]
_WITHOUT_LETTERS = str.maketrans("", "", string.ascii_letters)
_NUMBERS = {symbol: number for number, symbol in enumerate(CHEMICAL_SYMBOLS)}


def contents(composition: dict[int, int]) -> tuple[Counts, tuple[int, ...]]:
    """Counts, ascending, and the atomic numbers that they belong to."""
    pairs = sorted((count, number) for number, count in composition.items())
    return tuple(count for count, _ in pairs), tuple(number for _, number in pairs)


def read_contents(sequence: str) -> tuple[Counts, tuple[int, ...]]:
    """`contents` of a sequence."""
    words = sequence.partition(SEPARATOR)[0].split()
    return contents({_NUMBERS[symbol]: int(n) for symbol, n in zip(words[::2], words[1::2], strict=True)})


@dataclass(frozen=True)
class Family:
    """Crystals of equal counts.

    Attributes:
        counts: Atoms of each slot, ascending; length k.
        rows: Places in the index, (R,).
        elements: Atomic number of each slot, (R, k).
        permutations: Ways to assign slots of equal count to each other, (P, k): slot of the known crystal that a
            slot of the new one takes; the first is the identity.
        labels: Label of each crystal under each permutation, in slots of the new crystal, (R, P).
    """

    counts: Counts
    rows: np.ndarray
    elements: np.ndarray
    permutations: np.ndarray
    labels: np.ndarray

    @classmethod
    def build(cls, counts: Counts, rows: Sequence[int], elements: np.ndarray, sequences: Sequence[str]) -> "Family":
        """From the sequences of its crystals."""
        tied = [list(group) for _, group in itertools.groupby(range(len(counts)), key=lambda slot: counts[slot])]
        choices = itertools.product(*(itertools.permutations(group) for group in tied))
        permutations = np.array([list(itertools.chain(*choice)) for choice in choices])
        inverse = np.argsort(permutations, axis=1).tolist()
        ids: dict[tuple, int] = {}
        labels = np.empty((len(rows), len(permutations)), dtype=np.int64)
        for place, sequence in enumerate(sequences):
            _, group, _, sites = sequence.split(f" {SEPARATOR} ")
            words = [word for word in sites.split() if word[0] != "."]  # without coordinates
            slots = {number: slot for slot, number in enumerate(elements[place].tolist())}
            occupied = [(words[i + 1], slots[_NUMBERS[words[i]]]) for i in range(0, len(words), 2)]
            for p, moved in enumerate(inverse):
                label = (group, *sorted((position, moved[slot]) for position, slot in occupied))
                labels[place, p] = ids.setdefault(label, len(ids))
        return cls(counts, np.asarray(rows), elements, permutations, labels)

    @property
    def shares(self) -> np.ndarray:
        """Share of the atoms in each slot, (k,)."""
        return np.array(self.counts) / sum(self.counts)


def families(sequences: Sequence[str]) -> dict[Counts, list[int]]:
    """Rows by counts."""
    found: dict[Counts, list[int]] = defaultdict(list)
    read: dict[str, Counts] = {}  # few compositions differ in more than their elements, and reading them takes longest
    for row, sequence in enumerate(sequences):
        numbers = sequence[: sequence.index(SEPARATOR)].translate(_WITHOUT_LETTERS)
        if numbers not in read:
            read[numbers] = tuple(sorted(map(int, numbers.split())))
        found[read[numbers]].append(row)
    return dict(found)
