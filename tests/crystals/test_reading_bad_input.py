"""What is no crystal ends in a reason that names what is wrong."""

import json
import pickle

import numpy as np
import pytest
from crystal_forms import (
    NACL_CELL,
    NACL_CIF,
    NACL_FRAC,
    NACL_NUMBERS,
    NACL_POSCAR,
    NACL_XYZ,
    A,
    nacl,
)

from hf_crystal.crystals.cif import MAX_EXPANDED_SITES
from hf_crystal.crystals.reading import as_record
from hf_crystal.crystals.record import (
    CrystalInputError,
)

NAN, INF = float("nan"), float("inf")

BAD = {
    "no atoms": (nacl(frac_coords=[], atomic_numbers=[]), "0 atoms"),
    "nan coordinate": (nacl(frac_coords=[*NACL_FRAC[:7].tolist(), [0.0, NAN, 0.0]]), "atom 7 hold NaN"),
    "infinite cell": (nacl(lattice=[INF] + [0.0] * 8), "cell holds NaN or infinity"),
    "flat cell": (nacl(lattice=[A, 0, 0, 0, A, 0, A, A, 0]), "flat, singular or too small cell"),
    "zero cell": (nacl(lattice=[0.0] * 9), "flat, singular"),
    "tiny cell": (nacl(lattice=np.eye(3) * 0.5), "0.5 Å³ per atom"),
    "zero cell, cartesian": ({"cell": np.zeros((3, 3)), "positions": NACL_FRAC, "numbers": NACL_NUMBERS}, "flat"),
    "overlap": (nacl(frac_coords=[[0.0, 0.0, 0.99], *NACL_FRAC[1:7], [0.0, 0.0, 0.0]]), r"atom 7\).*0\.0564"),
    "overlap by image": (nacl(frac_coords=[*NACL_FRAC[:7], [5.0, 0.0, -3.0]]), "overlapping atoms: Na .atom 0."),
    "wrong number of coordinates": (nacl(atomic_numbers=[11] * 7), "8 atoms but 7 atomic numbers"),
    "short cell": (nacl(lattice=[1.0] * 6), r"lattice has shape \(6,\)"),
    "ragged coordinates": (nacl(frac_coords=[[0, 0], [0, 0, 0]]), "frac_coords is not an array of numbers"),
    "two-dimensional coordinates": (nacl(frac_coords=[[0.0, 0.0]] * 8), r"shape \(8, 2\)"),
    "fractional atomic number": (nacl(atomic_numbers=[11.5] * 8), "not whole numbers"),
    "atomic number 0": (nacl(atomic_numbers=[0] * 8), "atomic number 0 at atom 0; accepted are 1 to 118"),
    "atomic number 119": (nacl(atomic_numbers=[11] * 7 + [119]), "atomic number 119 at atom 7"),
    "text as coordinates": (nacl(frac_coords="abc"), "frac_coords is not an array"),
    "dummy symbol": ({"cell": NACL_CELL, "frac_coords": NACL_FRAC[:1], "species": ["X"]}, "unknown element 'X'"),
    "no cell": ({"frac_coords": NACL_FRAC, "atomic_numbers": NACL_NUMBERS}, "no cell; keys received"),
    "null numbers": (
        {"cell": NACL_CELL, "frac_coords": NACL_FRAC, "atomic_numbers": None},
        "'frac_coords'], empty: atomic_numbers",
    ),
    "no numbers": ({"cell": NACL_CELL, "frac_coords": NACL_FRAC}, "no atomic_numbers; keys received"),
    "no coordinates": ({"cell": NACL_CELL, "atomic_numbers": NACL_NUMBERS}, "no frac_coords and no positions"),
    "empty dict": ({}, "no cell"),
    "None": (None, "received NoneType; accepted: pymatgen Structure"),
    "number": (3.5, "received float"),
    "empty text": ("  ", "empty"),
    "a word": ("garbage", "no such file: garbage, and this is no text of a known format"),
    "missing file": ("no/such/file.cif", "no such file: no/such/file.cif"),
    "folder": (".", "is a folder"),
    "prose": ("this is\nnot a crystal\n", "not a crystal structure: 2. characters"),
    "html": ("<!DOCTYPE html>\n<html></html>", "not a crystal structure"),
    "binary": (bytes(range(256)), "not a crystal structure"),
    "broken JSON": ('{"lattice": [', "not readable as JSON"),
    "JSON number list": ("[1, 2]", "list of 2 entries"),
    "CIF without atoms": (NACL_CIF.split("loop_")[0], "CIF has no atoms"),
    "CIF without cell": (NACL_CIF.replace("_cell_length_a", "_x"), "_cell_length_a is missing"),
    "CIF with zero length": (NACL_CIF.replace(f"{A}(2)", "0"), "_cell_length_a is '0'"),
    "CIF with comma": (NACL_CIF.replace(f"{A}(2)", "5,64"), "_cell_length_a is '5,64'"),
    "CIF, partial occupancy": (NACL_CIF.replace("0 0 0 1", "0 0 0 0.5"), "disordered: site 0 has partial occupancy"),
    "CIF, shared site": (NACL_CIF + "K1 K 0 0 0 1\n", "together they are more than one: Na 1 . K 1"),
    "CIF, unknown occupancy": (NACL_CIF.replace("0 0 0 1", "0 0 0 ?"), "occupancy of site Na1 is unknown"),
    "CIF, unknown coordinate": (NACL_CIF.replace("0 0 0 1", "? 0 0 1"), "site Na1 is '\\?', not a number"),
    "CIF, dummy": (NACL_CIF.replace("Cl1 Cl1-", "Xx1 Xx"), "unknown element 'Xx'"),
    "CIF, vacancy": (NACL_CIF.replace("Cl1 Cl1-", "Va1 Va"), "unknown element 'Va'"),
    "CIF, vacancy label": (
        NACL_CIF.replace("_atom_site_type_symbol\n", "").replace("Na1 Na1+", "Na1").replace("Cl1 Cl1-", "Va1"),
        "vacancies are not accepted",
    ),
    "CIF, unknown group": (
        NACL_CIF.replace("F m -3 m", "F q -3 z").replace("_symmetry_Int_Tables_number 225\n", ""),
        "space group 'F q -3 z', which is not known",
    ),
    "CIF, Cartesian": (NACL_CIF.replace("_fract_", "_Cartn_"), "Cartesian coordinates only"),
    "CIF, cut off": (NACL_CIF[: NACL_CIF.index("Cl1-")], "CIF"),
    "POSCAR without symbols": (NACL_POSCAR.replace("Na Cl\n", ""), "POSCAR names no elements"),
    "POSCAR, too few atoms": (NACL_POSCAR.replace("4 4", "4 5"), "counts 9 atoms .* 8 coordinate lines"),
    "POSCAR, counts": (NACL_POSCAR.replace("4 4", "8"), "names 2 elements"),
    "POSCAR, cut off": ("\n".join(NACL_POSCAR.splitlines()[:7]), "POSCAR ends before the coordinates"),
    "XYZ without lattice": (NACL_XYZ.replace("Lattice", "Other"), "molecule without a cell"),
    "XYZ, two frames": (NACL_XYZ + "\n" + NACL_XYZ, "more than one frame"),
    "XYZ, width of a column": (NACL_XYZ.replace("pos:R:3", "pos:R:" + "9" * 5000), "species and pos are needed"),
    "JSON, two values of a key": (json.dumps(nacl())[:-1] + ', "lattice": [1]}', "'lattice' is given twice"),
    "JSON, integer of 5,000 digits": (json.dumps(nacl())[:-1] + ', "n": ' + "9" * 5000 + "}", "not readable as JSON"),
    "JSON, lattice in a lattice": (nacl(lattice={"matrix": {"matrix": NACL_CELL.tolist()}}), "lattice is {'matrix'"),
    "JSON, truth as numbers": (nacl(atomic_numbers=[True] * 8), "atomic_numbers is not an array of numbers"),
    "XYZ, open quote": (NACL_XYZ.replace('pbc="T T T"', 'pbc="T'), "cannot be read"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_is_a_named_reason(case):
    crystal, reason = BAD[case]
    with pytest.raises(CrystalInputError, match=reason) as caught:
        as_record(crystal, index=3)
    error = caught.value
    assert isinstance(error, ValueError)
    assert error.index == 3
    assert error.reason in str(error)
    assert str(error).startswith("crystal 3")


def test_disordered_objects_and_dummies_are_named():
    from pymatgen.core import DummySpecies, Lattice, Structure

    disordered = Structure(Lattice(NACL_CELL), [{"Na": 0.7, "K": 0.3}, "Cl"], NACL_FRAC[[0, 4]])
    for form in (disordered, disordered.as_dict()):
        with pytest.raises(CrystalInputError, match="disordered: site 0 .*0.7"):
            as_record(form)
    dummy = Structure(Lattice(NACL_CELL), [DummySpecies("Xa"), "Cl"], NACL_FRAC[[0, 4]])
    for form in (dummy, dummy.as_dict()):
        with pytest.raises(CrystalInputError, match="unknown element"):
            as_record(form)
    # 0.9999 is a rounded 1
    as_record(Structure(Lattice(NACL_CELL), [{"Na": 0.9999}, "Cl"], NACL_FRAC[[0, 4]]))


def test_molecules_and_empty_objects_are_named():
    from ase import Atoms
    from pymatgen.core import Lattice, Structure

    with pytest.raises(CrystalInputError, match="without a cell"):
        as_record(Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]]))
    with pytest.raises(CrystalInputError, match="0 atoms"):
        as_record(Structure(Lattice(NACL_CELL), [], []))
    with pytest.raises(CrystalInputError, match="0 atoms"):
        as_record(Atoms(cell=NACL_CELL, pbc=True))


