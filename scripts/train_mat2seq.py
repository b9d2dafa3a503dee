r"""Train a crystal generator from a recipe.

Eighteen minutes of MP-20 on one CPU core, with the composition, optional formation energy and band gap as prompts:

    OMP_NUM_THREADS=1 python scripts/train_mat2seq.py scripts/recipes_mat2seq/mat2seq-mp20.yaml \
        --data mp_20.parquet --output-dir runs/mat2seq --max-hours 0.3

The output folder holds model/ (load it with from_pretrained), recipe.yaml as run, run.json (seed, commit, versions,
cost, curves, test figures), tokens/ (the tokenised data, made once) and checkpoints/ (continue with --resume).
"""

import argparse
import sys


def make_parser(parser: argparse.ArgumentParser | None = None) -> argparse.ArgumentParser:
    """Command-line options; fills a given (sub-)parser or a new one."""
    if parser is None:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="YAML recipe, see scripts/recipes_mat2seq/")
    parser.add_argument("--output-dir", required=True, help="folder of the run")
    parser.add_argument("--data", help="table of crystals (parquet, or any form load_crystal_dataset reads)")
    parser.add_argument("--tokens", help="folder of tokenised data that several runs share")
    parser.add_argument("--num-workers", type=int, default=1, help="processes that tokenise")
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


def main(args: argparse.Namespace) -> int:
    """Train, test, save; returns the exit code."""
    from hf_crystal.training.mat2seq_recipe import load_generator_recipe
    from hf_crystal.training.mat2seq_run import train_generator

    overrides = [*args.overrides, f"data.num_workers={args.num_workers}"]
    if args.data is not None:
        overrides.append(f"data.path={args.data}")
    try:
        recipe = load_generator_recipe(args.recipe, overrides)
        record = train_generator(
            recipe, args.output_dir, tokens_folder=args.tokens, resume=args.resume, max_hours=args.max_hours
        )
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        print(f"train_mat2seq: {error}", file=sys.stderr)
        return 2
    answer, free = record["test"]["answer"], record["test"]["without_grammar"]
    print(f"{record['steps']} steps, {record['epochs']:.2f} epochs, {record['training_seconds']:.0f} s of training")
    print(
        f"test loss after the composition: {answer['nats_per_token']:.4f} nats/token (n={answer['crystals']}); "
        f"without grammar {free['decoded']:.0%} decode and {free['composition']:.0%} have the composition "
        f"(n={free['samples']})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(make_parser().parse_args()))
