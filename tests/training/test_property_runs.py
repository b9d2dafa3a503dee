"""The scripts as a user runs them: killed and resumed, on two processes, as an explicit loop, in a fresh process."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from hf_crystal.training.run_control import COMPLETE_MARKER_NAME, last_complete_checkpoint

SCRIPTS = Path(__file__).parents[2] / "scripts"
pytestmark = pytest.mark.slow


def environment():
    paths = [str(SCRIPTS.parent), os.environ.get("PYTHONPATH", "")]
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def command(script, *arguments, processes=1):
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*launcher, str(SCRIPTS / script), *map(str, arguments)]


def run(script, *arguments, processes=1):
    finished = subprocess.run(
        command(script, *arguments, processes=processes),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return finished.stdout


def train(recipe, folder, *overrides, processes=1, script="train_property.py", options=()):
    settings = [part for override in overrides for part in ("--set", override)]
    run(script, recipe, "--output-dir", folder, *settings, *options, processes=processes)
    return json.loads((folder / "run.json").read_text())


def losses(record):
    return [entry["loss"] for entry in record["training_curve"]]


def assert_same_weights(first, second):
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert (ours[name] == theirs[name]).all(), name


@pytest.fixture(scope="module")
def reference(recipe_file, tmp_path_factory):
    """One uninterrupted run on one process: 4 epochs of 5 steps, the last averaged."""
    folder = tmp_path_factory.mktemp("reference")
    return folder, train(recipe_file, folder)


def test_record_says_what_was_done(reference, recipe_file):
    folder, record = reference
    assert record["finished"]
    assert record["steps"] == 20
    assert record["weight_averaging"] == {"start_step": 15, "steps_averaged": 5}
    assert record["rows"] == {"train": 42, "validation": 11, "test": 13}
    assert record["units"] == {"energy": "eV/atom", "gap": "eV"}
    assert record["seed"] == 7
    assert set(record["versions"]) >= {"torch", "transformers", "python"}
    assert len(record["training_curve"]) == 20
    assert [entry["step"] for entry in record["validation_curve"]] == [5, 10, 15, 20]
    energy, gap = record["test"]["targets"]
    assert (energy["unit"], energy["n"], gap["n"]) == ("eV/atom", 13, 9)
    assert energy["baseline_mae"] > 0
    assert {p.name for p in (folder / "model").iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }


def test_same_figures_from_the_saved_folder_in_a_fresh_process(reference, crystal_table):
    folder, record = reference
    again = json.loads(run("evaluate_property.py", folder, "--data", crystal_table, "--batch-size", 4))
    assert again["protocol"] == record["test"]["protocol"]
    for ours, theirs in zip(again["targets"], record["test"]["targets"], strict=True):
        assert ours["mae"] == pytest.approx(theirs["mae"], rel=1e-6)
        assert ours["baseline_mae"] == pytest.approx(theirs["baseline_mae"], rel=1e-6)


def test_killed_run_resumes_to_the_same_weights(reference, recipe_file, tmp_path):
    """SIGKILL after the first checkpoint, then --resume: the weights of a run left alone, bit for bit."""
    undisturbed, record = reference
    process = subprocess.Popen(
        command("train_property.py", recipe_file, "--output-dir", tmp_path / "killed"),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while last_complete_checkpoint(tmp_path / "killed" / "checkpoints") is None:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(0.02)  # on into the second epoch
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "run.json").exists()
    resumed = train(recipe_file, tmp_path / "killed", options=["--resume"])
    assert resumed["steps"] == record["steps"]
    assert losses(resumed) == losses(record)
    assert_same_weights(tmp_path / "killed", undisturbed)


def test_two_processes_give_the_curve_of_one(reference, recipe_file, tmp_path):
    _, one = reference
    two = train(recipe_file, tmp_path / "two", "training.eval_steps=3", "training.keep_checkpoints=9", processes=2)
    assert two["num_processes"] == 2
    # the order of float32 sums differs between one and two processes, and training amplifies it a little
    np.testing.assert_allclose(losses(two), losses(one), rtol=2e-5)
    for ours, theirs in zip(two["test"]["targets"], one["test"]["targets"], strict=True):
        assert ours["n"] == theirs["n"]  # 13 rows over two processes: none dropped, none counted twice
        assert ours["mae"] == pytest.approx(theirs["mae"], rel=1e-4)

    # resumed on two processes from a checkpoint inside an epoch, bit for bit
    for checkpoint in (tmp_path / "two" / "checkpoints").glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > 12:
            (checkpoint / COMPLETE_MARKER_NAME).unlink()
    (tmp_path / "two" / "model").rename(tmp_path / "two" / "first")
    resumed = train(
        recipe_file,
        tmp_path / "two",
        "training.eval_steps=3",
        "training.keep_checkpoints=9",
        processes=2,
        options=["--resume"],
    )
    assert losses(resumed) == losses(two)
    first = load_file(tmp_path / "two" / "first" / "model.safetensors")
    second = load_file(tmp_path / "two" / "model" / "model.safetensors")
    assert all((first[name] == second[name]).all() for name in first)


def test_explicit_accelerate_loop_gives_the_curve_of_the_trainer(reference, recipe_file, tmp_path):
    _, trainer = reference
    explicit = train(
        recipe_file,
        tmp_path / "explicit",
        "training.accumulation_steps=2",
        script="train_property_accelerate.py",
    )
    np.testing.assert_allclose(losses(explicit), losses(trainer), rtol=2e-5)
    rates = [[entry["learning_rate"] for entry in run["training_curve"]] for run in (explicit, trainer)]
    np.testing.assert_allclose(*rates, rtol=1e-12)
    for ours, theirs in zip(explicit["test"]["targets"], trainer["test"]["targets"], strict=True):
        assert ours["mae"] == pytest.approx(theirs["mae"], rel=1e-4)


@pytest.fixture
def train_script():
    """scripts/train_property.py as a module."""
    spec = importlib.util.spec_from_file_location("train_property", SCRIPTS / "train_property.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "training.epochs=3"], "unknown key 'epochs'"),
        (["--set", "data.targets=[{name: volume, unit: A3}]"], "no column ['volume']"),
        (["--set", "data.test_split=holdout"], "data.test_split='holdout'"),
        (["--set", "training.batch_size=64"], "42 rows, fewer than one batch of 64"),
        (["--data", "absent.parquet"], "absent.parquet"),
        (["--resume"], "no complete checkpoint"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(train_script, recipe_file, tmp_path, capsys, arguments, message):
    options = train_script.make_parser().parse_args([str(recipe_file), "--output-dir", str(tmp_path), *arguments])
    assert train_script.main(options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_folder_of_another_run_is_not_overwritten(train_script, reference, recipe_file, capsys):
    folder, _ = reference
    assert (
        train_script.main(train_script.make_parser().parse_args([str(recipe_file), "--output-dir", str(folder)])) == 2
    )
    assert "has checkpoints of another run" in capsys.readouterr().err
