r"""Train a crystal generator from a recipe: `hf-crystal train generator` as a script, for launchers.

Eighteen minutes of MP-20 on one CPU core, with the composition, optional formation energy and band gap as prompts:

    OMP_NUM_THREADS=1 python scripts/train_mat2seq.py scripts/recipes_mat2seq/mat2seq-mp20.yaml \
        --data mp_20.parquet --output-dir runs/mat2seq --max-hours 0.3

The output folder holds model/ (load it with from_pretrained), recipe.yaml as run, run.json (seed, commit, versions,
cost, curves, test figures), tokens/ (the tokenized data, made once) and checkpoints/ (continue with --resume). --help
lists the options.
"""

import sys

from hf_crystal.cli.main import run

if __name__ == "__main__":
    words = sys.argv[1:]
    recipe = [] if not words or words[0].startswith("-") else ["--config"]
    sys.exit(run(["train", "generator", *recipe, *words]))
