"""Partly occupied sites: one form of a record, whichever way they are written; refused where nothing reads them."""

import csv
import io
import json
import re
import zipfile
from collections import Counter

import numpy as np
import pytest
from crystal_forms import NACL_CELL, NACL_CIF, NACL_FRAC, nacl

from hf_crystal.crystals.reading import as_record, record_to_structure
from hf_crystal.crystals.record import CHEMICAL_SYMBOLS, CrystalInputError

NA, CL, K = 10, 16, 18  # columns of `occupancies`
MIXED_CIF = NACL_CIF.replace("Na1 Na1+ 0 0 0 1", "Na1 Na1+ 0 0 0 0.7\nK1 K1+ 0 0 0 0.3")


def mixed(**changes):
    return {"cell": NACL_CELL, "frac_coords": NACL_FRAC[[0, 4]], "species": [{"Na": 0.7, "K": 0.3}, "Cl"], **changes}


def sites_of(record):
    composition = np.zeros((record.num_atoms, 118)) if record.occupancies is None else record.occupancies
    return [{CHEMICAL_SYMBOLS[z + 1]: round(site[z], 6) for z in np.flatnonzero(site)} for site in composition]


def test_every_form_gives_the_same_record():
    from pymatgen.core import Lattice, Structure

    structure = Structure(Lattice(NACL_CELL), [{"Na": 0.7, "K": 0.3}, "Cl"], NACL_FRAC[[0, 4]])
    rows = {
        "cell": NACL_CELL,
        "frac_coords": NACL_FRAC[[0, 0, 4]],
        "atomic_numbers": [11, 19, 17],
        "occupancies": [0.7, 0.3, 1.0],
    }
    texts = mixed(species=['{"Na": 0.7, "K": 0.3}', '{"Cl": 1.0}'])  # as in the tables of disordered crystals
    record = as_record(mixed(), disorder="mix")
    again = record_to_structure(record)
    for form in (structure, structure.as_dict(), json.dumps(structure.as_dict()), rows, texts, dict(record), again):
        read = as_record(form, disorder="mix")
        np.testing.assert_array_equal(read.occupancies, record.occupancies)
        np.testing.assert_array_equal(read.frac_coords, record.frac_coords)
    assert sites_of(record) == [{"Na": 0.7, "K": 0.3}, {"Cl": 1.0}]
    assert record.atomic_numbers.tolist() == [11, 17]
    assert record.formula == "K0.3Na0.7Cl"
    trace = as_record(mixed(species=[{"Na": 0.9, "K": 2e-6}, "Cl"]), disorder="mix")
    assert trace.formula == "Na0.9Cl"
    whole = as_record(MIXED_CIF, disorder="mix")
    assert (whole.num_atoms, whole.formula, whole.warnings) == (8, "K1.2Na2.8Cl4", ())


def test_disorder_is_refused_where_it_is_not_asked_for():
    for form in (mixed(), MIXED_CIF):
        with pytest.raises(CrystalInputError, match=r"disordered: site 0 .*0\.7, K: 0\.3.*orderings"):
            as_record(form)


def test_copies_of_a_site_that_make_up_one_are_one_ordered_site():
    halves = mixed(species=[{"Na": 0.5}, {"Na": 0.5}, "Cl"], frac_coords=NACL_FRAC[[0, 0, 4]])
    full = as_record(mixed(species=["Na", "Cl"]))
    read = as_record(halves)
    assert read.occupancies is None
    np.testing.assert_array_equal(read.atomic_numbers, full.atomic_numbers)
    np.testing.assert_array_equal(read.frac_coords, full.frac_coords)


@pytest.mark.parametrize("given", [1.01, 1.02])
def test_a_full_site_of_more_than_one_atom_is_scaled_with_a_warning(given):
    cif = NACL_CIF.replace("0 0 0 1", f"0 0 0 {given}")
    xyz = mixed(species=[{"Na": given}, "Cl"])
    for form in (cif, xyz):
        record = as_record(form)
        assert record.occupancies is None
        assert record.warnings == (f"occupancies of a site sum to {given:g}; they were scaled to 1",)
    assert as_record(NACL_CIF.replace("0 0 0 1", "0 0 0 1.0005")).warnings == ()


def test_empty_sites_vanish_and_vacancies_stay():
    empty = as_record(mixed(species=[{"Na": 0.0}, {"Cl": 0.25}]), disorder="mix")
    assert sites_of(empty) == [{"Cl": 0.25}]
    with pytest.raises(CrystalInputError, match="all sites are empty"):
        as_record(mixed(species=[{"Na": 0.0}, {"Cl": 0.0}]), disorder="mix")


