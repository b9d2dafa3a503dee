"""A crystal in three dimensions: one HTML page that needs no network, for notebooks and the web page.

The drawing is done by `crystal_view.js` beside this file, on a plain canvas: no WebGL, no library to fetch. Drag or
the arrow keys turn the crystal, the wheel, two fingers or + and - change the size, 0 goes back to the start.
"""

import html
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..crystals.reading import as_record
from ..crystals.record import CHEMICAL_SYMBOLS
from ..typing import CrystalLike
from .inspection import EncoderView
from .style import PALETTE, ColorScheme, element_colors

__all__ = ["CrystalView", "view_3d"]

_SCRIPT = Path(__file__).with_name("crystal_view.js")
_BOND_STRETCH = 1.2  # a bond is at most this much longer than the shortest one of either atom
_BOND_REACH = 1.1  # and than the sum of both covalent radii
_MOST_ATOMS = 2500  # beyond, bonds and boundary copies are left out
_ON_FACE = 1e-3  # fractional distance from a face within which an atom is drawn on the opposite face too
_ARROW_LENGTHS = (3.0, 2.5, 1.4)  # Å, of the axes of a frame
_RADIUS_DEFAULT = 1.3  # Å, for elements without a tabulated radius

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>html,body{{margin:0;height:100%;overflow:hidden;background:{background};font:13px system-ui,sans-serif}}
canvas{{width:100%;height:100%;display:block;touch-action:none;cursor:grab}}
canvas:focus-visible{{outline:2px solid #0072B2;outline-offset:-2px}}</style></head>
<body><canvas tabindex="0" role="img" aria-label="{label}"></canvas>
<script>const crystal={data};</script><script>{script}</script></body></html>
"""


@dataclass(frozen=True)
class CrystalView:
    """A 3-D view; a notebook shows it, `save` writes it to a file that any browser opens.

    Attributes:
        html: complete page.
        height: pixels in a notebook.
    """

    html: str
    height: int = 400

    def iframe(self) -> str:
        """The page inside a frame, to be put into another page."""
        return (
            f'<iframe srcdoc="{html.escape(self.html)}" title="crystal in 3-D" loading="lazy" '
            f'style="width:100%;height:{self.height}px;border:0;border-radius:6px"></iframe>'
        )

    def _repr_html_(self) -> str:
        return self.iframe()

    def save(self, path: str | Path) -> None:
        """Write the page to a file."""
        Path(path).write_text(self.html, encoding="utf-8")


def view_3d(
    structure: CrystalLike,
    *,
    repeat: tuple[int, int, int] = (1, 1, 1),
    height: int = 400,
    inspected: EncoderView | None = None,
    atom: int = 0,
    block: int = -1,
    head: int | None = None,
    background: str = "#ffffff",
    colors: ColorScheme | None = None,
) -> CrystalView:
    """Draw a crystal: cell, atoms with copies on the faces, bonds to the nearest shell within covalent radii.

    Args:
        structure: one crystal in any form that `CrystalFeatureExtractor` takes; of a partly occupied site the element
            that it holds most of is drawn.
        repeat: cells along the three axes.
        height: pixels in a notebook.
        inspected: what `inspect_encoder` returned for this crystal: draws the attention of one atom as lines to the
            images, and its frame as arrows where the model has frames.
        atom, block, head: of the attention and the frame; see `plot_attention`. The frame of head None is the first's.
        background: color of the page.
        colors: of the elements, see `ColorScheme`; by default "jmol", with `inspected` those of `plot_attention`.

    Returns:
        `CrystalView`.

    Raises:
        CrystalInputError: the crystal cannot be read.
        ValueError: a repeat below 1; no such atom, block or head.
    """
    if min(repeat) < 1:
        raise ValueError(f"repeat is {repeat}; accepted are three positive numbers")
    record = as_record(structure, disorder="mix", partly_periodic=True)
    formula = record.formula
    cell = np.asarray(record.cell, dtype=float)
    symbols = [CHEMICAL_SYMBOLS[int(number)] for number in record.atomic_numbers]
    fractional, owners = _repeated(np.asarray(record.frac_coords, dtype=float), repeat)
    positions = fractional @ cell
    scheme = colors or ("jmol" if inspected is None else "color-blind")
    painted = element_colors(symbols, scheme)
    crystal: dict[str, Any] = {
        "title": formula,
        "atoms": [
            [*np.round(point, 4).tolist(), _radius(symbols[owner]), painted[symbols[owner]], symbols[owner]]
            for point, owner in zip(positions, owners, strict=True)
        ],
        "bonds": _bonds(positions, [symbols[owner] for owner in owners]),
        "edges": _cell_edges(cell * np.array(repeat)[:, None]),
        "legend": list(painted.items()),
        "background": background,
        "lines": [],
        "arrows": [],
    }
    if inspected is not None:
        start = (
            (np.asarray(record.frac_coords[atom], dtype=float) % 1.0) @ cell if atom < len(symbols) else np.zeros(3)
        )
        # small atoms without bonds leave room for what is drawn between them
        for drawn in crystal["atoms"]:
            drawn[3] = round(0.55 * drawn[3], 3)
        crystal |= {"bonds": [], **_inside(inspected, start, atom, block, head, scheme)}
    counted = "atoms drawn" if record.occupancies is None else "sites drawn, mixed ones as their main element"
    label = f"{formula}, {len(positions)} {counted}. Drag or use the arrow keys to turn, plus and minus to zoom."
    page = _PAGE.format(
        title=html.escape(formula),
        label=html.escape(label),
        background=background,
        # "</" would end the script
        data=json.dumps(crystal).replace("</", "<\\/"),
        script=_SCRIPT.read_text(encoding="utf-8"),
    )
    return CrystalView(page, height)


def _radius(symbol: str) -> float:
    """Radius of the drawn sphere, Å: less than half of the atomic one, so that bonds are seen."""
    from pymatgen.core import Element

    radius = Element(symbol).data.get("Atomic radius")
    return round(0.3 * (float(radius) if isinstance(radius, (int, float)) else _RADIUS_DEFAULT) + 0.12, 3)


def _repeated(fractional: np.ndarray, repeat: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Atoms of all cells, and copies of those on a face on the opposite one; with the atom each belongs to."""
    inside = fractional % 1.0
    inside[inside > 1.0 - _ON_FACE] = 0.0
    points, owners = [], []
    copies = len(inside) * int(np.prod([count + 1 for count in repeat])) <= _MOST_ATOMS
    for shift in itertools.product(*(range(count + copies) for count in repeat)):
        moved = inside + np.array(shift)
        kept = (moved <= np.array(repeat) + _ON_FACE).all(axis=1)
        points.append(moved[kept])
        owners.append(np.nonzero(kept)[0])
    return np.concatenate(points), np.concatenate(owners)


def _bonds(positions: np.ndarray, symbols: Sequence[str]) -> list[list[int]]:
    """Pairs of atoms in the nearest shell of one of the two, no farther apart than covalent radii allow."""
    if not 2 <= len(positions) <= _MOST_ATOMS:
        return []
    from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
    from scipy.spatial import cKDTree

    tree = cKDTree(positions)
    nearest = tree.query(positions, k=2)[0][:, 1]
    pairs = tree.query_pairs(_BOND_STRETCH * float(nearest.max()), output_type="ndarray")
    lengths = np.linalg.norm(positions[pairs[:, 0]] - positions[pairs[:, 1]], axis=1)
    radii = np.array([CovalentRadius.radius.get(symbol, _RADIUS_DEFAULT) for symbol in symbols])
    shell = _BOND_STRETCH * np.maximum(nearest[pairs[:, 0]], nearest[pairs[:, 1]])
    longest = np.minimum(shell, _BOND_REACH * radii[pairs].sum(axis=1))
    return pairs[lengths <= longest].tolist()


def _cell_edges(cell: np.ndarray) -> list[list[float]]:
    edges = []
    for corner in itertools.product((0, 1), repeat=3):
        for axis in range(3):
            if not corner[axis]:
                start = np.array(corner) @ cell
                edges.append(np.round([*start, *(start + cell[axis])], 4).tolist())
    return edges


def _inside(
    view: EncoderView, start: np.ndarray, atom: int, block: int, head: int | None, scheme: ColorScheme
) -> dict[str, Any]:
    """Lines for the attention of one atom and arrows for its frame."""
    view.check(atom=atom, head=head)
    details = view.block(block).atoms
    if not details:
        return {"lines": [], "arrows": []}
    detail = details[atom]
    weights = detail.weights.mean(axis=1) if head is None else detail.weights[:, head]
    colors = element_colors(view.symbols, scheme)
    strongest = max(float(weights[detail.distances > 1e-3].max(initial=0.0)), 1e-12)
    lines = [
        [*start.tolist(), *(start + vector).tolist(), round(float(weight) / strongest, 3), colors[view.symbols[key]]]
        for vector, weight, key, distance in zip(detail.vectors, weights, detail.keys, detail.distances, strict=True)
        if distance > 1e-3 and weight > 0.05 * strongest
    ]
    arrows = []
    for owner, axis, x, y, z, weight in detail.axes if detail.axes is not None else []:
        if int(owner) == (head or 0) and weight > 0.01:
            # of different length, as the axes of tied frames lie on one another
            tip = start + _ARROW_LENGTHS[int(axis)] * np.array([x, y, z])
            color = (PALETTE[5], PALETTE[0], PALETTE[2])[int(axis)]
            arrows.append([*start.tolist(), *tip.tolist(), round(float(weight), 3), color, f"e{int(axis) + 1}"])
    return {"lines": lines, "arrows": arrows}
