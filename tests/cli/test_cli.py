"""The command line: results on standard output, one line per error on standard error, exit codes."""

import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pandas
import pyarrow.parquet
import pytest
from tiny_models import IRON, NACL, OVERLAPPING, SRTIO3, WITH_ERROR_HEAD, save_tiny_model
from transformers.utils import logging

import hf_crystal
from hf_crystal.cli.main import run
from hf_crystal.cli.writers import _text_writer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def command(capfd):
    """Call `hf-crystal` in this process: exit code, standard output, standard error."""

    def call(*words) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run([str(word) for word in words])
        return (code, *capfd.readouterr())

    verbosity = logging.get_verbosity()
    yield call
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "crystals.parquet"
    crystals = (NACL, OVERLAPPING, SRTIO3, IRON)
    rows = [{"material_id": f"mp-{index}", "energy": -0.5, **crystal} for index, crystal in enumerate(crystals)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_predict_prints_a_table(command, model):
    code, out, err = command("predict", EXAMPLES / "NaCl.cif", EXAMPLES / "Si.cif", "--model", model)
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].split() == ["source", "formula", "num_atoms", "formation_energy", "band_gap"]
    assert lines[1].split() == ["eV/atom", "eV"]
    assert [line.split()[1:3] for line in lines[3:]] == [["NaCl", "8"], ["Si", "8"]]


def test_tables_fit_the_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "60")
    columns = ["source", "formula", "num_atoms", "gap", "gap_unit", "warnings"]
    for stream, width in ((Terminal(), 60), (io.StringIO(), 119)):
        writer = _text_writer("table", stream, columns)
        writer.write({"source": "a/long/way/to/NaCl.cif", "formula": "NaCl", "num_atoms": 8, "gap": 5.0,
                      "gap_unit": "eV", "warnings": ["x" * 60]})  # fmt: skip
        writer.finish()
        lines = stream.getvalue().splitlines()
        assert max(map(len, lines)) <= width and "5.0000" in lines[3] and "NaCl.cif" in lines[3]
        assert ("…" in lines[3]) is stream.isatty()


def test_version(command):
    assert command("--version") == (0, f"hf-crystal {hf_crystal.__version__}\n", "")


def test_a_csv_is_a_table(command, model, tmp_path):
    texts = [(EXAMPLES / f"{name}.cif").read_text() for name in ("NaCl", "Si")]
    pandas.DataFrame({"id": ["salt", "diamond"], "cif": texts}).to_csv(tmp_path / "my.csv", index=False)
    code, out, err = command("predict", tmp_path / "my.csv", "--model", model, "--output", "json")
    assert (code, err) == (0, "")
    assert [(row["source"], row["formula"]) for row in json.loads(out)] == [("salt", "NaCl"), ("diamond", "Si")]
    (tmp_path / "no.csv").write_text("formula,Tc\nNaCl,3\n")
    code, out, err = command("predict", tmp_path / "no.csv", "--model", model)
    assert code == 1 and "no.csv has columns formula, Tc; crystals are expected in" in err


@pytest.mark.parametrize("name", ["demo", "serve"])
def test_a_taken_port_is_refused_at_once(command, name):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = command(name, "--port", port)
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"hf-crystal: error: port {port} of 127.0.0.1 is in use; .* {name} --port \d+\n", err)


def test_predict_writes_standard_errors_in_every_format(command, tmp_path):
    model = save_tiny_model(tmp_path / "model", **WITH_ERROR_HEAD)
    words = ("predict", EXAMPLES / "NaCl.cif", "--model", model, "--output")
    row = json.loads(command(*words, "json")[1])[0]
    error = row["formation_energy_standard_error"]
    assert row["formation_energy_low"] < row["formation_energy"] < row["formation_energy_high"]
    code, out, _ = command(*words, "table")
    assert code == 0
    assert f"{row['formation_energy']:.4f} ± {error:.4f}" in out
    assert f"{row['metal_probability']:.4f}" in out and "_low" not in out
    header, line = (text.split(",") for text in command(*words, "csv")[1].splitlines())
    assert float(dict(zip(header, line, strict=True))["formation_energy_standard_error"]) == error
    file = tmp_path / "rows.parquet"
    assert command(*words, "parquet", "--output-file", file)[0] == 0
    written = pyarrow.parquet.read_table(file).to_pylist()[0]
    assert written["is_metal"] is row["is_metal"]
    assert {name: written[name] for name in row if name != "warnings"} | {"warnings": []} == row


