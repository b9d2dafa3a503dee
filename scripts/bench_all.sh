#!/usr/bin/env bash
# Run the benchmarks one after the other and print one table of their figures; keep it in docs/performance.md.
# Usage: bash scripts/bench_all.sh [DATA_DIR [NAME ...]]
#   DATA_DIR: folder with data/*.parquet and fixtures/*, by default ../shared; NAME: encoders, feeding, generation, ...
# One thread, so that rates are per core. Logs go to build/bench/.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
data=$(realpath "${1:-../shared}")
shift || true
names=("$@")
if ((${#names[@]} == 0)); then
    names=(encoders feeding generation canonical matching)
    if .venv/bin/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then names+=(gpu); fi
fi
mkdir -p build/bench
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
status=0
logs=()
for name in "${names[@]}"; do
    echo "== $name ==" >&2
    if .venv/bin/python "scripts/bench_$name.py" --data-dir "$data" >"build/bench/$name.log" 2>"build/bench/$name.err"; then
        logs+=("build/bench/$name.log")
    else
        echo "bench_$name.py failed: $(tail -n 1 "build/bench/$name.err")" >&2
        status=1
    fi
done
.venv/bin/python scripts/benchmarking.py docs/performance.md "${logs[@]}" || status=1
exit $status
