"""Ordered approximants have the composition, leave no two atoms on one place, and come in a fixed order."""

import numpy as np
import pytest
from crystal_forms import NACL_CELL, NACL_FRAC, nacl

from hf_crystal.crystals.record import CrystalInputError
from hf_crystal.disorder import orderings

ALLOY = {"cell": 2.8 * np.eye(3), "frac_coords": [[0.0] * 3], "species": [{"Fe": 0.5, "Co": 0.5}]}
SALT = {"cell": NACL_CELL, "frac_coords": NACL_FRAC, "species": [{"Na": 0.75, "K": 0.25}] * 4 + ["Cl"] * 4}


def test_an_ordered_crystal_is_its_own_only_ordering():
    (only,) = orderings(nacl(), 5)
    assert only.formula == "Na4 Cl4"


def test_whole_numbers_are_found_in_the_smallest_supercell():
    assert [structure.formula for structure in orderings(SALT, 3)] == ["K1 Na3 Cl4"]
    assert [structure.formula for structure in orderings(ALLOY, 8)] == ["Fe1 Co1"]
    third = orderings({**ALLOY, "species": [{"Fe": 2 / 3}]}, 8)
    assert [structure.formula for structure in third] == ["Fe2"]
    assert third[0].volume == pytest.approx(3 * 2.8**3)


def test_orderings_that_symmetry_makes_equal_count_once():
    from pymatgen.analysis.structure_matcher import StructureMatcher

    salt = {**SALT, "species": [{"Na": 0.5, "K": 0.5}] * 4 + [{"Cl": 0.75, "Br": 0.25}] * 4}
    corner = {**ALLOY, "cell": 4.0 * np.eye(3), "species": [{"Cu": 0.875, "Au": 0.125}]}
    chain = {**corner, "species": [{"Cu": 0.8125, "Au": 0.1875}]}  # 9 and 2 atoms in a row
    matcher = StructureMatcher(primitive_cell=False, ltol=0.01, stol=0.01, angle_tol=0.1)
    for crystal, number in ((salt, 2), (corner, 1), (chain, 5)):
        found = orderings(crystal, 8)
        assert len(found) == len(matcher.group_structures(found)) == number


def test_of_a_split_site_one_half_is_taken():
    pairs = [[x, y, 0.5 + sign * 0.16] for x in (0.0, 0.5) for y in (0.0, 0.5) for sign in (-1, 1)]  # 1.92 Å apart
    split = {"cell": 6.0 * np.eye(3), "frac_coords": pairs, "species": [{"Li": 0.5}] * 8}
    for structure in orderings(split, 4):
        assert len(structure) == 4
        distances = structure.distance_matrix + 9 * np.eye(4)
        assert distances.min() > 2.5


def test_the_total_of_each_element_is_rounded():
    places = [[0.0] * 3, [0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [0.0, 0.5, 0.5]]
    species = [{"Li": 0.40}, {"Li": 0.41}, {"Li": 0.42}, "Cl"]  # each alone is nearer to none
    (only,) = {structure.formula for structure in orderings(
        {"cell": 6.0 * np.eye(3), "frac_coords": places, "species": species}, 4, max_atoms=3)}  # fmt: skip
    assert only == "Li1 Cl1"


def test_the_largest_cell_bounds_what_is_rounded():
    rare = {**SALT, "species": [{"Na": 0.97, "K": 0.03}] * 4 + ["Cl"] * 4}
    assert len(orderings(rare, 1, max_atoms=8)[0]) == 8
    (found,) = orderings(rare, 1, max_atoms=300)
    assert found.composition["K"] / (found.composition["K"] + found.composition["Na"]) == pytest.approx(0.03, abs=0.01)
    with pytest.raises(CrystalInputError, match="round to 0"):
        orderings({**ALLOY, "species": [{"Fe": 0.1}]}, 1, max_atoms=1)


def test_draws_are_those_of_the_seed_and_of_lowest_energy_first():
    first, again = orderings(SALT, 4), orderings(SALT, 4)
    assert all(one == other for one, other in zip(first, again, strict=True))
    charged = {**ALLOY, "frac_coords": NACL_FRAC[:4], "cell": 5.0 * np.eye(3), "species": [{"Na": 0.5, "Cl": 0.5}] * 4}
    from pymatgen.analysis.ewald import EwaldSummation

    energies = [
        EwaldSummation(structure.add_oxidation_state_by_element({"Na": 1, "Cl": -1})).total_energy
        for structure in orderings(charged, 6)
    ]
    assert energies == sorted(energies)


def test_sites_that_exclude_each_other_are_not_both_filled():
    split = [[0.02, 0, 0], [-0.02, 0, 0], [0.52, 0.5, 0.5], [0.48, 0.5, 0.5]]
    halves = {"cell": 5.0 * np.eye(3), "frac_coords": split, "species": [{"Li": 0.5}] * 4}
    for structure in orderings(halves, 4):
        distances = structure.distance_matrix[np.triu_indices(len(structure), 1)]
        assert len(structure) == 2 and distances.min() > 3


@pytest.mark.parametrize("changes", [{"n": 0}, {"n": 1, "max_atoms": 0}])
def test_wrong_numbers_are_named(changes):
    with pytest.raises(ValueError, match="must be positive"):
        orderings(SALT, **changes)
