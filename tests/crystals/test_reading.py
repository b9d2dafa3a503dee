"""Any form of a crystal becomes a plain record."""

import json

import numpy as np
import pytest
from crystal_forms import (
    JARVIS_ATOMS,
    NACL_CELL,
    NACL_CIF,
    NACL_FRAC,
    NACL_NUMBERS,
    NACL_POSCAR,
    NACL_XYZ,
    A,
    forms,
    nacl,
    sites,
)
from transformers.testing_utils import CaptureLogger

from hf_crystal.crystals import record as records_crystal
from hf_crystal.crystals.reading import as_record, record_to_structure
from hf_crystal.crystals.record import CHEMICAL_SYMBOLS, CrystalInputError


@pytest.mark.parametrize("form", sorted(forms()))
def test_every_form_gives_the_same_record(form):
    record = as_record(forms()[form])
    assert record.atomic_numbers.dtype == np.int64
    assert record.frac_coords.dtype == record.cell.dtype == np.float64
    assert sites(record) == sites(as_record(nacl()))
    np.testing.assert_allclose(record.cell, NACL_CELL, atol=1e-12)
    assert record.formula == "NaCl"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.cif", NACL_CIF),
        ("POSCAR", NACL_POSCAR),
        ("CONTCAR.relaxed", NACL_POSCAR),
        ("b.vasp", NACL_POSCAR),
        ("c.extxyz", NACL_XYZ),
        ("no_suffix", NACL_CIF),
        ("d.json", json.dumps(JARVIS_ATOMS)),
        ("e.json", json.dumps([{"atoms": JARVIS_ATOMS}])),
    ],
)
def test_files_are_read_by_name_or_content(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    for given_path in (path, str(path)):
        record = as_record(given_path)
        assert sites(record) == sites(as_record(nacl()))
        assert record.name == name


def test_gzip_files_are_unpacked(tmp_path):
    import gzip

    path = tmp_path / "NaCl.cif.gz"
    path.write_bytes(gzip.compress(NACL_CIF.encode()))
    assert as_record(path).num_atoms == 8


def test_order_and_coordinates_stay_as_given():
    shift = np.array([3.0, -2.0, 0.25])
    order = np.array([5, 0, 7, 1, 2, 6, 3, 4])
    record = as_record(nacl(frac_coords=NACL_FRAC[order] + shift, atomic_numbers=NACL_NUMBERS[order]))
    np.testing.assert_array_equal(record.frac_coords, NACL_FRAC[order] + shift)
    np.testing.assert_array_equal(record.atomic_numbers, NACL_NUMBERS[order])


def test_left_handed_cell_is_accepted():
    cell = NACL_CELL.copy()
    cell[0] *= -1
    record = as_record(nacl(lattice=cell))
    assert np.linalg.det(record.cell) < 0
    assert record.volume == pytest.approx(A**3)


def test_selective_dynamics_and_cartesian_poscar():
    rows = "\n".join(" ".join(f"{x:.6f}" for x in row) + " T F T" for row in NACL_FRAC)
    text = f"t\n{A}\n1 0 0\n0 1 0\n0 0 1\nNa_pv Cl\n4 4\nSelective dynamics\nCartesian\n{rows}\n"
    assert sites(as_record(text)) == sites(as_record(nacl()))


@pytest.mark.parametrize("place", ["title", "line"])
def test_vasp4_symbols_from_title_or_lines(place):
    title = "Na Cl" if place == "title" else "salt"
    symbols = [CHEMICAL_SYMBOLS[z] if place == "line" else "" for z in NACL_NUMBERS]
    rows = "\n".join(" ".join(f"{x:.6f}" for x in r) + f" {s}" for r, s in zip(NACL_FRAC, symbols, strict=True))
    text = f"{title}\n{A}\n1 0 0\n0 1 0\n0 0 1\n4 4\nDirect\n{rows}\n"
    assert as_record(text).formula == "NaCl"


def test_every_form_says_that_an_isotope_of_hydrogen_is_read_as_hydrogen():
    from pymatgen.core import Lattice, Species, Structure

    salt = {"lattice": 5 * np.eye(3), "frac_coords": [[0, 0, 0], [0.5, 0.5, 0.5]], "species": ["Li", "D"]}
    structure = Structure(Lattice.cubic(5), [Species("Li"), Species("D")], salt["frac_coords"])
    poscar = "x\n1\n5 0 0\n0 5 0\n0 0 5\nLi D\n1 1\nDirect\n0 0 0\n.5 .5 .5\n"
    xyz = '2\nLattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3\nLi 0 0 0\nD 2.5 2.5 2.5\n'
    labels = NACL_CIF.replace("Na1+", "Li").replace("Cl1-", ".").replace("Cl1 ", "D1 ")
    mixed = {**salt, "species": [{"Li": 0.9}, {"D": 0.5, "H": 0.4, "T": 0.1}]}
    forms = [salt, structure, poscar, xyz, labels, labels.replace(" . ", " D ")]
    for form in forms:
        record = as_record(form)
        assert set(record.atomic_numbers.tolist()) == {1, 3}
        assert record.warnings == ("D read as H: the isotopes of hydrogen are not told apart",)
        assert as_record(record).warnings == record.warnings
    assert as_record(mixed, disorder="mix").warnings[-1].startswith("D and T read as H")
    assert as_record({**salt, "species": ["Li", "H"]}).warnings == ()


def test_deuterium_is_hydrogen_with_one_warning():
    records_crystal.logger.warning_once.cache_clear()
    with CaptureLogger(records_crystal.logger) as log:
        for symbols in (["D", "O"], ["D", "D"], ["D", "Cl"]):
            record = as_record({"cell": NACL_CELL, "frac_coords": NACL_FRAC[[0, 4]], "species": symbols})
            assert record.atomic_numbers[0] == 1
        assert as_record(NACL_CIF.replace("Cl1 Cl1-", "D1 D")).formula == "NaH"
    assert log.out.count("deuterium") == 1


def test_periodic_axes_stay_on_the_record(tmp_path):
    """Of every form, and the vacuum of the others does not."""
    from ase.build import bulk

    atoms = bulk("NaCl", "rocksalt", a=5.64)
    assert as_record(atoms).pbc == (True, True, True)
    atoms.pbc = (True, True, False)
    with pytest.raises(CrystalInputError, match="pbc is"):
        as_record(atoms)
    file = tmp_path / "slab.xyz"
    atoms.write(file, format="extxyz")
    record = as_record(atoms, partly_periodic=True)
    np.testing.assert_array_equal(record.cell[:2], atoms.cell[:2])
    np.testing.assert_allclose(record.cell[:2] @ record.cell[2], 0, atol=1e-9)
    np.testing.assert_allclose(record.positions, atoms.positions, atol=1e-12)
    structure = record_to_structure(record)
    rows = {"cell": atoms.cell[:].copy(), "positions": atoms.positions, "numbers": atoms.numbers, "pbc": atoms.pbc}
    fractional = {**rows, "frac_coords": atoms.get_scaled_positions(wrap=False), "positions": None}
    jarvis = {"lattice_mat": rows["cell"], "elements": ["Na", "Cl"], "coords": fractional["frac_coords"]}
    jarvis["pbc"] = atoms.pbc
    lattice = {
        **fractional,
        "cell": None,
        "lattice": {"matrix": rows["cell"], "pbc": [True, True, False]},
        "pbc": None,
    }
    atoms.cell[2] *= 4
    for form in (atoms, file, structure, structure.as_dict(), rows, fractional, dict(record), jarvis, lattice):
        read = as_record(form, partly_periodic=True)
        assert read.pbc == (True, True, False)
        np.testing.assert_allclose(read.cell, record.cell, atol=1e-6)
        np.testing.assert_allclose(read.positions, record.positions, atol=1e-6)


@pytest.mark.parametrize("flags", ["T", [True, False], [0.5, 1, 1], 2])
def test_odd_periodicity_is_named(flags):
    with pytest.raises(CrystalInputError, match="pbc is .*accepted"):
        as_record({**nacl(), "pbc": flags}, partly_periodic=True)
    flat = {"cell": np.zeros((3, 3)), "positions": [[0.0] * 3], "numbers": [1], "pbc": [True, False, False]}
    with pytest.raises(CrystalInputError, match="a cell vector of a periodic axis is zero"):
        as_record(flat, partly_periodic=True)


@pytest.mark.parametrize("text, suffix", [(NACL_CIF, "cif"), (NACL_POSCAR, "vasp"), (NACL_XYZ, "xyz")])
def test_a_file_that_ends_inside_a_line_is_announced(tmp_path, text, suffix):
    file = tmp_path / f"cut.{suffix}"
    file.write_text(text.strip() + "\n")
    assert as_record(file).warnings == ()
    file.write_text(text.strip())
    assert "may be cut off" in as_record(file).warnings[0]
