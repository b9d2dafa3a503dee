"""What the web page does, without Gradio: predictions with errors, generation, looking inside."""

import csv
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pymatgen.core import Composition, Structure

from hf_crystal import load_reference
from hf_crystal.app.cards import crystal_cards, insight_table, message, prediction_table, sequence_html, view_html
from hf_crystal.app.code import generation_code, inside_code, prediction_code
from hf_crystal.app.page import _number
from hf_crystal.app.reading import MAX_ATOMS, MAX_BYTES, CrystalReaders, limit_memory
from hf_crystal.app.service import ABOVE_HULL, Prediction, Service, example_files, measured_errors
from hf_crystal.checkpoints import DEFAULT_MODEL, embedded_checkpoints
from hf_crystal.crystals.reading import as_record, record_to_structure
from hf_crystal.evaluation.pools import JobPool
from hf_crystal.loading import load_property_pipeline
from hf_crystal.testing import DESCRIPTIONS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(service) -> str:
    return service.property_models[0]


@pytest.fixture(scope="module")
def titanate(service):
    return service.read(example="SrTiO3").crystals["SrTiO3"]


def test_predictions_and_reasons_stand_side_by_side(service, model, tmp_path):
    bad = tmp_path / "bad.cif"
    bad.write_text("data_nothing\n")
    found = service.predict(model, [example_files()["NaCl"], bad], text="Na Cl", example="SrTiO3")
    assert [(row["crystal"], row["property"], row["unit"]) for row in found.rows] == [
        ("NaCl.cif", "formation energy", "eV/atom"),
        ("NaCl.cif", "band gap", "eV"),
        ("SrTiO3", "formation energy", "eV/atom"),
        ("SrTiO3", "band gap", "eV"),
    ]
    assert [name for name, _ in found.errors] == ["bad.cif", "pasted text"]
    rows = list(csv.DictReader(service.write_csv(found).read_text(encoding="utf-8").splitlines()))
    assert [float(row["value"]) for row in rows[:4]] == pytest.approx([row["value"] for row in found.rows])
    assert rows[4]["error"] == found.errors[0][1]
    table = prediction_table(found)
    assert table.count("<tr>") == 5
    assert table.count('role="alert"') == 2


def test_a_pasted_path_is_text_and_not_a_file_of_the_server(service):
    found = service.read(text=str(example_files()["NaCl"]))
    assert not found.crystals
    assert "not a crystal structure" in found.errors[0][1]


def test_cells_that_would_block_a_small_server_are_refused(service):
    large = record_to_structure(example_files()["NaCl"])
    large.make_supercell([5, 5, 6])
    assert len(large) > MAX_ATOMS
    found = service.read(text=large.to(fmt="poscar"))
    assert f"{MAX_ATOMS}" in found.errors[0][1]
    with pytest.raises(ValueError, match="51 files at once"):
        service.read(["x.cif"] * 51)


@pytest.mark.skipif(not embedded_checkpoints(), reason="this checkout has no embedded checkpoint yet")
def test_errors_are_those_that_were_measured():
    errors = measured_errors(embedded_checkpoints()[0])
    assert errors
    assert all(0 < error < 10 for error in errors.values())


def test_distance_from_the_hull_of_embedded_models_with_its_caveat(service, model, titanate):
    name = DEFAULT_MODEL
    found = service.predict(name, [example_files()["NaCl"]])
    energy, above = found.rows[0], found.rows[-1]
    assert (above["property"], above["unit"]) == (ABOVE_HULL, "eV/atom")
    assert above["value"] == pytest.approx(energy["value"] - load_reference().stability("NaCl").hull_energy)
    assert above["typical error"] == energy["typical error"] is not None
    assert "of the crystal as given, not relaxed" in prediction_table(found)
    assert ABOVE_HULL not in measured_errors(name)
    # energies of another model may be of another kind
    assert all(row["property"] != ABOVE_HULL for row in service.properties(model, titanate))


