"""Disordered crystals in the pipeline and on the command line: as mixtures, by orderings, or refused."""

import csv
import io
import logging
import math
import zipfile

import numpy as np
import pytest
from tiny_models import NACL, save_tiny_model, tiny_model

from hf_crystal import CrystalFeatureExtractor, CrystalPropertyPipeline, Mat2SeqTokenizer
from hf_crystal.cli.main import run
from hf_crystal.disorder import orderings
from hf_crystal.encoders import feature_extraction_crystal as extraction

ALLOY = {"cell": 2.8 * np.eye(3), "frac_coords": [[0.0] * 3], "species": [{"Fe": 0.5, "Co": 0.3}]}
CIF = """data_x
_cell_length_a 4
_cell_length_b 4
_cell_length_c 4
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Na1 Na 0 0 0 0.5
K1 K 0 0 0 0.5
Cl1 Cl 0.5 0.5 0.5 1
"""


@pytest.fixture(scope="module")
def pipe():
    return CrystalPropertyPipeline(model=tiny_model(), feature_extractor=CrystalFeatureExtractor())


def test_a_mixture_is_predicted_with_its_way_and_a_warning(pipe):
    alone, beside = pipe(ALLOY), pipe([NACL, ALLOY])
    assert (alone["formula"], alone["num_atoms"], alone["disorder"]) == ("Fe0.5Co0.3", 1, "mix")
    assert "mixtures" in alone["warnings"][0]
    assert beside[1]["formation_energy"] == pytest.approx(alone["formation_energy"], abs=1e-5)
    assert "disorder" not in beside[0] and beside[0]["warnings"] == []
    assert beside[0]["formation_energy"] == pytest.approx(pipe(NACL)["formation_energy"], abs=1e-5)


def test_elements_of_which_a_site_holds_little_are_compared_with_the_training_data():
    pipe = CrystalPropertyPipeline(
        model=tiny_model(trained_elements={"Fe": 3}), feature_extractor=CrystalFeatureExtractor()
    )
    with pytest.warns(UserWarning, match="Co: not in the training data"):
        assert "Co" in " ".join(pipe(ALLOY)["warnings"])
    assert "Co" in pipe(ALLOY, unseen="refuse")["error"]


def test_orderings_give_mean_and_spread(pipe):
    result = pipe([NACL, ALLOY, ALLOY], disorder="orderings", num_orderings=3)[1]
    values = [row["formation_energy"] for row in pipe(orderings(ALLOY, 3))]
    assert len(values) == 3
    assert result["formation_energy"] == pytest.approx(np.mean(values), abs=1e-5)
    assert result["formation_energy_spread"] == pytest.approx(np.std(values), abs=1e-5)
    assert result["disorder"] == "orderings" and result["formula"] == "Fe0.5Co0.3"
    assert "mean over 3 orderings Fe5Co3 of 8 atoms" in " ".join(result["warnings"])
    assert result["ordering_formula"] == "Fe5Co3"


def test_one_distinct_ordering_is_said_and_no_mixture_is_spoken_of(pipe, caplog):
    pair = {**ALLOY, "species": [{"Fe": 0.5, "Co": 0.5}]}
    logging.getLogger("transformers").addHandler(caplog.handler)  # it does not propagate
    try:
        extraction.logger.warning_once.cache_clear()
        result = pipe(pair, disorder="orderings")
        assert "mixtures" not in caplog.text
        assert result["warnings"][0] == "disordered (Fe0.5Co0.5): the one distinct ordering FeCo of 2 atoms"
        assert result["formation_energy_spread"] == 0
        pipe(pair)
        assert "mixtures" in caplog.text
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)


def test_disorder_is_refused_on_request(pipe):
    good, bad = pipe([NACL, ALLOY], disorder="refuse")
    assert "error" not in good and "partial occupancy" in bad["error"]
    for wrong in ({"disorder": "average"}, {"num_orderings": 0}):
        with pytest.raises(ValueError, match="accepted|positive"):
            pipe(NACL, **wrong)


def test_workers_read_disordered_crystals_too(pipe):
    crystals = [NACL, ALLOY]
    assert pipe(crystals, disorder="orderings", num_workers=1) == pipe(crystals, disorder="orderings")


def test_sequences_are_of_ordered_crystals_and_name_the_way_out():
    with pytest.raises(ValueError, match=r"disordered: .*hf_crystal\.disorder\.orderings"):
        Mat2SeqTokenizer()(ALLOY)


@pytest.mark.parametrize("way", ["mix", "orderings", "refuse"])
def test_command_line(way, tmp_path, capsys):
    model = save_tiny_model(tmp_path / "tiny")
    (tmp_path / "mixed.cif").write_text(CIF, encoding="utf-8")
    words = ["predict", str(tmp_path / "mixed.cif"), "--model", str(model), "--output", "csv", "--disorder", way]
    assert run(words) == (1 if way == "refuse" else 0)
    if way != "refuse":
        (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
        assert (row["disorder"], row["formula"]) == (way, "K0.5Na0.5Cl")
        assert (way == "orderings") == ("formation_energy_spread" in row)
        assert "disordered" in row["warnings"]


@pytest.mark.slow
def test_every_disordered_messy_file_ends_in_a_prediction_with_a_warning_or_a_reason(data_dir, tmp_path, pipe):
    with zipfile.ZipFile(data_dir / "messy_structures.zip") as archive:
        archive.extractall(tmp_path)
        rows = list(csv.DictReader(io.StringIO(archive.read("manifest.csv").decode())))
    names = {row["file"].rpartition("/")[2] for row in rows if row["expected_difficulty"] == "disordered"}
    files = sorted(path for path in tmp_path.rglob("*") if path.name in names)
    results = pipe(files)
    good = [result for result in results if "error" not in result]
    assert (len(results), len(good)) == (29, 20)
    for result in good:
        assert result["disorder"] == "mix" and "mixtures" in " ".join(result["warnings"])
        assert math.isfinite(result["formation_energy"])
    assert all(len(result["error"]) > 10 for result in results if "error" in result)
