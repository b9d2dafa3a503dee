"""Official splits: the published rule, the published sizes and ids, and clear errors where the data is another."""

import functools
import hashlib
import http.server
import json
import logging
import pickle
import random
import threading
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from hf_crystal.data import BenchmarkError, load_jarvis, load_materials_project, load_oqmd, official_split
from hf_crystal.data.downloads import Download, fetch
from hf_crystal.data.jarvis import JARVIS
from hf_crystal.data.materials_project import MEGNET
from hf_crystal.data.oqmd import OQMD

# JARVIS-DFT 3D of 2021-08-18 has 55,723 entries, MEGNet's set 69,239 (the sum of its split)
NUM_JARVIS, NUM_MEGNET = 55723, 69239


def atoms(a=3.35):
    return {"lattice_mat": (np.eye(3) * a).tolist(), "coords": [[0, 0, 0]], "elements": ["Po "], "cartesian": False}


def jarvis_entries(count=60):
    entries = [
        {
            "jid": f"JVASP-{n}",
            "atoms": atoms(),
            "formation_energy_peratom": -0.1 * n,
            "optb88vdw_total_energy": -3.0,
            "optb88vdw_bandgap": n,
            "mbj_bandgap": "na" if n % 2 else 1.5,
            "ehull": 0.0 if n != 7 else float("nan"),
        }
        for n in range(count)
    ]
    entries[3]["optb88vdw_bandgap"] = "na"
    return entries


def small(spec, sizes, ids=()):
    return replace(spec, sizes=sizes, boundary_ids=ids)


@pytest.fixture
def jarvis_file(tmp_path):
    path = tmp_path / "jdft.json"
    path.write_text(json.dumps(jarvis_entries()))
    return path


def test_a_table_of_a_later_release_is_taken_by_id_and_what_it_lacks_is_told(tmp_path, caplog):
    table = pd.DataFrame(
        {
            "material_id": [f"mp-{n}" for n in range(6)],
            "lattice": [(3.35 * np.eye(3)).ravel()] * 6,
            "frac_coords": [np.zeros(3)] * 6,
            "atomic_numbers": [np.array([84])] * 6,
            "e_form_megnet2018": [*np.arange(5.0), np.nan],
            "band_gap_megnet2018": [0.5] * 6,
            "split_megnet": ["train", "val", "test", None, "train", "test"],
        }
    )
    path = tmp_path / "later.parquet"
    table.to_parquet(path)
    logging.getLogger("transformers").addHandler(caplog.handler)  # it does not propagate
    try:
        found = load_materials_project("e_form", path=path, cache_dir=tmp_path)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert {split: rows["material_id"][:] for split, rows in found.items()} == {
        "train": ["mp-0", "mp-4"], "validation": ["mp-1"], "test": ["mp-2"]}  # fmt: skip
    assert found["test"][0]["e_form"] == 2 and found["test"][0]["bandgap"] == 0.5
    assert "train 2 of 60,000, validation 1 of 5,000, test 1 of 4,239" in caplog.text
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps({"train": ["mp-3", "mp-9"], "val": ["mp-0"], "test": ["mp-5"]}))
    found = load_materials_project("e_form", path=path, cache_dir=tmp_path, split_file=ids)
    assert {split: rows["material_id"][:] for split, rows in found.items()} == {
        "train": ["mp-3"], "validation": ["mp-0"], "test": []}  # fmt: skip
    assert [row["name"] for row in found.skipped] == ["mp-9", "mp-5"]
    table.drop(columns="split_megnet").to_parquet(path)
    with pytest.raises(BenchmarkError, match=r"later.parquet has no column split_megnet"):
        load_materials_project("e_form", path=path, cache_dir=tmp_path)


# --------------------------------------------------------------------------------------------------------- the rule


def test_the_rule_gives_the_published_sizes():
    assert tuple(map(len, official_split(NUM_JARVIS))) == JARVIS["formation_energy"].sizes == (44578, 5572, 5572)
    assert tuple(map(len, official_split(NUM_MEGNET, MEGNET.sizes))) == (60000, 5000, 4239)
    for spec in (JARVIS["mbj_bandgap"], JARVIS["ehull"], OQMD["delta_e"], OQMD["bandgap"]):
        # the number of labeled entries is not published; those that fit 80/10/10 % are few
        fitting = [
            n for n in range(sum(spec.sizes), sum(spec.sizes) + 3) if (int(0.8 * n), int(0.1 * n)) == spec.sizes[:2]
        ]
        assert fitting
        assert tuple(map(len, official_split(fitting[0]))) == spec.sizes


