# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_crystal"]
# ///
"""Formation energy and band gap of 80 crystals that everybody knows, beside the Materials Project's values.

    python scripts/textbook_properties.py crystalformer-mp --data materials_project.parquet \
        --training-table runs/crystalformer-mp/training_table.parquet --output docs/textbook.md

The crystals are those of `textbook_properties.yaml`, which was written before any prediction was looked at: a formula
and a space group (0.1 Å) each; of several entries with labels the one of the lowest formation energy. The training
table is `scripts/prepare_materials_project.py`'s. Writes the table and prints the counts as JSON.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from prepare_materials_project import crystal_kind, kinds_of, with_labels
from report_domain import crystals_of

LIMITS = {"formation_energy": 0.1, "band_gap": 0.5}
_UNITS = {"formation_energy": "eV/atom", "band_gap": "eV"}
_HEAD = """# Eighty crystals that everybody knows

`{model}` on entries of the Materials Project (labels: release 2018, PBE; geometries: release 2025, about half of them
relaxed with r2SCAN, 2 to 4 % denser). **Bold**: more than 0.1 eV/atom or 0.5 eV from the label. Seen: the crystal, or
another entry of its formula and space group, is among the rows of training (train) or of validation (val).
Written by `scripts/textbook_properties.py`; the list was written before any prediction was looked at.

{summary}
"""


def chosen_rows(project: Any, textbook: dict[str, list[list[Any]]]) -> Any:
    """One labeled row of the Materials Project for each crystal of the list, with `group` and `name`.

    Raises:
        ValueError: a crystal without a labeled entry.
    """
    import pandas as pd
    from pymatgen.core import Composition

    labeled = project.dropna(subset=list(LIMITS)).sort_values("formation_energy", kind="stable")
    first = labeled.drop_duplicates("kind").set_index("kind")
    rows = []
    for group, crystals in textbook.items():
        for formula, space_group, name in crystals:
            numbers = [element.Z for element, count in Composition(formula).items() for _ in range(int(count))]
            kind = crystal_kind(numbers, space_group)
            if kind not in first.index:
                raise ValueError(f"{name}: no labeled entry of {formula} in space group {space_group}")
            rows.append({**first.loc[kind].to_dict(), "kind": kind, "group": group, "name": name, "written": formula})
    return pd.DataFrame(rows)


def seen_in(project: Any, table: Any, kinds: Any) -> list[str]:
    """For each kind the split of the training table that has it: `train`, `val`, or `no`."""
    kind_of = project.set_index("material_id").kind
    parts = {split: set(kind_of.reindex(rows.material_id).dropna()) for split, rows in table.groupby("split")}
    return [next((split for split in ("train", "val") if kind in parts.get(split, ())), "no") for kind in kinds]


def with_predictions(rows: Any, model: str, batch_size: int) -> Any:
    """Rows with `predicted_…` and `inside_…` of each target."""
    from transformers import pipeline

    import hf_crystal

    folder = model if Path(model).is_dir() else str(hf_crystal.embedded_checkpoint(model))
    predict = pipeline("crystal-property-prediction", model=folder)
    answers = predict(crystals_of(rows), batch_size=batch_size)
    for target, limit in LIMITS.items():
        predicted = [answer[target] for answer in answers]
        inside = (rows[target] - predicted).abs() <= limit
        rows = rows.assign(**{f"predicted_{target}": predicted, f"inside_{target}": inside})
    return rows.assign(inside=rows.inside_formation_energy & rows.inside_band_gap)


def counts(rows: Any) -> dict[str, Any]:
    """How many crystals are inside, and the errors, of all and by whether training had them."""
    parts = {"all": rows, **{f"seen: {seen}": part for seen, part in rows.groupby("seen")}}
    return {
        name: {
            "crystals": len(part),
            "inside": int(part.inside.sum()),
            **{f"inside {target}": int(part[f"inside_{target}"].sum()) for target in LIMITS},
            **{
                f"mae {target}": round(float((part[f"predicted_{target}"] - part[target]).abs().mean()), 3)
                for target in LIMITS
            },
        }
        for name, part in parts.items()
    }


def page(rows: Any, figures: dict[str, Any], model: str) -> str:
    """The table as Markdown."""
    summary = "\n".join(
        f"- {name}: {part['inside']} of {part['crystals']} inside both limits; MAE "
        + ", ".join(f"{part[f'mae {target}']:.3f} {_UNITS[target]}" for target in LIMITS)
        for name, part in figures.items()
    )
    lines = [_HEAD.format(model=model, summary=summary)]
    for group, part in rows.groupby("group", sort=False):
        lines += [
            f"## {group[0].upper()}{group[1:]}\n",
            "| crystal | formula | space group | id | E_f, eV/atom | predicted | gap, eV | predicted | seen |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in part.to_dict("records"):
            values = [
                text
                for target in LIMITS
                for text in (f"{row[target]:.2f}", _marked(row[f"predicted_{target}"], row[f"inside_{target}"]))
            ]
            space_group = row["spacegroup_symprec0p1"]
            cells = [row["name"], row["written"], str(space_group), row["material_id"], *values, row["seen"]]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _marked(value: float, inside: bool) -> str:
    text = f"{value + 0.0:.2f}".replace("-0.00", "0.00")
    return text if inside else f"**{text}**"


def main(args: argparse.Namespace) -> None:
    """Write the table and print its counts."""
    import pandas as pd
    import yaml

    project = with_labels(pd.read_parquet(args.data))
    project["kind"] = kinds_of(project)
    textbook = yaml.safe_load(Path(__file__).with_name("textbook_properties.yaml").read_text(encoding="utf-8"))
    rows = chosen_rows(project, textbook)
    table = pd.read_parquet(args.training_table, columns=["material_id", "split"])
    rows["seen"] = seen_in(project, table, rows.kind)
    rows = with_predictions(rows, args.model, args.batch_size)
    figures = counts(rows)
    args.output.write_text(page(rows, figures, args.model), encoding="utf-8")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="embedded checkpoint or folder")
    parser.add_argument("--data", type=Path, required=True, help="materials_project.parquet")
    parser.add_argument("--training-table", type=Path, required=True, help="table that the model was trained on")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--batch-size", type=int, default=16, help="crystals per forward pass (default: 16)")
    main(parser.parse_args())
