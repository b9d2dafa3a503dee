"""Official folds of matbench_phonons: splits without overlap, and a page with every fold and the mean."""

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hf_crystal.training import load_recipe

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("matbench_phonons")


@pytest.fixture
def rows(script, tmp_path):
    names = [f"mb-{row}" for row in range(200)]
    fold = np.arange(200) % 5
    crystals = pd.DataFrame({"mbid": names, "fold": fold, "atomic_numbers": [[11, 17]] * 200})
    crystals["last_phdos_peak"] = 100.0 + fold
    crystals.to_parquet(tmp_path / "matbench_phonons.parquet")
    labels = pd.DataFrame({"task": "matbench_phonons", "mbid": names[::-1], "spacegroup": 225})
    labels.to_parquet(tmp_path / "matbench_labels_nostruct.parquet")
    return script.make_table(tmp_path, tmp_path / "run/table.parquet", 123)


def test_each_crystal_is_tested_in_its_official_fold(script, rows, tmp_path):
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run/table.parquet"), rows)
    for fold in range(5):
        assert ((rows[f"fold_{fold}"] == "test") == (rows.fold == fold)).all()
        assert 0 < (rows[f"fold_{fold}"] == "val").sum() < 20
    assert set(rows.kind) == {"11:1 17:1 225"}
    assert set(rows.inner[rows.fold == 0]) == {"unused"} and set(rows.inner[rows.fold == 1]) == {"test"}
    assert "fold_0" in load_recipe(str(script.RECIPE)).data.split_column


def test_page_has_every_fold_and_their_mean(script):
    folds = [
        {"pretrained": 20.0 + fold, "scratch": 30.0, "formula": 50.0, "n": 253, "seconds": 60.0, "model": "some-model"}
        for fold in range(5)
    ]
    text = script.page(folds, 1265, 0.5, [123])
    assert "| fold 4 | 253 | 24.0 | 30.0 | 50.0 |" in text
    assert "| mean of the folds | 1,265 | 22.0 | 30.0 | 50.0 |" in text
    assert "300 s of CPU time" in text and "50% have" in text.replace("\n", " ")