def test_error_names_the_crystal_and_survives_pickling(tmp_path):
    path = tmp_path / "bad.cif"
    path.write_text(NACL_CIF.replace("0 0 0 1", "0 0 0 0.5"), encoding="utf-8")
    with pytest.raises(CrystalInputError) as caught:
        as_record(path, index=7)
    assert caught.value.name == "bad.cif"
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.reason, copy.index, copy.name) == (caught.value.reason, 7, "bad.cif")
    assert str(copy) == str(caught.value)
    with pytest.raises(CrystalInputError) as caught:
        as_record(nacl(material_id="mp-1", lattice=[0.0] * 9))
    assert caught.value.name == "mp-1"
    with pytest.raises(CrystalInputError) as caught:
        as_record(nacl(atomic_numbers=[11] * 7 + [119]))
    assert caught.value.name == "Na7?"


def test_empty_and_oversized_files_are_named(tmp_path, monkeypatch):
    path = tmp_path / "empty.cif"
    path.write_bytes(b"\n \n")
    with pytest.raises(CrystalInputError, match="empty"):
        as_record(path)
    monkeypatch.setattr("hf_crystal.crystals.reading.MAX_FILE_BYTES", 10)
    path.write_text(NACL_CIF, encoding="utf-8")
    with pytest.raises(CrystalInputError, match="at most 10 are read"):
        as_record(path)


