# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_crystal"]
# ///
"""Fit the error head of a property model on crystals that its encoder has not seen; the encoder stays as it is.

    python scripts/fit_error_heads.py CHECKPOINT --data DATA_FOLDER --training-table training_table.parquet
    python scripts/fit_error_heads.py CHECKPOINT --data DATA_FOLDER --training-table training_table.parquet --test

Held-out crystals: validation rows of the training table and labeled rows of `materials_project.parquet` that are
neither among the training rows nor in a test part (by id, and by reduced formula and space group). In tenths, whole
kinds of crystals each: of nine, eight fit a network and a linear function and one chooses the epoch of the first, for
five heads in turn, whose mean is taken, and per target the share of the linear functions; the last gives the length of
the intervals. CHECKPOINT is written in place: weights, configuration and, under `uncertainty`, the figures in
`metrics.json`. `--test` fits nothing: it measures the head of CHECKPOINT on the test parts of `report_domain.py`.
Embeddings are kept in `--cache`, by the content of the weights. `fit_geometry.py` comes next.
"""

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from prepare_materials_project import LABELS, kinds_of, with_labels
from report_domain import crystals_of, parts_of

_MEMBERS = 5  # heads whose mean is taken
_SHARES = (0.0, 0.5, 1.0)  # of the linear functions, tried
_PENALTY = 1000.0  # of the squared weights of a linear function, on standardized inputs
_LARGE = 20  # atoms; what benchmarks call large
_WITHIN = (0.005, 0.995)  # scales beyond those of these shares of the held-out crystals are cut off


def held_out_rows(folder: Path, table: Path, max_atoms: int, extra: int) -> Any:
    """Labeled rows that are in no training and no test part; at most `extra` beyond the validation part."""
    import pandas as pd

    own = pd.read_parquet(table)
    project = with_labels(pd.read_parquet(folder / "materials_project.parquet"))
    mp20 = with_labels(pd.read_parquet(folder / "mp_20.parquet"))
    identity = ["material_id", "split", "atomic_numbers", "spacegroup_symprec0p1"]
    mpts52 = pd.read_parquet(folder / "mpts_52.parquet", columns=identity)
    is_test = project[["split_megnet", "mp20_split", "mpts52_split"]].eq("test").any(axis=1)
    tests = [project[is_test], *(frame[frame.split == "test"] for frame in (mp20, mpts52))]
    closed = {name for frame in tests for name in frame.material_id}
    closed |= set(own[own.split != "val"].material_id)
    kinds = {kind for frame in tests for kind in kinds_of(frame)}
    validation = mp20[mp20.split == "val"]  # their geometry is the one that the labels belong to: it comes first
    rows = pd.concat([validation, project], ignore_index=True).drop_duplicates("material_id")
    rows = rows[~rows.material_id.isin(closed) & (rows.num_atoms <= max_atoms)]
    rows = rows[rows[list(LABELS)].notna().any(axis=1)]
    rows = rows.assign(kind=kinds_of(rows))
    rows = rows[~rows.kind.isin(kinds)]
    chosen = rows.material_id.isin(own[own.split == "val"].material_id)
    # far from the hull errors are largest and known crystals fewest: those come first
    more = rows[~chosen].sample(frac=1.0, random_state=0)
    more = more.sort_values("e_hull_mp2018", key=lambda values: ~(values >= 0.1), kind="stable")[:extra]
    return pd.concat([rows[chosen], more], ignore_index=True)


def _key(row: Any) -> str:
    """Content of a crystal: one id has other geometries in other tables."""
    import numpy as np

    arrays = (np.asarray(row.lattice, float), np.asarray(row.frac_coords, float), np.asarray(row.atomic_numbers, int))
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:24]


