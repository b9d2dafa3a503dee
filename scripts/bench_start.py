"""How soon the package is of use: import, first prediction, first crystal; with --install from an empty environment.

Usage: python scripts/bench_start.py [--install]
CPU time (children included) hardly depends on what else runs on the machine; wall time stands beside it. --install
makes an environment in a temporary folder and installs this checkout with the pins of constraints.txt from the package
index or pip's cache.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarking import Report

ROOT = Path(__file__).resolve().parents[1]
IMPORT = "import transformers, time; t = time.process_time(); import hf_crystal; print(time.process_time() - t)"
TRANSFORMERS = "import time; t = time.process_time(); import transformers; print(time.process_time() - t)"


def run(report: Report | None, name: str, words: Sequence[str | Path], folder: Path = ROOT) -> None:
    """Run a command; its wall and CPU time go into the report."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([str(word) for word in words], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if report is not None:
        report.add(f"{name}, wall", wall, "s")
        report.add(f"{name}, CPU", after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "s")


def median_seconds(python: Path, code: str, repeats: int = 5) -> float:
    """Median of what `code` prints in fresh processes."""
    words = [str(python), "-c", code]
    return statistics.median(
        float(subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        for _ in range(repeats)
    )


def measure_use(report: Report, python: Path, when: str, folder: Path) -> None:
    """First prediction and first crystal, each in a fresh process with the embedded checkpoints."""
    command = [python, "-m", "hf_crystal.cli.main"]
    run(report, f"{when} prediction", [*command, "predict", ROOT / "examples" / "SrTiO3.cif"], folder)
    run(report, f"{when} crystal", [*command, "generate", "--composition", "SrTiO3", "--seed", "0"], folder)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--install", action="store_true", help="also install into an empty environment")
    args = parser.parse_args()
    report = Report("start", {"install": args.install})
    with tempfile.TemporaryDirectory() as name:
        python, folder = Path(sys.executable), Path(name)
        if args.install:
            run(None, "", [python, "-m", "venv", folder / "venv"])
            python = folder / "venv" / "bin" / "python"
            pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-c", "constraints.txt"]
            run(report, "pip install of torch", [*pip, "torch"])
            run(report, "pip install of the rest", [*pip, "."])
            packages = next((folder / "venv" / "lib").glob("python*/site-packages"))
            sizes = {
                path: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                for path in packages.iterdir()
            }
            report.add("installed, all packages", sum(sizes.values()) / 1e6, "MB")
            for name in ("torch", "hf_crystal"):
                report.add(f"installed, {name}", sizes[packages / name] / 1e6, "MB")
            measure_use(report, python, "first", folder)
        measure_use(report, python, "later", folder)
        report.add("import transformers, CPU", median_seconds(python, TRANSFORMERS), "s")
        report.add(
            "import hf_crystal beyond it, CPU", median_seconds(python, IMPORT), "s", bound=0.3, bound_name="wanted"
        )
    report.finish()


if __name__ == "__main__":
    main()
