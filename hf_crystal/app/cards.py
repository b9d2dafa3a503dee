"""Pieces of HTML for the page: tables, crystal cards, colored sequences, pictures."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..typing import CrystalLike
from ..viz.sequence import KIND_COLORS, explain_sequence
from ..viz.style import ColorScheme
from ..viz.view3d import view_3d
from .service import ABOVE_HULL, GeneratedCrystal, Insight, Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "crystal_cards",
    "insight_table",
    "message",
    "picture",
    "prediction_table",
    "sequence_html",
    "side_by_side",
    "view_html",
]


def message(text: str, kind: str = "error") -> str:
    """A line of text in a colored box; `kind` is "error", "good" or "note". Screen readers announce it."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="hfc-message hfc-{kind}" role="{role}">{html.escape(text)}</div>'


def view_html(structure: CrystalLike, height: int = 380, **options: Any) -> str:
    """The 3-D view in a frame."""
    return view_3d(structure, height=height, **options).iframe()


def side_by_side(crystals: Mapping[str, CrystalLike], colors: ColorScheme) -> str:
    """3-D views with their names, one below the other where the window is narrow."""
    views = (
        f"<figure class='hfc-card'>{view_html(crystal, 300, colors=colors)}"
        f"<figcaption>{html.escape(name)}</figcaption></figure>"
        for name, crystal in crystals.items()
    )
    return f"<div class='hfc-gallery'>{''.join(views)}</div>"


def _number(row: dict[str, Any]) -> str:
    error, metal = row["typical error"], row["metal probability"]
    around = "" if error is None else f" ± {error:.3f}"
    kind = "" if metal is None else f"<br><small>metal with a probability of {metal:.0%}</small>"
    return f"<b>{row['value']:.3f}</b>{around} {html.escape(row['unit'])}{kind}"


def _table(names: Sequence[str], rows: str) -> str:
    """A table that scrolls sideways where the window is narrow."""
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in names)
    parts = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f"<div class='hfc-scroll' tabindex='0'><table class='hfc-table'>{parts}</table></div>"


def prediction_table(found: Prediction) -> str:
    """Values with units and their standard errors, and what could not be read."""
    parts = []
    if found.rows:
        cells = "".join(
            f"<tr><td>{html.escape(row['crystal'])}</td><td>{html.escape(row['formula'])}<br>"
            f"<small>{row['atoms']} atoms</small></td><td>{html.escape(row['property'])}</td>"
            f"<td>{_number(row)}</td></tr>"
            for row in found.rows
        )
        parts.append(_table(("crystal", "formula", "property", "value"), cells))
        note = (
            "± is the standard error of the value; of a model without an error head, its mean error on the test set."
        )
        if any(row["property"] == ABOVE_HULL for row in found.rows):
            note += (
                " Energy above hull: of the crystal as given, not relaxed, by the model's formation energy; "
                "known phases of the Materials Project (2018)."
            )
        parts.append(f"<p class='hfc-note'>{note}</p>")
    parts += [message(f"{name}: {text}", "note") for name, doubts in found.warnings.items() for text in doubts]
    parts += [message(f"{name}: {reason}") for name, reason in found.errors]
    return "".join(parts) or message("Give a file, paste a crystal or choose an example.", "note")


def _mark(good: bool | None, text: str) -> str:
    if good is None:
        return f"<span class='hfc-mark' title='needs smact: pip install smact'>{text} not judged</span>"
    return f"<span class='hfc-mark hfc-{'good' if good else 'error'}'>{'✓' if good else '✗'} {text}</span>"


def _repeats(crystal: GeneratedCrystal) -> str:
    return f"<li>equal ones generated: <b>{crystal.num_equal}</b></li>" if crystal.num_equal > 1 else ""


