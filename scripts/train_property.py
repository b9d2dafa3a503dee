"""Train a property model from a recipe.

Ten minutes of MP-20 formation energy on one CPU core:

    OMP_NUM_THREADS=1 python scripts/train_property.py scripts/recipes/crystalformer-mp20.yaml \
        --data mp_20.parquet --output-dir runs/mp20 --max-hours 0.17

The same on two processes (gloo on CPU, one process per GPU otherwise), continued after a stop:

    torchrun --nproc_per_node 2 scripts/train_property.py scripts/recipes/crystalformer-mp20.yaml \
        --data mp_20.parquet --output-dir runs/mp20 --resume

The output folder holds model/ (load it with from_pretrained), recipe.yaml as run, run.json (seed, commit, versions,
cost, curves, test errors beside the mean predictor's) and checkpoints/.
"""

import argparse
import sys


def make_parser(parser: argparse.ArgumentParser | None = None) -> argparse.ArgumentParser:
    """Command-line options; fills a given (sub-)parser or a new one."""
    if parser is None:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML recipe, see scripts/recipes/")
    parser.add_argument("--output-dir", required=True, help="folder of the run")
    parser.add_argument("--data", help="table of crystals (parquet, or any form load_crystal_dataset reads)")
    parser.add_argument("--split-column", help="column with the split of each row")
    parser.add_argument("--pretrained", help="folder or repository to fine-tune from")
    parser.add_argument(
        "--max-hours", type=float, help="wall budget of training; the run ends cleanly when it is used"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last complete checkpoint")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change one value of the recipe, for example training.num_epochs=5; may be repeated",
    )
    return parser


def overrides_from(args: argparse.Namespace) -> list[str]:
    """Recipe overrides that the options stand for."""
    named = [
        ("data.path", args.data),
        ("data.split_column", args.split_column),
        ("model.pretrained", args.pretrained),
    ]
    return [*args.overrides, *(f"{key}={value}" for key, value in named if value is not None)]


def main(args: argparse.Namespace) -> int:
    """Train, test, save; returns the exit code."""
    from hf_crystal.training import load_recipe
    from hf_crystal.training.property_run import train_property

    try:
        recipe = load_recipe(args.recipe, overrides_from(args))
        record = train_property(recipe, args.output_dir, resume=args.resume, max_hours=args.max_hours)
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"train_property: {error}", file=sys.stderr)
        return 2
    if record:  # on the main process
        print(
            f"{record['steps']} steps, {record['epochs']:.2f} epochs, {record['training_seconds']:.0f} s of training"
        )
        for target in record["test"]["targets"]:
            low, high = target["mae_interval"]
            print(
                f"test MAE {target['name']}: {target['mae']:.4f} {target['unit']} (95 % {low:.4f} to {high:.4f}, "
                f"n={target['n']}); mean predictor {target['baseline_mae']:.4f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(make_parser().parse_args()))
