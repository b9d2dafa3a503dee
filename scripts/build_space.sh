#!/usr/bin/env bash
# Write the folder of the Hugging Face Space: its page, the package itself (a Space installs its requirements before
# its files are there, so a wheel beside them could not be named), and the pinned stack as requirements.txt.
# Usage: bash scripts/build_space.sh FOLDER [WHEEL]     # upload FOLDER to a Space with the Gradio SDK
set -euo pipefail
folder="$(realpath -m "${1:?usage: bash scripts/build_space.sh FOLDER [WHEEL]}")"
wheel="${2:+$(realpath "$2")}"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ ! -e "$folder" ] || { echo "build_space: $folder exists already; choose another folder" >&2; exit 1; }
source scripts/setup_env.sh
setup_env dev
if [ -z "$wheel" ]; then
    scratch="$(mktemp -d)"
    trap 'rm -rf "$scratch"' EXIT
    .venv/bin/uv build -q --wheel -o "$scratch"
    wheel="$(echo "$scratch"/*.whl)"
fi
.venv/bin/uv pip install -q --python .venv/bin/python --no-deps --target "$folder" "$wheel"
rm -rf "$folder/bin" "$folder/.lock"
cp hub_configs/space/README.md hub_configs/space/app.py "$folder"
.venv/bin/uv pip compile -q --no-header --no-annotate -c constraints.txt --python-version 3.11 \
    --extra app --extra metrics pyproject.toml -o "$folder/requirements.txt" > /dev/null
echo "wrote $folder ($(du -sh "$folder" | cut -f1))"
