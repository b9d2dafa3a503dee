#!/usr/bin/env bash
# Crystalformer on formation energy and band gap of MP-20; for the cost see the recipe.
# usage: bash scripts/runs/crystalformer_mp20.sh mp_20.parquet [OUTPUT_FOLDER]
set -euo pipefail
data=$(realpath "${1:?give the path of mp_20.parquet}")
output=$(realpath -m "${2:-runs/crystalformer-mp20}")
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
python scripts/train_property.py scripts/recipes/crystalformer-mp20.yaml --data "$data" --output-dir "$output"
# the same test figures again, from the saved folder in a fresh process
python scripts/evaluate_property.py "$output" --data "$data" --output "$output/evaluation.json"
