"""Tables and folders of crystals become memory-mapped splits; what cannot be read is listed with its reason."""

import csv
import errno
import gzip
import json
import os
import tempfile
import zipfile

import datasets
import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, IterableDatasetDict

from hf_crystal.crystals.reading import CrystalInputError, as_record, record_to_structure
from hf_crystal.data import CrystalCollator, conversion, load_crystal_dataset
from hf_crystal.data import loading as loading_module
from hf_crystal.data.sources import iter_json
from hf_crystal.data.tables import CrystalDatasetDict, cache_root

CRYSTALS = {
    "iron": {"cell": np.eye(3) * 2.87, "frac_coords": [[0, 0, 0], [0.5, 0.5, 0.5]], "atomic_numbers": [26, 26]},
    "polonium": {"cell": np.eye(3) * 3.35, "frac_coords": [[0, 0, 0]], "atomic_numbers": [84]},
    "cesium chloride": {"cell": np.eye(3) * 4.12, "frac_coords": [[0, 0, 0], [0.5] * 3], "atomic_numbers": [55, 17]},
}
LABELS = {"iron": -8.5, "polonium": -2.9, "cesium chloride": None}
SPLITS = {"iron": "train", "polonium": "train", "cesium chloride": "test"}


def structure(name):
    return record_to_structure(CRYSTALS[name])


def jarvis_atoms(name):
    record = as_record(CRYSTALS[name])
    return {
        "lattice_mat": record.cell.tolist(),
        "coords": record.frac_coords.tolist(),
        "elements": [str(site.specie) for site in structure(name)],
        "cartesian": False,
        "abc": [1, 1, 1],
        "props": [""] * len(record),
    }


def assert_has_the_crystals(splits, *, num_rows=3, label="energy"):
    """All three crystals arrived with their labels."""
    rows = [row for split in splits.values() for row in split]
    assert len(rows) == num_rows
    for row in rows:
        name = row.get("id") or row["material_id"]
        record = as_record({key: row[key] for key in ("lattice", "frac_coords", "atomic_numbers")})
        expected = as_record(CRYSTALS[name])
        np.testing.assert_allclose(record.cell, expected.cell, atol=1e-6)
        np.testing.assert_allclose(record.frac_coords, expected.frac_coords, atol=1e-6)
        np.testing.assert_array_equal(record.atomic_numbers, expected.atomic_numbers)
        assert row["num_atoms"] == expected.num_atoms
        assert row[label] == LABELS[name]
    batch = CrystalCollator(label_names=[label])(rows)
    assert batch["labels"].shape == (num_rows, 1)


@pytest.fixture
def load(tmp_path):
    def loader(path, **options):
        return load_crystal_dataset(path, cache_dir=tmp_path / "cache", **options)

    return loader


@pytest.fixture
def cif_folder(tmp_path):
    folder = tmp_path / "cifs"
    folder.mkdir()
    for name in CRYSTALS:
        structure(name).to(filename=str(folder / f"{name}.cif"))
    with open(folder / "labels.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "energy", "part"])
        writer.writerows([name, LABELS[name], SPLITS[name]] for name in CRYSTALS)
    return folder


# ------------------------------------------------------------------------------------------------------- folders


def test_cif_folder_with_labels_and_splits(cif_folder, load):
    splits = load(cif_folder, split_column="part")
    assert isinstance(splits, CrystalDatasetDict)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 2, "test": 1}
    assert splits.num_skipped == 0 and splits.skipped == []
    assert_has_the_crystals(splits)


def test_every_file_format_of_a_folder_is_read(tmp_path, load):
    folder = tmp_path / "mixed" / "test"
    folder.mkdir(parents=True)
    structure("iron").to(filename=str(folder / "POSCAR_iron"), fmt="poscar")
    (folder / "polonium.json").write_text(structure("polonium").to_json())
    (folder.parent / "cesium.cif.gz").write_bytes(gzip.compress(structure("cesium chloride").to(fmt="cif").encode()))
    (folder / "notes.txt").write_text("not a crystal")
    splits = load(folder.parent, split_column=None)
    # the folder named test is a split; the file beside it belongs to none and is reported
    assert {name: len(rows) for name, rows in splits.items()} == {"test": 2}
    assert [item["reason"] for item in splits.skipped] == ["no split: column split is empty"]


