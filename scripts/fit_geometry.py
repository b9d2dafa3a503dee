"""Teach the error head of a property model to tell crystals that are not at rest.

    python scripts/fit_geometry.py CHECKPOINT --training-table training_table.parquet
    python scripts/fit_geometry.py CHECKPOINT --count-warnings DATA_FOLDER

CHECKPOINT has an error head that reads states (`fit_error_heads.py`, which forgets what is fitted here). From training
crystals that are stretched, displaced or have two elements exchanged, on the inputs of the error head: a linear
function to the logarithm of how much longer all edges are, and a small network to the logit that a crystal is not at
rest, above 0 for one of 200 validation rows as they are. CHECKPOINT is written in place: weights, configuration and,
under `uncertainty`, the share of changed validation rows that gets a warning in `metrics.json`. The training table is
that of `prepare_materials_project.py`. About 5 CPU minutes for `crystalformer-mp`.

`--count-warnings` fits nothing: up to 500 crystals each of test parts, of JARVIS and of `dft_forces.parquet` are
predicted as users do; the shares that get a warning of not being at rest, and any, are added to `metrics.json`.
"""

import argparse
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from report_domain import crystals_of, parts_of

from hf_crystal.crystals.record import close_pair
from hf_crystal.encoders.heads import _DISTORTION_SIZE, CrystalErrorHead
from hf_crystal.loading import load_property_model, load_property_pipeline
from hf_crystal.pipelines.pipeline_crystal_property import _STRAINED

_STRAINS = (-0.105, -0.05, 0.0, 0.05, 0.095)  # logarithms of edges of which warnings are counted: 10 and 5 %
_KINDS = ("one edge", "two edges alike", "all edges", "an angle", "atoms", "two elements", "one element's atoms")
_FALSE = 0.005  # share of validation rows whose distortion is above 0
_LARGEST = 64  # atoms
_CLOSEST = 0.6  # Å; no model is asked about closer atoms
Crystal = tuple[np.ndarray, np.ndarray, np.ndarray]  # lattice, fractional coordinates, atomic numbers


def strained(row: Any, strain: float) -> Crystal:
    """A row of a table with all edges longer by a factor, whose logarithm is given."""
    lattice = np.array(row.lattice.tolist(), float).reshape(3, 3) * np.exp(strain)
    return lattice, np.array(row.frac_coords.tolist(), float).reshape(-1, 3), np.array(row.atomic_numbers)


def distorted(row: Any, kind: str, generator: np.random.Generator) -> Crystal | None:
    """A row of a table that is no longer at rest; None where that cannot be, or atoms come closer than 0.6 Å."""
    lattice, frac, numbers = strained(row, 0.0)
    sign, amount, elements = generator.choice([-1, 1]), generator.uniform(), np.unique(numbers)
    first, second = generator.permutation(3)[:2]
    if kind in ("one edge", "two edges alike", "all edges"):
        changed = [first] if kind == "one edge" else [first, second] if kind == "two edges alike" else [0, 1, 2]
        lattice[changed] *= np.exp(sign * (0.06 + 0.1 * amount))
    elif kind == "an angle":  # about 5 to 14 degrees
        shear = np.eye(3)
        shear[first, second] = shear[second, first] = sign * (0.04 + 0.08 * amount)
        lattice = lattice @ shear
    elif kind == "atoms":  # 0.15 to 0.4 Å along each axis
        frac = frac + generator.normal(size=frac.shape) * (0.15 + 0.25 * amount) @ np.linalg.inv(lattice)
    elif len(elements) < 2:
        return None
    else:
        one, other = generator.choice(elements, 2, replace=False)
        if kind == "two elements":
            numbers = np.select([numbers == one, numbers == other], [other, one], numbers)
        else:  # by 0.5 to 1.2 Å
            step = generator.normal(size=3)
            frac[numbers == one] += step * (0.5 + 0.7 * amount) / np.linalg.norm(step) @ np.linalg.inv(lattice)
    return None if close_pair(frac, lattice, _CLOSEST) else (lattice, frac, numbers)