def test_split_positions_are_merged_across_a_face_of_the_cell_in_their_mean():
    near = mixed(species=[{"Na": 0.25}, {"Na": 0.5}, "Cl"], frac_coords=[[0.005, 0, 0], [0.995, 1, 0], [0.5] * 3])
    record = as_record(near, disorder="mix")
    assert sites_of(record) == [{"Na": 0.75}, {"Cl": 1.0}]
    shift = record.frac_coords[0] - [-1 / 600, 0, 0]
    np.testing.assert_allclose(shift - np.rint(shift), 0, atol=1e-12)
    assert "split positions up to 0.06 Å" in record.warnings[0]
    apart = as_record(mixed(species=[{"Na": 0.5}, {"Na": 0.5}], frac_coords=[[0, 0, 0], [0.1, 0, 0]]), disorder="mix")
    assert apart.num_atoms == 2 and not apart.warnings


def test_a_site_near_a_special_position_keeps_its_halves():
    """An ordered site there is put on the position; a half-occupied one is split around it."""
    split = NACL_CIF.replace("Na1 Na1+ 0 0 0 1", "Na1 Na1+ 0.02 0 0 0.125\nK1 K1+ 0 0 0 0.25")
    record = as_record(split, disorder="mix")
    assert record.formula == "KNa3Cl4"
    assert record.num_atoms == 4 * 6 + 4 + 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"species": [{"Na": 1.3}, "Cl"]}, "occupancy 1.3 of atomic number 11"),
        ({"species": [{"Na": -0.5}, "Cl"]}, "occupancy -0.5"),
        ({"species": [{"Na": "x"}, "Cl"]}, "not an array of numbers"),
        ({"species": [{}, "Cl"]}, r"species\[0\] is empty"),
        ({"species": ['{"Na"', "Cl"]}, "not readable as JSON"),
        ({"species": [{"Na": 0.7, "K": 0.7}, "Cl"]}, "together they are more than one: Na 0.7 \\+ K 0.7"),
        ({"species": None, "atomic_numbers": [11, 17], "occupancies": [0.5]}, "accepted are"),
    ],
)
def test_bad_occupancies_are_named(changes, reason):
    with pytest.raises(CrystalInputError, match=reason):
        as_record(mixed(**changes), disorder="mix")


def test_ordered_crystals_are_read_as_before():
    record = as_record(nacl(), disorder="mix")
    assert record.occupancies is None and "occupancies" not in dict(record)


def amounts_of(formula):
    """Atoms of each element of a formula with brackets."""
    while found := re.search(r"\(([^()]*)\)([0-9.]*)", formula):
        inner = re.sub(
            r"([A-Z][a-z]?)([0-9.]*)", lambda m, f=found: f"{m[1]}{float(m[2] or 1) * float(f[2] or 1):.9g}", found[1]
        )
        formula = formula.replace(found[0], inner)
    amounts = Counter()
    for symbol, count in re.findall(r"([A-Z][a-z]?)([0-9.]*)", formula):
        amounts[symbol] += float(count or 1)
    return np.array([amounts[symbol] for symbol in sorted(amounts)]) / sum(amounts.values()), sorted(amounts)


def test_disordered_files_have_the_composition_of_their_formula_or_a_reason(data_dir):
    with zipfile.ZipFile(data_dir / "messy_structures.zip") as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("manifest.csv").decode())))
        members = {name.rpartition("/")[2]: name for name in archive.namelist()}
        disordered = [row for row in rows if row["expected_difficulty"] == "disordered"]
        reasons, read = {}, 0
        for row in disordered:
            try:
                record = as_record(archive.read(members[row["file"].rpartition("/")[2]]), disorder="mix")
            except CrystalInputError as error:
                reasons[row["file"]] = error.reason
                continue
            read += 1
            (ours, symbols), (theirs, their_symbols) = amounts_of(record.formula), amounts_of(row["formula"])
            assert symbols == their_symbols, row["file"]
            np.testing.assert_allclose(ours, theirs, rtol=1e-2, err_msg=row["file"])
    assert (len(disordered), read) == (29, 20), reasons
    # atoms that are missing in the file, or that cannot be told from it
    known = ("_chemical_formula_sum", "unknown element", "is not clear", "is unknown ('?')")
    assert all(any(part in reason for part in known) for reason in reasons.values()), reasons
