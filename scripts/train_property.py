r"""Train a property model from a recipe: `hf-crystal train property` as a script, for launchers.

Ten minutes of MP-20 formation energy on one CPU core:

    OMP_NUM_THREADS=1 python scripts/train_property.py scripts/recipes/crystalformer-mp20.yaml \
        --data mp_20.parquet --output-dir runs/mp20 --max-hours 0.17

The same on two processes (gloo on CPU, one process per GPU otherwise), continued after a stop:

    torchrun --nproc_per_node 2 scripts/train_property.py scripts/recipes/crystalformer-mp20.yaml \
        --data mp_20.parquet --output-dir runs/mp20 --resume

The output folder holds model/ (load it with from_pretrained), recipe.yaml as run, run.json (seed, commit, versions,
cost, curves, test errors beside the mean predictor's) and checkpoints/. --help lists the options.
"""

import sys

from hf_crystal.cli.main import run

if __name__ == "__main__":
    words = sys.argv[1:]
    recipe = [] if not words or words[0].startswith("-") else ["--config"]
    sys.exit(run(["train", "property", *recipe, *words]))
