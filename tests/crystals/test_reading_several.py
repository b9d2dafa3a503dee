"""Files of several crystals: each data block and each frame is a crystal of its own, and none is dropped unseen."""

import gzip
import os
import threading

import pytest
from crystal_forms import NACL_CIF, NACL_XYZ

from hf_crystal.crystals.reading import as_record, crystals_in
from hf_crystal.crystals.record import CrystalInputError

PUBLICATION = "data_global\n_journal_year 2020\n_publ_section_comment\n;\ndata_collection was slow\n;\n"
KCL_CIF = NACL_CIF.replace("Na", "K")


def read_all(path):
    return [(name, as_record(crystal).formula) for name, crystal in crystals_in(path)]


def test_each_block_of_a_cif_is_a_crystal(tmp_path):
    file = tmp_path / "three.cif.gz"
    third = NACL_CIF.replace("data_NaCl", "DATA_I").replace("_atom_site_fract", "_ATOM_SITE.FRACT").replace("Cl", "F")
    file.write_bytes(gzip.compress((PUBLICATION + NACL_CIF + KCL_CIF + third).encode()))
    assert read_all(file) == [("NaCl", "NaCl"), ("KCl", "KCl"), ("I", "NaF")]
    record = as_record(file)
    assert record.formula == "NaCl" and "3 structures (NaCl, KCl, I)" in record.warnings[0]


def test_blocks_of_one_name_are_counted(tmp_path):
    file = tmp_path / "two.cif"
    file.write_text(NACL_CIF + KCL_CIF.replace("data_KCl", "data_NaCl"))
    assert read_all(file) == [("0", "NaCl"), ("1", "KCl")]


def test_a_bad_block_leaves_the_others(tmp_path):
    file = tmp_path / "two.cif"
    file.write_text(NACL_CIF.replace("0.5 0.5 0.5 1", "0.5 0.5 ? 1") + KCL_CIF)
    (bad, text), (good, other) = crystals_in(file)
    assert (bad, good) == ("NaCl", "KCl") and as_record(other).formula == "KCl"
    with pytest.raises(CrystalInputError, match="not a number"):
        as_record(text)


def test_each_frame_of_extended_xyz_is_a_crystal(tmp_path):
    file = tmp_path / "path.extxyz"
    file.write_text(NACL_XYZ + "\n\n \n" + NACL_XYZ.replace("Na", "Li") + "\n")
    assert read_all(file) == [("0", "NaCl"), ("1", "LiCl")]


@pytest.mark.parametrize(
    "name, text",
    [
        ("one.cif", PUBLICATION + NACL_CIF),
        ("one.xyz", NACL_XYZ),
        ("broken.cif", NACL_CIF + KCL_CIF + "loop_\n_a\n_b\n1"),
        ("count.xyz", NACL_XYZ + "\nNa 1 1 1\n" + NACL_XYZ),
    ],
)
def test_one_crystal_or_a_broken_file_is_given_as_it_is(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text)
    assert list(crystals_in(file)) == [("", file)]


def test_a_pipe_is_not_read_before_its_reader(tmp_path):
    pipe = tmp_path / "pipe.cif"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=[NACL_CIF + KCL_CIF])
    writer.start()
    ((name, crystal),) = crystals_in(pipe)
    assert name == "" and as_record(crystal).formula == "NaCl"
    writer.join()
