"""Tables as spreadsheets write them."""

from pathlib import Path

import pytest

from hf_crystal.data.sources import STRUCTURE_COLUMN, iter_csv


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
