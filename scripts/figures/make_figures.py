"""The figures of the documentation, from the embedded checkpoints: docs/figures/*.png.

Usage: python scripts/figures/make_figures.py [NAME ...] [--data mp_20.parquet]
Names: attention, frames, perturbation, rejection, sequence, training; with --data (MP-20 with its splits) parity,
calibration.
Run it again whenever the embedded checkpoints change: nine CPU seconds, with --data a minute more.
"""

import argparse
import io
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES, FIGURES = ROOT / "examples", ROOT / "docs" / "figures"
DEFAULT, FRAMES = "crystalformer-mp20", "crystalframer-mp"
NEED_DATA = ("parity", "calibration")
# material -> an atom of it (counted from 0) with a telling surrounding
MATERIALS = {"SrTiO3": 1, "TiO2_rutile": 2, "LiFePO4": 8}


def save(figure, name: str) -> None:
    """Write a PNG with a palette of 128 colors: a third of the size, no visible difference."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130)
    picture = Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    FIGURES.mkdir(parents=True, exist_ok=True)
    picture.save(FIGURES / f"{name}.png", optimize=True)
    print(f"{name}.png: {(FIGURES / f'{name}.png').stat().st_size / 1024:.0f} KB")


def attention(_: argparse.Namespace) -> None:
    """Between the atoms of SrTiO3 and over the neighbor shells of titanium."""
    from hf_crystal.viz import plot_attention

    save(plot_attention(EXAMPLES / "SrTiO3.cif", DEFAULT, atom=1), "attention")


def frames(_: argparse.Namespace) -> None:
    """Frames of one atom of three materials, block after block."""
    from hf_crystal.viz import plot_frames

    files = [EXAMPLES / f"{name}.cif" for name in MATERIALS]
    save(plot_frames(files, FRAMES, atom=list(MATERIALS.values())), "frames")


def perturbation(_: argparse.Namespace) -> None:
    """Predictions under random displacements, with and without frames."""
    from hf_crystal.viz import plot_perturbation

    files = [EXAMPLES / f"{name}.cif" for name in ("SrTiO3", "TiO2_rutile", "ZnO_wurtzite")]
    models = {"Crystalformer": DEFAULT, "CrystalFramer": FRAMES}
    save(plot_perturbation(files, models, repeats=16), "perturbation")


def sequence(_: argparse.Namespace) -> None:
    """The sequence of LiFePO4."""
    from hf_crystal.viz import plot_sequence

    save(plot_sequence(EXAMPLES / "LiFePO4.cif", title="Sequence of LiFePO4"), "sequence")


def training(_: argparse.Namespace) -> None:
    """Loss and learning rate of `crystalformer-mp20` over its training."""
    from hf_crystal import embedded_checkpoint
    from hf_crystal.viz import plot_training

    save(plot_training(embedded_checkpoint(DEFAULT)), "training")


def parity(args: argparse.Namespace) -> None:
    """Predictions of `crystalformer-mp20` for the MP-20 test split."""
    import json

    from hf_crystal import CrystalCollator, CrystalFeatureExtractor, embedded_checkpoint, load_crystal_dataset
    from hf_crystal.evaluation.property_report import predict_rows
    from hf_crystal.loading import load_property_model
    from hf_crystal.viz import plot_parity

    if args.data is None:
        raise SystemExit("parity needs --data: a table of MP-20 with a column split")
    model, _ = load_property_model(DEFAULT)
    metrics = json.loads((embedded_checkpoint(DEFAULT) / "metrics.json").read_text(encoding="utf-8"))
    columns = [target["column"] for target in metrics["recipe"]["data"]["targets"]]
    rows = load_crystal_dataset(str(args.data), split_column="split")["test"]
    predictions, labels = predict_rows(model, rows, CrystalCollator(CrystalFeatureExtractor(), label_names=columns))
    for place, (name, unit) in enumerate(zip(model.config.target_names, model.config.target_units, strict=True)):
        suffix = "" if place == 0 else f"-{name.replace('_', '-')}"
        save(plot_parity(predictions[:, place], labels[:, place], name=name, unit=unit), f"parity{suffix}")


def rejection(_: argparse.Namespace) -> None:
    """Error of what is left when the least sure predictions are rejected, from the figures of the default model."""
    import json

    from hf_crystal import embedded_checkpoint
    from hf_crystal.viz import plot_rejection

    measured = json.loads((embedded_checkpoint() / "metrics.json").read_text(encoding="utf-8"))["uncertainty"]
    curves = {
        f"{name} ({found['formation_energy']['rows']:,})": found["formation_energy"][
            "mae without the least sure 0 to 90 %"
        ]
        for name, found in measured.items()
        if " test" in name and "formation_energy" in found
    }
    save(plot_rejection(curves, unit="eV/atom"), "rejection")


def calibration(args: argparse.Namespace) -> None:
    """Error bars from the disagreement of the two embedded models: fitted on validation, measured on test crystals."""
    import json

    from hf_crystal import embedded_checkpoint, load_crystal_dataset
    from hf_crystal.uncertainty import fit_error_model, measure_calibration, predict_ensemble
    from hf_crystal.viz import plot_calibration

    if args.data is None:
        raise SystemExit("calibration needs --data: a table of MP-20 with a column split")
    metrics = json.loads((embedded_checkpoint(DEFAULT) / "metrics.json").read_text(encoding="utf-8"))
    column = metrics["recipe"]["data"]["targets"][0]["column"]
    splits = load_crystal_dataset(str(args.data), split_column="split")
    found = {}
    for split, count in (("val", 3000), ("test", 3000)):
        rows = splits[split].shuffle(seed=0).select(range(count))
        found[split] = predict_ensemble(list(rows), [DEFAULT, FRAMES], batch_size=32), rows[column]
    (fitted_on, known), (measured, labels) = found["val"], found["test"]
    model = fit_error_model(fitted_on.mean, fitted_on.spread, known)
    print(f"error model: scale {model.scale:.2f}, floor {model.floor:.4f} {measured.unit}")
    sigma = model.sigma(measured.spread)
    curves = {
        "spread alone": measure_calibration(measured.mean, measured.spread, labels),
        "fitted, normal errors": measure_calibration(measured.mean, sigma, labels),
        "fitted, quantiles": measure_calibration(measured.mean, sigma, labels, model=model),
    }
    for name, curve in curves.items():
        print(f"{name}: off by {curve.miscalibration:.3f}, rank correlation {curve.rank_correlation:.2f}")
    save(plot_calibration(curves, unit=measured.unit), "calibration")


FIGURE_MAKERS = {
    "attention": attention,
    "frames": frames,
    "perturbation": perturbation,
    "rejection": rejection,
    "sequence": sequence,
    "training": training,
    "parity": parity,
    "calibration": calibration,
}


def main() -> None:
    """Make the figures that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*FIGURE_MAKERS, []], default=[])
    parser.add_argument("--data", type=Path, help="MP-20 as one parquet file with a column split")
    args = parser.parse_args()
    for name in args.names or [name for name in FIGURE_MAKERS if args.data or name not in NEED_DATA]:
        FIGURE_MAKERS[name](args)


if __name__ == "__main__":
    main()
