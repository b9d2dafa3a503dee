#!/usr/bin/env bash
# Bulk and shear modulus: fine-tuned from crystalformer-mp20 and from scratch at equal budget, three seeds each.
# Stopped, it goes on with the same command. For the cost see the recipe.
# usage: bash scripts/runs/crystalformer_elastic.sh mp_20.parquet [OUTPUT_FOLDER]
set -euo pipefail
data=$(realpath "${1:?give the path of mp_20.parquet}")
output=$(realpath -m "${2:-runs/crystalformer-elastic}")
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
recipe=scripts/recipes/crystalformer-elastic.yaml
python scripts/compare_pretraining.py $recipe --data "$data" --output-dir "$output"
# what the formula alone tells, beside the figures of the first run
python scripts/baseline_composition.py $recipe --data "$data" --output "$output/baseline.json" \
    --add-to "$output/pretrained-123/run.json"
# the same test figures again, from the saved folder in a fresh process
python scripts/evaluate_property.py "$output/pretrained-123" --data "$data" --output "$output/evaluation.json"
