#!/usr/bin/env bash
# Every published setting, one process per visible GPU. Not run by us: about 7 GPU hours each for Crystalformer by the
# paper, more for CrystalFramer. Data are downloaded, except for the bulk and shear moduli of the Materials Project.
# usage: bash scripts/runs/published_settings.sh OUTPUT_FOLDER [MODULI_TABLE]
set -euo pipefail
output=$(realpath -m "${1:?give an output folder}")
moduli=${2:+$(realpath "$2")}
cd "$(dirname "$0")/../.."
gpus=$(nvidia-smi --list-gpus | wc -l)
for model in crystalformer crystalframer; do
    for setting in mp-e-form mp-band-gap mp-bulk-modulus mp-shear-modulus jarvis-e-form jarvis-total-energy \
        jarvis-band-gap-opt jarvis-band-gap-mbj jarvis-e-hull oqmd-e-form; do
        options=()
        if [[ $setting == *modulus ]]; then
            [[ -z $moduli ]] && continue
            options=(--data "$moduli")
        fi
        name=$model-$setting
        # a folder with checkpoints is a run that was stopped
        [[ -d $output/$name/checkpoints ]] && options+=(--resume)
        torchrun --standalone --nproc_per_node "$gpus" scripts/train_property.py "scripts/recipes/$name.yaml" \
            --output-dir "$output/$name" "${options[@]}"
    done
done
