#!/usr/bin/env bash
# Crystalformer on Perov-5 heat of formation, six minutes on one CPU core.
# usage: bash scripts/runs/crystalformer_perov5.sh perov_5.parquet [OUTPUT_FOLDER]
set -euo pipefail
data=$(realpath "${1:?give the path of perov_5.parquet}")
output=$(realpath -m "${2:-runs/crystalformer-perov5}")
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
python scripts/train_property.py scripts/recipes/crystalformer-perov5.yaml --data "$data" --output-dir "$output" --max-hours 0.1
# the same test figures again, from the saved folder in a fresh process
python scripts/evaluate_property.py "$output" --data "$data" --output "$output/evaluation.json"
