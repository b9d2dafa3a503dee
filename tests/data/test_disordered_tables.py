"""Tables of partly disordered crystals: kept with their occupancies where that is asked for, left out elsewhere."""

import json

import numpy as np
import pytest
from datasets import Dataset

from hf_crystal import CrystalFeatureExtractor
from hf_crystal.crystals.reading import as_record, record_to_structure
from hf_crystal.data import CrystalCollator, load_crystal_dataset
from hf_crystal.data.columns import composition_numbers, num_disordered
from hf_crystal.data.sources import iter_crystals

CELL = [4.0, 0, 0, 0, 4.0, 0, 0, 0, 4.0]
FRAC = [0.0, 0.0, 0.0, 0.5, 0.5, 0.5]
ROWS = [
    {"id": "alloy", "lattice": CELL, "frac_coords": FRAC, "species": [{"Na": 0.6, "K": 0.2}, {"Cl": 1.0}]},
    {"id": "salt", "lattice": CELL, "frac_coords": FRAC, "species": [{"Na": 1.0}, {"Cl": 1.0}]},
]


def write(form, folder):
    rows = [{**row, "split": "train", "y": place, "species": list(map(json.dumps, row["species"]))}
            for place, row in enumerate(ROWS)]  # fmt: skip
    path = folder / f"table.{form}"
    if form == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif form == "csv":
        Dataset.from_list([{**row, **{k: json.dumps(row[k]) for k in ("lattice", "frac_coords", "species")}}
                           for row in rows]).to_csv(path)  # fmt: skip
    elif form == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path = folder / "cifs"
        path.mkdir()
        for row in ROWS:
            record_to_structure(row).to(filename=str(path / f"{row['id']}.cif"))
        (path / "labels.csv").write_text("id,split,y\nalloy,train,0\nsalt,train,1\n")
    return path


@pytest.mark.parametrize(
    ("species", "formula"),
    [
        ('[{"Na": 0.75, "K": 0.25}, "Cl"]', "K0.25Na0.75Cl"),
        ('["Na", "Cl"]', "NaCl"),
        ([{"Na": 0.75, "K": 0.25, "Cl": None}, {"Na": None, "K": None, "Cl": 1.0}], "K0.25Na0.75Cl"),
    ],
    ids=["text", "ordered text", "keys of all sites, as Arrow has them"],
)
def test_species_are_read_as_tables_write_them(species, formula, tmp_path):
    row = {"lattice": CELL, "frac_coords": FRAC, "species": species}
    assert as_record(row, disorder="mix").formula == formula
    if isinstance(species, str):
        Dataset.from_list([{**row, "lattice": str(CELL), "frac_coords": str(FRAC)}]).to_csv(tmp_path / "a.csv")
        ((_, found),) = iter_crystals(tmp_path / "a.csv")
        assert as_record(found, disorder="mix").formula == formula


def load(path, tmp_path, **options):
    return load_crystal_dataset(path, split_column="split", cache_dir=tmp_path / "cache", **options)


def assert_read(rows):
    """Both crystals, whatever their order, with occupancies and labels as they were written."""
    alloy, salt = sorted(rows, key=lambda row: row["y"])
    assert salt["species"] is None and salt["atomic_numbers"] == [11, 17]
    assert alloy["atomic_numbers"] == [11, 17] and alloy["num_atoms"] == 2
    assert as_record(alloy, disorder="mix").formula == "K0.2Na0.6Cl"
    batch = CrystalCollator(CrystalFeatureExtractor(), label_names=["y"])([alloy, salt])
    np.testing.assert_allclose(batch["occupancies"].sum(-1), [[0.8, 1.0], [1.0, 1.0]], rtol=1e-6)


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl", "cif"])
def test_mixtures_are_kept_on_request_and_left_out_otherwise(form, tmp_path):
    path = write(form, tmp_path)
    assert_read(list(load(path, tmp_path, disorder="mix")["train"]))
    refused = load(path, tmp_path)
    assert [row["y"] for row in refused["train"]] == [1] and "species" not in refused["train"].column_names
    assert "partial occupancy (Na: 0.6, K: 0.2)" in refused.skipped[0]["reason"]


def test_a_converted_table_is_read_again_and_never_as_its_main_elements(tmp_path):
    rows = load(write("jsonl", tmp_path), tmp_path, disorder="mix")["train"]
    rows.to_parquet(tmp_path / "plain.parquet")
    again = load(tmp_path / "plain.parquet", tmp_path, disorder="mix")
    assert_read(list(again["train"]))
    refused = load(tmp_path / "plain.parquet", tmp_path)
    assert [row["y"] for row in refused["train"]] == [1] and "partial occupancy" in refused.skipped[0]["reason"]
    alloy = dict(iter_crystals(tmp_path / "plain.parquet"))["alloy"]  # as the command line reads it
    assert as_record(alloy, disorder="mix").formula == "K0.2Na0.6Cl"


@pytest.mark.parametrize("plain", [False, True])
def test_streams(plain, tmp_path):
    path = write("parquet", tmp_path)
    if plain:
        load(path, tmp_path, disorder="mix")["train"].to_parquet(path := tmp_path / "plain.parquet")
    assert_read(list(load(path, tmp_path, disorder="mix", streaming=True)["train"]))
    assert [row["y"] for row in load(path, tmp_path, streaming=True)["train"]] == [1]


def test_formulas_count_what_sites_hold(tmp_path):
    rows = load(write("parquet", tmp_path), tmp_path, disorder="mix")["train"][:]
    assert num_disordered(rows) == 1
    alloy, salt = composition_numbers(rows)
    assert salt == [11, 17]
    shares = np.bincount(alloy, minlength=20)[[11, 17, 19]] / len(alloy)
    np.testing.assert_allclose(shares, np.array([0.6, 1.0, 0.2]) / 1.8, atol=1e-3)
    traces = {"atomic_numbers": [[3]], "species": [['{"Li": 0.99999, "Mg": 0.00001}']]}
    assert composition_numbers(traces)[0].count(12) == 1


def test_another_value_is_refused(tmp_path):
    with pytest.raises(ValueError, match="disorder is 'average'; accepted are 'refuse' and 'mix'"):
        load(write("jsonl", tmp_path), tmp_path, disorder="average")
