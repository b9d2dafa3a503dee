"""The scripts as a user runs them: killed and resumed, on two processes, as an explicit loop, in a fresh process."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file
from script_runs import assert_same_weights, losses, run, run_until_killed, train

from hf_crystal.cli.main import run as run_command
from hf_crystal.training.run_control import COMPLETE_MARKER_NAME

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reference(recipe_file, tmp_path_factory):
    """One uninterrupted run on one process: 4 epochs of 5 steps, the last averaged."""
    folder = tmp_path_factory.mktemp("reference")
    return folder, train(recipe_file, folder, runner=run)


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
    files = {p.name for p in (folder / "model").iterdir() if p.suffix != ".py"}  # code: loads without the package
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["trained_elements"]
    assert max(config["trained_elements"].values()) <= 42
    assert set(config["trained_pairs"]) <= set(config["trained_elements"])


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
    run_until_killed("train_property.py", recipe_file, tmp_path / "killed")
    resumed = train(recipe_file, tmp_path / "killed", options=["--resume"])
    assert resumed["steps"] == record["steps"]
    assert losses(resumed) == losses(record)
    assert_same_weights(tmp_path / "killed", undisturbed)


def test_two_processes_give_the_curve_of_one(reference, recipe_file, tmp_path):
    _, one = reference
    settings = ["training.eval_steps=3", "training.save_total_limit=9"]
    two = train(recipe_file, tmp_path / "two", *settings, processes=2, runner=run)
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
    resumed = train(recipe_file, tmp_path / "two", *settings, processes=2, options=["--resume"])
    assert losses(resumed) == losses(two)
    first = load_file(tmp_path / "two" / "first" / "model.safetensors")
    second = load_file(tmp_path / "two" / "model" / "model.safetensors")
    assert all((first[name] == second[name]).all() for name in first)


def test_batches_by_atoms_on_two_processes(recipe_file, tmp_path):
    """Batches of uneven numbers of rows are shared out whole; the curve differs from that of one process."""
    record = train(
        recipe_file,
        tmp_path / "atoms",
        "training.max_atoms_per_batch=12",
        "training.num_train_epochs=1",
        "training.batch_size=2",
        processes=2,
    )
    assert record["num_processes"] == 2
    assert np.isfinite(losses(record)).all()
    assert record["epochs"] == 1.0


@pytest.mark.parametrize(("processes", "accumulation"), [(1, 2), (2, 1), (2, 2)], ids=lambda value: str(value))
def test_explicit_accelerate_loop_gives_the_curve_of_the_trainer(
    reference, recipe_file, tmp_path, processes, accumulation
):
    _, trainer = reference
    explicit = train(
        recipe_file,
        tmp_path / "explicit",
        f"training.gradient_accumulation_steps={accumulation}",
        script="train_property_accelerate.py",
        processes=processes,
    )
    np.testing.assert_allclose(losses(explicit), losses(trainer), rtol=2e-5)
    rates = [[entry["learning_rate"] for entry in run["training_curve"]] for run in (explicit, trainer)]
    np.testing.assert_allclose(*rates, rtol=1e-12)
    for ours, theirs in zip(explicit["test"]["targets"], trainer["test"]["targets"], strict=True):
        assert ours["mae"] == pytest.approx(theirs["mae"], rel=1e-4)


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
def test_mistakes_end_with_one_line(recipe_file, tmp_path, capsys, arguments, message):
    words = ["train", "property", "--config", str(recipe_file), "--output-dir", str(tmp_path), *arguments]
    assert run_command(words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_folder_of_another_run_is_not_overwritten(reference, recipe_file, capsys):
    folder, _ = reference
    assert run_command(["train", "property", "--config", str(recipe_file), "--output-dir", str(folder)]) == 1
    assert "has checkpoints of another run" in capsys.readouterr().err
