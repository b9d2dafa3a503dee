# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_crystal", "chgnet==0.4.2"]
# ///
"""Formation energies of one model and of CHGNet 0.3.0 with fitted elemental references, on the same 1,000 crystals.

    pip install --no-deps --target chgnet_site chgnet==0.4.2 nvidia-ml-py3     # leaves the installed stack as it is
    PYTHONPATH=chgnet_site python scripts/compare_chgnet.py DATA_FOLDER crystalformer-mp \
        --training-table runs/crystalformer-mp/training_table.parquet --output docs/chgnet.md

Crystals: 200 of each class of distance from the hull, drawn by the seed from the test part of MPTS-52, whose
geometries are PBE's, with labels of the release that the model was trained on; none is in its rows of training or
validation. The distance is that of the label from `hf_crystal.load_reference()`, which holds these entries
themselves; predicted energies are compared with the same hull. CHGNet gives total energies: one reference energy per
element is fitted (least squares) on up to `--reference-rows` MP-20 crystals of the model's training rows, and on
nothing else. CPU time is that of the process, from crystals in memory to energies, without loading. Writes a page and,
beside it, the figures as JSON.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from report_domain import crystals_of, stability_scores

# eV/atom above the hull; labels of entries on it differ from it by rounding
CLASSES = {"on the hull": 1e-4, "to 0.05": 0.05, "0.05 to 0.1": 0.1, "0.1 to 0.2": 0.2, "above 0.2": float("inf")}
STABLE = 0.05
_PAGE = """# Beside CHGNet

The same {rows:,} crystals through `{model}` and through CHGNet 0.3.0 (Deng et al., Nat. Mach. Intell. 5, 1031, 2023),
in one run of `scripts/compare_chgnet.py`: {per_class} of each class of distance from the hull, of the test part of
MPTS-52 ({atoms:.0f} atoms in the mean), with labels of the Materials Project's release of 2018. `{model}` has seen
none of them. CHGNet was trained on relaxations of 145,923 compounds of the Materials Project (MPtrj) and has very
likely seen most of them. Its energies become formation energies by one reference per element, fitted on {references}
crystals of the training rows of `{model}`.

