"""`hf-crystal embed`: vectors in csv, json and parquet, neighbors as a table, one line per error."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import save_tiny_model
from transformers.utils import logging

from hf_crystal.cli.main import run
from hf_crystal.embeddings import EmbeddingTable, embed

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def command(capfd):
    """Call `hf-crystal embed` in this process: exit code, standard output, standard error."""

    def call(*words) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(["embed", *[str(word) for word in words]])
        return (code, *capfd.readouterr())

    verbosity = logging.get_verbosity()
    yield call
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def test_csv_and_json_hold_the_vectors(command, model):
    files = EXAMPLES / "NaCl.cif", EXAMPLES / "SrTiO3.cif"
    expected = embed(list(files), model)
    code, out, err = command(*files, "--model", model)
    rows = list(csv.DictReader(out.splitlines()))
    assert (code, err) == (0, "")
    assert [row["formula"] for row in rows] == ["NaCl", "SrTiO3"]
    np.testing.assert_allclose([[float(row[f"e{k}"]) for k in range(16)] for row in rows], expected, atol=1e-5)
    rows = json.loads(command(*files, "--model", model, "--output", "json")[1])
    np.testing.assert_allclose([row["embedding"] for row in rows], expected, atol=1e-5)
    rows = json.loads(command(*files, "--model", model, "--output", "json", "--level", "atom")[1])
    assert [row["atom"] for row in rows] == [*range(8), *range(5)]


def test_a_table_is_written_and_searched(command, model, tmp_path):
    path, bad = tmp_path / "table.parquet", tmp_path / "bad.cif"
    bad.write_text("data_x\n")
    words = (EXAMPLES, bad, "--model", model, "--output-file", path)  # its ending says parquet
    code, out, err = command(*words)
    assert (code, out) == (0, "")
    assert f"hf-crystal: 1 of 12 crystals could not be read, the first: {bad}" in err
    table = EmbeddingTable.load(path)
    assert len(table) == 11
    code, out, err = command(EXAMPLES / "NaCl.cif", "--nearest", path, "--num", 2, "--model", model)
    lines = [line.split() for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert lines[0] == ["source", "formula", "rank", "neighbor", "distance"]
    assert lines[2][1:] == ["NaCl", "1", str(EXAMPLES / "NaCl.cif"), "0.0000"]
    expected = table.nearest(embed(EXAMPLES / "NaCl.cif", model), 2)[1]
    assert lines[3][3:] == [expected.name, f"{expected.distance:.4f}"]


def test_a_table_of_another_model_is_refused(command, model, tmp_path):
    path, other = tmp_path / "table.parquet", tmp_path / "other"
    save_tiny_model(other)
    assert command(EXAMPLES, "--model", model, "--output-file", path)[:2] == (0, "")
    code, out, err = command(EXAMPLES / "NaCl.cif", "--nearest", path, "--model", other)
    assert (code, out) == (1, "")
    assert err.startswith(f"hf-crystal: error: {path} was written with --model {model}, not {other}; ")
    loaded = EmbeddingTable.load(path)
    loaded.save(tmp_path / "again.parquet")
    assert EmbeddingTable.load(tmp_path / "again.parquet").model == loaded.model == model


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--output", "table"], 2, "--output: table needs --nearest"),
        (["--output", "parquet"], 2, "--output: parquet needs --output-file"),
        (["--num", "0"], 2, "--num: 0 is not positive"),
        (["--nearest", str(EXAMPLES / "Si.cif")], 1, "Si.cif is not a parquet file"),
        (["--nearest", str(EXAMPLES / "Si.cif"), "--level", "atom"], 2, "--level: only level crystal"),
        (["--model", "no-such-model"], 1, "model not found: no-such-model"),
    ],
    ids=["table", "parquet", "num", "nearest", "level", "model"],
)
def test_wrong_calls_end_in_one_line(command, words, code, message):
    found, out, err = command(EXAMPLES / "Si.cif", *words)
    assert (found, out, len(err.splitlines())) == (code, "", 1)
    assert message in err.replace("Invalid value for ", "")