def test_work_on_a_cif_is_bounded():
    rows = "\n".join(f"Na{i} Na 0.0 0.0 {i / 20000:.6f} 1" for i in range(MAX_EXPANDED_SITES + 1))
    text = NACL_CIF[: NACL_CIF.index("Na1 Na1+")].replace("F m -3 m", "P 1").replace("225", "1") + rows + "\n"
    with pytest.raises(CrystalInputError, match=f"at most {MAX_EXPANDED_SITES} are read"):
        as_record(text)
    rows = "\n".join(f"Na{i} Na 0.0 0.0 {i / 20000:.6f} 1" for i in range(70))
    with pytest.raises(CrystalInputError, match="70 listed x 192 symmetry operations"):
        as_record(NACL_CIF[: NACL_CIF.index("Na1 Na1+")] + rows + "\n")


def test_options_of_the_checks():
    close = nacl(frac_coords=[*NACL_FRAC[:7], NACL_FRAC[7] + [0.46, 0.0, 0.0]])
    as_record(close)
    with pytest.raises(CrystalInputError, match="at least 0.5 Å"):
        as_record(close, min_distance=0.5)
    as_record(close, min_distance=0.5, check_distances=False)
    with pytest.raises(CrystalInputError, match="max_atoms = 4"):
        as_record(nacl(), max_atoms=4)
    with pytest.raises(CrystalInputError, match="accepted are 1 to 16"):
        as_record(nacl(), max_atomic_number=16)


HUGE = {
    "XYZ": ('300000\nLattice="90 0 0 0 90 0 0 0 90"\n' + "Fe 0 0 0\n" * 10, "XYZ counts 300000 atoms; at most 200000"),
    "POSCAR": (NACL_POSCAR.replace("4 4", "4 300000"), "POSCAR counts 300004 atoms; at most 200000"),
    "JSON lists": ('{"a": [' + "[]," * 1_100_000 + "0]}", "JSON holds more values"),
    "CIF sites": (NACL_CIF + "K1 K 0 0 0 1\n" * 12_000, "CIF lists 12002 sites; at most 12000"),
    "CIF values": (NACL_CIF + "loop_\n_a\n" + "0\n" * 2_100_000, "more than 2000000 values"),
    "CIF line": (NACL_CIF + "#\r" * 40_000 + "#" + " " * 70_000, "line of more than 65536 characters"),
}


@pytest.mark.parametrize("case", sorted(HUGE))
def test_sizes_are_refused_before_they_are_read(case):
    text, reason = HUGE[case]
    with pytest.raises(CrystalInputError, match=reason):
        as_record(text)


def test_reflections_beside_a_crystal_are_no_sites():
    listed = "loop_\n_refln_index_h\n_refln_index_k\n" + "1 2\n" * 13_000
    field = "_shelx_hkl_file\n;\n" + "   1   0   0   12.30\n" * 220_000 + ";\n"
    assert as_record(NACL_CIF + listed + field).num_atoms == 8
