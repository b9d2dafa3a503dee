"""Tables as spreadsheets write them."""

from pathlib import Path

import pytest

from hf_crystal.data.sources import STRUCTURE_COLUMN, iter_csv, iter_json


@pytest.mark.parametrize("separator", [";", "\t", ","])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_separator_and_encoding_are_found(tmp_path, separator, encoding):
    path = tmp_path / "table.csv"
    rows = [["id", "poscar", "gap"], ["a", '"Po\n3.3\nPo"', "0.5"], ["b", "b.cif", "1.5"], ["c", "/etc/hosts", "2.5"]]
    path.write_bytes("\n".join(separator.join(row) for row in rows).encode(encoding))
    found = list(iter_csv(path, "poscar"))
    assert [row["gap"] for row in found] == ["0.5", "1.5", "2.5"]
    crystals = [row[STRUCTURE_COLUMN] for row in found]
    # a name below the table's folder is a path; any other text is content
    assert crystals == ["Po\n3.3\nPo", tmp_path / "b.cif", "/etc/hosts"]
    assert isinstance(crystals[1], Path) and isinstance(crystals[2], str)


def test_the_name_of_a_file_stays_in_its_row(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("sample,file,gap\nfirst,a.cif,0.5\n")
    assert list(iter_csv(path, None)) == [
        {"sample": "first", "file": "a.cif", "gap": "0.5", STRUCTURE_COLUMN: tmp_path / "a.cif"}
    ]


def test_pipes_escaped_line_breaks_and_doubled_columns(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("id|cif\na|data_x\\r\\n_cell_length_a 4\\r\\nloop_\\r\\n\n")  # as databases write text
    (row,) = iter_csv(path, None)
    assert row[STRUCTURE_COLUMN] == "data_x\n_cell_length_a 4\nloop_\n"
    path.write_text("cif,cif\na.cif,b.cif\n")
    with pytest.raises(ValueError, match="column 'cif' 2 times"):
        list(iter_csv(path, None))


@pytest.mark.parametrize("second", ["\n", "  \n\n", '{"id": 2,\n', '\n{"id": 2}{}\n'])
@pytest.mark.parametrize("first", ["", '{"id": 0, "poscar":\n'])
def test_empty_and_damaged_lines_of_json_cost_no_others(tmp_path, first, second):
    path = tmp_path / "table.jsonl"
    path.write_text(f'{first}{{"id": 1, "poscar": "Po"}}\n{second}{{"id": 3, "poscar": "Po"}}\n')
    found = [row.get("id") for row in iter_json(path, None)]
    assert found == [None] * bool(first) + [1] + [None] * bool(second.strip()) + [3]


def test_an_object_of_several_lines_may_have_empty_ones(tmp_path):
    path = tmp_path / "one.json"
    path.write_text('{\n\n "data": [\n\n{"id": 1, "poscar": "Po"}, {"id": 2, "poscar": "Po"}]\n\n}\n')
    assert [row["id"] for row in iter_json(path, None)] == [1, 2]
