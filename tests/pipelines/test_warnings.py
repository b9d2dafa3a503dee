"""Results name what is doubtful: elements and pairs that no training crystal has, geometry, the file; both tasks."""

import csv
import json

import pyarrow.parquet
import pytest
from tiny_models import tiny_model
from transformers import pipeline
from typer.testing import CliRunner

from hf_crystal import CrystalFeatureExtractor, embedded_checkpoint
from hf_crystal.cli.main import app
from hf_crystal.crystals.doubts import training_domain
from hf_crystal.pipelines.pipeline_crystal_property import CrystalPropertyPipeline

EXTRAPOLATION = "the result is an extrapolation"


def b2(first, second, edge=4.0):
    return {
        "lattice": [edge, 0.0, 0.0, 0.0, edge, 0.0, 0.0, 0.0, edge],
        "frac_coords": [0.0, 0.0, 0.0, 0.5, 0.5, 0.5],
        "atomic_numbers": [first, second],
    }


def tiny_pipeline(**options):
    model = tiny_model()
    for name, value in training_domain([[[11, 17], [19, 9], [17, 19]]]).items():
        setattr(model.config, name, value)
    return CrystalPropertyPipeline(model=model, feature_extractor=CrystalFeatureExtractor(), **options)


def test_elements_and_pairs_never_seen_are_named():
    pipe = tiny_pipeline()
    with pytest.warns(UserWarning, match="Pa: not in the training data"):
        known, pair, element = pipe([b2(11, 17), b2(11, 9, 3.0), b2(91, 17)])
    assert known["warnings"] == []
    assert pair["warnings"] == [
        f"F and Na: never together in one crystal of the training data of this model; {EXTRAPOLATION}"
    ]
    assert element["warnings"] == [f"Pa: not in the training data of this model (4 elements); {EXTRAPOLATION}"]
    # a warning changes no value
    assert (
        element["formation_energy"]
        == CrystalPropertyPipeline(model=tiny_model(), feature_extractor=CrystalFeatureExtractor())(b2(91, 17))[
            "formation_energy"
        ]
    )


def test_what_was_never_seen_is_refused_where_that_is_asked_for():
    known, pair, element = tiny_pipeline(unseen="refuse")([b2(11, 17), b2(11, 9), b2(91, 17)])
    assert "formation_energy" in known
    assert list(pair) == list(element) == ["error"]
    assert pair["error"].startswith("F and Na: never together")
    assert element["error"].startswith("Pa: not in")
    with pytest.raises(ValueError, match="unseen is 'ignore'; accepted: 'warn' or 'refuse'"):
        tiny_pipeline(unseen="ignore")


def test_geometry_and_reading_are_part_of_the_warnings():
    without_lattice = {"cell": [[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]], "positions": [[0, 0, 0], [2.0, 2.0, 2.0]]}
    close = {**b2(11, 17), "frac_coords": [0, 0, 0, 0.2, 0, 0]}
    lone = b2(11, 17, 30.0)
    results = tiny_pipeline()([close, lone, {**without_lattice, "symbols": ["Na", "Cl"]}])
    assert [text for text in results[0]["warnings"] if "Na (atom 0) and Cl (atom 1) are 0.80 Å apart" in text]
    assert [text.partition(" is ")[0] for text in results[1]["warnings"]][0] == "volume per atom"
    assert "no neighbor within" in results[1]["warnings"][1]


def test_reading_warnings_reach_the_result(tmp_path):
    path = tmp_path / "two.cif"
    block = (
        "data_{}\n_cell_length_a 4\n_cell_length_b 4\n_cell_length_c 4\n_cell_angle_alpha 90\n_cell_angle_beta 90\n"
        "_cell_angle_gamma 90\n_symmetry_space_group_name_H-M 'P 1'\nloop_\n_atom_site_label\n_atom_site_type_symbol\n"
        "_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\nA1 Na 0 0 0\nA2 Cl 0.5 0.5 0.5\n"
    )
    path.write_text(block.format("first") + block.format("second"))
    result = tiny_pipeline()(str(path))
    assert len(result["warnings"]) == 1
    assert "first" in result["warnings"][0]


@pytest.mark.parametrize("form", ["csv", "json", "jsonl", "parquet"])
def test_every_file_of_results_has_the_warnings(tmp_path, form):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    crystals = tmp_path / "crystals.parquet"
    rows = [b2(11, 17), {**b2(11, 9, 3.0), "frac_coords": [0.0, 0.0, 0.0, 0.1, 0.0, 0.0]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), crystals)
    out = tmp_path / f"out.{form}"
    call = ["predict", str(crystals), "--model", str(tmp_path / "model"), "--output-file", str(out)]
    run = CliRunner().invoke(app, call)
    assert run.exit_code == 0, run.output
    assert "1 of 2 crystals have warnings: " in run.stderr
    if form == "csv":
        rows = list(csv.DictReader(out.read_text().splitlines()))
    elif form == "parquet":
        rows = pyarrow.parquet.read_table(out).to_pylist()
    else:
        rows = json.loads(out.read_text()) if form == "json" else [*map(json.loads, out.read_text().splitlines())]
    clean, doubtful = (row["warnings"] for row in rows)
    if form in ("csv", "parquet"):
        assert clean == ""
        doubtful = doubtful.split("; the result is an extrapolation; ")
    assert len(doubtful) == 2
    assert "never together" in doubtful[0]
    assert "0.30 Å apart" in doubtful[1]
    refused = CliRunner().invoke(app, [*call, "--unseen", "refuse", "--output", "jsonl"])
    assert refused.exit_code == 0
    assert "F and Na" in json.loads(out.read_text().splitlines()[1])["error"]


def test_embedded_checkpoints_record_what_they_were_trained_on():
    pipe = pipeline("crystal-property-prediction")
    with pytest.warns(UserWarning, match="Lr: not in the training data of crystalformer"):
        salt, alien = pipe([b2(55, 17, 4.1), b2(103, 9)])
    assert salt["warnings"] == []
    assert alien["warnings"][0].startswith("Lr: not in the training data of crystalformer")


def test_the_generator_names_and_refuses_what_it_never_saw():
    generate = pipeline("crystal-generation", model=str(embedded_checkpoint("mat2seq-perov5")))
    known, alien = generate(["SrTiO3", "FrNO3"], temperature=0)
    assert known[0]["warnings"] == []
    unseen = f"Fr: not in the training data of mat2seq-perov5 (56 elements); {EXTRAPOLATION}"
    assert alien[0]["warnings"][0] == unseen
    known, alien = generate(["SrTiO3", "FrNO3"], temperature=0, unseen="refuse")
    assert known[0]["formula"] == "SrTiO3"
    assert alien == [{"error": alien[0]["error"]}]
    assert "Fr: not in the training data" in alien[0]["error"]
    with pytest.raises(ValueError, match="Fr: not in the training data"):
        generate(chemical_system="Fr-O", unseen="refuse")