def test_predict_reads_globs_folders_and_parquet(command, model, table):
    code, out, _ = command("predict", EXAMPLES / "*.cif", "--model", model, "--output", "json")
    assert code == 0
    assert len(json.loads(out)) == 11
    code, by_folder, _ = command("predict", EXAMPLES, "--model", model, "--output", "json")
    assert by_folder == out
    code, out, err = command("predict", table, "--model", model, "--output", "csv")
    rows = [line.split(",") for line in out.splitlines()]
    assert code == 0
    assert [row[:3] for row in rows[1:]] == [
        ["mp-0", "NaCl", "2"], ["mp-1", "", ""], ["mp-2", "SrTiO3", "5"], ["mp-3", "Fe", "2"]
    ]  # fmt: skip
    assert err.startswith("hf-crystal: 1 of 4 crystals could not be read: mp-1: overlapping atoms")


def test_predict_reads_standard_input(model):
    text = (EXAMPLES / "MgO.cif").read_text()
    words = [sys.executable, "-m", "hf_crystal.cli.main", "predict", "-", "--model", model, "--output", "json"]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)[0]["formula"] == "MgO"


def test_predict_writes_files(command, model, tmp_path):
    csv, parquet = tmp_path / "out.csv", tmp_path / "out.parquet"
    words = ("predict", EXAMPLES / "NaCl.cif", EXAMPLES / "GaAs.cif", "--model", model)
    written = f"hf-crystal: written: {csv} (2 rows)\n"
    assert command(*words, "--output", "csv", "--output-file", csv) == (0, "", written)
    assert command(*words, "--output", "parquet", "--output-file", parquet)[:2] == (0, "")
    table = pyarrow.parquet.read_table(parquet)
    assert table["formula"].to_pylist() == ["NaCl", "GaAs"]
    assert str(table.schema.field("band_gap").type) == "double"
    assert len(csv.read_text().splitlines()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.parquet"]


def test_shards_together_are_the_whole(command, model, table):
    words = ("predict", table, EXAMPLES, "--model", model, "--output", "json", "--num-shards", 3)
    parts = [json.loads(command(*words, "--shard-index", index)[1]) for index in range(3)]
    whole = json.loads(command("predict", table, EXAMPLES, "--model", model, "--output", "json")[1])
    assert [parts[index % 3][index // 3]["source"] for index in range(len(whole))] == [row["source"] for row in whole]


def test_on_error(command, model, table):
    words = ("predict", table, "--model", model, "--output", "json")
    code, out, _ = command(*words, "--on-error", "skip")
    assert (code, [row["source"] for row in json.loads(out)]) == (0, ["mp-0", "mp-2", "mp-3"])
    code, out, _ = command(*words, "--on-error", "report")
    assert list(json.loads(out)[1]) == ["source", "error", "model", "model_digest"]
    code, _, err = command(*words, "--on-error", "raise")
    assert code == 1
    assert err.startswith("hf-crystal: error: mp-1: overlapping atoms")
    assert len(err.splitlines()) == 1


def test_a_failed_run_leaves_no_file(command, model, table, tmp_path):
    out = tmp_path / "out.csv"
    words = ("predict", table, "--model", model, "--output", "csv", "--output-file", out, "--on-error", "raise")
    assert command(*words)[0] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [table.name]


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_the_ending_of_the_file_is_its_format(command, model, tmp_path, ending):
    words = ("predict", EXAMPLES / "Si.cif", "--model", model, "--output-file")
    assert command(*words, tmp_path / f"ending.{ending}")[:2] == (0, "")
    assert command(*words, tmp_path / "option", "--output", ending)[:2] == (0, "")
    assert (tmp_path / f"ending.{ending}").read_bytes() == (tmp_path / "option").read_bytes()


def test_a_file_with_another_ending_is_a_table(command, model, tmp_path):
    assert command("predict", EXAMPLES / "Si.cif", "--model", model, "--output-file", tmp_path / "x.txt")[0] == 0
    assert (tmp_path / "x.txt").read_text().startswith("source ")


# words of a wrong call -> exit code and the one line; {model} and {tmp} are filled in
BAD_CALLS = {
    "no_file": (["predict", "no/such.cif"], 1, "hf-crystal: error: no such file: no/such.cif"),
    "no_argument": (["predict"], 2, "hf-crystal: error: Missing argument "),
    "no_command": (["predictt", "x.cif"], 2, "hf-crystal: error: No such command 'predictt'."),
    "no_option": (["predict", "x.cif", "--modell", "y"], 2, "hf-crystal: error: No such option: --modell"),
    "no_model": (
        ["predict", str(EXAMPLES / "Si.cif"), "--model", "no/such/model"],
        1,
        "hf-crystal: error: model not found: no/such/model; accepted are a folder, a repository of the Hub",
    ),
    "empty_folder": (["predict", "{tmp}"], 1, "hf-crystal: error: no crystal files in folder {tmp}"),
    "bad_format": (
        ["predict", str(EXAMPLES / "Si.cif"), "--output", "xml"],
        2,
        "hf-crystal: error: Invalid value for '--output': ",
    ),
    "parquet_to_screen": (
        ["predict", str(EXAMPLES / "Si.cif"), "--output", "parquet"],
        2,
        "hf-crystal: error: Invalid value for --output: parquet needs --output-file",
    ),
    "bad_batch_size": (
        ["predict", str(EXAMPLES / "Si.cif"), "--batch-size", "0"],
        2,
        "hf-crystal: error: Invalid value for --batch-size: 0 is not positive",
    ),
    "bad_shard": (
        ["predict", str(EXAMPLES / "Si.cif"), "--num-shards", "2", "--shard-index", "2"],
        2,
        "hf-crystal: error: Invalid value for --shard-index: 2 is not in 0 … 1",
    ),
    "not_a_crystal": (
        ["predict", __file__, "--model", "{model}"],
        1,
        f"hf-crystal: error: no crystal could be read: {__file__}: ",
    ),
    "bad_device": (
        ["predict", str(EXAMPLES / "Si.cif"), "--model", "{model}", "--device", "moon"],
        1,
        "hf-crystal: error: device moon cannot be used: ",
    ),
    "not_parquet": (["predict", "{tmp}/bad.parquet"], 1, "hf-crystal: error: {tmp}/bad.parquet is not a parquet file"),
    "other_model_type": (
        ["predict", str(EXAMPLES / "Si.cif"), "--model", "{tmp}/bert"],
        1,
        "hf-crystal: error: {tmp}/bert holds a model of type 'bert'; accepted are crystalformer, crystalframer",
    ),
    "no_output_folder": (
        ["predict", str(EXAMPLES / "Si.cif"), "--model", "{model}", "--output-file", "{tmp}/none/out.csv"],
        1,
        "hf-crystal: error: folder of --output-file does not exist: {tmp}/none",
    ),
    "convert_no_file": (["convert", "no.ckpt", "{tmp}/out"], 1, "hf-crystal: error: no such file: no.ckpt"),
    "convert_exists": (["convert", __file__, "{tmp}"], 1, "hf-crystal: error: {tmp} exists already"),
    "convert_bad_field": (
        ["convert", __file__, "{tmp}/out", "--set", "hiden_size=3"],
        2,
        "hf-crystal: error: Invalid value for --set: the configuration has no field 'hiden_size'",
    ),
    "convert_no_checkpoint": (
        ["convert", __file__, "{tmp}/out"],
        1,
        f"hf-crystal: error: checkpoint {__file__!r} cannot be read as tensors alone: it is no checkpoint of torch",
    ),
    "generate_no_element": (
        ["generate", "--composition", "Xx2O3"],
        1,
        "hf-crystal: error: composition has 'Xx'; accepted: element symbols",
    ),
    "generate_cold": (
        ["generate", "--composition", "NaCl", "--temperature", "-1"],
        2,
        "hf-crystal: error: Invalid value for '--temperature': ",
    ),
    "embed_no_table": (
        ["embed", str(EXAMPLES / "Si.cif"), "--nearest", "no.parquet"],
        1,
        "hf-crystal: error: no such table of embeddings: no.parquet",
    ),
    "export_no_model": (["export", "no/model", "{tmp}/out"], 1, "hf-crystal: error: model folder not found: no/model"),
    "export_exists": (["export", "{model}", "{tmp}"], 1, "hf-crystal: error: {tmp} exists already"),
    "train_no_recipe": (
        ["train", "property", "--config", "no.yaml", "--output-dir", "{tmp}/run"],
        1,
        "hf-crystal: error: no such recipe: no.yaml",
    ),
    "train_nothing": (["train"], 2, "hf-crystal: error: Missing command."),
    "evaluate_no_data": (
        ["evaluate", "property", "--model", "{model}", "--data", "no/such.parquet"],
        1,
        "hf-crystal: error: ",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_a_wrong_call_gives_one_line_and_a_nonzero_exit_code(case, command, model, tmp_path):
    (tmp_path / "bad.parquet").write_text("this is text") if case == "not_parquet" else None
    (tmp_path / "bert").mkdir() if case == "other_model_type" else None
    if case == "other_model_type":
        (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    words, code, line = BAD_CALLS[case]
    filled = [word.format(model=model, tmp=tmp_path) if "{" in word else word for word in words]
    received, _, err = command(*filled)
    assert received == code, err
    assert len(err.splitlines()) == 1, err
    assert err.startswith(line.format(model=model, tmp=tmp_path)), err


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["predict"],
        ["convert"],
        ["export"],
        ["info"],
        ["serve"],
        ["train"],
        ["train", "property"],
        ["evaluate", "property"],
    ],
    ids=" ".join,
)
def test_help_shows_an_example(words, command):
    code, out, err = command(*words, "--help")
    assert (code, err) == (0, "")
    assert out.lstrip().startswith("Usage: hf-crystal")
    assert "Example: hf-crystal " in out
    if words not in ([], ["train"]):
        assert f"Example: hf-crystal {' '.join(words)}" in out


def test_shells_can_complete_commands_and_values():
    def completed(line: str) -> list[str]:
        asked = {"_HF_CRYSTAL_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        words = [sys.executable, "-m", "hf_crystal.cli.main"]
        done = subprocess.run(words, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("hf-crystal pre") == ["predict"]
    assert completed("hf-crystal predict --output j") == ["json", "jsonl"]


def test_help_is_quick_and_loads_nothing_heavy():
    code = "import sys; from hf_crystal.cli.main import run; run(['predict', '--help']); print(sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.rpartition("dict_keys")[2]
    assert not any(f"'{name}'" in modules for name in ("torch", "transformers", "pymatgen", "pyarrow", "pandas"))


def test_exit_codes_of_the_real_program():
    def program(*words):
        return subprocess.run(
            [sys.executable, "-m", "hf_crystal.cli.main", *words], capture_output=True, text=True, check=False
        )

    assert program("--help").returncode == 0
    bad = program("predict", "no/such.cif")
    assert (bad.returncode, bad.stderr) == (1, "hf-crystal: error: no such file: no/such.cif\n")
    assert program("predict", "--nonsense").returncode == 2


def test_info_names_versions(command):
    code, out, _ = command("info")
    assert code == 0
    assert out.startswith("hf_crystal 0.2.0, Python 3.")
    assert "transformers 5." in " ".join(out.split())


def test_export_writes_a_folder(command, model, tmp_path):
    code, out, err = command("export", model, tmp_path / "out")
    assert (code, err) == (0, "")
    assert out == f"{tmp_path / 'out'}: loads without hf_crystal, outputs bit-equal\n"
    assert (tmp_path / "out" / "README.md").is_file()


def test_evaluate_measures_a_model(command, model, table, tmp_path):
    rows = [row for row in pyarrow.parquet.read_table(table).to_pylist() if row["material_id"] != "mp-1"]
    labeled = [{**row, "split": "test", "band_gap": 1.0} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(labeled), tmp_path / "labeled.parquet")
    code, out, err = command(
        "evaluate", "property", "--model", model, "--data", tmp_path / "labeled.parquet", "--column", "energy",
        "--column", "band_gap", "--output", "json",
    )  # fmt: skip
    assert code == 0, err
    record = json.loads(out)
    assert [(target["name"], target["n"]) for target in record["targets"]] == [
        ("formation_energy", 3),
        ("band_gap", 3),
    ]
    unsplit = ["evaluate", "property", "--model", model, "--data", table, "--column", "formation_energy=energy"]
    code, out, err = command(*unsplit)
    assert (code, out.rpartition("; ")[2]) == (0, "3 crystals\n"), err
    assert command(*unsplit, "--split", "test")[0] == 1
