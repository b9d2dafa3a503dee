#!/usr/bin/env bash
# The generator of Perov-5, trained on one CPU core and judged on its test split; for the cost see the recipe.
# usage: bash scripts/runs/mat2seq_perov5.sh perov_5.parquet [OUTPUT_FOLDER]
set -euo pipefail
data=$(realpath "${1:?give the path of perov_5.parquet}")
output=$(realpath -m "${2:-runs/mat2seq-perov5}")
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
options=()
# a folder with checkpoints is a run that was stopped
[[ -d $output/checkpoints ]] && options+=(--resume)
python scripts/train_mat2seq.py scripts/recipes_mat2seq/mat2seq-perov5.yaml --data "$data" --output-dir "$output" \
    "${options[@]}"
python scripts/evaluate_mat2seq.py --model "$output/model" --data "$data" --output-dir "$output/evaluation" \
    --dataset-name perov_5
