#!/usr/bin/env bash
# Crystalformer on four properties of the Materials Project; for the cost see the recipe.
# Resume after an interruption with the same command.
# usage: bash scripts/runs/crystalformer_mp.sh DATA_FOLDER [OUTPUT_FOLDER] [MAX_HOURS]
set -euo pipefail
data=$(realpath "${1:?give the folder with materials_project, mp_20 and mpts_52 .parquet}")
output=$(realpath -m "${2:-runs/crystalformer-mp}")
cd "$(dirname "$0")/../.."
export OMP_NUM_THREADS=1
mkdir -p "$output"
table=$output/training_table.parquet
if [ ! -f "$table" ]; then
    python scripts/prepare_materials_project.py "$data" "$table.partial"
    mv "$table.partial" "$table"
fi
resume=()
if [ -d "$output/checkpoints" ]; then
    resume=(--resume)
fi
python scripts/train_property.py scripts/recipes/crystalformer-mp.yaml --data "$table" --output-dir "$output" \
    ${3:+--max-hours "$3"} "${resume[@]}"
python scripts/evaluate_property.py "$output" --data "$table" --output "$output/evaluation.json"
