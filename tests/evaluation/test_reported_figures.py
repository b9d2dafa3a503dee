"""Scripts behind the tables: the baseline without learning, and what of an evaluation lands in a metrics.json."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from crystals_for_metrics import cesium_chloride, rocksalt

from hf_crystal.crystals.reading import as_columns
from hf_crystal.evaluation import match_rate

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def script(name):
    specification = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def baseline():
    return script("baseline_substitution")


def test_the_most_alike_crystal_gets_the_elements_asked_for(baseline):
    # both have two atoms a cell; lithium is more like sodium than like cesium, rubidium the other way round
    train = [as_columns(cesium_chloride(first="Cs")), as_columns(rocksalt().get_primitive_structure())]
    substitution = baseline.Substitution(train)
    asked = as_columns(rocksalt(first="Li").get_primitive_structure())
    made = substitution.predict(asked["atomic_numbers"])
    assert sorted(made["atomic_numbers"]) == sorted(asked["atomic_numbers"]) == [3, 17]
    assert match_rate([made], [asked]).match_rate == 1.0
    assert match_rate([substitution.predict([17, 37])], [asked | {"atomic_numbers": [37, 17]}]).match_rate == 0.0
    assert substitution.predict([3, 3, 8]) is None
    # roles follow from what elements are like, not from the order in which they are given
    made = substitution.predict([35, 11])
    anion = train[1]["frac_coords"][list(train[1]["atomic_numbers"]).index(17)]
    assert np.allclose(made["frac_coords"][list(made["atomic_numbers"]).index(35)], anion)


def test_counts_that_are_equal_may_change_places(baseline):
    assert baseline.contents([8, 22, 8, 38, 8]) == ((1, 1, 3), (22, 38, 8))
    assert sorted(baseline.orders((1, 1, 3))) == [[0, 1, 2], [1, 0, 2]]
    assert len(list(baseline.orders((1, 1, 2, 2, 2)))) == 12


def test_sections_of_an_evaluation_replace_those_of_before():
    merged = script("update_metrics").merged_generation
    match = {n: {"match_1": {"num_items": n, "match_rate": n / 1000}} for n in (200, 900)}
    before = {"seed": 1, "generation": {"greedy": {"match_1": {"num_items": 5000}}, "conditions": [{"samples": 3}]}}
    greedy = {"generation": {"greedy": match[900]}}
    sampled = {"generation": {"greedy": match[200], "sampled": match[200], "free": {"validity": {"num_crystals": 9}}}}
    for order in ([greedy, sampled], [sampled, greedy]):
        found = merged(before, order)
        assert found["generation"]["greedy"] == match[900]  # of the evaluations the larger, not of before
        assert found["generation"]["sampled"] == match[200]
        assert found["generation"]["conditions"] == before["generation"]["conditions"]
        assert found["seed"] == 1