def test_unreadable_files_are_listed_and_the_rest_is_kept(cif_folder, load):
    (cif_folder / "a_broken.cif").write_text("data_x\nnothing here\n")
    (cif_folder / "b_empty.cif").write_text("")
    with open(cif_folder / "labels.csv", "a") as stream:
        stream.write("gone,1.0,train\n")
    splits = load(cif_folder)
    assert_has_the_crystals(splits)
    assert splits.num_skipped == 3
    reasons = {item["name"]: item["reason"] for item in splits.skipped}
    assert set(reasons) == {"a_broken.cif", "b_empty.cif", "gone"}
    assert "CIF syntax" in reasons["a_broken.cif"]
    assert "no such file" in reasons["gone"]
    assert splits.skipped_path.is_file()
    with pytest.raises(CrystalInputError, match="a_broken.cif"):
        load(cif_folder, on_error="raise")


def test_headerless_label_table_of_cgcnn(cif_folder, load):
    (cif_folder / "labels.csv").unlink()
    (cif_folder / "id_prop.csv").write_text("".join(f"{n},{LABELS[n] or 'nan'}\n" for n in CRYSTALS))
    splits = load(cif_folder)
    assert splits["train"].column_names[-1] == "label"
    assert_has_the_crystals(splits, label="label")


def test_a_folder_without_crystals_or_with_two_tables_is_named(tmp_path, cif_folder, load):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="no parquet and no structure files"):
        load(tmp_path / "nothing")
    (cif_folder / "second.csv").write_text("id,x\n")
    with pytest.raises(ValueError, match="2 CSV files"):
        load(cif_folder)
    assert_has_the_crystals(load(cif_folder, labels=cif_folder / "labels.csv"))


# ---------------------------------------------------------------------------------------------------- CSV and JSON


@pytest.mark.parametrize("content", ["text", "path"])
def test_csv_with_a_cif_column(cif_folder, load, content):
    table = cif_folder / "table.tsv"
    with open(table, "w", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(["id", "cif", "energy", "part"])
        for name in CRYSTALS:
            crystal = f"{name}.cif" if content == "path" else structure(name).to(fmt="cif")
            writer.writerow([name, crystal, "na" if LABELS[name] is None else LABELS[name], SPLITS[name]])
        writer.writerow(["bad", "data_", 0, "train"])
    splits = load(table, split_column="part", label_names=["energy"])
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 2, "test": 1}
    assert [item["name"] for item in splits.skipped] == ["bad"]
    assert_has_the_crystals(splits)


def json_tables():
    entries = [
        {"jid": n, "id": n, "atoms": jarvis_atoms(n), "energy": "na" if LABELS[n] is None else LABELS[n], "x": [1, {}]}
        for n in CRYSTALS
    ]
    by_id = {n: {"structure": structure(n).as_dict(), "energy": LABELS[n]} for n in CRYSTALS}
    matbench = {
        "index": list(CRYSTALS),
        "columns": ["structure", "energy"],
        "data": [[structure(n).as_dict(), LABELS[n]] for n in CRYSTALS],
    }
    plain = [{"id": n, "energy": LABELS[n], **structure(n).as_dict()} for n in CRYSTALS]
    return {
        "JARVIS list": json.dumps(entries),
        "JARVIS list, indented": json.dumps(entries, indent=4),
        "JSON lines": "\n".join(json.dumps(entry) for entry in entries),
        "entries by id": json.dumps(by_id),
        "matbench": json.dumps(matbench),
        "pymatgen dicts": json.dumps(plain),
    }


@pytest.mark.parametrize("form", sorted(json_tables()))
def test_json_tables(tmp_path, load, form):
    path = tmp_path / "table.json"
    path.write_text(json_tables()[form])
    assert_has_the_crystals(load(path))


def test_compressed_json(tmp_path, load):
    text = json_tables()["JARVIS list"]
    with gzip.open(tmp_path / "table.json.gz", "wt") as stream:
        stream.write(text)
    with zipfile.ZipFile(tmp_path / "table.json.zip", "w") as archive:
        archive.writestr("table.json", text)
    assert_has_the_crystals(load(tmp_path / "table.json.gz"))
    assert_has_the_crystals(load(tmp_path / "table.json.zip"))
    (tmp_path / "false.json.zip").write_text("no zip")
    with pytest.raises(ValueError, match="false.json.zip starts with 'n'"):
        load(tmp_path / "false.json.zip")


