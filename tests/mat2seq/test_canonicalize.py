"""One crystal, one canonical crystal; different crystals, different ones; nothing is lost."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mat2seq_crystals import (
    DATASETS,
    baddeleyite,
    lopsided,
    mirror_image,
    perovskite,
    quartz,
    random_crystal,
    read_records,
    rock_salt,
    rutile,
)

from hf_crystal.crystals.record import CrystalInputError
from hf_crystal.evaluation.descriptions import alternative_setting, random_description
from hf_crystal.mat2seq.canonical_crystal import cell_from_parameters, coordinate_strides, orbit_points, quantize
from hf_crystal.mat2seq.canonical_setting import choose_again, choose_setting
from hf_crystal.mat2seq.canonical_setting_reference import choose_setting_plainly
from hf_crystal.mat2seq.canonical_start import canonical_start
from hf_crystal.mat2seq.canonical_symmetry import SymmetricCrystal, find_symmetry
from hf_crystal.mat2seq.canonicalize import (
    CanonicalSettings,
    canonicalize,
    canonicalize_plainly,
    canonicalize_record,
)
from hf_crystal.mat2seq.space_groups import TRANSLATION_GRID, space_group

GOLDEN = [
    (quartz, "Si 3 O 6 | P3_221 | a 4.92 c 5.41 | Si 3a .4700 O 6c .1460 .7340 .5480"),
    (rutile, "Ti 2 O 4 | P4_2/mnm | a 4.59 c 2.96 | Ti 2a O 4f .3050"),
    (rock_salt, "Na 1 Cl 1 | Fm-3m | a 5.64 | Na 4a Cl 4b"),
    (perovskite, "Sr 1 Ti 1 O 3 | Pm-3m | a 3.90 | Ti 1a Sr 1b O 3d"),
    (
        baddeleyite,
        "Zr 4 O 8 | P2_1/c | a 5.15 b 5.21 c 5.32 beta 99.2 | "
        "O 4e .0500 .2430 .0210 O 4e .4300 .6680 .1550 Zr 4e .2250 .5390 .7920",
    ),
    (
        lopsided,
        "Li 1 P 1 O 1 | P1 | a 3.91 b 5.26 c 6.21 alpha 82.7 beta 83.7 gamma 84.0 | "
        "Li 1a .0000 .0000 .0000 O 1a .5000 .2500 .1750 P 1a .8500 .6200 .5900",
    ),
]
CRYSTALS = [make for make, _ in GOLDEN]


@pytest.mark.parametrize(("make", "text"), GOLDEN, ids=lambda value: getattr(value, "__name__", ""))
def test_golden_sequences_stay_as_they_are(make, text):
    assert canonicalize(make()).to_text() == text


@given(st.integers(0, len(CRYSTALS) - 1), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.0, 0.0, 1e-8]))
@settings(max_examples=190, deadline=None)
def test_every_description_gives_one_canonical_crystal(which, seed, noise):
    """Noise far below the grid changes nothing."""
    record = CRYSTALS[which]()
    described = random_description(record, np.random.default_rng(seed), noise=noise)
    assert canonicalize(described) == canonicalize(record)


@pytest.mark.parametrize("make", CRYSTALS)
def test_decoding_and_encoding_again_changes_nothing(make):
    crystal = canonicalize(make())
    assert canonicalize(crystal.to_record()) == crystal
    assert canonicalize(crystal.to_record(primitive=False)) == crystal
    assert canonicalize(crystal.to_structure()) == crystal


@pytest.mark.slow
def test_every_space_group_gives_one_canonical_crystal():
    generator = np.random.default_rng(1)
    grid = CanonicalSettings()
    kept = 0
    for number in range(1, 231):
        written = random_crystal(number, generator, grid)
        crystal = canonicalize(written.to_record())
        kept += crystal.space_group == number
        for _ in range(2):
            described = random_description(written.to_record(), generator)
            assert canonicalize(described) == crystal, (number, written)
    assert kept >= 200  # a random site may raise the symmetry, not more often than this


@pytest.mark.parametrize(("name", "split"), DATASETS)
def test_real_crystals_are_unique_complete_and_idempotent(data_dir, name, split):
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Lattice, Structure

    matcher = StructureMatcher(ltol=0.01, stol=0.02, angle_tol=0.5, scale=False)
    generator = np.random.default_rng(3)
    for record in read_records(data_dir, name, split, 12):
        crystal = canonicalize(record)
        for _ in range(2):
            assert canonicalize(random_description(record, generator)) == crystal
        assert canonicalize(crystal.to_record()) == crystal
        original = Structure(Lattice(record["cell"]), record["atomic_numbers"], record["frac_coords"])
        assert matcher.fit(original, crystal.to_structure()), crystal.to_text()


@pytest.mark.parametrize(("name", "split"), DATASETS)
def test_tables_and_short_cuts_change_nothing(data_dir, name, split):
    generator = np.random.default_rng(4)
    grid = CanonicalSettings()
    for record in read_records(data_dir, name, split, 15, seed=1):
        for noise in (0, 1e-3):
            described = random_description(record, generator, noise=noise)
            crystal = (described["cell"], described["frac_coords"], described["atomic_numbers"])
            assert canonicalize_record(*crystal, grid) == canonicalize_plainly(*crystal, grid)


def test_mirror_images_differ_only_where_the_crystal_is_chiral():
    assert canonicalize(quartz()) != canonicalize(mirror_image(quartz()))
    assert canonicalize(mirror_image(quartz())).space_group == 152
    assert canonicalize(lopsided()) != canonicalize(mirror_image(lopsided()))
    assert canonicalize(rutile()) == canonicalize(mirror_image(rutile()))


@pytest.mark.parametrize("make", CRYSTALS)
def test_different_crystals_differ(make):
    record = make()
    first = canonicalize(record)
    strained = {**record, "cell": record["cell"] * np.array([[1.01], [1.0], [1.0]])}
    moved = {**record, "frac_coords": record["frac_coords"].copy()}
    moved["frac_coords"][-1] += np.array([0.1, 0, 0]) @ np.linalg.inv(record["cell"])
    swapped = {**record, "atomic_numbers": record["atomic_numbers"].copy()}
    swapped["atomic_numbers"][swapped["atomic_numbers"] == record["atomic_numbers"][0]] = 83
    assert len({first, *(canonicalize(other) for other in (strained, moved, swapped))}) == 4


def test_symmetry_may_cost_no_more_than_the_tolerance():
    record = perovskite()
    record["frac_coords"] = record["frac_coords"] + np.array([[0, 0, 0], [0, 0, 0.006 / 3.905], *np.zeros((3, 3))])
    assert canonicalize(record, symprec=0.01).space_group == 221
    assert canonicalize(record, symprec=0.002).space_group == 99


def test_presets_write_different_grids():
    texts = {
        canonicalize(rutile(), settings=CanonicalSettings.preset(p)).to_text() for p in ("fine", "default", "mid")
    }
    assert texts == {
        "Ti 2 O 4 | P4_2/mnm | a 4.594 c 2.959 | Ti 2a O 4f .3053",
        "Ti 2 O 4 | P4_2/mnm | a 4.59 c 2.96 | Ti 2a O 4f .3050",
        "Ti 2 O 4 | P4_2/mnm | a 4.595 c 2.960 | Ti 2a O 4f .305",
    }


def _exact(crystal):
    """A canonical crystal as a symmetric one, without any symmetry search."""
    group = space_group(crystal.space_group)
    record = crystal.to_record(primitive=False)
    sizes = [group.positions[site.position].multiplicity for site in crystal.sites]
    orbits = np.repeat(np.arange(len(sizes)), sizes)
    frac = record["frac_coords"]
    # one atom of each set that differs by centering
    reduced = frac @ np.linalg.inv(group.primitive_basis)
    keep = np.unique(np.column_stack([orbits, np.rint(reduced % 1 * 1e6) % 1e6]), axis=0, return_index=True)[1]
    numbers = record["atomic_numbers"][keep]
    return SymmetricCrystal(group, record["cell"] @ record["cell"].T, frac[keep], numbers, orbits[keep], 0.0, 1)


def _start(record, grid):
    return canonical_start(record["cell"], record["frac_coords"], record["atomic_numbers"], grid)


def test_every_equivalent_setting_gives_one_choice():
    generator = np.random.default_rng(5)
    grid = CanonicalSettings()
    for number in range(1, 231):
        start = _start(random_crystal(number, generator, grid).to_record(), grid)
        found = find_symmetry(*start, grid)
        expected = choose_setting_plainly(found, grid)
        group = found.group
        for _ in range(3):
            family = group.settings[generator.integers(len(group.settings))]
            shift = generator.choice(family.origins) / TRANSLATION_GRID
            shift[list(group.polar_axes)] += generator.random(len(group.polar_axes))
            change = family.basis_change
            centering = generator.choice(group.centering, size=len(found.frac)) / TRANSLATION_GRID
            other = dataclasses.replace(
                found,
                metric=change.T @ found.metric @ change,
                frac=(found.frac + centering - shift) @ family.inverse.T,
            )
            assert choose_setting(other, grid) == expected, group.symbol
        again = choose_again(expected)
        if again is not None:
            assert again == choose_setting_plainly(_exact(expected), grid), group.symbol


@pytest.mark.parametrize("number", range(1, 231, 3))
def test_decoded_atoms_are_all_images_of_the_orbits(number):
    grid = CanonicalSettings()
    unit = grid.fraction_steps * TRANSLATION_GRID
    crystal = random_crystal(number, np.random.default_rng(number), grid)
    group = space_group(number)
    expected = np.concatenate(
        [orbit_points(group, group.positions[s.position], s.parameters, grid.fraction_steps) for s in crystal.sites]
    )
    conventional = np.rint(crystal.to_record(primitive=False)["frac_coords"] * unit).astype(int)
    assert sorted(conventional.tolist()) == sorted(expected.tolist())
    primitive = np.rint(crystal.to_record()["frac_coords"] * unit).astype(int)
    reduced = np.rint(expected @ np.linalg.inv(group.primitive_basis)).astype(int) % unit
    assert {tuple(p) for p in primitive.tolist()} == {tuple(p) for p in reduced.tolist()}
    assert len(primitive) * len(group.centering) == len(expected)


def test_lattices_do_not_drift():
    # Three lengths equal to rounding, two angles near 60 degrees: every other basis is a little off.
    cell = cell_from_parameters(3.3678, 3.3688, 4.8455, 88.89, 89.635, 60.11)
    frac = np.array([[0, 0, 0], [0.328, 0.3555, 0.576], [0.6695, 0.664, 0.424], [0.3315, 0.344, 0.777]])
    crystal = canonicalize({"cell": cell, "frac_coords": frac, "atomic_numbers": np.array([25, 1, 1, 8])})
    decoded = crystal.to_record()
    assert abs(np.linalg.det(decoded["cell"]) / np.linalg.det(cell) - 1) < 0.005
    assert canonicalize(decoded) == crystal


def test_coordinates_are_rounded_alike_in_short_and_long_cells():
    settings = CanonicalSettings()
    strides = coordinate_strides(47, (395, 790, 2100), settings)
    assert strides[-1].tolist() == [5, 2, 1]
    assert coordinate_strides(47, (395, 790, 2100), CanonicalSettings(coordinate_step=0)).max() == 1
    # along a body diagonal an atom moves √3 times as far
    diagonal = space_group(198).positions[0]
    assert diagonal.num_parameters == 1
    assert coordinate_strides(198, (395,), settings)[0, 0] == 2
    crystal = canonicalize(baddeleyite())
    allowed = coordinate_strides(crystal.space_group, crystal.lattice, settings)
    for site in crystal.sites:
        assert not (np.array(site.parameters) % allowed[site.position]).any()


def test_rounding_boundaries_keep_off_halves():
    halves = (np.arange(1, 2000) + 0.5) / 2000
    below, above = quantize(halves - 1e-15, 1 / 2000), quantize(halves + 1e-15, 1 / 2000)
    assert (below == above).all()


def test_alternative_settings_are_descriptions_of_one_crystal():
    generator = np.random.default_rng(6)
    cells = set()
    for make in (baddeleyite, rutile, perovskite, quartz):
        record = make()
        for _ in range(8):
            other = alternative_setting(record, generator)
            cells.add(np.round(other["cell"] @ other["cell"].T, 3).tobytes())
            assert canonicalize(other) == canonicalize(record)
    assert len(cells) >= 6  # the monoclinic one has three choices of its cell


def test_five_hundred_atoms_take_seconds():
    generator = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(8)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:500]
    frac = (grid + 0.2 * generator.random((500, 3))) / 8
    record = {"cell": np.diag([20.0, 21.0, 22.0]), "frac_coords": frac, "atomic_numbers": np.array([6, 14] * 250)}
    crystal = canonicalize(record)
    assert len(crystal.sites) == 500
    assert canonicalize(random_description(record, generator)) == crystal


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"frac_coords": np.full((6, 3), np.nan)}, "finite|NaN|not"),
        ({"frac_coords": np.zeros((0, 3)), "atomic_numbers": np.zeros(0, dtype=int)}, "atom"),
        ({"cell": np.diag([4.594, 4.594, 0.0])}, "volume|flat|cell|lattice"),
        ({"frac_coords": np.zeros((6, 3))}, "Å|overlap|distance"),
        ({"atomic_numbers": np.array([22, 22, 8, 8, 8, 119])}, "119|atomic"),
    ],
)
def test_bad_input_gives_one_clear_error(change, reason):
    with pytest.raises(CrystalInputError, match=reason):
        canonicalize({**rutile(), **change})


def test_too_many_atoms_are_refused():
    with pytest.raises(ValueError, match="max_atoms|atoms; accepted"):
        canonicalize(lopsided(), settings=CanonicalSettings(max_atoms=2))


@pytest.mark.parametrize(
    "field",
    ["symprec", "fraction_steps", "length_step", "angle_step", "max_strain", "max_atoms", "coordinate_step"],
)
def test_settings_out_of_range_are_refused(field):
    with pytest.raises(ValueError, match=field):
        CanonicalSettings(**{field: -1})
