"""Warnings about crystals: elements that no training crystal has, and geometry that is hardly meant."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from hf_crystal import CrystalFeatureExtractor
from hf_crystal.crystals.doubts import TrainingDomain, geometry_warnings, training_domain
from hf_crystal.crystals.record import COVALENT_RADII, close_pair


def doubts(*crystals, radius=None):
    batch = CrystalFeatureExtractor(min_distance=0.0)(list(crystals), return_tensors="np")
    return geometry_warnings(batch["atomic_numbers"], batch["positions"], batch["cell"], radius)


def crystal(numbers, frac, lattice):
    cell = np.diag([lattice] * 3) if np.ndim(lattice) == 0 else np.asarray(lattice)
    return {"atomic_numbers": numbers, "frac_coords": frac, "lattice": cell.tolist()}


def nearest_ratio(numbers, frac, cell):
    """Smallest distance in units of the sum of covalent radii, over images far enough for any cell of the test."""
    images = np.array(list(itertools.product(range(-6, 7), repeat=3))) @ cell
    ratios = []
    for (i, first), (j, second) in itertools.combinations_with_replacement(enumerate(frac @ cell), 2):
        distances = np.linalg.norm(second - first + images, axis=1)
        if i == j:
            distances = distances[distances > 1e-9]
        ratios.append(distances.min() / (COVALENT_RADII[numbers[i]] + COVALENT_RADII[numbers[j]]))
    return min(ratios)


def test_domain_counts_crystals_and_pairs():
    fields = training_domain([[[8, 8, 22], [22, 0, 0]], [[38, 8, 22, 8, 8], [17, 11]]])
    assert fields["trained_elements"] == {"O": 2, "Na": 1, "Cl": 1, "Ti": 3, "Sr": 1}
    assert fields["trained_pairs"] == {"O": "Ti Sr", "Na": "Cl", "Ti": "Sr"}
    domain = TrainingDomain(SimpleNamespace(**fields, _name_or_path="some/where/mine"))
    padded = np.array([[22, 8, 0], [11, 8, 0], [94, 8, 95]])
    elements, pairs = domain.unseen_elements(padded), domain.unseen_pairs(padded)
    assert elements[:2] == [[], []]
    assert elements[2] == [
        f"{symbol}: not in the training data of mine (5 elements); the result is an extrapolation"
        for symbol in ("Pu", "Am")
    ]
    assert pairs[0] == pairs[2] == []
    assert pairs[1] == [
        "O and Na: never together in one crystal of the training data of mine; the result is an extrapolation"
    ]


def test_a_config_without_a_record_warns_of_nothing():
    domain = TrainingDomain(SimpleNamespace())
    assert domain.unseen_elements([[118, 1]]) == domain.unseen_pairs([[118, 1]]) == [[]]


def test_close_atoms_are_found_exactly_where_brute_force_finds_them():
    draws = np.random.default_rng(4)
    rows, expected = [], []
    for _ in range(150):
        count = int(draws.integers(1, 6))
        cell = np.eye(3) * draws.uniform(2.5, 8) + draws.normal(0, 0.8, (3, 3))
        if abs(np.linalg.det(cell)) < 4 * count:
            continue
        numbers, frac = draws.choice([1, 8, 26, 55], count), draws.random((count, 3))
        rows.append(crystal(numbers.tolist(), frac.tolist(), cell))
        expected.append(nearest_ratio(numbers, frac, cell) < 0.5)
    found = [any("apart" in text for text in texts) for texts in doubts(*rows)]
    assert found == expected
    assert 20 < sum(expected) < len(expected) - 20


def test_large_and_skewed_cells_take_the_exact_way():
    grid = np.array(list(itertools.product(range(5), repeat=3))) / 5
    shifted = grid.copy()
    shifted[7] = grid[6] + [0.0, 0.0, 0.08]  # 1.2 Å, of 1.32 Å
    skewed = [[4.2, 0, 0], [29.4, 4.2, 0], [0, 0, 4.2]]
    assert doubts(crystal([55] * 125, grid.tolist(), 20.0), crystal([55, 17], [[0, 0, 0], [0.5] * 3], skewed)) == [
        [],
        [],
    ]
    (found,) = doubts(crystal([26] * 125, shifted.tolist(), 15.0))
    assert found[1:] == [
        "Fe (atom 6) and Fe (atom 7) are 1.20 Å apart, less than 0.5 of the sum of their covalent radii (2.64 Å)"
    ]


def test_pairs_are_judged_by_their_own_radii():
    # H and O at 0.96 Å are nearer than Cs and Cs at 2.3 Å, and only those collide
    frac = np.array([[0, 0, 0], [0.096, 0, 0], [0.5, 0.5, 0.5], [0.73, 0.5, 0.5]])
    assert close_pair(frac, np.eye(3) * 10, 0.5 * COVALENT_RADII[[1, 8, 55, 55]]) == (2, 3, pytest.approx(2.3))
    assert close_pair(frac, np.eye(3) * 10, 1.0) == (0, 1, pytest.approx(0.96))


@pytest.mark.parametrize(
    ("numbers", "edge", "reason"),
    [
        ([11, 17], 4.0 / 0.529, "volume per atom is 216 Å³, 8.8 times what"),  # bohr
        ([11, 17], 2.9, "volume per atom is 12.2 Å³, 0.49 times what"),
        ([55, 55], 4.0, "volume per atom is 32 Å³, 0.48 times what"),
        ([1, 1], 9.0, "volume per atom is 365 Å³, 37 times what"),
        ([100, 100], 6.0, "volume per atom is 108 Å³, 4.3 times what"),
    ],
)
def test_volume_per_atom(numbers, edge, reason):
    (found,) = doubts(crystal(numbers, [[0, 0, 0], [0.5] * 3], edge))
    assert [text for text in found if text.startswith("volume")][0].startswith(reason)


def test_the_volumes_of_known_crystals_are_usual():
    # silicon, diamond, graphite, cesium, iron, rock salt, cesium chloride and MgO by their volume per atom
    edges = {(14, 14): 3.42, (6, 6): 2.25, (6,): 2.06, (55, 55): 6.2, (26, 26): 2.87, (11, 17): 3.55, (55, 17): 4.15}
    for numbers, edge in {**edges, (12, 8): 2.67}.items():
        frac = [[0, 0, 0], [0.5] * 3][: len(numbers)]
        (found,) = doubts(crystal(list(numbers), frac, edge))
        assert not [text for text in found if text.startswith("volume")], numbers


def test_an_atom_without_neighbors():
    lone = crystal([3, 9, 9], [[0, 0, 0], [0.5, 0.5, 0.5], [0.6, 0.5, 0.5]], 16.0)
    assert any("Li (atom 0): no neighbor within 8.9 Å" in text for text in doubts(lone, radius=8.9)[0])
    # neighbors only across two faces, and an own image along a short diagonal of long edges
    across = crystal([3, 9], [[0.02, 0.02, 0.02], [0.98, 0.98, 0.98]], 16.0)
    oblique = crystal([3], [[0, 0, 0]], [[10, 0, 0], [-9.8, 3, 0], [0, 0, 10]])
    for other in (across, oblique):
        assert not any("neighbor" in text for text in doubts(other, radius=8.9)[0])


def test_a_sheet_with_vacuum_in_a_bulk_cell_is_named():
    def sheet(height):
        return crystal([5, 7], [[0, 0, 0.9], [1 / 3, 2 / 3, 0.9]], [[2.5, 0, 0], [-1.25, 2.165, 0], [0, 0, height]])

    thick, thin = doubts(sheet(20.0), sheet(3.3))
    assert len(thick) == 1
    assert thick[0].startswith("20.0 Å without atoms along c: a sheet or molecule with vacuum")
    assert thin == []
