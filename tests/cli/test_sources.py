"""Crystals of a command line: one bad file, table or cell costs its own rows and no others."""

import csv
import io
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from transformers.testing_utils import CaptureLogger

from hf_crystal.cli.main import run
from hf_crystal.cli.sources import count_crystals, find_sources, read_crystals
from hf_crystal.crystals.reading import as_record
from hf_crystal.crystals.record import CrystalInputError
from hf_crystal.data import sources as data_sources
from hf_crystal.data.sources import load

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NACL, SILICON = (EXAMPLES / name for name in ("NaCl.cif", "Si.cif"))


def outcomes(*words):
    """Name of each crystal with its formula or reason; as many as were counted before."""
    sources = find_sources(list(map(str, words)))
    found = []
    for name, crystal in read_crystals(sources):
        try:
            found.append((name, as_record(crystal).formula))
        except CrystalInputError as error:
            found.append((name, error.reason))
    assert len(found) == count_crystals(sources)
    return found


def test_blocks_and_frames_are_rows(tmp_path):
    file = tmp_path / "two.cif"
    file.write_text(NACL.read_text() + SILICON.read_text())
    assert outcomes(file, SILICON) == [(f"{file}:NaCl", "NaCl"), (f"{file}:Si", "Si"), (str(SILICON), "Si")]


def test_a_csv_in_a_folder_is_a_table_or_is_said_to_be_passed_over(tmp_path, capsys):
    (tmp_path / "a.cif").write_text(NACL.read_text())
    (tmp_path / "sub").mkdir()
    with (tmp_path / "sub" / "more.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("id", "CIF"), ("x-1", SILICON.read_text())])
    (tmp_path / "labels.csv").write_text("id,gap\na,5\n")
    (tmp_path / "list.csv").write_text("file,cif\na.cif,data_x\n")  # as generate --output-dir lists what it wrote
    (tmp_path / "notes.txt").write_text("of no form")
    (tmp_path / ".hidden").write_text("")
    assert outcomes(tmp_path) == [(str(tmp_path / "a.cif"), "NaCl"), ("x-1", "Si")]
    labels, listed = "labels.csv (no column holds crystals)", "list.csv (it lists files, which are read by themselves)"
    assert capsys.readouterr().err == f"hf-crystal: {tmp_path}: passed over {labels}, {listed}, notes.txt\n"
    with CaptureLogger(data_sources.logger) as log:
        assert [record.formula for record in load(tmp_path)] == ["NaCl", "Si"]
    assert labels in log.out and listed in log.out


def test_rows_are_named_by_their_id_column_or_by_file_and_number(tmp_path):
    text = SILICON.read_text()
    for folder, header in (("a", "MP_ID"), ("b", "Compound_ID"), ("c", "energy")):
        (tmp_path / folder).mkdir()
        with (tmp_path / folder / "rows.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([(header, "cif"), (f"{folder}-1", text), (f"{folder}-2", text)])
    files = [tmp_path / folder / "rows.csv" for folder in "abc"]
    assert [name for name, _ in outcomes(*files)] == ["a-1", "a-2", "b-1", "b-2", f"{files[2]}:0", f"{files[2]}:1"]


def test_a_corrupt_table_among_good_files_is_one_row(tmp_path):
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 and then nothing")
    (first, formula), (second, reason) = outcomes(NACL, bad)
    assert (first, formula, second) == (str(NACL), "NaCl", str(bad)) and "is not a parquet file" in reason


def test_a_damaged_part_of_a_table_costs_its_own_rows(tmp_path):
    file = tmp_path / "table.parquet"
    rows = [{"id": f"id-{place}", "cif": NACL.read_text() + f"# {place}\n"} for place in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=2, use_dictionary=False)
    page = pq.ParquetFile(file).metadata.row_group(1).column(1).data_page_offset
    data = bytearray(file.read_bytes())
    data[page : page + 40] = bytes(40)
    file.write_bytes(data)
    found = outcomes(file)
    assert [formula for _, formula in found[:2] + found[4:]] == ["NaCl"] * 4
    assert [name for name, _ in found] == ["id-0", "id-1", f"{file}:2", f"{file}:3", "id-4", "id-5"]
    assert all("cannot be read" in reason for _, reason in found[2:4])


def test_text_of_cells_and_of_standard_input_is_never_a_path(tmp_path, monkeypatch):
    planted = tmp_path / "planted.cif"
    planted.write_text(NACL.read_text())
    table = tmp_path / "paths.parquet"
    for column in ("cif", "structure", "atoms"):
        pq.write_table(pa.table({column: [str(planted), f"file://{planted}"]}), table)
        assert all("name of a file in place of a crystal" in reason for _, reason in outcomes(table))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(str(planted).encode())))
    assert "name of a file in place of a crystal" in outcomes("-")[0][1]


def test_names_and_signs_that_are_not_utf8(tmp_path, monkeypatch):
    name = os.fsencode(tmp_path) + b"/caf\xe9.cif"
    Path(os.fsdecode(name)).write_bytes(NACL.read_bytes())
    assert outcomes(os.fsdecode(name)) == [(f"{tmp_path}/caf\\udce9.cif", "NaCl")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"# caf\xe9\n" + NACL.read_bytes())))
    assert outcomes("-") == [("-", "NaCl")]


def test_a_table_without_crystals_is_an_error(tmp_path, capsys):
    (tmp_path / "none.csv").write_text("id,cif\n")
    (tmp_path / "none.json").write_text("[]")
    assert run(["predict", *map(str, sorted(tmp_path.iterdir()))]) == 1
    assert "no crystals in " in capsys.readouterr().err
