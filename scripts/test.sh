#!/usr/bin/env bash
# Lint, types and the whole test suite. Creates .venv on the first run.
# Usage: bash scripts/test.sh [arguments for pytest]
# Reference data is looked for at ../shared or $HF_CRYSTAL_SHARED; tests that need it are skipped without it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh
setup_env dev
export HF_HUB_OFFLINE=1                       # nothing is fetched
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # small tensors: more threads only wait for one another
.venv/bin/ruff check .
.venv/bin/codespell                           # its settings, American spelling among them: pyproject.toml
.venv/bin/ruff format --check .
.venv/bin/mypy
.venv/bin/python -m pytest -m "not gpu and not network" "$@"
