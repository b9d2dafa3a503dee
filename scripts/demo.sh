#!/usr/bin/env bash
# Predict properties of the crystals in examples/ and generate crystals of one composition, with the
# checkpoints embedded in the package. Creates .venv on the first run; the CIF files go to output/.
# Usage: bash scripts/demo.sh [more CIF files]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh
setup_env
.venv/bin/hf-crystal predict examples/*.cif "$@"
echo
.venv/bin/hf-crystal generate --composition SrTiO3 --num 4 --seed 0 --output-dir output
echo >&2
echo "Next: $PWD/.venv/bin/hf-crystal predict my.cif" >&2
echo "After 'source $PWD/.venv/bin/activate' the command is hf-crystal." >&2
