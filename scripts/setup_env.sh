# Sourced by demo.sh and test.sh: makes .venv with the pinned stack and this checkout in it.
# Usage: setup_env [EXTRA]        EXTRA = an extra of pyproject.toml, such as dev
# PYTHON names the interpreter for a new .venv (default python3; 3.11 or later).

# pip install with one line for each step, as the first time takes minutes; on a terminal they overwrite each other
_pip_install() {
    local line count=0 end=$'\n' start=""
    if [ -t 2 ]; then start=$'\r\033[K' end=""; fi
    .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt "$@" |
        while IFS= read -r line; do
            case "$line" in
                Collecting* | *Downloading* | *"Using cached"* | Installing*)
                    count=$((count + 1))
                    read -r line <<< "$line"
                    printf '%ssetup: step %d, %ds: %.60s%s' "$start" "$count" "$SECONDS" "$line" "$end" >&2
                    ;;
            esac
        done
    printf '%s' "$start" >&2
}

setup_env() {
    local extra="${1:-}" python="${PYTHON:-python3}" state stamp
    if [ ! -x .venv/bin/python ]; then
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "setup: $("$python" --version 2>&1) is too old; set PYTHON to Python 3.11 or later" >&2
            return 1
        }
        echo "setup: creating .venv" >&2
        "$python" -m venv .venv
    fi
    # installing again is skipped while nothing that it depends on has changed
    state="$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)"
    stamp=".venv/.hf_crystal-${extra:-core}"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
        return 0
    fi
    echo "setup: installing the packages of constraints.txt (some minutes the first time)" >&2
    # torch first, by its pin: a later resolution must not pick another build
    _pip_install torch
    _pip_install -e ".${extra:+[$extra]}"
    echo "$state" > "$stamp"
}
