"""The fast matcher against pymatgen's, called directly."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from hf_crystal.crystals.reading import as_record
from hf_crystal.evaluation import DEFAULT_MATCHER, DIFFCSP_MATCHER
from hf_crystal.evaluation.structure_matching import fast_matcher
from hf_crystal.evaluation.structure_matching.fast_matcher import fits, rms_distances
from hf_crystal.evaluation.structure_matching.near_lattices import lll_mappings, near_lattices
from hf_crystal.evaluation.structure_matching.pymatgen_matcher import MatcherSettings, pymatgen_fit, pymatgen_rms
from hf_crystal.evaluation.structure_matching.reduced_crystals import reduce_crystal

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


def reduced(structure: Structure, niggli: bool = True):
    return reduce_crystal(as_record(structure, check_distances=False), niggli=niggli)


@pytest.mark.parametrize("settings", [DIFFCSP_MATCHER, DEFAULT_MATCHER, MatcherSettings(0.01, 0.02, 0.5)], ids=str)
def test_verdicts_are_those_of_pymatgen(settings):
    generator = np.random.default_rng(11)
    structures = [
        (disturbed(structure, generator, amount), structure)
        for structure in PROTOTYPES
        for amount in (0.0, 0.05, 0.3, 0.7)
        for _ in range(2)
    ]
    # all at once: different crystals share one batch
    pairs = [(reduced(first, niggli=False), reduced(second)) for first, second in structures]
    found, fitting = rms_distances(settings, pairs), fits(settings, pairs)
    matched = 0
    for pair, rms, fit in zip(structures, found, fitting, strict=True):
        expected = pymatgen_rms(settings, pair)
        assert (rms is None) == (expected is None), pair
        if expected is not None:
            assert rms == pytest.approx(expected, abs=1e-6)
            matched += 1
        assert fit == pymatgen_fit(settings, pair), pair
    assert matched > 5
    assert rms_distances(settings, pairs[5:6]) == found[5:6]


def test_pymatgen_is_asked_where_images_are_equally_near(monkeypatch):
    # Every way of laying one on the other moves an atom by half a lattice vector, either way: 0.43 or 0.54.
    predicted = Structure(
        Lattice.tetragonal(4.14, 7.19),
        ["Sc", "Cu", "Ga", "Sc", "Ga", "Ga"],
        [[0, 0, 0], [0, 0, 0.382], [0, 0, 0.65], [0.5, 0.5, 0.767], [0.5, 0.5, 0.214], [0.5, 0.5, 0.888]],
    )
    true = Structure(
        Lattice.orthorhombic(3.259074, 4.288959, 7.42412),
        ["Sc", "Sc", "Ga", "Ga", "Ga", "Cu"],
        [
            [0, 0, 0.001955],
            [0, 0.5, 0.498258],
            [0.5, 0.5, 0.835306],
            [0.5, 0.5, 0.175165],
            [0.5, 0, 0.65771],
            [0.5, 0, 0.331606],
        ],
    )
    asked = []
    monkeypatch.setattr(fast_matcher, "pymatgen_rms", lambda *a: asked.append(a) or pymatgen_rms(*a))
    pair = (reduced(predicted, niggli=False), reduced(true))
    assert rms_distances(DIFFCSP_MATCHER, [pair]) == [pymatgen_rms(DIFFCSP_MATCHER, (predicted, true))]
    assert len(asked) == 1


def test_equally_cheap_assignments_that_leave_the_same_need_no_pymatgen(monkeypatch):
    # the chlorine atoms lie halfway between their places, along a line: either may go to either
    first = Structure(Lattice.cubic(6), ["Cs", "Cl", "Cl"], [[0, 0, 0], [0.5, 0.3, 0.5], [0.5, 0.7, 0.5]])
    second = Structure(Lattice.cubic(6), ["Cs", "Cl", "Cl"], [[0, 0, 0], [0.3, 0.5, 0.5], [0.7, 0.5, 0.5]])
    expected = pymatgen_rms(MatcherSettings(0.001, 0.5, 0.1), (first, second))
    monkeypatch.setattr(fast_matcher, "pymatgen_rms", None)
    pair = (reduced(first, niggli=False), reduced(second))
    assert rms_distances(MatcherSettings(0.001, 0.5, 0.1), [pair]) == [pytest.approx(expected)]


def test_other_compositions_never_match():
    pair = tuple(reduced(structure) for structure in PROTOTYPES[:2])
    assert rms_distances(DIFFCSP_MATCHER, [pair]) == [None]
    assert fits(DIFFCSP_MATCHER, [pair]) == [False]


def test_only_crystals_that_pymatgen_could_reduce_are_reduced():
    skewed = PROTOTYPES[0].copy()
    skewed.make_supercell([[1, 3, 0], [0, 1, 0], [0, 0, 1]])
    as_given = reduced(skewed, niggli=False)
    np.testing.assert_array_equal(as_given.lattice, skewed.lattice.matrix)
    assert as_given.reduced is as_given
    doubled = reduced(PROTOTYPES[0] * (1, 1, 2), niggli=False)
    assert (len(doubled.numbers), len(doubled.reduced.numbers)) == (4, 2)


def some_lattices() -> list[Lattice]:
    generator = np.random.default_rng(2)
    return [
        FCC,
        Lattice.hexagonal(3, 5),
        Lattice.cubic(4),
        Lattice([[1, 0, 0], [7.3, 4, 0], [-5.2, 9.1, 3]]),
        *(Lattice.from_parameters(*generator.uniform(3, 9, 3), *generator.uniform(65, 115, 3)) for _ in range(20)),
    ]


def test_lll_bases_are_those_of_pymatgen():
    lattices = some_lattices()
    mappings, certain = lll_mappings(np.array([lattice.matrix for lattice in lattices]))
    assert not certain[:2].any()  # the cosine of 60 or 120 degrees is a half
    assert certain[3:].all()
    for lattice, mapping in zip(lattices[2:], mappings[2:], strict=True):
        np.testing.assert_array_equal(mapping, np.round(lattice.lll_mapping))


def test_near_lattices_are_those_of_pymatgen(monkeypatch):
    lattices = some_lattices()
    wanted = [lattices[place - 1] for place in range(len(lattices))]
    wanted[3] = Lattice.from_parameters(*lattices[3].parameters)  # flat: nothing else is near
    arguments = np.array([a.matrix for a in lattices]), np.array([b.parameters for b in wanted]), 0.3, 10.0
    owners, bases = near_lattices(*arguments)
    total = 0
    for place, (lattice, target) in enumerate(zip(lattices, wanted, strict=True)):
        mappings = lattice.find_all_mappings(target, ltol=0.3, atol=10.0, skip_rotation_matrix=True)
        expected = {tuple(np.round(m).ravel()) for _, _, m in mappings if abs(abs(np.linalg.det(m)) - 1) < 0.5}
        assert {tuple(basis.ravel()) for basis in bases[owners == place]} == expected
        total += len(expected)
    assert len(bases) == total > 100
    monkeypatch.setattr("hf_crystal.evaluation.structure_matching.near_lattices._BLOCK_POINTS", 500)
    again_owners, again = near_lattices(*arguments)
    order, again_order = np.argsort(owners, kind="stable"), np.argsort(again_owners, kind="stable")
    np.testing.assert_array_equal(again[again_order], bases[order])
