"""The fast matcher against pymatgen's, called directly."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from hf_crystal.evaluation import DEFAULT_MATCHER, DIFFCSP_MATCHER
from hf_crystal.evaluation.fast_matcher import (
    MatcherSettings,
    _lll_mappings,
    fits,
    pymatgen_fit,
    pymatgen_rms,
    reduce_crystal,
    rms_distance,
)

FCC = Lattice.from_parameters(4, 4, 4, 60, 60, 60)
PROTOTYPES = [
    Structure(FCC, ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    Structure(FCC, ["Si", "Si"], [[0, 0, 0], [0.25, 0.25, 0.25]]),
    Structure(Lattice.hexagonal(3.2, 5.1), ["Mg", "Mg"], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]),
    Structure(
        Lattice.tetragonal(4.6, 2.96),
        ["Ti", "O", "O", "Ti", "O", "O"],
        [[0, 0, 0], [0.3, 0.3, 0], [0.7, 0.7, 0], [0.5, 0.5, 0.5], [0.2, 0.8, 0.5], [0.8, 0.2, 0.5]],
    ),
    Structure(
        Lattice.cubic(3.9), ["Sr", "Ti", "O", "O", "O"], 0.5 * np.array([[0, 0, 0], [1, 1, 1], *(1 - np.eye(3))])
    ),
    # two formula units in a cell that pymatgen's 0.25 A may or may not find reducible
    Structure(
        Lattice.orthorhombic(4, 4, 8.1),
        ["K", "K", "F", "F"],
        [[0, 0, 0], [0, 0, 0.49], [0.5, 0.5, 0.25], [0.5, 0.5, 0.76]],
    ),
    Structure(
        Lattice.from_parameters(3.1, 5.2, 9.8, 95, 100, 105),
        ["Fe", "S", "S", "Fe"],
        np.arange(12).reshape(4, 3) % 7 / 7,
    ),
]


def disturbed(structure: Structure, generator: np.random.Generator, amount: float) -> Structure:
    """The crystal strained, shifted, in another cell, its atoms moved and sometimes two of them swapped."""
    coordinates = structure.cart_coords + generator.normal(0, amount, (len(structure), 3))
    moved = Structure(structure.lattice, structure.species, coordinates, coords_are_cartesian=True)
    moved.apply_strain(generator.normal(0, 0.05 if amount else 0.002, 3))
    moved.translate_sites(range(len(moved)), generator.random(3))
    if generator.random() < 0.3:
        moved.make_supercell([[1, generator.integers(-2, 3), 0], [0, 1, 0], [generator.integers(-1, 2), 0, 1]])
    if generator.random() < 0.2:
        moved.make_supercell([1, 1, 2])
    if generator.random() < 0.3:
        first, last = moved[0].specie, moved[-1].specie
        moved.replace(0, last)
        moved.replace(len(moved) - 1, first)
    return moved


@pytest.mark.parametrize("settings", [DIFFCSP_MATCHER, DEFAULT_MATCHER, MatcherSettings(0.01, 0.02, 0.5)], ids=str)
def test_verdicts_are_those_of_pymatgen(settings):
    generator = np.random.default_rng(11)
    matched = 0
    for structure in PROTOTYPES:
        for amount in (0.0, 0.05, 0.3, 0.7):
            for _ in range(2):
                pair = (disturbed(structure, generator, amount), structure)
                reduced = (reduce_crystal(pair[0], niggli=False), reduce_crystal(pair[1], niggli=True))
                expected, found = pymatgen_rms(settings, pair), rms_distance(settings, reduced)
                assert (found is None) == (expected is None), (structure.formula, amount)
                if expected is not None:
                    assert found == pytest.approx(expected, abs=1e-6)
                    matched += 1
                assert fits(settings, reduced) == pymatgen_fit(settings, pair), (structure.formula, amount)
    assert matched > 5


def test_other_compositions_never_match():
    salt, silicon = (reduce_crystal(structure, niggli=True) for structure in PROTOTYPES[:2])
    assert rms_distance(DIFFCSP_MATCHER, (salt, silicon)) is None
    assert not fits(DIFFCSP_MATCHER, (salt, silicon))


def test_only_crystals_that_pymatgen_could_reduce_are_reduced():
    skewed = PROTOTYPES[0].copy()
    skewed.make_supercell([[1, 3, 0], [0, 1, 0], [0, 0, 1]])
    as_given = reduce_crystal(skewed, niggli=False)
    np.testing.assert_array_equal(as_given.lattice, skewed.lattice.matrix)
    assert as_given.reduced is as_given
    doubled = reduce_crystal(PROTOTYPES[0] * (1, 1, 2), niggli=False)
    assert (len(doubled.numbers), len(doubled.reduced.numbers)) == (4, 2)


def test_lll_bases_are_those_of_pymatgen():
    generator = np.random.default_rng(2)
    lattices = [
        FCC,
        Lattice.hexagonal(3, 5),
        Lattice.cubic(4),
        *(Lattice.from_parameters(*generator.uniform(3, 9, 3), *generator.uniform(65, 115, 3)) for _ in range(20)),
    ]
    parameters = np.array([lattice.parameters for lattice in lattices])
    matrices = np.array([lattice.matrix for lattice in lattices])
    for lattice, mapping in zip(lattices, _lll_mappings(parameters, matrices), strict=True):
        expected = lattice.get_lll_reduced_lattice().matrix
        # equally good bases differ by rounding only
        np.testing.assert_allclose(
            sorted(np.linalg.norm(mapping @ lattice.matrix, axis=1)),
            sorted(np.linalg.norm(expected, axis=1)),
            rtol=1e-9,
        )
