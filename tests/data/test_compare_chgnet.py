"""Comparison with CHGNet: which crystals fit the references, and what the page states; CHGNet itself is not needed."""

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("compare_chgnet")


def test_references_come_from_training_rows_and_keep_rare_elements(script):
    numbers = [[8, 8, 22]] * 30 + [[8, 92]] + [[8, 22]] * 5 + [[3]]
    table = pd.DataFrame({"atomic_numbers": numbers, "split": "train", "part": "mp20", "formation_energy": 0.0})
    table.loc[31:35, "split"] = "test"
    table.loc[36, "formation_energy"] = np.nan
    chosen = script.reference_rows(table, 100, 4, 0)
    assert 30 in chosen.index and chosen.index.max() == 30
    assert 4 <= len(chosen) <= 5  # uranium's row counts for oxygen, too, where it is drawn early
    assert len(script.reference_rows(table, 2, 4, 0)) == 2


def test_fractions_are_of_elements(script):
    rows = pd.DataFrame({"atomic_numbers": [[8, 8, 22]]})
    assert script.fractions(rows)[0, [8, 22]] == pytest.approx([2 / 3, 1 / 3])


def test_page_has_errors_by_class_and_the_stable_crystals(script):
    classes = list(script.CLASSES)
    rows = pd.DataFrame({"label": [-1.0, -0.9], "hull": [-1.0, -1.0], "hull_class": [classes[0], classes[2]]})
    right = script.figures_of(rows.label.to_numpy(), rows)
    low = script.figures_of(rows.label.to_numpy() - 0.1, rows)
    assert (right["errors"]["all"]["mae"], low["errors"][classes[2]]["bias"]) == (0.0, -0.1)
    assert (right["stable"]["f1"], low["stable"]["precision"]) == (1.0, 0.5)
    data = {"per_class": 1, "atoms": 3.0, "references": 7}
    figures = {"own": {**right, "cpu_ms": 1.0}, "chgnet": {**low, "cpu_ms": 10.0}, "data": data}
    text = script.page(figures, "some-model")
    assert "| 0.05 to 0.1 | 1 | 0.000 (+0.000) | 0.100 (-0.100) |" in text
    assert "| precision | 1.000 | 0.500 |" in text and "fitted on 7 crystals" in text.replace("\n", " ")
