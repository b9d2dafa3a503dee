"""What the benchmarks share: the JSON line, and the page with the table of all."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import benchmarking
from benchmarking import Report, measure


def clock_of(*times):
    ticks = iter(times)
    return lambda: next(ticks)


def test_measure_takes_the_median_after_warming_up():
    calls = []
    clock = clock_of(0, 1, 10, 13, 20, 22)
    timing = measure(lambda: calls.append(1), repeats=3, warmup=2, clock=clock)
    assert len(calls) == 5
    assert (timing.median, timing.spread) == (2, 1)


def make_log(folder: Path, capsys, name: str, rate: float) -> Path:
    capsys.readouterr()
    report = Report(name, {"num_crystals": 4})
    report.add_rate("reading", 4, benchmarking.Timing(4 / rate, 0.0), "crystals/s", bound=400, bound_name="wanted")
    report.finish()
    log = folder / f"{name}.log"
    log.write_text(capsys.readouterr().out)
    return log


def test_the_last_line_of_a_report_is_its_json(tmp_path, capsys):
    result = benchmarking.last_json(make_log(tmp_path, capsys, "feeding", 1234.0))
    assert result["benchmark"] == "feeding"
    assert result["figures"][0] == {
        "name": "reading", "value": 1234.0, "unit": "crystals/s", "spread": 0.0, "bound": 400, "bound_name": "wanted",
    }  # fmt: skip
    assert result["figures"][-1]["unit"] == "MiB"
    (tmp_path / "bad.log").write_text("Killed\n")
    with pytest.raises(ValueError, match=r"bad\.log does not end with the JSON"):
        benchmarking.last_json(tmp_path / "bad.log")


def test_the_page_keeps_its_text_and_the_latest_figures(tmp_path, capsys, monkeypatch):
    page = tmp_path / "performance.md"
    page.write_text(f"# Words\n{benchmarking.BEGIN}\nold\n{benchmarking.END}\nmore words\n")

    def update(name, rate):
        monkeypatch.setattr(sys, "argv", ["benchmarking.py", str(page), str(make_log(tmp_path, capsys, name, rate))])
        return benchmarking.main(benchmarking.arguments())

    assert [update("feeding", 5000.0), update("gpu", 70000.0), update("feeding", 6000.0)] == [0, 0, 0]
    text = page.read_text()
    assert text.startswith("# Words\n") and text.endswith("\nmore words\n")
    assert "old" not in text and "5,000" not in text
    assert "| reading | 6,000 | crystals/s | 0 | 400 | wanted |" in text
    assert "| reading | 70,000 | crystals/s |" in text
    assert [json.loads(line)["benchmark"] for line in page.with_suffix(".jsonl").read_text().splitlines()] == [
        "feeding",
        "gpu",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.0, "0"), (6034.2, "6,030"), (0.1274, "0.127"), (2e-5, "2.0e-05"), (99.96, "100")],
)
def test_numbers_are_short(value, text):
    assert benchmarking.number(value) == text
