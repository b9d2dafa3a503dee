"""`hf_crystal.load` and the tables of the command line: every door with a real file of its kind."""

import bz2
import gzip
import json
import lzma
import sqlite3
import zipfile
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pymatgen.core import IStructure, Structure
from pymatgen.entries.computed_entries import ComputedStructureEntry

import hf_crystal
from hf_crystal.crystals.reading import CrystalInputError, as_record, record_to_structure
from hf_crystal.data.sources import count_crystals, iter_crystals, iter_csv

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = [EXAMPLES / f"{name}.cif" for name in ("NaCl", "Si", "SrTiO3")]
FORMULAS = ["NaCl", "Si", "SrTiO3"]
RECORDS = [as_record(file) for file in FILES]
STRUCTURES = [record_to_structure(record) for record in RECORDS]


def optimade_entry(structure: Structure, place: int) -> dict:
    """As the OPTIMADE specification has a `structures` entry."""
    symbols = sorted({str(site.specie) for site in structure})
    return {
        "id": f"odbx/{place}",
        "type": "structures",
        "attributes": {
            "lattice_vectors": structure.lattice.matrix.tolist(),
            "cartesian_site_positions": structure.cart_coords.tolist(),
            "species_at_sites": [f"{site.specie}-1" for site in structure],
            "species": [{"name": f"{s}-1", "chemical_symbols": [s], "concentration": [1.0]} for s in symbols],
            "nperiodic_dimensions": 3,
            "elements": symbols,
        },
    }


def materials_project_document(structure: Structure, place: int) -> dict:
    return {"material_id": f"mp-{place}", "structure": structure.as_dict(), "band_gap": 1.0, "symmetry": {}}


def entry(structure: Structure, place: int) -> dict:
    return ComputedStructureEntry(structure, -1.0, entry_id=f"mp-{place}").as_dict()


def write(folder: Path, form: str) -> Path:
    """The three crystals as a file of a form."""
    file = folder / form.replace(" ", ".")
    documents = {"optimade.json": optimade_entry, "mp.json": materials_project_document, "entries.json": entry}
    if form in documents:
        found = [documents[form](structure, place) for place, structure in enumerate(STRUCTURES)]
        file.write_text(json.dumps(found if form == "entries.json" else {"data": found, "meta": {"x": 1}}))
    elif form == "lines.jsonl":
        lines = [json.dumps(materials_project_document(s, place)) for place, s in enumerate(STRUCTURES)]
        file.write_text("\n".join(lines))
    elif form == "cif.csv":
        pandas.DataFrame({"Tc": [1, 2, 3], "CIF": [path.read_text() for path in FILES]}).to_csv(file, index=False)
    elif form == "plain.csv":
        rows = [hf_crystal.data.crystal_row(record) for record in RECORDS]
        pandas.DataFrame(rows).to_csv(file, index=False)
    elif form == "paths.csv":
        (folder / "cifs").mkdir()
        for path in FILES:
            (folder / "cifs" / path.name).write_text(path.read_text())
        pandas.DataFrame({"file": [f"cifs/{path.name}" for path in FILES]}).to_csv(file, index=False)
    elif form == "plain.parquet":
        pq.write_table(pa.Table.from_pylist([hf_crystal.data.crystal_row(record) for record in RECORDS]), file)
    elif form == "ase.db":
        from ase.db import connect

        with connect(file) as database:
            for structure in STRUCTURES:
                database.write(structure.to_ase_atoms(), source="test")
        sqlite3.connect(file).close()
    elif form in ("ase.traj", "frames.extxyz"):
        from ase.io import write as write_atoms

        write_atoms(file, [structure.to_ase_atoms() for structure in STRUCTURES])
    elif form == "blocks.cif":
        file.write_text("".join(path.read_text() for path in FILES))
    elif form == "cod":
        for place, path in enumerate(FILES):
            folder_of_one = file / "1" / f"{place:02d}" / "00"
            folder_of_one.mkdir(parents=True)
            (folder_of_one / f"1{place:02d}0000.cif").write_text(path.read_text())
    return file


FORMS = [
    "optimade.json", "mp.json", "entries.json", "lines.jsonl", "cif.csv", "plain.csv", "paths.csv", "plain.parquet",
    "ase.db", "ase.traj", "frames.extxyz", "blocks.cif", "cod",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_files_of_many_crystals(tmp_path, form):
    file = write(tmp_path, form)
    found = hf_crystal.load(file)
    assert [record.formula for record in found] == FORMULAS
    assert [record.volume for record in found] == pytest.approx([record.volume for record in RECORDS], rel=1e-6)
    assert len({record.name for record in found}) == 3
    if form != "cod":
        assert count_crystals(file) == 3
        unnamed = file.rename(tmp_path / "unnamed") if form not in ("frames.extxyz", "blocks.cif") else file
        assert [as_record(crystal).formula for _, crystal in iter_crystals(unnamed)] == FORMULAS
        table = hf_crystal.load_crystal_dataset(unnamed, cache_dir=tmp_path / "cache")["train"]
        assert table["num_atoms"] == [record.num_atoms for record in RECORDS]


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zip"])
def test_compressed_files(tmp_path, ending):
    for file in (FILES[0], write(tmp_path, "mp.json"), write(tmp_path, "cif.csv"), write(tmp_path, "blocks.cif")):
        packed = tmp_path / f"{file.name}.{ending}"
        if ending == "zip":
            with zipfile.ZipFile(packed, "w") as archive:
                archive.write(file, file.name)
        else:
            opener = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}[ending]
            with opener(packed, "wb") as stream:
                stream.write(file.read_bytes())
        found = hf_crystal.load(packed)
        assert (found.formula if file is FILES[0] else [record.formula for record in found]) == (
            "NaCl" if file is FILES[0] else FORMULAS
        )
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(ValueError, match="cut|truncated|cannot be read"):
        hf_crystal.load(packed)


