import builtins
import sys
from types import ModuleType

import pytest
from crystals_for_metrics import Decoded, cesium_chloride, chain, rocksalt
from pymatgen.core import Lattice, Structure

from hf_crystal.evaluation import match_rate, validity
from hf_crystal.evaluation.results import reduced_formula
from hf_crystal.mat2seq import validity as validity_crystal


def pair_at(distance: float) -> Structure:
    return Structure(Lattice.cubic(10.0), ["H", "H"], [[0, 0, 0.99], [0, 0, 0.99 + distance / 10.0]])


@pytest.fixture
def fake_smact(monkeypatch):
    """A stand-in for smact that accepts what has as much sodium as chlorine, and remembers how it was called."""
    calls = []

    def smact_validity(composition, **options):
        calls.append((composition.formula, options))
        return composition["Na"] == composition["Cl"]

    module = ModuleType("smact.screening")
    module.smact_validity = smact_validity
    monkeypatch.setitem(sys.modules, "smact", ModuleType("smact"))
    monkeypatch.setitem(sys.modules, "smact.screening", module)
    validity_crystal.smact_accepts.cache_clear()
    yield calls
    validity_crystal.smact_accepts.cache_clear()


@pytest.fixture
def no_smact(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **named):
        if name.partition(".")[0] == "smact":
            raise ImportError("no smact here")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    validity_crystal.smact_accepts.cache_clear()
    yield
    validity_crystal.smact_accepts.cache_clear()


@pytest.mark.parametrize(
    ("structure", "valid"),
    [
        (pair_at(0.501), True),
        (pair_at(0.499), False),  # across the face of the cell
        (rocksalt(), True),
        (Structure(Lattice.cubic(0.47), ["H"], [[0, 0, 0]]), True),  # 0.104 Å³; an atom's own images do not count
        (Structure(Lattice.cubic(0.46), ["H"], [[0, 0, 0]]), False),  # 0.097 Å³
        (cesium_chloride(0.55), False),  # 0.476 Å apart
        (cesium_chloride(0.58), True),  # 0.502 Å apart
    ],
)
def test_structure_rules_worked_by_hand(structure, valid):
    result = validity([structure], composition=None)
    assert (result.valid, result.structure_valid) == (float(valid), float(valid))
    assert (result.composition_valid, result.num_composition_valid, result.oxidation_states) == (None, None, None)


def test_fractions_are_of_all_crystals_given(fake_smact):
    crystals = [rocksalt(), rocksalt(first="K"), cesium_chloride(0.5), Decoded(None, ValueError("dead end")), chain()]
    result = validity(crystals)
    assert [c.structure_valid for c in result.crystals] == [True, True, False, False, True]
    assert [c.composition_valid for c in result.crystals] == [True, False, True, False, False]
    assert (result.num_crystals, result.num_unreadable, result.num_valid) == (5, 1, 1)
    assert (result.structure_valid, result.composition_valid, result.valid) == (3 / 5, 2 / 5, 1 / 5)
    assert result.crystals[3].error == "dead end"
    assert "smact14" in result.protocol
    assert result.to_dict()["crystals"][0]["valid"] is True


def test_smact_is_asked_for_the_reduced_composition_with_the_states_of_2014(fake_smact):
    validity([rocksalt(), rocksalt() * (2, 1, 1)])
    options = {"use_pauling_test": True, "include_alloys": True, "oxidation_states_set": "smact14"}
    assert fake_smact == [("Na1 Cl1", options)]  # once: the second has the same reduced formula


def test_filter_of_the_match_rate_uses_both_rules(fake_smact):
    crystals = [rocksalt(), rocksalt(first="K"), cesium_chloride(0.5)]
    result = match_rate(crystals, crystals, validity_filter="structure+smact14")
    assert [item[0].outcome for item in result.samples] == ["matched", "invalid", "invalid"]


def test_elements_unknown_to_smact_are_not_valid(fake_smact):
    assert validity([rocksalt(first="Rf")]).composition_valid == 0.0
    assert fake_smact == []


def test_missing_smact_is_said_before_anything_is_judged(no_smact):
    with pytest.raises(ImportError, match=r"pip install smact"):
        validity([rocksalt()])
    with pytest.raises(ImportError, match="smact"):
        match_rate([rocksalt()], [rocksalt()], validity_filter="structure+smact14")
    assert validity([rocksalt()], composition=None).valid == 1.0


def test_real_smact_gives_the_answers_of_the_literature():
    pytest.importorskip("smact", reason="smact is not installed (extra `metrics`)")
    validity_crystal.smact_accepts.cache_clear()
    # alloys and elements pass; magnetite needs two valences of one element, which the protocol does not know
    expected = {"NaCl": True, "NaCl2": False, "SrTiO3": True, "CuAu": True, "Si": True, "Fe3O4": False, "HeNe": False}
    from pymatgen.core import Composition

    for formula, valid in expected.items():
        counts = Composition(formula).get_el_amt_dict()
        numbers = [element.Z for element in Composition(formula) for _ in range(int(counts[element.symbol]))]
        assert validity_crystal.smact_accepts(reduced_formula(numbers)) is valid, formula


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="crystals is empty"):
        validity([], composition=None)
    with pytest.raises(ValueError, match="composition is 'icsd24'"):
        validity([rocksalt()], composition="icsd24")
