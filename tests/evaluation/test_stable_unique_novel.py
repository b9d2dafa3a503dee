"""Stable, unique and novel: counted by hand, with an index of known crystals, refused."""

import math

import numpy as np
import pytest
from crystals_for_metrics import Decoded, cesium_chloride, chain, rocksalt

from hf_crystal.evaluation import sun
from hf_crystal.evaluation.intervals import wilson_interval
from hf_crystal.prototypes import PrototypeIndex

BROKEN = Decoded(None, ValueError("not a crystal"))


def test_worked_by_hand():
    crystals = {
        "known": (rocksalt(), -0.2),
        "new and stable": (cesium_chloride(), 0.0),
        "the same again, farther from the hull": (cesium_chloride(3.55), 0.03),
        "another formula, near the hull": (chain(), 0.1),
        "new and far": (rocksalt(first="K"), 0.11),
        "without an energy": (rocksalt(first="Rb"), None),
        "no crystal": (BROKEN, -1.0),
    }
    given, distances = zip(*crystals.values(), strict=True)
    result = sun(given, distances, [rocksalt(), cesium_chloride(first="Cs")], energies_by="hand")
    assert (result.num_crystals, result.num_unreadable, result.num_without_energy) == (7, 1, 1)
    assert (result.num_stable, result.num_metastable) == (2, 4)
    # CsCl with its atom in the center is a reference
    assert (result.num_unique, result.num_novel, result.num_references) == (5, 4, 2)
    assert (result.num_sun, result.num_msun) == (1, 1)
    assert (result.sun, result.msun) == (1 / 7, 1 / 7)
    assert result.sun_interval == wilson_interval(1, 7)
    assert "at most 0 eV/atom" in result.protocol and result.protocol.endswith("energies by hand")
    novel = sun(given, distances, [rocksalt(first="Li")], energies_by="hand")
    assert (novel.num_sun, novel.num_msun) == (2, 3)
    assert novel.msun_interval == wilson_interval(3, 7)


def test_a_group_counts_once_where_any_of_it_is_stable():
    twice = [cesium_chloride(), cesium_chloride(3.6), cesium_chloride(3.4)]
    result = sun(twice, [0.3, None, -0.1], [rocksalt()], energies_by="hand")
    assert (result.num_unique, result.num_novel, result.num_sun, result.num_msun) == (1, 3, 1, 1)


def test_an_index_is_a_reference_whose_other_formulas_are_not_read():
    records = [("salt", rocksalt()), ("cesium", cesium_chloride(first="Cs"))]
    index = PrototypeIndex.build(records, distances=np.zeros((119, 119)))
    assert [item.source for item in index.known_of({17: 1, 11: 1})] == ["known salt"]
    assert index.known_of({17: 1, 3: 1}) == []
    given = [rocksalt(), cesium_chloride(), rocksalt(first="K")]
    result = sun(given, [0.0, 0.0, 0.0], index, energies_by="hand")
    assert (result.num_novel, result.num_sun, result.num_references) == (2, 2, 2)
    assert sun(given[2:], [0.0], index, energies_by="hand").sun == 1.0  # nothing is known of this formula


@pytest.mark.parametrize(
    ("distances", "references", "message"),
    [
        ([0.0], [rocksalt()], "1 distances from the hull for 2 crystals"),
        ([0.0, math.nan], [rocksalt()], "e_above_hull of crystal 1 is nan; accepted: eV/atom, or None"),
        ([0.0, 0.0], [], "references is empty"),
    ],
)
def test_bad_arguments_are_refused(distances, references, message):
    with pytest.raises(ValueError, match=message):
        sun([rocksalt(), chain()], distances, references, energies_by="hand")
