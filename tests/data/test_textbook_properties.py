"""Textbook table: which entry of a crystal is taken, what training has seen of it, and what is marked."""

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("textbook_properties")


@pytest.fixture
def project(script):
    rows = [("a", [6, 6], 227, 0.2, 4.1), ("b", [6] * 4, 227, 0.1, 4.0), ("c", [6, 6], 194, 0.0, np.nan)]
    table = pd.DataFrame(rows, columns=["material_id", "atomic_numbers", "spacegroup_symprec0p1", *script.LIMITS])
    return table.assign(kind=script.kinds_of(table))


def test_takes_the_labeled_entry_of_lowest_energy(script, project):
    (diamond,) = script.chosen_rows(project, {"elements": [["C", 227, "diamond"]]}).to_dict("records")
    assert (diamond["material_id"], diamond["group"], diamond["band_gap"]) == ("b", "elements", 4.0)
    with pytest.raises(ValueError, match="graphite: no labeled entry of C in space group 194"):
        script.chosen_rows(project, {"elements": [["C", 194, "graphite"]]})


def test_another_entry_of_the_crystal_counts_as_seen(script, project):
    table = pd.DataFrame({"material_id": ["a", "c"], "split": ["train", "val"]})
    assert script.seen_in(project, table, [*project.kind, "8:1 1"]) == ["train", "train", "val", "no"]


def test_rows_outside_are_marked_and_counted(script, project):
    rows = script.chosen_rows(project, {"elements": [["C", 227, "diamond"]]}).assign(
        seen="no",
        predicted_formation_energy=0.15,
        inside_formation_energy=True,
        predicted_band_gap=3.0,
        inside_band_gap=False,
        inside=False,
    )
    figures = script.counts(rows)
    assert figures["all"] == figures["seen: no"]
    assert (figures["all"]["inside"], figures["all"]["inside formation_energy"]) == (0, 1)
    assert figures["all"]["mae band_gap"] == 1.0
    text = script.page(rows, figures, "some-model")
    assert "| diamond | C | 227 | b | 0.10 | 0.15 | 4.00 | **3.00** | no |" in text
    assert "- all: 0 of 1 inside both limits; MAE 0.050 eV/atom, 1.000 eV" in text


def test_the_list_has_eighty_crystals_once():
    groups = yaml.safe_load((SCRIPTS / "textbook_properties.yaml").read_text())
    crystals = [(formula, space_group) for rows in groups.values() for formula, space_group, _ in rows]
    assert len(crystals) == len(set(crystals)) == 80
