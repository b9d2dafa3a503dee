# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_crystal"]
# ///
"""Formation-energy error of property models by kind of crystal: small and large cells, near the hull and far from it.

    python scripts/report_domain.py DATA_FOLDER crystalformer-mp crystalformer-mp20

Reads `mp_20.parquet` (test part), `materials_project.parquet` (test part of the MEGNet split, labels of its release)
and `mpts_52.parquet` (test part, cells above 20 atoms). Geometry and labels of the second are not of one release (see
the model's card); the labels of the third are of a newer release, whose mean distance to the training labels on common
rows is printed first. "Shifted" parts have these labels minus what the releases differ by: an energy for each element,
summed over the atoms, fitted (ridge regression) on the validation part's crystals with labels of both. Prints a JSON
object a model: rows, MAE, bias (predicted minus label), eV/atom, also by kind of anion, and of differences between
crystals of one formula; and where the distance from
the hull is known, whether predicted energies find the crystals at most 0 and 0.05 eV/atom above it, with the hull of
`hf_crystal.load_reference()` (release 2018, which holds the entries themselves).
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

_KINDS = {  # by the first of these that a crystal has
    "fluorides": {9},
    "oxides": {8},
    "nitrides": {7},
    "chlorides, bromides, iodides": {17, 35, 53},
    "sulfides, selenides, tellurides": {16, 34, 52},
    "others": set(range(119)),
}
_POLYMORPHS = 6  # of a formula are compared with each other
_EDGES = (0.0, 0.025, 0.05, 0.1, 0.2)  # eV/atom, of predicted distances from the hull


def parts_of(folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Rows of each part with a `label` column, and the distance between the releases of labels."""
    import pandas as pd

    project = pd.read_parquet(folder / "materials_project.parquet")
    mp20 = pd.read_parquet(folder / "mp_20.parquet")
    mpts52 = pd.read_parquet(folder / "mpts_52.parquet").assign(label=lambda rows: rows.formation_energy_per_atom)
    large = mpts52[(mpts52.split == "test") & (mpts52.atomic_numbers.map(len) > 20)]
    common = mpts52.merge(project[["material_id", "mb_e_form"]], on="material_id").dropna(subset=["mb_e_form"])
    both = common[common.material_id.isin(large.material_id)]
    shift = both.label - both.mb_e_form
    shifted = large.assign(label=large.label - release_shift(common[common.split == "val"], large))
    parts = {
        "MP-20 test": mp20[mp20.split == "test"].assign(
            label=lambda rows: rows.mb_e_form, e_above_hull=lambda rows: rows.e_hull_mp2018
        ),
        "MEGNet test at hand": project[project.split_megnet == "test"].assign(
            label=lambda rows: rows.e_form_megnet2018, e_above_hull=lambda rows: rows.e_hull_mp2018
        ),
        "MPTS-52 test, above 20 atoms, to 0.1 eV/atom": large[large.e_above_hull < 0.1],
        "MPTS-52 test, above 20 atoms, from 0.1 eV/atom": large[large.e_above_hull >= 0.1],
        "MPTS-52 test, above 20 atoms, to 0.1 eV/atom, shifted": shifted[shifted.e_above_hull < 0.1],
        "MPTS-52 test, above 20 atoms, from 0.1 eV/atom, shifted": shifted[shifted.e_above_hull >= 0.1],
        "MPTS-52 test, above 20 atoms": large,
        "MPTS-52 test, above 20 atoms, training release": both.assign(label=both.mb_e_form),
    }
    distance = {"rows": len(both), "mae": float(shift.abs().mean()), "bias": float(shift.mean())}
    return {name: rows.dropna(subset=["label"]) for name, rows in parts.items()}, distance


def release_shift(common: Any, rows: Any) -> Any:
    """What the newer release's energies are above those of training, eV/atom, by the elements of each row."""
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=0.1, fit_intercept=False)
    model.fit(element_shares(common.atomic_numbers), common.label - common.mb_e_form)
    return model.predict(element_shares(rows.atomic_numbers))


def element_shares(atomic_numbers: Any) -> Any:
    """Share of the atoms that each element has, (rows, 119)."""
    import numpy as np

    return np.stack([np.bincount(numbers, minlength=119) / len(numbers) for numbers in atomic_numbers])


def crystals_of(rows: Any) -> list[dict[str, Any]]:
    """Crystals of a table as pipelines read them."""
    import numpy as np

    return [
        {
            "lattice": np.asarray(row.lattice, dtype=float).reshape(3, 3),
            "frac_coords": np.asarray(row.frac_coords, dtype=float).reshape(-1, 3),
            "atomic_numbers": np.asarray(row.atomic_numbers),
        }
        for row in rows.itertuples()
    ]


def errors(model: Any, rows: Any, batch_size: int) -> dict[str, Any]:
    """MAE and bias of a pipeline on the rows of a part."""
    import numpy as np

    answers = model(crystals_of(rows), batch_size=batch_size)
    predicted = np.array([answer.get("formation_energy", np.nan) for answer in answers])
    difference = predicted - rows.label.to_numpy(dtype=float)
    return {
        "rows": len(rows),
        "unread": int(np.isnan(predicted).sum()),
        "mae": round(float(np.nanmean(np.abs(difference))), 4),
        "bias": round(float(np.nanmean(difference)), 4),
        "by kind": errors_by_kind(difference, rows.atomic_numbers),
        "polymorphs": polymorph_figures(predicted, rows),
        **stability_figures(answers, rows),
    }


