#!/usr/bin/env bash
# Predict properties of the crystals in examples/ and propose crystals of three formulas, with the checkpoints and known
# crystals embedded in the package. Creates .venv on the first run; the CIF files go to output/.
# Usage: bash scripts/demo.sh [more CIF files]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh
setup_env
.venv/bin/hf-crystal predict examples/*.cif "$@"
echo
for formula in TiO2 LiFePO4 SrTiO3; do
    .venv/bin/hf-crystal generate "$formula" --num 4 --seed 0 --output-dir "output/$formula"
done
echo >&2
echo "Next: $PWD/.venv/bin/hf-crystal predict my.cif" >&2
echo "After 'source $PWD/.venv/bin/activate' the command is hf-crystal." >&2