def test_json_lists_are_decoded_entry_by_entry(tmp_path, monkeypatch):
    """Whatever the size of the pieces, entries come out whole and the file is never held as one string."""
    entries = [{"atoms": jarvis_atoms("iron"), "n": n, "text": "] , {" * n} for n in range(40)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps(entries, indent=1))
    for size in (1, 7, 100, 1 << 20):
        monkeypatch.setattr("hf_crystal.data.sources._READ_CHARS", size)
        assert [row["n"] for row in iter_json(path, None)] == list(range(40))
    path.write_text(json.dumps(entries)[:-30])
    with pytest.raises(ValueError, match="not valid JSON or is cut off"):
        list(iter_json(path, None))


def test_extended_xyz_of_many_frames(tmp_path, load):
    from ase import Atoms
    from ase.io import write

    frames = []
    for name, crystal in CRYSTALS.items():
        frame = Atoms(
            numbers=crystal["atomic_numbers"], scaled_positions=crystal["frac_coords"], cell=crystal["cell"], pbc=True
        )
        frame.info = {"material_id": name.split()[0], "part": SPLITS[name]}
        if LABELS[name] is not None:
            frame.info["energy"] = LABELS[name]
        frames.append(frame)
    write(tmp_path / "frames.extxyz", frames)
    splits = load(tmp_path / "frames.extxyz", split_column="part")
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 2, "test": 1}
    rows = [row for split in splits.values() for row in split]
    assert [row["energy"] for row in rows] == list(LABELS.values())
    assert [row["atomic_numbers"] for row in rows] == [crystal["atomic_numbers"] for crystal in CRYSTALS.values()]
    np.testing.assert_allclose(rows[0]["frac_coords"], [0, 0, 0, 0.5, 0.5, 0.5], atol=1e-6)
    (tmp_path / "bad.xyz").write_text("atoms\n")
    with pytest.raises(ValueError, match="frame 0 starts with no atom count"):
        load(tmp_path / "bad.xyz")


def test_blocks_and_frames_of_files_are_rows(cif_folder, load):
    blocks = "".join(structure(name).to(fmt="cif") for name in CRYSTALS)
    (cif_folder / "several.cif").write_text(blocks)
    (cif_folder / os.fsdecode(b"caf\xe9.cif")).write_text(structure("iron").to(fmt="cif"))
    rows = load(cif_folder)
    rows = {row["id"]: row["atomic_numbers"] for split in rows.values() for row in split}
    assert {"several:Fe", "several:Po", "several:CsCl", "caf\\udce9"} <= set(rows)
    assert rows["several:CsCl"] == [55, 17]
    ids = [row["id"] for row in load(cif_folder / "several.cif")["train"]]
    assert ids == ["several.cif:Fe", "several.cif:Po", "several.cif:CsCl"]


def test_a_damaged_line_costs_itself_and_a_damaged_file_is_named(tmp_path, load):
    lines = [json.dumps({"id": name, "atoms": jarvis_atoms(name), "energy": LABELS[name]}) for name in CRYSTALS]
    bad = ["[" * 5000, '{"atoms": ' + "1" * 5000 + "}", lines[0][:-9]]
    (tmp_path / "rows.jsonl").write_text("\n".join([lines[0], *bad, *lines[1:]]))
    splits = load(tmp_path / "rows.jsonl")
    assert_has_the_crystals(splits)
    assert [row["index"] for row in splits.skipped] == [1, 2, 3]
    whole = gzip.compress("\n".join(lines).encode())
    for data in (whole[:-20], whole[:50] + bytes(30) + whole[80:], b"plain text"):
        (tmp_path / "rows.jsonl.gz").write_bytes(data)
        with pytest.raises(ValueError, match=r"rows\.jsonl\.gz (cannot be read|starts with 'p')"):
            load(tmp_path / "rows.jsonl.gz")


