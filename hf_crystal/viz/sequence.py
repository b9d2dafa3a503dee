"""The sequence of a crystal, word by word, with what each word means."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..crystals.elements import FORMULA_RANK, cell_formula
from ..crystals.record import CHEMICAL_SYMBOLS
from ..mat2seq.canonicalize import CanonicalCrystal, canonicalize
from ..mat2seq.sequence_text import SEPARATOR
from ..mat2seq.space_groups import space_group, space_group_number
from ..typing import CrystalLike
from .style import PALETTE, new_figure

__all__ = ["SequenceWord", "explain_sequence", "plot_sequence"]

_SYMBOLS = {CHEMICAL_SYMBOLS[number] for number in FORMULA_RANK}
_CELL = {"a": "length", "b": "length", "c": "length", "alpha": "angle", "beta": "angle", "gamma": "angle"}
# kind of word -> color of its box and of its text
KIND_COLORS = {
    "condition": ("#999999", "white"),
    "composition": (PALETTE[0], "white"),
    "space group": (PALETTE[5], "white"),
    "cell": (PALETTE[2], "white"),
    "site": (PALETTE[1], "black"),
    "coordinate": (PALETTE[4], "black"),
    "separator": ("#ffffff", "black"),
}


@dataclass(frozen=True)
class SequenceWord:
    """One word of a sequence.

    Attributes:
        text: as written.
        kind: a key of `KIND_COLORS`.
        meaning: in words.
    """

    text: str
    kind: str
    meaning: str


def _text_of(crystal: Any) -> str:
    """Sequence text of a crystal, or the text itself where that is what is given."""
    if isinstance(crystal, CanonicalCrystal):
        return crystal.to_text()
    if isinstance(crystal, dict) and isinstance(crystal.get("sequence"), str):
        return crystal["sequence"]
    if isinstance(crystal, str) and f" {SEPARATOR} " in crystal and "\n" not in crystal:
        return crystal
    return canonicalize(crystal).to_text()


def explain_sequence(crystal: CrystalLike | CanonicalCrystal) -> list[SequenceWord]:
    """Every word of a crystal's sequence with its meaning.

    Args:
        crystal: a structure in any form that `canonicalize` takes, a canonical crystal, a sequence, or a result of the
            pipeline "crystal-generation".

    Returns:
        The words, in order.

    Raises:
        ValueError: a text that is no sequence, or a crystal that cannot be read.
    """
    text = _text_of(crystal)
    words = text.split()
    conditions = list(itertools.takewhile(lambda word: word.startswith("<"), words))
    parts = " ".join(words[len(conditions) :]).split(f" {SEPARATOR} ")
    if len(parts) != 4:
        raise ValueError(
            f"the sequence has {len(parts)} parts; expected composition | space group | cell | sites: {text}"
        )
    number = space_group_number(parts[1])
    found = [SequenceWord(word, "condition", "condition set by the user") for word in conditions]
    sections = (_composition(parts[0]), _group(number), _cell(parts[2]), _sites(parts[3], number))
    for place, section in enumerate(sections):
        if place:
            found.append(SequenceWord(SEPARATOR, "separator", "end of the part"))
        found += section
    return found


def _composition(part: str) -> list[SequenceWord]:
    return [
        SequenceWord(word, "composition", "element" if word in _SYMBOLS else "atoms of it in the primitive cell")
        for word in part.split()
    ]


def _group(number: int) -> list[SequenceWord]:
    group = space_group(number)
    return [SequenceWord(group.symbol, "space group", f"space group no. {number}, {group.crystal_system}")]


def _cell(part: str) -> list[SequenceWord]:
    found, axis = [], ""
    for word in part.split():
        if word in _CELL:
            axis = word
            found.append(SequenceWord(word, "cell", f"a cell {_CELL[word]} that symmetry leaves free"))
        else:
            found.append(SequenceWord(word, "cell", f"{axis} in {'Å' if _CELL.get(axis) == 'length' else 'degrees'}"))
    return found


def _sites(part: str, number: int) -> list[SequenceWord]:
    found, position, place = [], "", 0
    for word in part.split():
        if word in _SYMBOLS:
            found.append(SequenceWord(word, "site", "element of the next site"))
        elif re.fullmatch(r"\d+[A-Za-z]", word):
            position, place = word, 0
            letter = space_group(number).letters[word[-1]]
            free = letter.num_parameters
            meaning = f"Wyckoff position: {word[:-1]} atoms in the conventional cell, "
            meaning += f"{free} free coordinate{'s' * (free != 1)}" if free else "fixed by symmetry"
            found.append(SequenceWord(word, "site", meaning))
        else:
            place += 1
            found.append(
                SequenceWord(word, "coordinate", f"free coordinate {place} of {position}, fraction of the cell")
            )
    return found


def plot_sequence(
    crystal: CrystalLike | CanonicalCrystal,
    *,
    words_per_line: int = 12,
    title: str | None = None,
) -> Any:
    """The sequence in boxes colored by what the words are, with the meaning below each.

    Args:
        crystal: see `explain_sequence`.
        words_per_line: boxes per line at most.
        title: above the picture; the crystal's formula by default.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ValueError: a text that is no sequence, or a crystal that cannot be read.
    """
    words = explain_sequence(crystal)
    lines = [words[start : start + words_per_line] for start in range(0, len(words), words_per_line)]
    figure = new_figure(0.72 * words_per_line + 0.3, 0.75 + 0.62 * len(lines))
    axes = figure.subplots()
    axes.set(xlim=(0, words_per_line), ylim=(len(lines), 0))
    axes.set_axis_off()
    for row, line in enumerate(lines):
        for column, word in enumerate(line):
            background, ink = KIND_COLORS[word.kind]
            box = {"boxstyle": "round,pad=0.35", "facecolor": background, "edgecolor": "0.6", "linewidth": 0.5}
            axes.text(column + 0.5, row + 0.5, word.text, ha="center", va="center", color=ink, bbox=box, fontsize=9.5)
    axes.set_title(title if title is not None else _formula(words), fontsize=11)
    _legend(figure, {word.kind for word in words} - {"separator"})
    return figure


def _formula(words: Sequence[SequenceWord]) -> str:
    texts = [word.text for word in words if word.kind == "composition"]
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return cell_formula(CHEMICAL_SYMBOLS.index(symbol) for symbol, count in pairs for _ in range(int(count)))


def _legend(figure: Any, kinds: set[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=kind) for kind, (color, _) in KIND_COLORS.items() if kind in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