def test_the_rule_is_the_shuffle_of_seed_123():
    order = list(range(100))
    random.Random(123).shuffle(order)
    train, validation, test = official_split(100)
    assert train == order[:80] and validation == order[80:90] and test == order[90:]
    # the first numbers of that shuffle, so that another Python cannot change the benchmark unnoticed
    assert order[:5] == FIRST_OF_SEED_123
    with pytest.raises(ValueError, match="5 rows cannot be split into 4, 0 and 0"):
        official_split(5)
    with pytest.raises(ValueError, match="10 rows cannot be split into 9, 1 and 1"):
        official_split(10, (9, 1, 1))


FIRST_OF_SEED_123 = [87, 29, 63, 50, 84]


# ------------------------------------------------------------------------------------------------------- the loaders


def test_jarvis_split_and_labels(jarvis_file, tmp_path):
    # 59 of 60 entries have all three labels
    order = [n for n in range(60) if n != 3]
    train, validation, test = official_split(59)
    ids = tuple((f"JVASP-{order[part[0]]}", f"JVASP-{order[part[-1]]}") for part in (train, validation, test))
    spec = small(JARVIS["formation_energy"], (47, 5, 5), ids)
    splits = load_jarvis("total_energy", path=jarvis_file, spec=spec, cache_dir=tmp_path)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 47, "validation": 5, "test": 5}
    assert splits["val"] is splits["validation"]
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        assert set(splits[name]["material_id"]) == {f"JVASP-{order[row]}" for row in part}
    row = splits["train"][0]
    assert row["formation_energy"] == pytest.approx(-0.1 * int(row["material_id"].split("-")[1]))
    assert set(row) == {
        *("lattice", "frac_coords", "atomic_numbers", "num_atoms", "material_id"),
        *("formation_energy", "total_energy", "opt_bandgap"),
    }
    assert row["atomic_numbers"] == [84] and row["num_atoms"] == 1


def test_entries_without_the_label_do_not_take_part(jarvis_file, tmp_path):
    splits = load_jarvis("mbj_bandgap", path=jarvis_file, official=False, cache_dir=tmp_path)
    assert sum(map(len, splits.values())) == 30
    splits = load_jarvis("ehull", path=jarvis_file, official=False, cache_dir=tmp_path)
    ids = [name for rows in splits.values() for name in rows["material_id"]]
    assert "JVASP-7" not in ids and len(ids) == 47 + 5 + 5


def test_unreadable_crystals_are_listed_not_reshuffled(tmp_path):
    entries = jarvis_entries()
    first = official_split(59)[0][0]
    entries[first if first < 3 else first + 1]["atoms"] = atoms(0.1)
    path = tmp_path / "jdft.json"
    path.write_text(json.dumps(entries))
    splits = load_jarvis(path=path, spec=small(JARVIS["formation_energy"], (47, 5, 5)), cache_dir=tmp_path)
    assert len(splits["train"]) == 46 and len(splits["test"]) == 5
    assert splits.num_skipped == 1 and "flat, singular or too small" in splits.skipped[0]["reason"]


def test_another_release_is_refused(jarvis_file, tmp_path):
    with pytest.raises(
        BenchmarkError, match=r"splits of \(47, 5, 5\) rows, the official ones .* \(44578, 5572, 5572\)"
    ):
        load_jarvis(path=jarvis_file, cache_dir=tmp_path)
    spec = small(JARVIS["formation_energy"], (47, 5, 5), (("JVASP-1", "JVASP-2"),))
    with pytest.raises(BenchmarkError, match="train of .* starts and ends with .*officially with"):
        load_jarvis(path=jarvis_file, spec=spec, cache_dir=tmp_path)
    with pytest.raises(BenchmarkError, match="entry 0 has no '_oqmd_delta_e'; it has"):
        load_oqmd(path=jarvis_file, cache_dir=tmp_path)
    with pytest.raises(BenchmarkError, match="59 labeled entries: 59 rows cannot be split"):
        load_jarvis(
            path=jarvis_file, spec=replace(JARVIS["formation_energy"], explicit_sizes=True), cache_dir=tmp_path
        )