def test_objects():
    structure = STRUCTURES[2]
    atoms = structure.to_ase_atoms()
    one = [
        FILES[2],
        str(FILES[2]),
        FILES[2].read_text(),
        structure,
        IStructure.from_sites(structure),
        atoms,
        RECORDS[2],
    ]
    one += [ComputedStructureEntry(structure, -1.0), materials_project_document(structure, 0), structure.as_dict()]
    one += [optimade_entry(structure, 0), json.dumps(structure.as_dict())]
    for source in one:
        assert hf_crystal.load(source).formula == "SrTiO3", source
    assert [record.formula for record in hf_crystal.load([atoms, structure])] == ["SrTiO3"] * 2
    assert [record.formula for record in hf_crystal.load(iter(STRUCTURES))] == FORMULAS
    assert hf_crystal.load({"data": [optimade_entry(structure, 4)]})[0].name == "odbx/4"


def test_a_mixed_folder_reads_with_reasons(tmp_path):
    for form in FORMS[:6]:
        write(tmp_path, form)
    (tmp_path / "broken.cif").write_text("data_x\n_cell_length_a 4\n")
    (tmp_path / "empty.vasp").write_text("")
    mixed = optimade_entry(STRUCTURES[2], 0)
    mixed["attributes"]["species"][0] |= {"chemical_symbols": ["O", "vacancy"], "concentration": [0.9, 0.1]}
    (tmp_path / "mixed.json").write_text(json.dumps(mixed))
    found = hf_crystal.load(tmp_path, on_error="return")
    reasons = [each.reason for each in found if isinstance(each, ValueError)]
    assert (len(found), len(reasons)) == (6 * 3 + 3, 2)
    assert any("empty" in reason for reason in reasons)
    assert [each.occupancies is None for each in found if not isinstance(each, ValueError)].count(False) == 1
    with pytest.raises(hf_crystal.CrystalInputError, match="broken.cif"):
        hf_crystal.load(tmp_path)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        hf_crystal.load(tmp_path / "none.cif")
    (tmp_path / "x.csv").write_text("formula,Tc\nNaCl,3\n")
    with pytest.raises(ValueError, match="columns formula, Tc; crystals are expected in one named structure, cif"):
        hf_crystal.load(tmp_path / "x.csv")
    (tmp_path / "no.db").write_bytes(b"SQLite format 3\0 and then nothing")
    with pytest.raises(ValueError, match="no.db cannot be read as a file of ASE"):
        hf_crystal.load(tmp_path / "no.db")


def test_load_keeps_partial_occupancy_and_axes_that_do_not_repeat():
    from ase.build import molecule

    cell = {"cell": np.eye(3) * 4, "frac_coords": [[0, 0, 0], [0.5, 0.5, 0.5]]}
    mixed, water = hf_crystal.load([{**cell, "species": [{"Na": 0.5, "K": 0.5}, "Cl"]}, molecule("H2O")])
    assert mixed.occupancies is not None
    assert water.pbc == (False, False, False)


def test_tables_of_excel_and_names_that_are_not_opened(tmp_path):
    (tmp_path / "a.cif").write_text(STRUCTURES[0].to(fmt="cif"))
    (tmp_path / "semicolons.csv").write_text("file;x\na.cif;-1,5\n", encoding="utf-8-sig")
    assert next(iter_csv(tmp_path / "semicolons.csv", None))["x"] == "-1.5"
    (tmp_path / "absolute.csv").write_text(f"file,x\n{tmp_path / 'a.cif'},1\n")
    with pytest.raises(CrystalInputError, match="the name of a file in place of a crystal; a CSV"):
        hf_crystal.load(tmp_path / "absolute.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match=r"empty.csv is empty; a header"):
        hf_crystal.load(tmp_path / "empty.csv")
    (tmp_path / "zero.extxyz").write_text('0\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3\n')
    with pytest.raises(CrystalInputError, match="0 atoms"):
        hf_crystal.load(tmp_path / "zero.extxyz")


def test_a_table_with_a_header_only_is_said_to_be_empty(tmp_path):
    (tmp_path / "empty.csv").write_text("material_id,cif,energy\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"no crystals in .*empty\.csv"):
        hf_crystal.load(tmp_path / "empty.csv")
