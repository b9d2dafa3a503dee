"""The script writes tables that load anywhere, and says what it left out."""

import importlib.util
import json
from pathlib import Path

import pytest
from datasets import load_dataset, load_from_disk

from hf_crystal.data import load_crystal_dataset

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "prepare_dataset.py"
ROW = {"lattice": [3.35, 0, 0, 0, 3.35, 0, 0, 0, 3.35], "frac_coords": [0, 0, 0], "atomic_numbers": [84]}


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("prepare_dataset", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def table(tmp_path):
    rows = [{"id": f"m{n}", "energy": n, "part": "train" if n < 3 else "test", "crystal": ROW} for n in range(5)]
    rows[1]["crystal"] = {**ROW, "atomic_numbers": [0]}
    path = tmp_path / "table.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_prepared_tables_load_again(script, table, tmp_path, form, capsys):
    output = tmp_path / "prepared"
    arguments = [str(table), str(output), "--split-column", "part", "--format", form, "--label", "energy"]
    assert script.main(script.make_parser().parse_args([*arguments, "--cache-dir", str(tmp_path / "cache")])) == 0
    summary = json.loads((output / "prepare.json").read_text())
    assert summary == {"source": str(table), "splits": {"train": 2, "test": 2}, "num_skipped": 1}
    assert json.loads(capsys.readouterr().out) == summary
    skipped = [json.loads(line) for line in (output / "skipped.jsonl").read_text().splitlines()]
    assert skipped == [{"index": 1, "name": "m1", "reason": skipped[0]["reason"]}]
    assert "atomic number 0" in skipped[0]["reason"]
    again = load_crystal_dataset(output, cache_dir=tmp_path / "cache")
    assert {name: list(rows["energy"]) for name, rows in again.items()} == {"train": [0, 2], "test": [3, 4]}
    # and without this package
    if form == "parquet":
        plain = load_dataset("parquet", data_files=str(output / "test.parquet"), cache_dir=str(tmp_path / "hf"))[
            "train"
        ]
    else:
        plain = load_from_disk(str(output))["test"]
    assert plain[0]["lattice"] == ROW["lattice"] and plain[0]["num_atoms"] == 1


def test_faults_give_one_line_and_an_exit_code(script, table, tmp_path, capsys):
    parser = script.make_parser()
    assert script.main(parser.parse_args([str(tmp_path / "no.csv"), str(tmp_path / "out")])) == 2
    assert "no such file or folder" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert script.main(parser.parse_args([str(table), str(tmp_path / "full")])) == 2
    assert "is not empty" in capsys.readouterr().err
    arguments = ["jarvis", str(tmp_path / "out"), "--path", str(tmp_path / "no.json")]
    assert script.main(parser.parse_args(arguments)) == 2
    assert "no such file" in capsys.readouterr().err
