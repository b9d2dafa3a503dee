#!/usr/bin/env bash
# Build wheel and sdist, look into both, and run the commands of the demo from the wheel in fresh environments:
# - Python 3.11 with the lowest versions that pyproject.toml claims, but the torch of constraints.txt, of which pip finds
#   a build without CUDA; LOWEST_TORCH=2.9.0 takes the lowest one too (3.8 GB);
# - the newest Python of 3.14 and 3.13 that is here (PYTHON_NEWEST names another), with the pins of constraints.txt, and
#   there the Space without the package.
# Usage: bash scripts/check_packages.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup_env.sh
setup_env dev
checkout="$PWD"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
export UV_PYTHON_DOWNLOADS=never UV_EXCLUDE_NEWER=2026-11-27 HF_HUB_OFFLINE=1 OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
unset PYTHONPATH
uv="$PWD/.venv/bin/uv"

note() { echo "packages: $*"; }

# The first interpreter of these versions that starts: on the PATH, or of pyenv.
find_python() {
    local version candidate
    for version in "$@"; do
        for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
            if "$candidate" -c "import sys; sys.exit(sys.version_info[:2] != tuple(map(int, '$version'.split('.'))))" \
                > /dev/null 2>&1; then
                command -v "$candidate"
                return
            fi
        done
    done
}

# Fail unless an archive's list of files (standard input) has each of the names.
must_hold() {
    local archive="$1" list name
    list="$(cat)"
    shift
    for name in "$@"; do
        grep -qE "$name" <<< "$list" || { note "$archive lacks $name" >&2; exit 1; }
    done
}

# The commands of scripts/demo.sh and one of each extra, away from the checkout.
run_demo() {
    local bin="$1/bin"
    cd "$scratch"
    "$bin/python" -c 'import platform; from importlib.metadata import version as v; print("packages: Python",
        platform.python_version(), *(f"{n} {v(n)}" for n in ("torch", "transformers", "datasets", "numpy", "typer")))'
    "$bin/hf-crystal" predict "$checkout"/examples/*.cif
    "$bin/hf-crystal" generate --composition SrTiO3 --num 2 --seed 0 --output-dir "$1/crystals"
    [ "$(find "$1/crystals" -name '*.cif' | wc -l)" = 2 ]
    "$bin/hf-crystal" export crystalframer-mp "$1/exported"
    [ -s "$1/exported/NOTICE" ]
    "$bin/hf-crystal" plot attention "$checkout/examples/SrTiO3.cif" --output-file "$1/attention.png"
    "$bin/python" -c "import hf_crystal.ase, smact.screening, sklearn, hf_crystal.app.page as p; p.build_page()"
    cd "$checkout"
}

note "building"
"$uv" build -q -o "$scratch/dist"
wheel="$(echo "$scratch"/dist/*.whl)" sdist="$(echo "$scratch"/dist/*.tar.gz)"
.venv/bin/python -m zipfile -l "$wheel" | must_hold wheel licenses/LICENSE licenses/NOTICE hf_crystal/checkpoints/ \
    hf_crystal/examples/ hf_crystal/hub_configs/ hf_crystal/model_cards/ hf_crystal/py.typed
tar tzf "$sdist" | must_hold sdist /NOTICE /LICENSE /docs/index.md /docs/figures/ /tests/conftest.py /scripts/test.sh
note "wheel $(du -h "$wheel" | cut -f1), sdist $(du -h "$sdist" | cut -f1)"

oldest="${PYTHON_OLDEST:-$(find_python 3.11)}"
torch="${LOWEST_TORCH:-$(sed -n 's/^torch==//p' constraints.txt)}"
if [ -n "$oldest" ]; then
    "$uv" pip compile -q --no-header --no-annotate --resolution lowest-direct --python "$oldest" \
        --extra ase --extra app --extra metrics pyproject.toml -o "$scratch/lowest.txt" > /dev/null
    grep -vE '^(nvidia|cuda|triton|torch==)' "$scratch/lowest.txt" > "$scratch/lowest_cpu.txt"
    "$oldest" -m venv "$scratch/lowest"
    pip=("$scratch/lowest/bin/python" -m pip install -qq --disable-pip-version-check)
    "${pip[@]}" "torch==$torch"
    "${pip[@]}" --no-deps -r "$scratch/lowest_cpu.txt" "$wheel"
    run_demo "$scratch/lowest"
    note "the lowest versions work, with torch $torch"
else
    note "SKIPPED the lowest versions: no Python 3.11 here; set PYTHON_OLDEST"
fi

newest="${PYTHON_NEWEST:-$(find_python 3.14 3.13)}"
if [ -n "$newest" ]; then
    "$uv" venv -q --python "$newest" "$scratch/newest"
    "$uv" pip install -q --python "$scratch/newest/bin/python" -c constraints.txt "hf_crystal[ase,app,metrics,serve] @ $wheel"
    run_demo "$scratch/newest"
    "$scratch/newest/bin/python" -c "from hf_crystal.app import assistant, server; server.build_server(); assistant.build_assistant()"
    bash scripts/build_space.sh "$scratch/space" "$wheel"
    "$uv" pip uninstall -q --python "$scratch/newest/bin/python" hf_crystal
    grep -qx "gradio==$(sed -n 's/^sdk_version: //p' "$scratch/space/README.md")" "$scratch/space/requirements.txt" ||
        { note "the Space's sdk_version is not the gradio of constraints.txt" >&2; exit 1; }
    (cd "$scratch/space" && "$scratch/newest/bin/python" -c "import app; from hf_crystal.app.page import build_page; build_page().get_api_info()")
    note "the pins work on the newest Python"
else
    note "SKIPPED the newest Python: neither 3.14 nor 3.13 here; set PYTHON_NEWEST"
fi