def test_columns_that_must_be_numbers(tmp_path, load):
    rows = [{"id": n, "structure": structure(n).as_dict(), "energy": 1.0, "note": "1.5"} for n in CRYSTALS]
    rows[1]["energy"], rows[2]["energy"] = "high", "-1,5"
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    splits = load(path, label_names=["energy"])
    assert [item["reason"] for item in splits.skipped] == [
        "label energy is 'high'; a number is accepted",
        "label energy is '-1,5'; a number is accepted, with a decimal point: -1.5",
    ]
    # not asked for: text stays text, and no crystal is lost
    splits = load(path)
    assert splits.num_skipped == 0 and splits["train"]["energy"][1] == "high" and splits["train"]["note"][0] == 1.5
    with pytest.raises(ValueError, match="label column 'color' is not in the data"):
        load(path, label_names=["color"])
    with pytest.raises(ValueError, match="split_column 'part' is not in the data"):
        load(path, split_column="part")
    with pytest.raises(ValueError, match="no column 'xyz'"):
        load(path, structure_column="xyz")


def test_a_table_without_a_single_crystal_is_an_error(tmp_path, load):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"id": "a", "structure": {"x": 1}}, {"id": "b", "structure": None}]))
    with pytest.raises(ValueError, match="no readable crystal .2 rows left out.* a: no cell"):
        load(path)


# ----------------------------------------------------------------------------------------------------- conversion


def test_a_second_call_opens_the_files_of_the_first(cif_folder, load, monkeypatch):
    first = load(cif_folder)
    calls = []
    monkeypatch.setattr(conversion, "as_columns", lambda crystal, **_: calls.append(crystal))
    assert load(cif_folder)["train"].cache_files == first["train"].cache_files
    assert not calls
    monkeypatch.undo()
    (cif_folder / "iron.cif").write_text(structure("polonium").to(fmt="cif"))
    assert load(cif_folder)["train"].cache_files != first["train"].cache_files


def test_a_killed_conversion_leaves_nothing_behind(cif_folder, tmp_path, load, monkeypatch):
    def stop(_, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "as_columns", stop)
    with pytest.raises(KeyboardInterrupt):
        load(cif_folder)
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    assert_has_the_crystals(load(cif_folder))


def test_two_processes_may_convert_the_same_source(cif_folder, load, monkeypatch):
    """The slower one finds the table of the faster one in its place and uses it."""
    from hf_crystal.data import tables as tables_module

    write = tables_module._write_tables

    def overtaken(folder, rows, features):
        monkeypatch.setattr(tables_module, "_write_tables", write)
        load(cif_folder)
        write(folder, rows, features)

    monkeypatch.setattr(tables_module, "_write_tables", overtaken)
    assert_has_the_crystals(load(cif_folder))


def test_tables_are_memory_mapped_and_written_in_pieces(tmp_path, load, monkeypatch):
    monkeypatch.setattr("hf_crystal.data.tables._ROWS_PER_WRITE", 100)
    path = tmp_path / "many.jsonl"
    line = json.dumps({"id": "iron", "atoms": jarvis_atoms("iron"), "energy": 1.0})
    path.write_text((line + "\n") * 1000)
    before = pa.total_allocated_bytes()
    splits = load(path)
    rows = splits["train"]
    assert len(rows) == 1000 and rows.cache_files
    assert rows.data.table.nbytes > 100_000
    # the columns lie in the file, not in Arrow's memory
    assert pa.total_allocated_bytes() - before < rows.data.table.nbytes / 4
    assert rows.data.table.column("lattice").num_chunks == 10


# -------------------------------------------------------------------------------------------------------- parquet


