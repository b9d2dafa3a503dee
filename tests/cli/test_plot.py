"""`hf-crystal plot`: a file per picture, one line per error."""

import csv
import json
from pathlib import Path

import pytest
from tiny_models import save_tiny_model
from transformers.utils import logging

from hf_crystal.cli.main import run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NACL = str(EXAMPLES / "NaCl.cif")


@pytest.fixture(scope="module")
def framer(tmp_path_factory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("framer"), "crystalframer"))


@pytest.fixture
def command(capfd):
    """Call `hf-crystal plot` in this process: exit code, standard output, standard error."""

    def call(*words) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(["plot", *[str(word) for word in words]])
        return (code, *capfd.readouterr())

    verbosity = logging.get_verbosity()
    yield call
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def test_every_picture_is_written(command, framer, tmp_path):
    table, metrics = tmp_path / "predictions.csv", tmp_path / "metrics.json"
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows([["energy", "label"], [1.0, 1.1], [2.0, 1.8]])
    metrics.write_text(json.dumps({"training_curve": [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]}))
    calls = {
        "attention.png": ["attention", NACL, "--model", framer, "--atom", "8"],
        "frames.svg": ["frames", NACL, "--model", framer, "--head", "2"],
        "parity.pdf": ["parity", table, "--prediction", "energy", "--label", "label"],
        "training.png": ["training", tmp_path],
        "sequence.png": ["sequence", NACL],
        "perturbation.png": ["perturbation", EXAMPLES / "CsCl.cif", "--model", framer, "--repeats", "2"],
        "view.html": ["view", NACL, "--repeat", "2", "1", "1"],
    }
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".html": b"<!DOCTYPE"}
    for name, words in calls.items():
        path = tmp_path / name
        assert command(*words, "--output-file", path) == (0, "", ""), name
        assert path.read_bytes().startswith(starts[path.suffix])


def test_without_a_file_name_the_picture_is_named_after_the_crystal(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("sequence", NACL) == (0, "NaCl-sequence.png\n", "")
    assert command("view", NACL) == (0, "NaCl-view.html\n", "")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["NaCl-sequence.png", "NaCl-view.html"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["attention", NACL, "--output-file", "x.gif"], 2, "x.gif must end in .png, .pdf, .svg"),
        (["attention", "no.cif", "--output-file", "x.png"], 1, "no such file: no.cif"),
        (["attention", NACL, "--output-file", "no/x.png"], 1, "folder of --output-file does not exist"),
        (["attention", "no.cif"], 1, "no such file: no.cif"),
        (["attention", NACL, "--atom", "0", "--output-file", "x.png"], 2, "--atom: 0 is not positive"),
        (["frames", NACL, "--model", "nothing", "--output-file", "x.png"], 1, "model not found: nothing"),
        (["training", "nowhere", "--output-file", "x.png"], 1, "no such file or folder: nowhere"),
        (["view", NACL, "--output-file", "x.png"], 2, "x.png must end in .html"),
    ],
    ids=["format", "file", "folder", "unnamed", "atom", "model", "run", "page"],
)
def test_wrong_calls_end_in_one_line(command, words, code, message):
    found, out, err = command(*words)
    assert (found, out, len(err.splitlines())) == (code, "", 1)
    assert message in err


def test_missing_column_is_named(command, tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    words = ("parity", tmp_path / "t.csv", "--prediction", "a", "--label", "c", "--output-file", tmp_path / "x.png")
    code, _, err = command(*words)
    assert code == 1
    assert "has no column c; it has a, b" in err