def crystal_cards(crystals: Sequence[GeneratedCrystal], colors: ColorScheme = "jmol") -> str:
    """A gallery: each crystal in 3-D with what is known about it."""
    cards = []
    for crystal in crystals:
        named = [
            (row["property"] + ", not relaxed" * (row["property"] == ABOVE_HULL), row) for row in crystal.properties
        ]
        properties = "".join(f"<li>{html.escape(name)}: {_number(row)}</li>" for name, row in named)
        doubts = "".join(message(text, "note") for text in crystal.warnings)
        if crystal.log_likelihood is not None:
            properties += f"<li>log-likelihood: <b>{crystal.log_likelihood:.1f}</b></li>"
        if crystal.probability is not None:
            properties += f"<li>probability of this structure: <b>{crystal.probability:.0%}</b></li>"
        if crystal.known_e_above_hull is not None:
            properties += f"<li>{ABOVE_HULL}, calculated: <b>{crystal.known_e_above_hull:.3f} eV/atom</b></li>"
        marks = _mark(crystal.structure_valid, "distances") + _mark(crystal.composition_valid, "charges")
        cards.append(
            f"<article class='hfc-card'>{view_html(crystal.cif, 260, colors=colors)}"
            f"<h3>{html.escape(crystal.formula)} <small>{html.escape(crystal.space_group)}</small></h3>"
            f"<p>{marks}</p>{doubts}<ul>{properties}"
            f"<li>source: <b>{html.escape(crystal.source)}</b></li>{_repeats(crystal)}</ul>"
            f"<code>{html.escape(crystal.sequence)}</code></article>"
        )
    return f"<div class='hfc-gallery'>{''.join(cards)}</div>"


def sequence_html(sequence: str) -> str:
    """The words in colored boxes with their meaning, and the same as a table."""
    words = explain_sequence(sequence)
    boxes = "".join(
        f"<span class='hfc-word' style='background:{KIND_COLORS[word.kind][0]};color:{KIND_COLORS[word.kind][1]}' "
        f"title='{html.escape(word.meaning, quote=True)}'>{html.escape(word.text)}</span>"
        for word in words
    )
    rows = "".join(
        f"<tr><td><code>{html.escape(word.text)}</code></td><td>{word.kind}</td><td>{html.escape(word.meaning)}</td></tr>"
        for word in words
        if word.kind != "separator"
    )
    return (
        f"<div class='hfc-sequence'>{boxes}</div><details><summary>What every word means</summary>"
        f"{_table(('word', 'kind', 'meaning'), rows)}</details>"
    )


def insight_table(first: Insight, told: Sequence[Insight]) -> str:
    """The crystal as given and in other words: descriptions differ, sequence and prediction do not."""
    rows = []
    for item in [first, *told]:
        vector = ", ".join(f"{value:.2f}" for value in item.record.cell[0])
        place = ", ".join(f"{value % 1.0:.3f}" for value in item.record.frac_coords[0].round(3))
        same = item.sequence == first.sequence
        # improper rotations make another crystal where it is chiral
        word = "the same" if same else ("another: a chiral crystal" if item.change == "mirror image" else "another")
        rows.append(
            f"<tr><td>{html.escape(item.change)}</td>"
            f"<td class='hfc-{'good' if same else 'error'}'>{'✓' if same else '✗'} {word}</td>"
            f"<td>{item.value:.4f} {html.escape(item.unit)}</td>"
            f"<td>{item.record.num_atoms}</td><td>({vector})</td><td>({place})</td></tr>"
        )
    # what matters stands first: a phone shows three columns at a time
    names = ("description", "sequence", first.target, "atoms", "cell vector a, Å", "first atom, fractional")
    return _table(names, "".join(rows))


def picture(figure: "Figure", description: str) -> str:
    """A figure inside the page, with a text for those who cannot see it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    image = f"<img class='hfc-figure' alt='{html.escape(description, quote=True)}' src='data:image/png;base64,{data}'>"
    return f"<div class='hfc-scroll' tabindex='0'>{image}</div>"
