#!/usr/bin/env bash
# Predict formation energies of the crystals in examples/ with the checkpoint embedded in the package.
# Creates .venv on the first run. Usage: bash scripts/demo.sh [more CIF files]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh
setup_env
exec .venv/bin/hf-crystal predict examples/*.cif "$@"