def test_split_by_listed_ids(jarvis_file, tmp_path):
    listed = {"train": {"JVASP-1": 0.5, "JVASP-2": 0.1}, "val": ["JVASP-5"], "test": ["JVASP-9", "JVASP-8"]}
    file = tmp_path / "split.json"
    file.write_text(json.dumps(listed))
    splits = load_jarvis(path=jarvis_file, split_file=file, cache_dir=tmp_path)
    assert {name: sorted(rows["material_id"]) for name, rows in splits.items()} == {
        "train": ["JVASP-1", "JVASP-2"],
        "validation": ["JVASP-5"],
        "test": ["JVASP-8", "JVASP-9"],
    }
    file.write_text(json.dumps({**listed, "test": ["JVASP-77777"]}))
    with pytest.raises(BenchmarkError, match="1 ids of test have no labeled entry in the data, first 'JVASP-77777'"):
        load_jarvis(path=jarvis_file, split_file=file, cache_dir=tmp_path)
    file.write_text("{}")
    with pytest.raises(BenchmarkError, match="train is missing"):
        load_jarvis(path=jarvis_file, split_file=file, cache_dir=tmp_path)


def test_materials_project_in_both_schemas(tmp_path):
    from hf_crystal.crystals.reading import record_to_structure

    po = {"cell": np.eye(3) * 3.35, "frac_coords": [[0, 0, 0]], "atomic_numbers": [84]}
    cif = record_to_structure(po).to(fmt="cif")
    forms = {
        "megnet.json": [{"id": f"mp-{n}", "atoms": atoms(), "e_form": -1.0 * n, "gap pbe": 0.5} for n in range(12)],
        "mp.2018.6.1.json": [
            {
                "material_id": f"mp-{n}",
                "structure": cif,
                "formation_energy_per_atom": -1.0 * n,
                "band_gap": 0.5,
                "graph": {"atom": [84]},
            }
            for n in range(12)
        ],
    }
    tables = []
    for name, entries in forms.items():
        (tmp_path / name).write_text(json.dumps(entries))
        spec = small(MEGNET, (7, 3, 2))
        splits = load_materials_project("bandgap", path=tmp_path / name, spec=spec, cache_dir=tmp_path)
        assert {split: len(rows) for split, rows in splits.items()} == {"train": 7, "validation": 3, "test": 2}
        tables.append({split: sorted(rows["material_id"]) for split, rows in splits.items()})
        row = splits["train"][0]
        assert row["e_form"] == -float(row["material_id"].split("-")[1]) and row["bandgap"] == 0.5
        assert row["atomic_numbers"] == [84]
    assert tables[0] == tables[1]


def test_oqmd_split(tmp_path):
    entries = [
        {
            "_oqmd_entry_id": 1000 + n,
            "_oqmd_delta_e": 0.1,
            "_oqmd_stability": 0.0,
            "_oqmd_band_gap": 0,
            "atoms": atoms(),
        }
        for n in range(20)
    ]
    entries[4]["_oqmd_stability"] = None
    with zipfile.ZipFile(tmp_path / "all_oqmd.json.zip", "w") as archive:
        archive.writestr("all_oqmd.json", json.dumps(entries))
    file = tmp_path / "all_oqmd.json.zip"
    splits = load_oqmd("stability", path=file, spec=small(OQMD["stability"], (15, 1, 1)), cache_dir=tmp_path)
    assert sum(map(len, splits.values())) == 17 and splits["test"]["material_id"][0].startswith("10")
    splits = load_oqmd("bandgap", path=file, spec=small(OQMD["bandgap"], (16, 2, 2)), cache_dir=tmp_path)
    assert sum(map(len, splits.values())) == 20


def test_unknown_properties_are_named():
    for loader, known in ((load_jarvis, "mbj_bandgap"), (load_materials_project, "e_form"), (load_oqmd, "delta_e")):
        with pytest.raises(ValueError, match=f"property_name is 'color'; .*{known}"):
            loader("color")


# --------------------------------------------------------------------------------------------------- elastic moduli


