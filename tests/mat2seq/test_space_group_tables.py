"""The generated tables against facts of the International Tables and against independent normalizer lists."""

import json

import numpy as np
import pytest

from hf_crystal.mat2seq.space_groups import TRANSLATION_GRID, space_group, space_group_number, space_group_symbols


@pytest.fixture(scope="module")
def wyckoff_table(fixtures_dir):
    return json.loads((fixtures_dir / "symmetry" / "wyckoff_table.json").read_text())


@pytest.fixture(scope="module")
def normalizer_table(fixtures_dir):
    return json.loads((fixtures_dir / "symmetry" / "normalizer_cosets.json").read_text())


def test_wyckoff_positions_are_those_of_the_international_tables(wyckoff_table):
    for number in range(1, 231):
        mine = [(p.letter, p.multiplicity) for p in space_group(number).positions]
        assert mine == [(letter, multiplicity) for letter, multiplicity, _ in wyckoff_table[str(number)]]


def test_every_orbit_has_as_many_points_as_its_multiplicity_says():
    generator = np.random.default_rng(0)
    for number in range(1, 231):
        group = space_group(number)
        for position in group.positions:
            point = position.matrix @ generator.random(position.num_parameters) + position.offset / TRANSLATION_GRID
            images = group.all_rotations @ point + group.all_translations / TRANSLATION_GRID
            images = np.round(images - np.floor(images + 1e-9), 6) % 1
            assert len(np.unique(images, axis=0)) == position.multiplicity, (number, position.letter)


def test_operations_agree_with_moyopy():
    import moyopy

    for number in range(1, 231):
        theirs = moyopy.operations_from_number(number, setting=moyopy.Setting.standard())
        group = space_group(number)

        def listed(rotations, translations):
            steps = np.rint(np.asarray(translations) * TRANSLATION_GRID).astype(int) % TRANSLATION_GRID
            return {(tuple(np.ravel(r).tolist()), tuple(t.tolist())) for r, t in zip(rotations, steps, strict=True)}

        mine = listed(group.all_rotations, group.all_translations / TRANSLATION_GRID)
        assert mine == listed(theirs.rotations, theirs.translations), number


def _cosets_seen(number, elements):
    """Each element n as the set n·G⁺, translations along polar axes left out."""
    group = space_group(number)
    proper = np.linalg.det(group.all_rotations) > 0
    keep = [axis for axis in range(3) if axis not in group.polar_axes]
    result = set()
    for change, origin in elements:
        rotations = change @ group.all_rotations[proper]
        shifts = group.all_translations[proper] @ change.T + origin
        shifts = np.rint(shifts).astype(int)[:, keep] % TRANSLATION_GRID
        members = zip(np.rint(rotations).astype(int).reshape(-1, 9).tolist(), shifts.tolist(), strict=True)
        result.add(min((tuple(r), tuple(t)) for r, t in members))
    return result


def test_normalizer_cosets_agree_with_the_reference(normalizer_table):
    for number in range(1, 231):
        reference = normalizer_table[str(number)]
        assert list(space_group(number).polar_axes) == reference["polar_axes"]
        if "cosets" in reference:
            listed = [(np.array(p, dtype=float), np.array(t) * TRANSLATION_GRID) for p, t in reference["cosets"]]
        else:
            listed = [
                (np.array(p, dtype=float), np.array(t) * TRANSLATION_GRID)
                for p, shifts in reference["monoclinic"]
                for t in shifts
            ]
        families = space_group(number).settings
        mine = [(f.basis_change, origin) for f in families for origin in f.origins]
        assert _cosets_seen(number, mine) == _cosets_seen(number, listed), number
        assert len(_cosets_seen(number, mine)) == len(mine), number


def test_symbols_are_distinct_and_found_again():
    symbols = space_group_symbols()
    assert len(set(symbols)) == 230
    assert [space_group_number(symbol) for symbol in symbols] == list(range(1, 231))
    assert space_group_number(np.int64(136)) == 136


@pytest.mark.parametrize("wrong", ["P4_2/xyz", 0, 231, None, True])
def test_what_is_no_space_group_is_refused(wrong):
    with pytest.raises(ValueError, match="space_group"):
        space_group_number(wrong)


def test_normalizers_agree_with_moyopy():
    import moyopy

    def cosets(changes, rotations):
        """Changes of basis modulo the point group, without those that no proper one is equal to."""
        chiral = (np.linalg.det(rotations) > 0).all()
        kept = [change for change in changes if np.linalg.det(change) > 0 or not chiral]
        return {min(tuple(np.rint(change @ r).astype(int).ravel().tolist()) for r in rotations) for change in kept}

    for number in range(16, 231):  # below, normalizers are infinite
        group = space_group(number)
        basis = group.primitive_basis.T
        rotations = group.primitive_rotations.astype(int).tolist()
        theirs = moyopy.integral_normalizer(rotations, group.primitive_translations.tolist())
        changes = [basis @ np.array(found.linear) @ np.linalg.inv(basis) for found in theirs]
        mine = [family.basis_change for family in group.settings]
        assert cosets(changes, group.rotations) <= cosets(mine, group.rotations), number
        if number not in (143, 144, 145, 147):  # moyopy 0.21 lists half of theirs
            both = [*changes, *(-change for change in changes)]  # it lists them up to inversion
            assert cosets(both, group.rotations) == cosets(mine, group.rotations), number


def test_wyckoff_letters_are_those_moyopy_finds():
    import moyopy

    hexagonal = np.array([[7.0, 0, 0], [-3.5, 3.5 * 3**0.5, 0], [0, 0, 9.5]])
    cells = {
        "triclinic": np.array([[7.0, 0, 0], [0.9, 7.7, 0], [1.3, 0.7, 8.9]]),
        "monoclinic": np.array([[7.0, 0, 0], [0, 7.9, 0], [-1.7, 0, 9.1]]),
        "orthorhombic": np.diag([7, 8, 9.5]),
        "tetragonal": np.diag([7, 7, 9.5]),
        "trigonal": hexagonal,
        "hexagonal": hexagonal,
        "cubic": np.diag([9, 9, 9]),
    }
    generator = np.random.default_rng(0)
    for number in range(1, 231):
        group = space_group(number)
        special = group.positions[number % len(group.positions)]
        points = []
        for position in (special, group.positions[-1]):
            point = position.matrix @ generator.random(position.num_parameters) + position.offset / TRANSLATION_GRID
            images = group.all_rotations @ point + group.all_translations / TRANSLATION_GRID
            points.append(np.unique(np.round(images - np.floor(images + 1e-9), 6) % 1, axis=0))
        elements = [11] * len(points[0]) + [17] * len(points[1])
        cell = moyopy.Cell(np.asarray(cells[group.crystal_system]).tolist(), np.concatenate(points).tolist(), elements)
        found = moyopy.MoyoDataset(cell, symprec=1e-4, setting=moyopy.Setting.standard())
        assert found.number == number
        # moyopy may choose another of the equivalent origins; its normalizer says which letters that exchanges
        places = [place for place, element in enumerate(found.std_cell.numbers) if element == 11]
        sequences = [letters for _, letters in found.normalizer_wyckoff_positions().coset_representatives]
        possible = {(letters[p].letter, letters[p].multiplicity) for letters in sequences for p in places}
        assert (special.letter, special.multiplicity) in possible, (number, special.letter, possible)