def test_equal_crystals_are_shown_once_with_their_number(service):
    from hf_crystal.app.cards import crystal_cards

    asked = {"composition": "NaCl", "num": 6, "seed": 0, "space_group": "Fm-3m", "temperature": 0.0}
    drawn, kept = service.draw(**asked), service.generate(**asked)
    assert sum(crystal.num_equal for crystal in kept) == len(drawn)
    first = as_record(drawn[0]["structure"])
    assert service.are_equal(first, as_record(example_files()["NaCl"]))
    assert service.are_equal(first, as_record(example_files()["Si"])) is False
    cell = {"lattice": [[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]], "frac_coords": [[0, 0, 0]]}
    mixed = as_record({**cell, "species": [{"Fe": 0.5, "Ni": 0.5}]}, disorder="mix")
    sheet = as_record({**cell, "species": ["C"], "pbc": [True, True, False]}, partly_periodic=True)
    assert service.are_equal(first, mixed) is service.are_equal(sheet, first) is None
    kept[0].num_equal = 3
    assert "equal ones generated: <b>3</b>" in crystal_cards(kept)


def test_generated_crystals_have_the_composition_and_open_in_pymatgen(service):
    crystals = service.generate("SrTiO3", num=2, seed=0, space_group="Pm-3m")
    assert {crystal.space_group for crystal in crystals} == {"Pm-3m"}
    with zipfile.ZipFile(service.write_zip(crystals)) as archive:
        texts = [archive.read(name).decode() for name in archive.namelist()]
    assert len(texts) == len(crystals)
    for text in texts:
        assert Structure.from_str(text, fmt="cif").composition.reduced_composition == Composition("SrTiO3")
    html = crystal_cards(crystals)
    assert html.count("<article") == html.count("<iframe") == len(crystals)
    assert crystals[0].sequence in html
    with pytest.raises(ValueError, match="Xx"):
        service.generate("Xx2O3")
    with pytest.raises(ValueError, match="P4/nowhere"):
        service.generate("SrTiO3", space_group="P4/nowhere")
    with pytest.raises(ValueError, match="number of crystals is 13"):
        service.generate("SrTiO3", num=13)


@pytest.mark.parametrize("change", ["rotation", "translation", "permutation", "unimodular cell", "supercell 2x2x2"])
def test_other_words_for_a_crystal_leave_sequence_and_prediction(service, model, titanate, change):
    assert change in DESCRIPTIONS
    first, told = service.retell(model, titanate), service.retell(model, titanate, change, seed=3)
    assert told.sequence == first.sequence
    assert told.value == pytest.approx(first.value, abs=1e-4)
    assert not (
        told.record.num_atoms == titanate.num_atoms
        and np.allclose(told.record.cell, titanate.cell)
        and np.allclose(told.record.frac_coords, titanate.frac_coords)
    )
    table = insight_table(first, [told])
    assert table.count("✓ the same") == 2


def test_inside_of_a_crystal_is_shown(service, model, titanate):
    seen = service.inspect(model, titanate)
    assert "<iframe srcdoc=" in view_html(titanate, inspected=seen, atom=1, head=0)
    words = sequence_html(service.retell(model, titanate).sequence)
    assert "space group no. 221, cubic" in words


def test_disordered_crystals_are_predicted_as_mixtures_and_not_looked_into(service, model, tmp_path):
    file = tmp_path / "alloy.cif"
    species = [{"Na": 0.5, "K": 0.3}, "Cl"]
    Structure(4.0 * np.eye(3), species, [[0, 0, 0], [0.5, 0.5, 0.5]]).to(filename=str(file))
    found = service.predict(model, [file])
    expected = load_property_pipeline(model)(str(file))
    assert {row["formula"] for row in found.rows} == {expected["formula"]} == {"K0.3Na0.5Cl"}
    assert [row["value"] for row in found.rows] == pytest.approx(
        [expected[name] for name in ("formation_energy", "band_gap")], abs=1e-5
    )
    assert found.warnings["alloy.cif"] == expected["warnings"] and "mixtures" in found.rows[0]["warnings"]
    assert "mixtures" in prediction_table(found)
    record = found.crystals["alloy.cif"]
    assert "mixed ones as their main element" in view_html(record)
    for refused in (service.inspect, service.retell):
        with pytest.raises(ValueError, match=r"disordered: site 0 .*hf_crystal\.disorder\.orderings"):
            refused(model, record)