def polymorph_figures(predicted: Any, rows: Any) -> dict[str, Any]:
    """Energy differences of two crystals of one formula: their MAE, and how often the lower one is told right."""
    import numpy as np

    from hf_crystal.crystals.elements import reduced_formula

    labels = rows.label.to_numpy(dtype=float)
    places: dict[str, list[int]] = {}
    for place, numbers in enumerate(rows.atomic_numbers):
        places.setdefault(reduced_formula(numbers), []).append(place)
    pairs = [pair for own in places.values() for pair in itertools.combinations(own[:_POLYMORPHS], 2)]
    if not pairs:
        return {"pairs": 0}
    first, second = np.array(pairs).T
    true, told = labels[first] - labels[second], predicted[first] - predicted[second]
    found: dict[str, Any] = {
        "pairs": len(pairs),
        "formulas": sum(len(own) > 1 for own in places.values()),
        "MAE of the difference": round(float(np.nanmean(np.abs(told - true))), 4),
        "MAE of these crystals": round(float(np.nanmean(np.abs((predicted - labels)[np.unique(pairs)]))), 4),
    }
    edges = [0.0, 0.01, 0.02, 0.05, 0.1, np.inf]
    for low, high in itertools.pairwise(edges):
        chosen = (np.abs(told) >= low) & (np.abs(told) < high)
        right = int((np.sign(told) == np.sign(true))[chosen].sum())
        found[f"lower one right, told apart by {low:g} to {high:g}"] = [right, int(chosen.sum())]
    return found


def errors_by_kind(difference: Any, atomic_numbers: Any) -> dict[str, Any]:
    """Rows, MAE and bias of oxides, nitrides and so on."""
    import numpy as np

    names = np.array([next(name for name, own in _KINDS.items() if own & set(numbers)) for numbers in atomic_numbers])
    found = {}
    for name in _KINDS:
        own = difference[(names == name) & np.isfinite(difference)]
        if len(own):
            mae, bias = (round(float(value), 4) for value in (np.abs(own).mean(), own.mean()))
            found[name] = {"rows": len(own), "mae": mae, "bias": bias}
    return found


def stability_figures(answers: list[dict[str, Any]], rows: Any) -> dict[str, Any]:
    """How well predicted energies find the crystals near the hull; the hull's own distance from the labels beside."""
    import numpy as np

    import hf_crystal

    hull = hf_crystal.load_reference()
    covered = [hull.elements.issuperset(numbers) for numbers in rows.atomic_numbers]  # no phase has helium
    known = rows.e_above_hull.notna().to_numpy() & covered
    chosen = [answer for answer, use in zip(answers, known, strict=True) if use]
    labels, energies = rows.e_above_hull[known].to_numpy(), rows.label[known].to_numpy()
    bottom = np.array([hull.stability(answer["formula"]).hull_energy for answer in chosen])
    predicted = np.array([answer["formation_energy"] for answer in chosen]) - bottom
    figures: dict[str, Any] = {"hull_mae": round(float(np.abs(energies - bottom - labels).mean()), 4)}
    for threshold in (0.0, 0.05):
        figures[f"stable to {threshold}"] = stability_scores(predicted, labels, threshold)
    figures["by prediction"] = shares_by_prediction(predicted, labels)
    return figures


def shares_by_prediction(predicted: Any, labels: Any) -> dict[str, Any]:
    """Of the crystals of each class of predicted distance, the share that is known to lie near the hull."""
    import numpy as np

    classes = np.searchsorted(_EDGES, predicted)
    names = [f"to {_EDGES[0]}", *(f"to {edge}" for edge in _EDGES[1:]), f"above {_EDGES[-1]}"]
    found = {}
    for place, name in enumerate(names):
        known = labels[classes == place]
        shares = {f"at most {edge}": round(float((known <= edge + 1e-4).mean()), 3) for edge in (0.0, 0.05, 0.1)}
        found[name] = {"rows": len(known), **(shares if len(known) else {})}
    return found


def stability_scores(predicted: Any, labels: Any, threshold: float) -> dict[str, Any]:
    """Precision and recall of "at most `threshold` above the hull", from predicted and known distances, eV/atom."""
    found, true = predicted <= threshold, labels <= threshold
    hits = int((found & true).sum())
    precision, recall = hits / max(1, found.sum()), hits / max(1, true.sum())
    return {
        "rows": len(labels),
        "share": round(float(true.mean()), 3),
        "precision": round(float(precision), 3),
        "recall": round(float(recall), 3),
        "f1": round(float(2 * precision * recall / max(1e-9, precision + recall)), 3),
        "false_positive_rate": round(float((found & ~true).sum() / max(1, (~true).sum())), 3),
    }


def main(args: argparse.Namespace) -> None:
    """Print the errors of every model."""
    from transformers import pipeline

    import hf_crystal

    parts, distance = parts_of(args.data)
    print(json.dumps({"MPTS-52 labels minus training labels": distance}))
    for name in args.models:
        folder = name if Path(name).is_dir() else str(hf_crystal.embedded_checkpoint(name))
        model = pipeline("crystal-property-prediction", model=folder)
        print(
            json.dumps({"model": name, **{part: errors(model, rows, args.batch_size) for part, rows in parts.items()}})
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with mp_20, materials_project and mpts_52 .parquet")
    parser.add_argument("models", nargs="+", help="embedded checkpoints or folders")
    parser.add_argument("--batch-size", type=int, default=64, help="crystals per forward pass (default: 64)")
    main(parser.parse_args())
