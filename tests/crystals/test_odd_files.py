"""Files as people have them: other units, old symbols, archives; read right, or said what is odd."""

import gzip
import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from crystal_forms import NACL_CIF, NACL_POSCAR, NACL_XYZ, A

from hf_crystal.crystals.reading import as_record
from hf_crystal.crystals.record import CrystalInputError
from hf_crystal.data.sources import load

PLACES = [[0, 0, 0], [0.5, 0.5, 0.5]]
PAIR = {"lattice": (A * np.eye(3)).tolist(), "frac_coords": PLACES, "species": ["Cs", "Cl"]}


def optimade(species=(), **changes):
    kinds = [{"name": name, "chemical_symbols": [name], "concentration": [1.0]} for name in ("Cs", "Cl")]
    attributes = {
        "lattice_vectors": PAIR["lattice"],
        "cartesian_site_positions": (A * np.array(PLACES)).tolist(),
        "species_at_sites": PAIR["species"],
        "species": [{**kind, **dict(species)} for kind in kinds],
        "chemical_formula_reduced": "ClCs",
        "nsites": 2,
    }
    return json.dumps({"id": "x/1", "type": "structures", "attributes": {**attributes, **changes}})


@pytest.mark.parametrize("old", ["F m 3 m", "Fm3m"])
def test_cubic_symbols_without_the_bar_are_those_of_today(old):
    cif = NACL_CIF.replace("_symmetry_Int_Tables_number 225\n", "").replace("F m -3 m", old)
    assert as_record(cif).formula == "NaCl" and len(as_record(cif)) == 8
    for symbol, order in (("I a 3 d", 96), ("P a 3", 24), ("F m 3 c", 192), ("I m 3", 48)):
        general = cif.replace(old, symbol).replace("0.5 0.5 0.5", "0.13 0.27 0.41").replace("Na1 Na1+ 0 0 0 1\n", "")
        general = general.replace(f"_length_a {A}(2)", "_length_a 30").replace(f" {A}", " 30")
        assert as_record(general).num_atoms == order
    with pytest.raises(CrystalInputError, match="'F n 3 x', which is not known"):
        as_record(cif.replace(old, "F n 3 x"))


@pytest.mark.parametrize(("head", "told"), [
    ("_cell_volume 250.3", "CIF _cell_volume is 250.3 Å³, but lengths and angles give 179.406 Å³"),
    ("_cell_volume 179.5(2)", None),
    ("loop_\n_atom_site_moment.label\n_atom_site_moment.crystalaxis_z\nNa1 2.1\n", "magnetic moments are not read"),
])  # fmt: skip
def test_what_is_odd_about_a_cif_is_told(head, told):
    found = as_record(NACL_CIF.replace("data_NaCl\n", f"data_NaCl\n{head}\n")).warnings
    assert [text[: len(told or "")] for text in found] == [told] * (told is not None)


def test_coordinates_that_may_be_cartesian_are_told():
    for text in (NACL_POSCAR.replace("0.500000 0.500000 0.500000", "2.82 2.82 2.52"),
                 NACL_CIF.replace("0.5 0.5 0.5", "2.5 2.5 2.5")):  # fmt: skip
        (doubt,) = as_record(text, check_distances=False).warnings
        assert "fractional coordinates reach 2." in doubt
    assert as_record(NACL_CIF.replace("0.5 0.5 0.5", "-0.5 1.5 1.5")).warnings == ()


def test_a_line_after_the_counted_atoms_of_a_poscar_is_told():
    (doubt,) = as_record(NACL_POSCAR + "\n0.25 0.25 0.25\n").warnings
    assert doubt == "POSCAR counts 8 atoms, but the line after them holds coordinates, too"
    assert as_record(NACL_POSCAR + "\n\n0.1 0 0\n").warnings == ()  # velocities


def test_xyz_may_have_atomic_numbers():
    numbers = NACL_XYZ.replace("Na ", "11 ").replace("Cl ", "17 ")
    for text in (numbers, numbers.replace("species:S:1", "Z:I:1")):
        assert as_record(text).formula == "NaCl"


@pytest.mark.parametrize(("form", "reason"), [
    (NACL_XYZ.replace("pbc=", "units=Bohr pbc="), "units is 'Bohr'; lengths in Å"),
    ({**PAIR, "length_unit": "nm"}, "length_unit is 'nm'; lengths in Å"),
    ({**PAIR, "positions": [[0, 0, 0], [1, 1, 1]]}, "frac_coords and positions are different places"),
    ({**PAIR, "atomic_numbers": [37, 17]}, r"atomic_numbers are \[37, 17\], but species \['Cs', 'Cl'\]"),
    (optimade(nsites=8), "holds 2 atoms, species_at_sites 2, nsites is 8"),
    (optimade(chemical_formula_reduced="Cl2Cs"), "chemical_formula_reduced is 'Cl2Cs', but CsCl was read"),
    (optimade({"attached": ["H"], "nattached": [2]}), r"species 'Cs' has \['H'\] attached"),
    (optimade(structure_features=["implicit_atoms"]), "implicit_atoms: atoms without sites"),
    (NACL_CIF.replace("_atom_site_occupancy", "_atom_site_calc_flag").replace(" 0.5 1", " 0.5 dum"), "Cl1 is a dummy"),
])  # fmt: skip
def test_what_would_be_read_as_another_crystal_is_refused(form, reason):
    with pytest.raises(CrystalInputError, match=reason):
        as_record(form)


def test_twins_that_agree_are_read():
    both = {**PAIR, "positions": [[0, 0, 0], [-A / 2, 1.5 * A, A / 2]], "atomic_numbers": [55, 17], "unit": "eV"}
    assert as_record(both).formula == "CsCl" == as_record(optimade()).formula
    slab = optimade(lattice_vectors=[[A, 0, 0], [0, A, 0], [None] * 3], dimension_types=[1, 1, 0])
    record = as_record(slab, partly_periodic=True)
    assert record.pbc == (True, True, False)
    np.testing.assert_allclose(np.diff(record.positions, axis=0), [[A / 2] * 3])


def test_archives(tmp_path):
    def packed(name, names):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in names:
                archive.writestr(member, NACL_CIF)
        return tmp_path / name

    assert load(packed("of_macos.cif.zip", ["a.cif", "__MACOSX/._a.cif", ".DS_Store"])).formula == "NaCl"
    with pytest.raises(CrystalInputError, match="a zip archive of 2 files: unpack it"):
        load(packed("two.zip", ["a.cif", "b.cif"]))
    twice, tarred = tmp_path / "twice.cif.gz", tmp_path / "a.cif.tar.gz"
    twice.write_bytes(gzip.compress(gzip.compress(NACL_CIF.encode())))
    with tarfile.open(tarred, "w:gz") as archive:
        member = tarfile.TarInfo("a.cif")
        member.size = len(NACL_CIF.encode())
        archive.addfile(member, io.BytesIO(NACL_CIF.encode()))
    for file, reason in ((twice, "compressed twice"), (tarred, "a tar archive")):
        with pytest.raises(CrystalInputError, match=reason):
            load(file)


def test_xsf_is_no_table(tmp_path):
    file = tmp_path / "a.xsf"
    file.write_text("CRYSTAL\nPRIMVEC\n5 0 0\n0 5 0\n0 0 5\nPRIMCOORD\n1 1\n11 0 0 0\n")
    with pytest.raises(CrystalInputError, match=r"a.xsf\): not a crystal structure"):
        load(file)