@pytest.fixture
def elastic_folder(tmp_path):
    folder = tmp_path / "elastic"
    folder.mkdir()
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        entries = [{"id": f"mp-{split}-{n}", "bulk modulus": np.float64(1.5), "atoms": atoms()} for n in range(count)]
        (folder / f"bulk_megnet_{split}.pkl").write_bytes(pickle.dumps(entries))
    return folder


def test_elastic_moduli_come_with_their_own_files(elastic_folder, tmp_path):
    splits = load_materials_project("bulk_modulus", path=elastic_folder, official=False, cache_dir=tmp_path)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 3, "validation": 2, "test": 1}
    assert splits["test"][0]["bulk_modulus"] == 1.5 and splits["test"][0]["atomic_numbers"] == [84]
    with pytest.raises(
        BenchmarkError, match="has 3 entries from mp-train-0 to mp-train-2; the official train split has 4664"
    ):
        load_materials_project("bulk_modulus", path=elastic_folder, cache_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="shear_megnet_train.pkl"):
        load_materials_project("shear_modulus", path=elastic_folder, cache_dir=tmp_path)


class Command:
    """Unpickled by the ordinary loader, this would run."""

    def __reduce__(self):
        return print, ("this must not run",)


def test_pickles_that_hold_code_are_refused(elastic_folder, tmp_path, capsys):
    file = elastic_folder / "bulk_megnet_train.pkl"
    file.write_bytes(pickle.dumps([Command()]))
    with pytest.raises(BenchmarkError, match="builtins.print is not plain data"):
        load_materials_project("bulk_modulus", path=elastic_folder, official=False, cache_dir=tmp_path)
    assert "must not run" not in capsys.readouterr().out
    file.write_bytes(b"no pickle")
    with pytest.raises(BenchmarkError, match="cannot be read as plain pickled data"):
        load_materials_project("bulk_modulus", path=elastic_folder, official=False, cache_dir=tmp_path)
    file.write_bytes(pickle.dumps([{"id": 1}]))
    with pytest.raises(BenchmarkError, match="entries lack"):
        load_materials_project("bulk_modulus", path=elastic_folder, official=False, cache_dir=tmp_path)


# -------------------------------------------------------------------------------------------------------- downloads


def test_a_missing_or_damaged_file_is_named(jarvis_file, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file: .*nothing.json. Download .*figshare"):
        load_jarvis(path=tmp_path / "nothing.json")
    with pytest.raises(ValueError, match="has SHA-256 .* but the argument sha256 says 0000"):
        load_jarvis(path=jarvis_file, sha256="0000")
    digest = hashlib.sha256(jarvis_file.read_bytes()).hexdigest()
    load_jarvis(path=jarvis_file, sha256=digest, official=False, cache_dir=tmp_path)
    jarvis_file.write_text(jarvis_file.read_text()[:-50])
    with pytest.raises(ValueError, match="cut off"):
        load_jarvis(path=jarvis_file, cache_dir=tmp_path)


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and the address under which its files are served."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "remote"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_download_is_checked_and_done_once(served, tmp_path):
    folder, address = served
    content, url = b"crystals", f"{address}/file"
    (folder / "file").write_bytes(content)
    known = Download(url, "known.json", hashlib.sha256(content).hexdigest(), "")
    assert fetch(known, cache_dir=tmp_path / "cache").read_bytes() == content
    wrong = Download(url, "wrong.json", "0" * 64, "")
    with pytest.raises(ValueError, match="does not match the known hash: expected 0000"):
        fetch(wrong, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache" / "downloads" / "wrong.json").exists()
    # where no digest is published, the first download's is kept and later changes are noticed
    unknown = Download(url, "unknown.json", None, "")
    first = fetch(unknown, cache_dir=tmp_path / "cache")
    (folder / "file").write_bytes(b"another version")
    assert fetch(unknown, cache_dir=tmp_path / "cache").read_bytes() == content
    first.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="does not match the known hash"):
        fetch(unknown, cache_dir=tmp_path / "cache")


def test_without_internet_the_message_says_what_to_do(served, tmp_path):
    absent = Download(f"{served[1]}/absent", "absent.json", None, "")
    with pytest.raises(ConnectionError, match="could not be downloaded .*pass path=<file>"):
        fetch(absent, cache_dir=tmp_path)
    assert not any((tmp_path / "downloads").iterdir())