def encode(model: Any, extractor: Any, crystals: list[Crystal]) -> torch.Tensor:
    """Inputs of the error head, a row per crystal."""
    found, order = {}, sorted(range(len(crystals)), key=lambda place: len(crystals[place][2]))
    for first in range(0, len(order), 16):
        some = order[first : first + 16]
        names = ("lattice", "frac_coords", "atomic_numbers")
        batch = extractor([dict(zip(names, crystals[place], strict=True)) for place in some])
        with torch.no_grad():
            summary = model.encoder(**batch, output_summary=True).summary
            found |= dict(zip(some, model.error_inputs(summary), strict=True))
    return torch.stack([found[place] for place in range(len(crystals))])


def encode_distorted(model: Any, extractor: Any, rows: pd.DataFrame, kind: str, seed: int) -> torch.Tensor:
    """Inputs of the error head for distorted crystals; those that cannot be distorted are left out."""
    generator = np.random.default_rng([seed, zlib.crc32(kind.encode())])
    found = [distorted(row, kind, generator) for row in rows.itertuples()]
    return encode(model, extractor, [crystal for crystal in found if crystal is not None])


def fit_strain(inputs: torch.Tensor, strains: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and constant of the linear function from scaled inputs to strains, by ridge regression."""
    center, mean = inputs.mean(0), strains.mean()
    moved = inputs - center
    slope = torch.linalg.solve(moved.T @ moved + 100.0 * torch.eye(moved.shape[1]), moved.T @ (strains - mean))
    return slope, mean - slope @ center


def fit_distortion(rest: torch.Tensor, moved: torch.Tensor) -> tuple[torch.nn.Linear, torch.nn.Linear]:
    """Two linear maps with a ReLU between them, from scaled inputs to the logit that a crystal is not at rest."""
    torch.manual_seed(0)
    dense, proj = torch.nn.Linear(rest.shape[1], _DISTORTION_SIZE), torch.nn.Linear(_DISTORTION_SIZE, 1)
    network = torch.nn.Sequential(dense, torch.nn.ReLU(), torch.nn.Dropout(0.2), proj)
    inputs, target = torch.cat([rest, moved]), torch.arange(len(rest) + len(moved)) >= len(rest)
    weight = torch.where(target, 1.0, len(moved) / len(rest))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-2)
    for _ in range(12):
        for some in torch.randperm(len(inputs)).split(64):
            logits = network(inputs[some])[:, 0]
            losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, target[some].float(), weight[some])
            optimizer.zero_grad()
            losses.backward()
            optimizer.step()
    return dense, proj


def fit_geometry(model: Any, extractor: Any, table: pd.DataFrame, count: int) -> dict[str, Any]:
    """Fit what tells crystals that are not at rest, and count what it says of validation rows.

    Args:
        model, extractor: with a fitted error head that reads states.
        table: training table.
        count: training crystals with other edges, a quarter of them as they are, the others with strains up to
            ± 0.14; as many others at rest, and half as many of each kind of distortion.
    """
    small = table[table.atomic_numbers.map(len) <= _LARGEST]
    training = small[small.split == "train"].drop_duplicates("material_id").sample(frac=1.0, random_state=0)
    strains = np.random.default_rng(0).uniform(-0.14, 0.14, count)
    strains[: count // 4] = 0.0
    edges = [strained(row, strain) for row, strain in zip(training[:count].itertuples(), strains, strict=True)]
    inputs = encode(model, extractor, edges)
    rest = encode(model, extractor, [strained(row, 0.0) for row in training[-count:].itertuples()])
    moved = torch.cat(
        [
            encode_distorted(model, extractor, training.sample(count // 2, random_state=place), kind, seed=0)
            for place, kind in enumerate(_KINDS)
        ]
    )
    center, spread = rest.mean(0), rest.std(0)
    spread = spread.clamp_min(0.3 * spread[spread > 0].median())  # no large weight for what hardly varies
    slope, constant = fit_strain((inputs - center) / spread, torch.tensor(strains).float())
    dense, proj = fit_distortion((rest - center) / spread, (moved - center) / spread)
    old, model.config.error_head_geometry = model.error_head, True
    head = model.error_head = CrystalErrorHead(model.config).to(old.out_proj.weight.dtype)
    head.load_state_dict(old.state_dict(), strict=False)
    validation = small[small.split == "val"]
    validation = validation.sample(min(1500, len(validation)), random_state=0)
    with torch.no_grad():
        head.strain_proj.weight.copy_((slope / spread)[None])
        head.strain_proj.bias.copy_(constant - slope @ (center / spread))
        head.distortion_dense.weight.copy_(dense.weight / spread)
        head.distortion_dense.bias.copy_(dense.bias - dense.weight @ (center / spread))
        head.distortion_proj.load_state_dict(proj.state_dict())
        held = encode(model, extractor, [strained(row, 0.0) for row in validation.itertuples()])
        head.distortion_proj.bias -= head.geometry(held)["distortion"].quantile(1 - _FALSE)
        found = {}
        for strain in _STRAINS:
            held = encode(model, extractor, [strained(row, strain) for row in validation.itertuples()])
            error = (head.geometry(held)["strain"] - strain).square().mean().sqrt()
            found[f"all edges {math.expm1(strain):+.0%}"] = {**told(head, held), "error of the strain": float(error)}
        for kind in _KINDS:
            found[kind] = told(head, encode_distorted(model, extractor, validation, kind, seed=1))
    return {
        "training crystals": len(inputs) + len(rest) + len(moved),
        "validation rows": len(validation),
        "warned": {name: {key: round(value, 4) for key, value in shares.items()} for name, shares in found.items()},
    }


def told(head: CrystalErrorHead, inputs: torch.Tensor) -> dict[str, float]:
    """Share of crystals that gets a warning of other edges, and one of any kind."""
    found = head.geometry(inputs)
    edges = found["strain"].abs() > _STRAINED
    return {"edges": float(edges.float().mean()), "any": float((edges | (found["distortion"] > 0)).float().mean())}


def count_warnings(checkpoint: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Share of crystals of other data, as they are, that gets a warning of not being at rest, and one of any kind."""
    parts, _ = parts_of(folder)
    parts = {name: rows for name, rows in parts.items() if not name.endswith(("atoms", "shifted", "release"))}
    forces, jarvis = (pd.read_parquet(folder / f"{name}.parquet") for name in ("dft_forces", "jarvis_dft3d_subset"))
    parts |= {"JARVIS": jarvis} | {f"dft_forces, {name}": rows for name, rows in forces.groupby("set")}
    pipe, found = load_property_pipeline(checkpoint), {}
    for name, rows in parts.items():
        rows = rows[rows.atomic_numbers.map(len) <= _LARGEST]
        results = pipe(crystals_of(rows.sample(min(500, len(rows)), random_state=0)))
        texts = pd.Series([" ".join(result.get("warnings", ())) for result in results])
        shares = {"not at rest": texts.str.contains("at rest").mean(), "any warning": (texts != "").mean()}
        found[name] = {"crystals": len(results)} | {warning: round(share, 4) for warning, share in shares.items()}
    return found


def main(given: argparse.Namespace) -> None:
    """Fit, or count warnings."""
    path = given.checkpoint / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    section = metrics.setdefault("uncertainty", {})
    if given.count_warnings is not None:
        section["geometry"]["other crystals"] = count_warnings(given.checkpoint, given.count_warnings)
    elif given.training_table is None:
        raise SystemExit("--training-table is missing")
    else:
        model, extractor = load_property_model(given.checkpoint)
        if not model._reads_states:
            raise SystemExit(f"{given.checkpoint}: no error head that reads states: fit_error_heads.py fits one")
        section["geometry"] = fit_geometry(model, extractor, pd.read_parquet(given.training_table), given.count)
        model.save_pretrained(given.checkpoint)
    path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(section["geometry"], indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of a property model, changed in place")
    parser.add_argument("--training-table", type=Path, help="what the model was trained on")
    parser.add_argument("--count", type=int, default=8000, help="crystals with other edges (default: 8000)")
    parser.add_argument("--count-warnings", type=Path, metavar="FOLDER", help="folder of data sets; nothing is fitted")
    main(parser.parse_args())