@pytest.mark.parametrize(
    ("table", "split_column", "splits", "label"),
    [
        ("perov_5", "prop_split", {"train", "val", "test"}, "heat_all"),
        ("mp_20", "split", {"train", "val", "test"}, "mb_e_form"),
    ],
)
def test_shared_tables_load_with_their_splits(data_dir, tmp_path, load, table, split_column, splits, label):
    source = pq.read_table(data_dir / f"{table}.parquet")
    step = len(source) // 300
    sample = source.take(np.arange(0, len(source), step))
    pq.write_table(sample, tmp_path / "sample.parquet")
    loaded = load(tmp_path / "sample.parquet", split_column=split_column)
    assert set(loaded) == splits
    wanted = [value for value in sample.column(split_column).to_pylist() if value]
    assert sum(map(len, loaded.values())) == len(wanted)
    assert loaded.num_skipped == len(sample) - len(wanted)
    assert loaded["validation"] is loaded["val"] and "validation" in loaded
    rows = loaded["train"]
    assert rows["num_atoms"][:20] == rows["n_sites"][:20]
    batch = CrystalCollator(label_names=[label])([rows[place] for place in range(20)])
    assert batch["labels"].shape == (20, 1)
    assert batch["attention_mask"].sum(dim=1).tolist() == rows["num_atoms"][:20]


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_zero_and_false_are_splits(tmp_path, load, ending):
    crystal = {"lattice": [3.0, 0, 0, 0, 3, 0, 0, 0, 3], "frac_coords": [0.0, 0, 0], "atomic_numbers": [11]}
    rows = pandas.DataFrame([{**crystal, "fold": n % 3, "flag": n % 2 == 1} for n in range(6)])
    file = tmp_path / f"folds.{ending}"
    rows.to_parquet(file) if ending == "parquet" else rows.to_json(file, orient="records", lines=True)
    for column, splits in (("fold", {"0", "1", "2"}), ("flag", {"False", "True"})):
        loaded = load(file, split_column=column)
        assert (set(loaded), loaded.num_skipped) == (splits, 0)
        assert set(load(file, split_column=column, streaming=True)) == splits


def test_bad_rows_of_a_plain_table_are_left_out(tmp_path, load):
    rows = [{"material_id": str(n), "lattice": [3.0, 0, 0, 0, 3, 0, 0, 0, 3], "part": "a"} for n in range(600)]
    for row in rows:
        row.update(frac_coords=[0.0, 0, 0, 0.5, 0.5, 0.5], atomic_numbers=[11, 17])
    rows[5].update(frac_coords=[0.0, 0, 0, 0, 0, 0.001])
    rows[400].update(atomic_numbers=[11, 0])
    rows[599].update(lattice=None)
    rows[300]["part"] = None
    path = tmp_path / "rows.parquet"
    Dataset.from_list(rows).to_parquet(path)
    splits = load(path, split_column="part")
    assert set(splits) == {"a"} and len(splits["a"]) == 596
    reasons = {item["index"]: item["reason"] for item in splits.skipped}
    assert set(reasons) == {5, 300, 400, 599}
    assert "overlapping" in reasons[5] and "atomic number 0" in reasons[400] and "no cell" in reasons[599]
    assert "5" not in splits["a"]["material_id"] and "6" in splits["a"]["material_id"]
    assert len(load(path, check=False)["train"]) == 600
    with pytest.raises(CrystalInputError, match=r"crystal 5 \(5\): overlapping"):
        load(path, on_error="raise")
    with pytest.raises(ValueError, match="split_column 'x' is not in the table"):
        load(path, split_column="x")


def test_parquet_folder_and_saved_folder(tmp_path, load):
    folder = tmp_path / "tables"
    folder.mkdir()
    for split in ("train", "val"):
        names = [n for n in CRYSTALS if (SPLITS[n] == "train") == (split == "train")]
        rows = [{"id": n, "energy": LABELS[n], "cif": structure(n).to(fmt="cif")} for n in names]
        plain = load_rows(rows)
        plain.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    splits = load(folder)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 2, "val": 1}
    assert_has_the_crystals(splits)
    splits.save_to_disk(tmp_path / "saved")
    assert_has_the_crystals(load(tmp_path / "saved"))


def load_rows(rows):
    """Plain columns of rows that hold CIF text."""
    from hf_crystal.data import crystal_features, crystal_row

    plain = [crystal_row(row["cif"], id=row["id"], energy=row["energy"]) for row in rows]
    return Dataset.from_list(plain, features=crystal_features({"id": "string", "energy": "float64"}))


def test_parquet_with_a_column_of_cif_text(tmp_path, load):
    rows = [{"id": n, "energy": LABELS[n], "cif": structure(n).to(fmt="cif")} for n in CRYSTALS]
    Dataset.from_list(rows).to_parquet(tmp_path / "cifs.parquet")
    assert_has_the_crystals(load(tmp_path / "cifs.parquet"))


# ------------------------------------------------------------------------------------------------------ streaming