def test_what_users_write_is_not_taken_for_html():
    assert message("<b>&") == '<div class="hfc-message hfc-error" role="alert">&lt;b&gt;&amp;</div>'


def test_code_to_be_copied_does_what_the_page_did(tmp_path, monkeypatch):
    shutil.copy(example_files()["NaCl"], tmp_path / "my_crystal.cif")
    monkeypatch.chdir(tmp_path)
    asked = {"space_group": "Fm-3m", "properties": {"band_gap": 2.0}, "num": 1, "temperature": 0.5, "seed": 3}
    codes = [
        generation_code("mat2seq-mp20", "NaCl", **asked),
        prediction_code("crystalframer-mp"),
        inside_code("crystalframer-mp", atom=2, head=1),
    ]
    names: dict = {}
    for code in codes:
        exec(code, names)
    (expected,) = Service().generate("NaCl", **asked)
    assert [crystal["sequence"] for crystal in names["crystals"]] == [expected.sequence]
    assert names["predict"].model.config.model_type == "crystalframer"
    assert {path.name for path in tmp_path.glob("*.png")} == {"attention.png", "sequence.png"}
    assert generation_code("own/model", " ") == (
        'import hf_crystal\nfrom transformers import pipeline\n\ngenerate = pipeline("crystal-generation", '
        "model='own/model')\ncrystals = generate(num_return_sequences=4, temperature=1)\nprint(crystals[0][\"cif\"])"
    )


def test_the_browser_may_only_be_missing_where_it_is_not_required():
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/app/test_page_browser.py"]
    environment = {**os.environ, "PATH": "/nowhere", "HF_CRYSTAL_REQUIRE_BROWSER": "0"}
    run = functools.partial(subprocess.run, words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "not installed: " in run(env=environment).stdout
    required = run(env={**environment, "HF_CRYSTAL_REQUIRE_BROWSER": "1"})
    assert required.returncode == 2
    assert "the tests of the web page need " in required.stdout


def test_a_crystal_that_freezes_or_swells_costs_its_process_only(tmp_path):
    os.mkfifo(tmp_path / "stuck.cif")  # whoever reads it waits for ever
    sources = [("stuck", tmp_path / "stuck.cif"), ("good", example_files()["NaCl"])]
    sources += [("long", " " * (MAX_BYTES + 1)), ("path", "/etc/hostname\n")]
    read = dict(CrystalReaders(seconds=2).read(sources))
    assert read["stuck"] == "cannot be read (timeout: more than 2 s)"
    assert read["good"].formula == "NaCl"
    assert read["long"] == f"{MAX_BYTES + 1} bytes; accepted: up to {MAX_BYTES}"
    assert "of no known format" in read["path"]
    with JobPool(bytearray, prepare=limit_memory, num_workers=1) as pool:
        large, small = pool.run([3 << 30, 5])
    assert (large.reason, small.value) == ("MemoryError: ", bytearray(5))


def test_two_files_of_one_name_are_two_crystals(service, model, tmp_path):
    for folder, example in (("a", "NaCl"), ("b", "Si"), ("c", None)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.cif").write_text(example_files()[example].read_text() if example else "data_x")
    found = service.predict(model, [tmp_path / folder / "same.cif" for folder in "abc"])
    assert [(row["crystal"], row["formula"]) for row in found.rows[::2]] == [
        ("same.cif (1)", "NaCl"),
        ("same.cif (2)", "Si"),
    ]
    assert [name for name, _ in found.errors] == ["same.cif (3)"]


def test_files_to_be_fetched_do_not_pile_up(service, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    paths = [service.write_csv(Prediction()) for _ in range(100)]
    assert [path.is_file() for path in paths] == [False] * 68 + [True] * 32
    assert len(list(tmp_path.iterdir())) == 32


def test_a_large_crystal_is_refused_before_its_inside_is_computed(service, model):
    large = record_to_structure(example_files()["NaCl"])
    large.make_supercell([4, 4, 4])
    with pytest.raises(ValueError, match="512 atoms; looking inside takes 500"):
        service.inspect(model, as_record(large))


@pytest.mark.parametrize("value", ["inf", "nan", "1e400", "9" * 400, None, "", "x"])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match=r"seed is .*; accepted: a number"):
        _number(value, "seed")
