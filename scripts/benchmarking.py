"""What the benchmark scripts share: timing, peak memory, the hardware line, and the JSON that ends their output.

A benchmark prints what it likes and ends with `Report.finish()`, whose last line is

    {"benchmark": ..., "hardware": ..., "commit": ..., "versions": {...}, "settings": {...},
     "figures": [{"name": ..., "value": ..., "unit": ..., "spread": ..., "bound": ..., "bound_name": ...}, ...]}

`bound` is a limit in the unit of the value, measured in the same run, and `bound_name` says which; `spread` is the
interquartile range. `bench_all.sh` makes one table of these lines:

    python scripts/benchmarking.py docs/performance.md build/bench/*.log
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Median and interquartile range of repeated calls, seconds."""

    median: float
    spread: float


def measure(
    function: Callable[[], Any], repeats: int = 7, warmup: int = 1, clock: Callable[[], float] = time.process_time
) -> Timing:
    """Time a call over and over.

    Args:
        function: called without arguments; on a GPU it synchronizes before it returns.
        repeats: timed calls.
        warmup: calls before them.
        clock: `time.process_time` (CPU time of this process, all threads), or `time.perf_counter` where work is
            done elsewhere.
    """
    import numpy as np

    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(clock() - start)
    low, middle, high = np.percentile(times, [25, 50, 75])
    return Timing(float(middle), float(high - low))


def product_seconds(size: int = 512, repeats: int = 7) -> float:
    """CPU time of one float32 product of two `size` x `size` matrices: the unit that makes machines comparable."""
    import torch

    matrix = torch.randn(size, size)
    return measure(lambda: [matrix @ matrix for _ in range(20)], repeats).median / 20


def peak_mib() -> float:
    """Largest resident memory of this process so far, MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux hands ru_maxrss of a process to those that it starts; VmHWM begins anew
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def hardware() -> str:
    """Processor, cores, threads in use, memory."""
    import torch

    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    processor = models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    threads = torch.get_num_threads()
    return f"{processor}, {os.cpu_count()} cores, {threads} thread{'s'[: threads != 1]}, {memory:.0f} GiB"


def commit() -> str:
    """Short hash of the checkout, with `+` where tracked files differ from it; `unknown` outside a repository."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no").strip()
        return git("rev-parse", "--short=10", "HEAD").strip() + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@dataclass
class Report:
    """Figures of one benchmark.

    Attributes:
        benchmark: name of the script without `bench_`.
        settings: what was held fixed.
        figures: filled by `add`.
    """

    benchmark: str
    settings: dict[str, Any] = field(default_factory=dict)
    figures: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        spread: float | None = None,
        bound: float | None = None,
        bound_name: str = "",
    ) -> None:
        """Print one figure and keep it.

        Args:
            name: what was measured, in words.
            value: the median.
            unit: of the value, its spread and its bound.
            spread: interquartile range.
            bound: a limit measured in the same run, in the same unit.
            bound_name: what that limit is: "512³ product", "memory bandwidth", "plain loop", "wanted".
        """
        figure = {"name": name, "value": value, "unit": unit, "spread": spread}
        self.figures.append({**figure, "bound": bound, "bound_name": bound_name})
        spread_text = "" if spread is None else f" (IQR {spread:.3g})"
        bound_text = "" if bound is None else f"; bound {bound:.4g} {unit}: {bound_name}"
        print(f"{name:58s} {value:10.4g} {unit}{spread_text}{bound_text}", flush=True)

    def add_rate(self, name: str, count: int, timing: Timing, unit: str, **bound: Any) -> None:
        """Add `count` things in the time of one call as a rate; the spread follows to first order."""
        rate = count / timing.median
        self.add(name, rate, unit, spread=rate * timing.spread / timing.median, **bound)

    def finish(self) -> None:
        """Add peak memory, then print the line of JSON."""
        import torch
        import transformers

        self.add("peak memory of the process", peak_mib(), "MiB")
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        versions["transformers"] = transformers.__version__
        line = {"benchmark": self.benchmark, "hardware": hardware(), "commit": commit(), "versions": versions}
        print(json.dumps({**line, "settings": self.settings, "figures": self.figures}))


# ------------------------------------------------------------------------------------------------------- the table

BEGIN, END = "<!-- figures: written by scripts/bench_all.sh -->", "<!-- end of figures -->"


def last_json(log: Path) -> dict[str, Any]:
    """The line of JSON that ends the output of a benchmark.

    Raises:
        ValueError: there is none.
    """
    lines = log.read_text(encoding="utf-8").strip().splitlines()
    try:
        result = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        result = None
    if not isinstance(result, dict) or not {"benchmark", "hardware", "commit", "figures"} <= result.keys():
        raise ValueError(f"{log} does not end with the JSON of a benchmark")
    return result


def number(value: float | None) -> str:
    """Three significant digits without an exponent: `6,030`, `0.127`."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.1e}"


def render(results: list[dict[str, Any]]) -> str:
    """Markdown of all results: per benchmark where it ran, what was held fixed, and a table."""
    blocks = []
    for result in results:
        settings = ", ".join(
            f"{name} {number(value) if isinstance(value, float) else value}"
            for name, value in result.get("settings", {}).items()
        )
        versions = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
        rows = ["| figure | median | unit | IQR | bound | which bound |", "|---|---:|---|---:|---:|---|"]
        for figure in result["figures"]:
            value, spread, bound = (number(figure.get(name)) for name in ("value", "spread", "bound"))
            which = figure.get("bound_name") or ""
            rows.append(f"| {figure['name']} | {value} | {figure['unit']} | {spread} | {bound} | {which} |")
        where = f"{result['hardware']}; commit {result['commit']}; {versions}."
        blocks.append(f"## {result['benchmark'].capitalize()}\n\n{where}\n{settings}.\n\n" + "\n".join(rows))
    return "\n\n".join(blocks)


def main(args: argparse.Namespace) -> int:
    """Put the results of the logs in place of earlier ones of the same benchmarks; print and write the page."""
    data = args.page.with_suffix(".jsonl")
    lines = data.read_text(encoding="utf-8").splitlines() if data.exists() else []
    results = {result["benchmark"]: result for result in map(json.loads, lines)}
    for log in args.logs:
        result = last_json(log)
        results[result["benchmark"]] = result
    table = render(list(results.values()))
    page = args.page.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{args.page} has no place for the figures: {BEGIN} ... {END}")
    data.write_text("".join(json.dumps(result) + "\n" for result in results.values()), encoding="utf-8")
    args.page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")
    print(table)
    return 0


def arguments() -> argparse.Namespace:
    """Words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="page with the table; its data are kept beside it as JSON lines")
    parser.add_argument("logs", type=Path, nargs="*", help="outputs of benchmarks")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main(arguments()))