def encode(model: Any, extractor: Any, rows: Any, cache: Path, batch_size: int) -> tuple[Any, Any]:
    """Summaries, the embedding last, and raw predictions of rows; known crystals are read from the cache."""
    import numpy as np
    import torch

    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if not name.startswith("error_head"):
            digest.update(name.encode() + weight.cpu().numpy().tobytes())
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{digest.hexdigest()[:16]}-summaries.npz"
    known: dict[str, Any] = {}
    if path.is_file():
        with np.load(path) as saved:
            known = dict(zip(saved["keys"].tolist(), saved["pooled"], strict=True))
    keys = [_key(row) for row in rows.itertuples()]
    missing = [place for place, key in enumerate(keys) if key not in known]
    missing.sort(key=lambda place: rows.num_atoms.iloc[place])
    while missing:
        largest = int(rows.num_atoms.iloc[missing[min(batch_size, len(missing)) - 1]])
        size = max(1, min(batch_size, 2048 // largest))
        some, missing = missing[:size], missing[size:]
        crystals = crystals_of(rows.iloc[some])
        with torch.no_grad():
            pooled = model.encoder(**extractor(crystals), output_summary=True).summary.numpy()
        known |= {keys[place]: vector for place, vector in zip(some, pooled, strict=True)}
        if not missing or len(missing) // 1000 != (len(missing) + size) // 1000:
            np.savez(path, keys=np.array(list(known)), pooled=np.stack(list(known.values())))
            print(f"{len(missing)} crystals to encode", flush=True)
    found = np.stack([known[key] for key in keys])
    with torch.no_grad():
        return found, model.head.to_physical(model.head(torch.tensor(embeddings_of(model, found)))).numpy()


def embeddings_of(model: Any, pooled: Any) -> Any:
    """Last columns of summaries: the embeddings."""
    return pooled[:, -model.config.hidden_size :]


def inputs_of(model: Any, pooled: Any) -> Any:
    """What the model gives its error head of summaries: all of them, or the embeddings."""
    return pooled if model.config.error_head_states else embeddings_of(model, pooled)


class _HeldOut:
    """Held-out crystals as an error head sees them: scaled inputs, errors, metals; arguments as of `fit_head`."""

    def __init__(self, model: Any, pooled: Any, predicted: Any, labels: Any, folds: Any):
        import numpy as np
        import torch

        scale, self.model, self.folds, self.gap = model.head.target_std.numpy(), model, folds, model.config.gap_index
        with torch.no_grad():
            inputs = model.error_inputs(torch.tensor(inputs_of(model, pooled)))
        errors = torch.tensor(np.abs(predicted - labels) / scale, dtype=torch.float32)
        self.known = torch.isfinite(errors)
        self.errors = errors.nan_to_num()
        if self.gap is not None:  # errors of what is given out: 0 for a metal, else at least 0
            true, raw = labels[:, self.gap], predicted[:, self.gap]
            self.true = torch.tensor(np.nan_to_num(true) / scale[self.gap], dtype=torch.float32)
            self.clipped = torch.tensor(np.clip(raw, 0, None) / scale[self.gap], dtype=torch.float32)
            self.is_metal = (self.true <= 0).float()
        self.center, spread = inputs[folds > 0].mean(0), inputs[folds > 0].std(0)
        # a unit that none of these crystals switches on, or an element that none has, is given no large weight
        self.spread = spread.clamp_min(0.3 * spread[spread > 0].median())
        self.inputs = (inputs - self.center) / self.spread

    def outputs(self, rows: Any, head: Any) -> tuple[Any, Any, Any]:
        """Logarithms of error scales and logits of a metal, and the errors with that head."""
        import torch

        logarithms, metal = head(self.inputs[rows])
        own, gap = self.errors[rows], self.gap
        if gap is not None:
            final = self.clipped[rows].masked_fill(metal > 0, 0.0)
            own = torch.cat([own[:, :gap], (final - self.true[rows]).abs()[:, None], own[:, gap + 1 :]], 1).detach()
        return logarithms, metal, own

    def loss(self, rows: Any, head: Any) -> Any:
        """Negative log-likelihood of errors with tails longer than Laplace's, and the cross-entropy of metals."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        logarithms, metal, own = self.outputs(rows, head)
        weights = self.known[rows].float()
        share = weights / weights.sum(0).clamp_min(1)
        ratios = own * (-logarithms).exp()
        total = ((logarithms + 2 * ratios.clamp_min(1e-12).sqrt()) * share).sum()
        if self.gap is None:
            return total
        terms = binary_cross_entropy_with_logits(metal, self.is_metal[rows], reduction="none")
        return total + (terms * share[:, self.gap]).sum()

    def linear(self, rows: Any, head: Any) -> Any:
        """Weights `(targets, inputs + 1)`, the constant last, of functions for the logarithms of errors: ridge."""
        import torch

        with torch.no_grad():
            own = self.outputs(rows, head)[2]
        design, found = self.inputs[rows], []
        for place in range(own.shape[1]):
            given = self.known[rows, place]
            x, y = design[given], own[given, place]
            y = torch.log(y + 0.2 * y.mean())  # a small error is luck: its logarithm counts for little
            mean = x.mean(0)
            slope = torch.linalg.solve(
                (x - mean).T @ (x - mean) + _PENALTY * torch.eye(x.shape[1]), (x - mean).T @ (y - y.mean())
            )
            found.append(torch.cat([slope, (y.mean() - mean @ slope)[None]]))
        return torch.stack(found)

    def member(self, chooses: int, epochs: int) -> tuple[Any, Any, Any]:
        """One head, and linear functions: fold `chooses` chooses the epoch of the first, the others but 0 train both.

        The third result are the rank correlations on that fold with each of `_SHARES` of the functions, per target.
        """
        import numpy as np
        import torch
        from scipy.stats import spearmanr

        from hf_crystal.encoders.heads import CrystalErrorHead

        head = CrystalErrorHead(self.model.config)
        self.model._init_weights(head.dense)
        training = np.flatnonzero((self.folds > 0) & (self.folds != chooses))
        validation = torch.tensor(np.flatnonzero(self.folds == chooses))
        optimizer = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=1.0)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        best, kept = float("inf"), {}
        for epoch in range(epochs):
            order = np.random.default_rng(epoch).permutation(training)
            for rows in np.array_split(order, max(1, len(order) // 256)):
                optimizer.zero_grad()
                self.loss(torch.tensor(rows), head).backward()
                optimizer.step()
            schedule.step()
            with torch.no_grad():
                value = float(self.loss(validation, head))
            if value < best:
                best, kept = value, {name: tensor.clone() for name, tensor in head.state_dict().items()}
        head.load_state_dict(kept)
        functions = self.linear(torch.tensor(training), head)
        with torch.no_grad():
            logarithms, _, own = self.outputs(validation, head)
        straight = self.inputs[validation] @ functions[:, :-1].T + functions[:, -1]
        correlations = [
            [
                spearmanr(((1 - share) * logarithms + share * straight)[given, place], own[given, place]).statistic
                for place, given in enumerate(self.known[validation].unbind(1))
            ]
            for share in _SHARES
        ]
        return head, functions, correlations


def _joined(config: Any, heads: Any, straight: Any, share: Any) -> Any:
    """The mean of heads as one, with the given share of linear functions per target."""
    import torch

    from hf_crystal.encoders.heads import CrystalErrorHead

    config.error_head_size = config.error_head_size * len(heads) + 2 * len(share)
    head = CrystalErrorHead(config)
    with torch.no_grad():
        for name, own in (("weight", straight[:, :-1]), ("bias", straight[:, -1])):
            getattr(head.dense, name).copy_(torch.cat([*(getattr(one.dense, name) for one in heads), own, -own]))
        for layer, rest, own in (
            ("out_proj", 1 - share, torch.cat([share.diag(), -share.diag()], dim=1)),
            ("metal_proj", torch.ones(1), torch.zeros(1, 2 * len(share))),
        ):
            parts = [getattr(one, layer) for one in heads]
            weight = torch.cat([part.weight for part in parts], dim=1) / len(heads)
            getattr(head, layer).weight.copy_(torch.cat([rest[:, None] * weight, own], dim=1))
            getattr(head, layer).bias.copy_(rest * sum(part.bias for part in parts) / len(heads))
    return head


def fit_head(
    model: Any, pooled: Any, predicted: Any, labels: Any, folds: Any, epochs: int, large: Any | None = None
) -> None:
    """Fit a new error head of `model`, the mean of several: fold 0 gives the intervals and is in none.

    One head with a single hidden layer is linear far from all crystals of the fit, and two of them are so in different
    directions. The mean of heads of this kind is a wider one. Beside them stand linear functions for the logarithms of
    the errors, each two units of the same layer: relu(x) - relu(-x) = x. With some thousand crystals and hundreds of
    inputs networks learn the crystals, and for the formation energy nothing is better than these functions.

    Args:
        pooled, predicted, labels: of the held-out crystals, embeddings `(n, C)` or summaries; `(n, targets)`;
            `(n, targets)` with NaN.
        folds: `(n,)`, 0 to 9.
        large: `(n,)`, whether a cell is large; none: no cell is.
    """
    import numpy as np
    import torch

    from hf_crystal.encoders.heads import in_doubt

    held, config = _HeldOut(model, pooled, predicted, labels, folds), model.config
    config.error_scale_bounds = None
    members = (held.member(chooses, epochs) for chooses in range(1, _MEMBERS + 1))
    heads, functions, correlations = zip(*members, strict=True)
    share = torch.tensor(_SHARES)[np.nanmean(correlations, axis=0).argmax(0)]
    head = _joined(config, heads, torch.stack(functions).mean(0), share).to(model.head.out_proj.weight.dtype)
    model.error_head = head
    rows, gap = torch.tensor(np.flatnonzero(folds == 0)), held.gap
    with torch.no_grad():
        found = held.outputs(rows, head)
        outside = found[2].clone()
        if gap is not None:  # the interval of a crystal that may be a metal or not holds zero and the gap
            doubtful = in_doubt(found[1].sigmoid())
            outside[doubtful, gap] = (held.true[rows] - held.clipped[rows]).clamp_min(0)[doubtful]
        no_cell = torch.zeros(len(rows)).bool()
        set_intervals(model, (*found, outside), held.known[rows], no_cell if large is None else large[folds == 0])
        scales, metal = head(held.inputs)
        bounds = torch.stack([scales.quantile(share, 0) for share in _WITHIN], 1).tolist()
        if gap is not None:  # metals' errors are mostly 0: a gap must not get theirs
            bounds[gap][0] = scales[metal <= 0, gap].quantile(_WITHIN[0]).item()
        head.bounds = config.error_scale_bounds = [[round(value, 3) for value in pair] for pair in bounds]
        # the first layer takes embeddings as they are
        head.dense.bias -= head.dense.weight @ (held.center / held.spread)
        head.dense.weight /= held.spread


def set_intervals(model: Any, outputs: tuple[Any, Any, Any, Any], known: Any, large: Any) -> None:
    """Make a scale the length that holds 68.3 % of the errors of some rows, and store how much longer 90 % take.

    Both are at least what crystals with large cells take, of a gap what those not called metals take: a set with more
    of them than these rows would get errors and intervals that are too short.
    """
    import torch

    from hf_crystal.uncertainty import conformal_quantiles

    head = model.error_head
    with torch.no_grad():
        logarithms, metal, own, outside = outputs
        scales = logarithms.exp()
        for place in range(own.shape[1]):
            given = known[:, place]
            if given.sum() < 20:
                name = model.config.target_names[place]
                raise ValueError(f"{name}: {int(given.sum())} held-out labels for the intervals; expected at least 20")
            hard = metal <= 0 if place == model.config.gap_index else torch.as_tensor(large)
            groups = [rows for rows in (given, given & hard) if rows.sum() >= 20]
            one, nine = (
                max(
                    float(conformal_quantiles((errors[:, place] / scales[:, place])[rows].numpy(), [share])[0])
                    for rows in groups
                )
                for errors, share in ((own, 0.6827), (outside, 0.9))
            )
            head.out_proj.bias[place] += math.log(one)
            head.interval_factor[place] = nine / one


def figures(model: Any, pooled: Any, predicted: Any, labels: Any) -> dict[str, Any]:
    """How long the intervals are beside the errors, per target, and what the metal probability is worth."""
    import numpy as np
    import torch
    from scipy.stats import spearmanr

    from hf_crystal.encoders.heads import in_doubt

    config = model.config
    with torch.no_grad():
        scaled = model.head(torch.tensor(embeddings_of(model, pooled)))
        seen = torch.tensor(inputs_of(model, pooled))
        found = {name: value.numpy() for name, value in model._physical(scaled, seen).items()}
    errors = np.abs(found["logits"] - labels)
    result: dict[str, Any] = {}
    for place, name in enumerate(config.target_names):
        known = np.isfinite(labels[:, place])
        if known.sum() < 20:
            continue
        own, sizes = errors[known, place], found["standard_errors"][known, place]
        sorted_errors = own[np.argsort(sizes, kind="stable")]
        kept = [max(1, round(len(own) * (10 - tenths) / 10)) for tenths in range(10)]
        result[name] = {
            "rows": int(known.sum()),
            "mae": float(own.mean()),
            "coverage of 90 %": float((own <= found["interval_widths"][known, place]).mean()),
            "median standard error": float(np.median(sizes)),
            "spearman": float(spearmanr(sizes, own).statistic),
            "mae without the least sure 0 to 90 %": [round(float(sorted_errors[:count].mean()), 4) for count in kept],
        }
    gap = config.gap_index
    if gap is not None and config.gap_target in result:
        known = np.isfinite(labels[:, gap])
        true, raw = labels[known, gap], predicted[known, gap]
        called = found["metal_probability"][known] > 0.5
        metal = true <= 0
        inside = errors[known, gap] <= found["interval_widths"][known, gap]
        doubtful = in_doubt(found["metal_probability"][known])
        brier = (found["metal_probability"][known] - metal) ** 2
        result[config.gap_target] |= {
            "mae unclipped": float(np.abs(raw - true).mean()),
            "mae clipped": float(np.abs(raw.clip(0) - true).mean()),
            "mae of non-metals": float(errors[known, gap][~metal].mean()),
            "mae of non-metals unclipped": float(np.abs(raw - true)[~metal].mean()),
            "within a standard error, not called metals": float(
                (errors[known, gap] <= found["standard_errors"][known, gap])[~called].mean()
            ),
            "coverage of 90 %, not called metals": float(inside[~called].mean()),
            "coverage of 90 %, metal probability 0.1 to 0.9": float(inside[doubtful].mean()),
            "metal probability 0.1 to 0.9": float(doubtful.mean()),
            "metals": float(metal.mean()),
            "metals called metals": float(called[metal].mean()),
            "non-metals called metals": float(called[~metal].mean()),
            "right about metals": float((called == metal).mean()),
            "brier score": float(brier.mean()),
        }
    return {name: {key: _short(value) for key, value in values.items()} for name, values in result.items()}


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def test_parts(folder: Path) -> dict[str, Any]:
    """Test rows with a column per target, by name; the labels of MPTS-52 as they are and as the training has them."""
    parts, _ = parts_of(folder)
    names = ("MP-20 test", "MEGNet test at hand", "MPTS-52 test, above 20 atoms")
    names += ("MPTS-52 test, above 20 atoms, training release",)
    chosen = {}
    for name in names:
        rows = parts[name].assign(num_atoms=lambda frame: frame.atomic_numbers.map(len))
        rows = rows.assign(**{target: float("nan") for target in LABELS}).assign(formation_energy=rows.label)
        source = "band_gap_megnet2018" if "MEGNet" in name else "mb_band_gap_pbe"
        chosen[name] = rows.assign(band_gap=rows[source]) if source in rows else rows
    return chosen


def main(args: argparse.Namespace) -> None:
    """Fit and save a head, or measure one."""
    import numpy as np
    import torch

    from hf_crystal.loading import load_property_model

    model, extractor = load_property_model(args.checkpoint)
    targets = list(model.config.target_names)
    path = args.checkpoint / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    section = metrics.setdefault("uncertainty", {})
    if args.test:
        if model.error_head is None:
            raise SystemExit(f"{args.checkpoint} has no error head; fit one first, without --test")
        for name, rows in test_parts(args.data).items():
            labels = rows[targets].to_numpy(dtype=float)
            section[name] = figures(model, *encode(model, extractor, rows, args.cache, args.batch_size), labels)
    else:
        if args.training_table is None:
            raise SystemExit("--training-table is missing: what the model was trained on is no held-out crystal")
        rows = held_out_rows(args.data, args.training_table, args.max_atoms, args.extra)
        labels = rows[targets].to_numpy(dtype=float)
        pooled, predicted = encode(model, extractor, rows, args.cache, args.batch_size)
        # whole kinds of crystals, so that no fold has the twin of another's
        folds = np.array([int(hashlib.sha256(kind.encode()).hexdigest()[:8], 16) % 10 for kind in rows.kind])
        model.config.gap_target = args.gap_target if args.gap_target in targets else None
        model.config.error_head_size, model.config.error_head_states = args.hidden_size, True
        model.config.error_head_outdated = model.config.error_head_geometry = False
        torch.manual_seed(0)
        fit_head(model, pooled, predicted, labels, folds, args.epochs, rows.num_atoms.to_numpy() > _LARGE)
        model.save_pretrained(args.checkpoint)
        section.clear()  # figures of another head
        section["held-out rows"] = {"fit": int((folds > 0).sum()), "intervals": int((folds == 0).sum())}
        some = folds == 0
        section["rows of the intervals"] = figures(model, pooled[some], predicted[some], labels[some])
    path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(section, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of a property model, changed in place")
    parser.add_argument("--data", type=Path, required=True, help="folder with the tables of the Materials Project")
    parser.add_argument("--training-table", type=Path, help="what prepare_materials_project.py wrote for the training")
    parser.add_argument("--test", action="store_true", help="measure on the test parts, fit nothing")
    parser.add_argument("--gap-target", default="band_gap", help="target that is a band gap (default: band_gap)")
    parser.add_argument("--hidden-size", type=int, default=64, help="width of one of the heads (default: 64)")
    parser.add_argument("--epochs", type=int, default=16, help="passes over the held-out rows (default: 16)")
    parser.add_argument("--max-atoms", type=int, default=64, help="largest held-out cell (default: 64)")
    parser.add_argument(
        "--extra", type=int, default=2500, help="held-out rows beyond the validation part (default: 2500)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="crystals per forward pass (default: 64)")
    parser.add_argument(
        "--cache", type=Path, default=Path("output/error_heads"), help="folder for embeddings (output/error_heads)"
    )
    main(parser.parse_args())
