"""The plain record: its checks on distances, and the way there and back."""

import json

import numpy as np
import pytest
from crystal_forms import (
    NACL_FRAC,
    A,
    nacl,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hf_crystal.crystals.reading import as_columns, as_record, record_to_structure
from hf_crystal.crystals.record import (
    CHEMICAL_SYMBOLS,
    CrystalInputError,
    CrystalRecord,
    atomic_number_of,
    cell_from_parameters,
    close_pair,
    formula_of,
)

# --------------------------------------------------------------------------------------------------- distances


def nearest_by_brute_force(frac, cell, reach):
    images = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    shortest = np.inf
    for i in range(len(frac)):
        for j in range(i, len(frac)):
            distances = np.linalg.norm((frac[j] - frac[i] + images) @ cell, axis=1)
            if i == j:
                distances = distances[images.any(axis=1)]
            shortest = min(shortest, distances.min())
    return shortest


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_atoms=st.integers(1, 6),
    min_distance=st.floats(0.05, 1.5),
)
def test_close_pair_finds_the_nearest_pair_of_any_cell(seed, num_atoms, min_distance):
    rng = np.random.default_rng(seed)
    cell = np.eye(3) * rng.uniform(1.0, 4.0, 3) + rng.uniform(-0.8, 0.8, (3, 3))
    # images that can be nearer than 1.5 Å; cells so flat that they would be too many are left out
    reach = 1 + int(np.ceil(1.5 * np.linalg.norm(np.linalg.inv(cell), axis=0).max()))
    assume(reach <= 7)
    frac = rng.uniform(-2, 2, (num_atoms, 3))
    frac[num_atoms // 2] = frac[0] + rng.uniform(-0.05, 0.05, 3) + rng.integers(-2, 3, 3)
    # the brute force starts from the home cell, so atoms are brought there first
    truth = nearest_by_brute_force(frac - np.floor(frac), cell, reach)
    skew = np.array([[1, 0, 0], [7, 1, 0], [-3, 5, 1]])  # the same lattice, described badly
    for matrix in (np.eye(3), skew):
        found = close_pair(frac @ np.linalg.inv(matrix), matrix @ cell, min_distance)
        if truth < min_distance - 1e-9:
            assert found is not None
            assert found[2] == pytest.approx(truth, abs=1e-8)
        elif truth > min_distance + 1e-9:
            assert found is None


def test_a_thin_cell_overlaps_with_its_own_image():
    cell = np.diag([0.08, 20.0, 20.0])
    assert close_pair(np.zeros((1, 3)), cell, 0.1) == (0, 0, pytest.approx(0.08))
    with pytest.raises(CrystalInputError, match="0.0800 Å apart, periodic images included"):
        as_record({"cell": cell, "frac_coords": [[0, 0, 0]], "atomic_numbers": [6]})


def test_big_cells_are_checked_in_little_memory():
    n = 16
    grid = np.stack(np.meshgrid(*[np.arange(n) / n] * 3, indexing="ij"), -1).reshape(-1, 3)
    cell = np.eye(3) * 2.5 * n
    assert close_pair(grid, cell, 0.1) is None
    grid[-1] = grid[0] + [0.0, 0.0, 0.001 - 1.0]
    first, second, distance = close_pair(grid, cell, 0.1)
    assert {first, second} == {0, n**3 - 1}
    assert distance == pytest.approx(0.04)


# ----------------------------------------------------------------------------------------------- round trips


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_atoms=st.integers(1, 8))
def test_columns_and_back_change_nothing(seed, num_atoms):
    from pymatgen.core import Lattice, Structure

    rng = np.random.default_rng(seed)
    cell = np.eye(3) * rng.uniform(8, 12, 3) + rng.uniform(-1, 1, (3, 3))
    frac = np.linspace(-1.3, 2.1, num_atoms)[:, None] + rng.uniform(0, 0.03, (num_atoms, 3))
    species = [CHEMICAL_SYMBOLS[z] for z in rng.integers(1, 104, num_atoms)]
    structure = Structure(Lattice(cell), species, frac)
    record = as_columns(structure)
    assert record["num_atoms"] == num_atoms
    assert len(record["lattice"]) == 9 and len(record["frac_coords"]) == 3 * num_atoms
    back = record_to_structure(json.loads(json.dumps(record)))
    np.testing.assert_array_equal(back.lattice.matrix, structure.lattice.matrix)
    np.testing.assert_array_equal(back.frac_coords, structure.frac_coords)
    assert back.species == structure.species


def test_record_reads_like_a_dict():
    record = as_record(nacl())
    assert isinstance(record, CrystalRecord)
    assert set(dict(record)) == {"atomic_numbers", "frac_coords", "cell"}
    np.testing.assert_array_equal(as_record(dict(record)).cell, record.cell)
    np.testing.assert_allclose(record["positions"], NACL_FRAC * A)
    with pytest.raises(KeyError):
        record["charge"]


def test_small_helpers():
    assert formula_of(np.array([8, 8, 8, 38, 22])) == "SrTiO3"
    assert [atomic_number_of(s) for s in ("Na", "na", "Na1+", "O2-", "Fe+3", "CL")] == [11, 11, 11, 8, 26, 17]
    assert [CHEMICAL_SYMBOLS[z] for z in (1, 6, 92, 118)] == ["H", "C", "U", "Og"]
    cell = cell_from_parameters(3, 4, 5, 80, 95, 110)
    lengths = np.linalg.norm(cell, axis=1)
    np.testing.assert_allclose(lengths, [3, 4, 5])
    cosines = (cell @ cell.T) / np.outer(lengths, lengths)
    np.testing.assert_allclose(np.degrees(np.arccos(cosines[[1, 0, 0], [2, 2, 1]])), [80, 95, 110])
    with pytest.raises(CrystalInputError, match="cannot exist"):
        cell_from_parameters(3, 3, 3, 60, 60, 150)