CHGNet was trained on energies of a newer release: after one energy for each element some 0.02 eV/atom of what the
releases differ by remain ([on MPTS-52](experiments.md#encoders-on-the-materials-project)), and count as its error. The
geometries are PBE's. Of all crystals more are near the hull than of these five equal classes.

| formation energy, MAE (bias), eV/atom | n | `{model}` | CHGNet |
|---|---:|---:|---:|
{errors}

| at most 0.05 eV/atom above the hull ({share:.0%} are) | `{model}` | CHGNet |
|---|---:|---:|
{stable}
| CPU time a crystal, one core, ms | {own_ms:.1f} | {chgnet_ms:.1f} |
"""


def test_rows(folder: Path, table: Any, per_class: int, seed: int) -> Any:
    """Crystals to compare on, with `label`, `hull` (eV/atom) and `hull_class`."""
    import numpy as np
    import pandas as pd

    import hf_crystal

    columns = ["material_id", "mb_e_form"]
    labels = pd.read_parquet(folder / "materials_project.parquet", columns=columns).dropna().set_index("material_id")
    rows = pd.read_parquet(folder / "mpts_52.parquet")
    rows = rows[(rows.split == "test") & ~rows.material_id.isin(table.material_id[table.split != "test"])]
    rows = rows.assign(label=rows.material_id.map(labels.mb_e_form)).dropna(subset=["label"])
    reference = hf_crystal.load_reference()
    energies = {formula: reference.stability(formula).hull_energy for formula in rows.formula.unique()}
    rows = rows.assign(hull=rows.formula.map(energies))
    places = np.searchsorted(list(CLASSES.values()), rows.label - rows.hull)
    rows = rows.assign(hull_class=[list(CLASSES)[place] for place in places])
    shuffled = rows.sample(frac=1, random_state=seed)
    return shuffled.groupby("hull_class").head(per_class).reset_index(drop=True)


def reference_rows(table: Any, most: int, per_element: int, seed: int) -> Any:
    """Training rows in which common elements do not crowd out the rare ones: each row has an element still wanted."""
    rows = table[(table.split == "train") & (table.part == "mp20")].dropna(subset=["formation_energy"])
    count: Counter[int] = Counter()
    chosen = []
    for index, numbers in rows.sample(frac=1, random_state=seed).atomic_numbers.items():
        elements = set(map(int, numbers))
        if len(chosen) < most and any(count[element] < per_element for element in elements):
            chosen.append(index)
            count.update(elements)
    return rows.loc[chosen]


def fractions(rows: Any) -> Any:
    """Share of each element, `(rows, 119)`."""
    import numpy as np

    return np.stack([np.bincount(numbers, minlength=119) / len(numbers) for numbers in rows.atomic_numbers])


def chgnet_energies(rows: Any, batch_size: int) -> tuple[Any, float]:
    """Energies of CHGNet 0.3.0, eV/atom, and the CPU time of a crystal in seconds."""
    import numpy as np
    from chgnet.model import CHGNet
    from pymatgen.core import Structure

    model = CHGNet.load(model_name="0.3.0", use_device="cpu", verbose=False)
    structures = [Structure(row["lattice"], row["atomic_numbers"], row["frac_coords"]) for row in crystals_of(rows)]
    model.predict_structure(structures[0], task="e")
    started = time.process_time()
    answers = model.predict_structure(structures, task="e", batch_size=batch_size)
    return np.array([float(answer["e"]) for answer in answers]), (time.process_time() - started) / len(rows)


def own_energies(rows: Any, model: str, batch_size: int) -> tuple[Any, float]:
    """Formation energies of the pipeline, eV/atom, and the CPU time of a crystal in seconds."""
    import numpy as np
    from transformers import pipeline

    import hf_crystal

    folder = model if Path(model).is_dir() else str(hf_crystal.embedded_checkpoint(model))
    predict = pipeline("crystal-property-prediction", model=folder)
    crystals = crystals_of(rows)
    predict(crystals[0])
    started = time.process_time()
    answers = predict(crystals, batch_size=batch_size)
    seconds = (time.process_time() - started) / len(rows)
    return np.array([answer["formation_energy"] for answer in answers]), seconds


def figures_of(predicted: Any, rows: Any) -> dict[str, Any]:
    """MAE and bias of each class and of all, and how well crystals near the hull are found."""
    difference = predicted - rows.label.to_numpy()
    parts = {name: (rows.hull_class == name).to_numpy() for name in CLASSES}
    parts["all"] = rows.label.notna().to_numpy()
    above = [(energies - rows.hull).to_numpy() for energies in (predicted, rows.label)]
    return {
        "errors": {
            name: {
                "n": int(part.sum()),
                "mae": round(float(abs(difference[part]).mean()), 4),
                "bias": round(float(difference[part].mean()), 4),
            }
            for name, part in parts.items()
            if part.any()
        },
        "stable": stability_scores(*above, STABLE),
    }


def page(figures: dict[str, Any], model: str) -> str:
    """The figures as Markdown."""
    own, other = figures["own"], figures["chgnet"]
    errors = "\n".join(
        f"| {name} | {row['n']} | " + " | ".join(f"{r['mae']:.3f} ({r['bias']:+.3f})" for r in (row, rival)) + " |"
        for (name, row), rival in zip(own["errors"].items(), other["errors"].values(), strict=True)
    )
    stable = "\n".join(
        f"| {name.replace('_', ' ')} | {own['stable'][name]:.3f} | {other['stable'][name]:.3f} |"
        for name in ("precision", "recall", "f1", "false_positive_rate")
    )
    return _PAGE.format(
        model=model,
        errors=errors,
        stable=stable,
        share=own["stable"]["share"],
        rows=own["errors"]["all"]["n"],
        own_ms=own["cpu_ms"],
        chgnet_ms=other["cpu_ms"],
        **figures["data"],
    )


def main(args: argparse.Namespace) -> None:
    """Predict, fit the references, write the page."""
    import numpy as np
    import pandas as pd

    table = pd.read_parquet(args.training_table)
    rows = test_rows(args.data, table, args.per_class, args.seed)
    references = reference_rows(table, args.reference_rows, 40, args.seed)
    own, own_seconds = own_energies(rows, args.model, args.batch_size)
    total, _ = chgnet_energies(references, args.batch_size)
    difference = total - references.formation_energy.to_numpy()
    elements, *_ = np.linalg.lstsq(fractions(references), difference, rcond=None)
    energies, seconds = chgnet_energies(rows, args.batch_size)
    figures = {
        "own": {**figures_of(own, rows), "cpu_ms": round(own_seconds * 1000, 2)},
        "chgnet": {**figures_of(energies - fractions(rows) @ elements, rows), "cpu_ms": round(seconds * 1000, 2)},
        "data": {
            "per_class": args.per_class,
            "atoms": round(float(rows.atomic_numbers.map(len).mean()), 1),
            "references": len(references),
        },
    }
    args.output.write_text(page(figures, args.model), encoding="utf-8")
    args.output.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with materials_project and mpts_52 .parquet")
    parser.add_argument("model", help="embedded checkpoint or folder")
    parser.add_argument("--training-table", type=Path, required=True, help="table that the model was trained on")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--per-class", type=int, default=200, help="crystals of each class of distance (default: 200)")
    parser.add_argument("--reference-rows", type=int, default=2000, help="most crystals of the fit (default: 2000)")
    parser.add_argument("--batch-size", type=int, default=32, help="crystals per forward pass (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the draws (default: 0)")
    main(parser.parse_args())
