"""Reduced formulas read as chemists and pymatgen write them."""

import random

import pytest
from pymatgen.core import Composition, Element

from hf_crystal.crystals.elements import (
    CHEMICAL_SYMBOLS,
    cell_formula,
    isotope_notes,
    parse_composition,
    reduced_formula,
)


def numbers_of(counts: dict[str, int]) -> list[int]:
    return [CHEMICAL_SYMBOLS.index(symbol) for symbol, count in counts.items() for _ in range(count)]


@pytest.mark.parametrize(
    ("counts", "formula"),
    [
        ({"Cl": 4, "Na": 4}, "NaCl"),
        ({"O": 3, "Ti": 1, "Sr": 1}, "SrTiO3"),
        ({"O": 16, "P": 4, "Fe": 4, "Li": 4}, "LiFePO4"),
        ({"Ca": 3, "P": 2, "O": 8}, "Ca3(PO4)2"),
        ({"O": 8}, "O2"),
        ({"Na": 2, "O": 2}, "Na2O2"),
        ({"Si": 8}, "Si"),
        ({"H": 4, "O": 2}, "H2O"),
    ],
)
def test_known_formulas(counts, formula):
    assert reduced_formula(numbers_of(counts)) == formula


def test_formula_of_a_cell_is_not_divided():
    assert cell_formula([8, 8, 22] * 2) == "Ti2O4"
    assert cell_formula([8, 38, 8, 22, 8]) == "SrTiO3"


def test_same_as_pymatgen_on_random_compositions():
    chosen = random.Random(0)
    # argon and the like have no electronegativity; their place is not defined in pymatgen
    symbols = [symbol for symbol in CHEMICAL_SYMBOLS[1:95] if symbol not in ("He", "Ne", "Ar")]
    for _ in range(500):
        counts = {symbol: chosen.choice((1, 1, 2, 2, 3, 4, 6, 8)) for symbol in chosen.sample(symbols, 3)}
        counts |= dict.fromkeys(chosen.sample(["O", "N", "F", "S"], chosen.randint(0, 2)), 6)
        assert reduced_formula(numbers_of(counts)) == Composition(counts).reduced_formula


def test_symbols_are_in_order():
    assert [Element.from_Z(number).symbol for number in range(1, 119)] == list(CHEMICAL_SYMBOLS[1:])


def test_unknown_atomic_number_is_named():
    with pytest.raises(ValueError, match="atomic number 119 is not known; accepted are 1 to 118"):
        reduced_formula([11, 119])


def test_subscripts_and_isotopes_of_formulas():
    assert parse_composition("Ba₁₂Ti₃O") == {56: 12, 22: 3, 8: 1}
    assert isotope_notes("ND3")[0].startswith("D read as H") and isotope_notes("LiTD2")[0].startswith("D and T read")
    assert isotope_notes("DyTbTiH2") == isotope_notes({"H": 2}) == []
