"""`hf-crystal predict --output-dir`: shards that go on after they were killed, with no row lost and none twice."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet
import pytest
from tiny_models import IRON, NACL, OVERLAPPING, SRTIO3, save_tiny_model
from transformers.utils import logging

from hf_crystal.cli.main import run
from hf_crystal.cli.screening import Words
from hf_crystal.loading import model_digest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CRYSTALS = (NACL, OVERLAPPING, SRTIO3, IRON)
NUM_ROWS = 50


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "crystals.parquet"
    rows = [{"material_id": f"mp-{index:03d}", **CRYSTALS[index % 4]} for index in range(NUM_ROWS)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def predict(capfd):
    """Call `hf-crystal predict` in this process: exit code and standard error."""

    def call(*words) -> tuple[int, str]:
        capfd.readouterr()
        code = run(["predict", *(str(word) for word in words)])
        out, err = capfd.readouterr()
        assert out == ""
        return code, err

    verbosity = logging.get_verbosity()
    yield call
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def rows_of(folder: Path) -> list[dict]:
    """All rows, file after file."""
    return [row for file in sorted(folder.rglob("part-*.parquet")) for row in read(file)]


def read(file: Path) -> list[dict]:
    return pyarrow.parquet.read_table(file).to_pylist()


def assert_same_rows(rows: list[dict], expected: list[dict]) -> None:
    """Same crystals in the same order; values differ by the rounding that the choice of batches brings."""
    assert [row["source"] for row in rows] == [row["source"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row == {name: pytest.approx(value, abs=1e-5) for name, value in other.items()}


@pytest.fixture
def expected(predict, model, table, tmp_path) -> list[dict]:
    """What one uninterrupted run without shards writes."""
    file = tmp_path / "whole.parquet"
    assert predict(table, "--model", model, "--output", "parquet", "--output-file", file)[0] == 0
    return read(file)


def test_shards_of_files_are_the_whole(predict, model, table, tmp_path, expected):
    out = tmp_path / "out"
    words = (table, "--model", model, "--output-dir", out, "--rows-per-file", 7, "--num-shards", 3)
    for index in range(3):
        code, err = predict(*words, "--shard-index", index)
        assert (code, "crystals could not be read" in err) == (0, True)
    shards = [rows_of(out / f"shard-{index:05d}-of-00003") for index in range(3)]
    assert_same_rows([shards[index % 3][index // 3] for index in range(NUM_ROWS)], expected)
    assert {row["model"] for row in expected} == {str(model)}
    assert {row["model_digest"] for row in expected} == {model_digest(str(model))}
    # 17 crystals in files of 7, and nothing else in the folder
    names = sorted(path.name for path in (out / "shard-00000-of-00003").iterdir())
    failed = [name for name in names if re.fullmatch(r"_failed-00000[0-2].jsonl", name)]
    assert failed
    assert names == ["_SUCCESS", *failed, "_settings.json", *(f"part-{number:06d}.parquet" for number in range(3))]
    # other readers take the whole folder as one table
    assert pyarrow.parquet.read_table(out).num_rows == NUM_ROWS


def test_a_finished_shard_is_left_as_it_is(predict, model, table, tmp_path):
    words = (table, "--model", model, "--output-dir", tmp_path, "--rows-per-file", 30)
    assert predict(*words)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    code, err = predict(*words)
    assert (code, err) == (0, f"hf-crystal: complete already: {tmp_path / 'shard-00000-of-00001'}\n")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("on_error", ["report", "skip"])
def test_what_has_no_values_is_named_and_counted(predict, model, table, tmp_path, on_error, expected):
    bad = [row["source"] for row in expected if row["error"]]
    words = (table, "--model", model, "--output-dir", tmp_path / "out", "--rows-per-file", 7, "--on-error", on_error)
    code, err = predict(*words)
    assert code == 0 and f"{len(bad)} without values: see _failed-*.jsonl" in err
    (folder,) = (tmp_path / "out").iterdir()
    lines = [json.loads(line) for file in sorted(folder.glob("_failed-*")) for line in file.read_text().splitlines()]
    assert [line["source"] for line in lines] == bad and all(line["error"] for line in lines)
    assert json.loads((folder / "_SUCCESS").read_text())["failed"] == len(bad)
    assert len(rows_of(folder)) == NUM_ROWS - (len(bad) if on_error == "skip" else 0)


def test_a_shard_without_any_values_fails_each_time(predict, model, tmp_path):
    (tmp_path / "bad.csv").write_text("structure\ngarbage\nmore garbage\n")
    words = (tmp_path / "bad.csv", "--model", model, "--output-dir", tmp_path / "out", "--rows-per-file", 1)
    for begin in ("hf-crystal: 2 of 2 crystals could not be read", "hf-crystal: complete already"):
        code, err = predict(*words)
        assert code == 1 and begin in err and "no crystal could be read: see" in err


def test_another_number_of_shards_is_refused(predict, model, table, tmp_path):
    words = (table, "--model", model, "--output-dir", tmp_path)
    code, err = predict(*words)
    assert code == 0 and f"written: {tmp_path / 'shard-00000-of-00001'} ({NUM_ROWS} crystals, 1 file, " in err
    code, err = predict(*words, "--num-shards", 3)
    assert code == 1 and "holds shard-00000-of-00001, and --num-shards 3 would add the same crystals again" in err
    assert len(rows_of(tmp_path)) == NUM_ROWS


def test_missing_files_are_made_again(predict, model, table, tmp_path, expected):
    out = tmp_path / "out"
    words = (table, "--model", model, "--output-dir", out, "--rows-per-file", 20)
    assert predict(*words)[0] == 0
    (out / "shard-00000-of-00001" / "_SUCCESS").unlink()
    (out / "shard-00000-of-00001" / "part-000002.parquet").unlink()
    assert predict(*words)[0] == 0
    assert_same_rows(rows_of(out), expected)


@pytest.mark.parametrize("cut", [0, -50, None])  # empty, in the middle of a row, a row less
@pytest.mark.parametrize("output", ["parquet", "csv", "json", "jsonl"])
def test_a_file_without_its_end_is_made_again(predict, model, table, tmp_path, output, cut):
    words = (table, "--model", model, "--output-dir", tmp_path, "--rows-per-file", 20, "--output", output)
    assert predict(*words)[0] == 0
    (folder,) = tmp_path.iterdir()
    files = [folder / f"part-{number:06d}.{output}" for number in range(2)]
    texts = [file.read_bytes() for file in files]
    (folder / "_SUCCESS").unlink()
    files[1].write_bytes(texts[1][: texts[1].rindex(b"\n", 0, -3) + 1] if cut is None else texts[1][:cut])
    kept = files[0].stat().st_mtime_ns
    assert predict(*words)[0] == 0
    assert files[0].stat().st_mtime_ns == kept and files[1].stat().st_size == len(texts[1])


def test_two_processes_do_not_write_one_shard(predict, model, table, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    words = (table, "--model", model, "--output-dir", tmp_path)
    assert predict(*words)[0] == 0
    (folder,) = tmp_path.iterdir()
    (folder / "_SUCCESS").unlink()
    with (folder / "_settings.json").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, err = predict(*words)
    assert code == 1 and f"{folder} is being written by another process" in err
    assert predict(*words)[0] == 0


def test_reasons_are_named_once_the_most_frequent_first():
    words = Words()
    for source, text in zip("abc", ["near", "far: 1.5 Å", "far: 2 Å"], strict=True):
        words.add(source, text)
    for number in range(3000):
        words.add("many", f"{chr(0x4E00 + number)}")
    for _ in range(5):
        words.add("last", "near")
    assert words.lines[:2] == ["a and 5 more: near", "b and 1 more: far: 1.5 Å"]
    assert len(words.lines) == 9 and words.lines[-1] == "2994 others"


@pytest.mark.parametrize("output", ["csv", "json", "jsonl"])
def test_text_formats(predict, model, table, tmp_path, output):
    words = (table, "--model", model, "--output-dir", tmp_path, "--rows-per-file", 30, "--output", output)
    assert predict(*words)[0] == 0
    texts = [file.read_text() for file in sorted(tmp_path.rglob(f"part-*.{output}"))]
    assert len(texts) == 2
    assert [sum(text.count(f"mp-{index:03d}") for text in texts) for index in range(NUM_ROWS)] == [1] * NUM_ROWS


def test_more_shards_than_crystals(predict, model, tmp_path):
    words = (EXAMPLES / "Si.cif", "--model", model, "--output-dir", tmp_path, "--num-shards", 2, "--shard-index", 1)
    assert predict(*words)[0] == 0
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["_SUCCESS", "_settings.json"]


def test_other_settings_are_refused(predict, model, table, tmp_path):
    words = (table, "--model", model, "--output-dir", tmp_path)
    assert predict(*words)[0] == 0
    code, err = predict(*words, "--rows-per-file", 5)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "was begun with other rows_per_file" in err
    code, err = predict(*words, EXAMPLES / "Si.cif")
    assert "was begun with other sources" in err


def test_wrong_calls(predict, model, tmp_path):
    code, err = predict("-", "--model", model, "--output-dir", tmp_path / "out")
    assert (code, "standard input" in err) == (1, True)
    code, err = predict(EXAMPLES / "Si.cif", "--output-dir", tmp_path, "--output", "table")
    assert (code, "table" in err) == (2, True)
    code, err = predict(EXAMPLES / "Si.cif", "--output-dir", tmp_path, "--output-file", tmp_path / "x.csv")
    assert (code, "--output-file" in err) == (2, True)


def _answer_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background ignores them


def start(*words) -> subprocess.Popen:
    command = [sys.executable, "-m", "hf_crystal.cli.main", "predict", *(str(word) for word in words)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_answer_interrupts,
    )


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 400  # starting takes long on a loaded machine
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_kill_9_in_the_middle_loses_no_row_and_repeats_none(predict, model, table, tmp_path, expected):
    # a named pipe among the files: reading it stops until somebody writes, so the kill comes at a known place
    pipe = tmp_path / "stuck.cif"
    os.mkfifo(pipe)
    files = [EXAMPLES / "Si.cif", table, pipe, EXAMPLES / "MgO.cif"]
    out = tmp_path / "out"
    words = (*files, "--model", model, "--output-dir", out, "--rows-per-file", 5, "--batch-size", 1)
    process = start(*words)
    folder = out / "shard-00000-of-00001"
    # 52 crystals come before the pipe is reached; chunks of 16 give 48 rows, that is 9 files, and part of a tenth
    wait_for(lambda: len(list(folder.glob(".part-000009.*.partial"))) == 1, process)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    first_run = {path: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    assert len(first_run) == 9
    assert not (folder / "_SUCCESS").exists()

    text = (EXAMPLES / "GaAs.cif").read_text()
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    code, err = predict(*words)
    writer.join()
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in first_run} == first_run
    rows = rows_of(out)
    assert_same_rows(rows[1:-2], expected)
    assert [row["formula"] for row in (rows[0], *rows[-2:])] == ["Si", "GaAs", "MgO"]
    assert not list(folder.glob(".*"))
    assert (folder / "_SUCCESS").is_file()


def test_kill_9_with_workers(predict, model, table, tmp_path, expected):
    out = tmp_path / "out"
    words = (table, "--model", model, "--output-dir", out, "--rows-per-file", 1, "--batch-size", 1, "--workers", 1)
    process = start(*words)
    wait_for(lambda: len(list(out.rglob("part-*"))) >= 17, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)  # ends only when the worker, which holds the pipes too, has ended by itself
    assert predict(*words)[0] == 0
    assert_same_rows(rows_of(out), expected)


def test_a_killed_worker_is_one_line(model, tmp_path):
    pipe = tmp_path / "stuck.cif"
    os.mkfifo(pipe)
    process = start(pipe, "--model", model, "--workers", 1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        process.communicate()
        pytest.skip("the system does not tell the children of a process")
    wait_for(lambda: children.read_text().split(), process)
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("hf-crystal: error: ")
    assert len(err.splitlines()) == 1


def test_a_reader_that_leaves_is_no_error(model, table):
    process = start(table, "--model", model, "--output", "jsonl", "--batch-size", 1)
    assert "mp-000" in process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0
    assert "could not be read: mp-001" in err
    assert len(err.splitlines()) == 1


def test_workers_read_globs_in_order(predict, model, tmp_path):
    files = tmp_path / "one.csv", tmp_path / "two.csv"
    for file, workers in zip(files, (0, 2), strict=True):
        words = (EXAMPLES / "*.cif", "--model", model, "--output", "csv", "--output-file", file, "--workers", workers)
        assert predict(*words)[0] == 0
    assert files[0].read_text() == files[1].read_text()
    assert len(files[0].read_text().splitlines()) == 12


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_another_model_under_the_same_name_is_refused(predict, tmp_path, file):
    model = save_tiny_model(tmp_path / "model")
    words = (EXAMPLES / "Si.cif", "--model", model, "--output-dir", tmp_path / "out")
    assert predict(*words)[0] == 0
    (tmp_path / "out/shard-00000-of-00001/_SUCCESS").unlink()
    (model / "README.md").write_text("files that change no value do not matter")
    assert predict(*words)[0] == 0
    content = (model / file).read_bytes()
    (model / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, err = predict(*words)
    assert code == 1
    assert "was begun with other files of the model" in err


@pytest.mark.parametrize(("signal_", "code", "said"), [
    (signal.SIGINT, 130, "hf-crystal: error: interrupted"),
    (signal.SIGTERM, 143, "hf-crystal: error: terminated"),
    (signal.SIGKILL, -9, ""),
])  # fmt: skip
def test_an_end_by_force_leaves_no_partial_file(predict, model, tmp_path, signal_, code, said):
    pipe = tmp_path / "stuck.cif"
    os.mkfifo(pipe)
    out = tmp_path / "out.parquet"
    words = (EXAMPLES / "Si.cif", pipe, "--model", model, "--output-file", out)
    # a terminal sends Ctrl-C to the workers too; they have nothing to add
    process = start(*words, *(("--workers", 1) if signal_ == signal.SIGINT else ()))
    wait_for(lambda: list(tmp_path.glob(".out.parquet.*.partial")), process)
    (os.killpg if signal_ == signal.SIGINT else os.kill)(process.pid, signal_)
    err = process.communicate(timeout=200)[1]
    assert (process.returncode, err.strip()) == (code, said)
    assert bool(list(tmp_path.glob(".*"))) == (signal_ == signal.SIGKILL)  # nothing runs after this one
    assert predict(EXAMPLES / "Si.cif", "--model", model, "--output-file", out)[0] == 0
    assert not list(tmp_path.glob(".*"))


def test_a_full_disk_is_one_line(model):
    words = [sys.executable, "-m", "hf_crystal.cli.main", "predict", EXAMPLES / "Si.cif", "--model", model]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=400)
    assert done.returncode == 1
    assert done.stderr == "hf-crystal: error: [Errno 28] No space left on device\n"