def test_streaming_reads_as_it_goes(cif_folder, tmp_path, load):
    stream = load(cif_folder, split_column="part", streaming=True)
    assert isinstance(stream, IterableDatasetDict) and set(stream) == {"train", "test"}
    assert_has_the_crystals(stream)
    assert not (tmp_path / "cache").exists()

    rows = [{"id": n, "energy": LABELS[n], "cif": structure(n).to(fmt="cif")} for n in CRYSTALS]
    table = load_rows(rows).add_column("part", [SPLITS[n] for n in CRYSTALS])
    table.to_parquet(tmp_path / "plain.parquet")
    stream = load(tmp_path / "plain.parquet", split_column="part", streaming=True)
    assert set(stream) == {"train", "test"}
    assert_has_the_crystals(stream)


def test_streaming_leaves_bad_rows_out(tmp_path, load):
    rows = [
        {"id": "good", "lattice": [3.0, 0, 0, 0, 3, 0, 0, 0, 3], "frac_coords": [0.0, 0, 0], "atomic_numbers": [84]},
        {"id": "bad", "lattice": [3.0, 0, 0, 0, 3, 0, 0, 0, 3], "frac_coords": [0.0, 0, 0], "atomic_numbers": [200]},
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    assert [row["id"] for row in load(tmp_path / "rows.parquet", streaming=True)["train"]] == ["good"]


# ------------------------------------------------------------------------------------------------------------ Hub


class FakeHub:
    """What the loader asks of huggingface_hub."""

    def __init__(self, folder):
        self.folder = folder

    def list_repo_files(self, name, repo_type, revision):
        assert (name, repo_type, revision) == ("someone/crystals", "dataset", "v1")
        return [path.name for path in self.folder.iterdir()]


def test_hub_repository_of_cif_files_is_no_protein_data(cif_folder, load, monkeypatch):
    import huggingface_hub

    (cif_folder / "labels.csv").rename(cif_folder / "labels.txt")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: FakeHub(cif_folder))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, repo_type, revision: str(cif_folder))
    splits = load("someone/crystals", revision="v1")
    assert len(splits["train"]) == 3


@pytest.mark.parametrize("plain", [True, False])
def test_hub_dataset(tmp_path, load, monkeypatch, plain):
    import huggingface_hub
    from datasets import DatasetDict

    (tmp_path / "data.parquet").touch()
    rows = [{"id": n, "energy": LABELS[n], "cif": structure(n).to(fmt="cif")} for n in CRYSTALS]
    table = load_rows(rows) if plain else Dataset.from_list(rows)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: FakeHub(tmp_path))
    monkeypatch.setattr(loading_module, "load_dataset", lambda name, **_: DatasetDict({"test": table}))
    splits = load("someone/crystals", revision="v1")
    assert set(splits) == {"test"}
    assert_has_the_crystals(splits)


def test_what_does_not_exist_is_named(load):
    for name in ("no/such/table.parquet", "/nowhere", "a b c"):
        with pytest.raises(ValueError, match="no such file or folder"):
            load(name)
    with pytest.raises(ValueError, match="on_error is 'ignore'"):
        load("x", on_error="ignore")


def test_a_single_structure_file_is_a_table_of_one_row(tmp_path, load):
    structure("iron").to(filename=str(tmp_path / "iron.vasp"), fmt="poscar")
    assert load(tmp_path / "iron.vasp")["train"]["num_atoms"] == [2]


@pytest.mark.parametrize("kind", ["below a file", "full", "closed"])
def test_a_cache_that_cannot_be_written_is_replaced_by_a_folder_of_this_process(kind, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    cache = tmp_path / ("file" if kind == "below a file" else "cache")
    if kind != "below a file":  # permissions do not bind root, so the system's answer is given by hand
        number = errno.ENOSPC if kind == "full" else errno.EACCES

        def refuse(dir):
            raise OSError(number, os.strerror(number), str(dir))

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    rows = [{"numbers": [11, 17], "cell": (np.eye(3) * 4).tolist(), "frac_coords": [[0, 0, 0], [0.5, 0.5, 0.5]]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({**row, "label": 1.0}) + "\n" for row in rows))
    tables = load_crystal_dataset(str(tmp_path / "rows.jsonl"))
    assert [len(table) for table in tables.values()] == [1]
    assert not str(tables.skipped_path).startswith(str(tmp_path))
    assert cache_root(tmp_path / "named") == tmp_path / "named"  # what a person names is never replaced
