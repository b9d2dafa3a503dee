"""Comparison of decay laws: rows by split, steps by cost, runs that are not repeated, and the page."""

import argparse
import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    found = importlib.import_module("compare_decay_laws")
    monkeypatch.setattr(found, "BATCH", 2)
    monkeypatch.setattr(found, "MODEL", {**found.MODEL, "hidden_size": 16, "num_radial_basis": 4})
    monkeypatch.setattr(found, "TASKS", tuple(dataclasses.replace(task, steps=4) for task in found.TASKS))
    return found


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {
            "lattice": [a, 0, 0, 0, a, 0, 0, 0, a],
            "frac_coords": [0.0, 0.0, 0.0, 0.5, 0.5, 0.5],
            "atomic_numbers": [11, 17],
            "n_sites": 2 if index else 50,
            "split_megnet": ["train", "val", "test", None][index % 4],
            "e_form_megnet2018": rng.normal(),
            "band_gap_megnet2018": rng.normal(),
            "eps_total": 3 + rng.random(),
            "fold": index % 5,
        }
        for index, a in enumerate(rng.uniform(3, 4, 20))
    ]
    for name in ("materials_project", "matbench_phonons"):
        pd.DataFrame(rows).to_parquet(tmp_path / f"{name}.parquet")
    return tmp_path


def test_runs_are_made_once_and_shown(script, data, monkeypatch):
    costs = dict(zip(script.VARIANTS, (1.0, 2.0, 1.0, 1.0, 4.0), strict=True))
    monkeypatch.setattr(script, "measure_costs", lambda *_: costs)
    args = argparse.Namespace(
        data=data, output_dir=data / "runs", output=data / "page.md", train_rows=4, seeds=[0, 1], repeats=1
    )
    args.table_only = False
    script.main(args)
    runs = {path.name: json.loads(path.read_text()) for path in args.output_dir.glob("*-*-*.json")}
    assert len(runs) == 2 * 5 * 2
    assert [runs[f"mp-{place}-0.json"]["steps"] for place in range(5)] == [4, 2, 4, 4, 1]
    rows = json.loads((args.output_dir / "settings.json").read_text())["settings"]["rows"]
    assert rows == {"mp": {"train": 4, "val": 5, "test": 5}, "dielectric": {"train": 4, "val": 4, "test": 4}}
    first = runs["dielectric-0-1.json"]
    assert first["test"] == pytest.approx(np.mean(first["test_errors"], axis=1), abs=1e-5)

    text = args.output.read_text()
    expected = np.mean([runs[f"mp-1-{seed}.json"]["test"][1] for seed in args.seeds])
    gap = text.split("| band_gap, MAE, eV")[1]
    assert "| + yukawa in half of the heads | 2.00 | 2 | " in gap and f" | {expected:.4f} | " in gap
    assert text.count("seeds: 2;") == 3 and text.count("| mp | 1 | 0.95 | 0.95 | 0.05 | 0.05 |") == 1

    monkeypatch.setattr(script, "train_one", lambda *_: pytest.fail("a finished run is repeated"))
    script.main(args)
    assert args.output.read_text() == text
    args.train_rows = 2
    with pytest.raises(SystemExit, match="other settings"):
        script.main(args)


def test_batches_hold_every_row_once_in_an_epoch(script):
    stream = script.batches(6, 0)
    found = [next(stream) for _ in range(6)]
    for epoch in (found[:3], found[3:]):
        assert sorted(int(row) for rows in epoch for row in rows) == list(range(6))
