"""Training of generators in processes of their own: killed and resumed, and on two at once."""

import numpy as np
import pytest
from script_runs import assert_same_weights, losses, run_until_killed, train

pytestmark = pytest.mark.slow
SCRIPT = "train_mat2seq.py"


@pytest.fixture(scope="module")
def reference(generator_recipe, tmp_path_factory):
    """One uninterrupted run on one process."""
    folder = tmp_path_factory.mktemp("reference")
    return folder, train(generator_recipe, folder, script=SCRIPT)


def test_killed_run_resumes_to_the_same_weights(reference, generator_recipe, tmp_path):
    undisturbed, record = reference
    run_until_killed(SCRIPT, generator_recipe, tmp_path / "killed")
    resumed = train(generator_recipe, tmp_path / "killed", script=SCRIPT, options=["--resume"])
    assert losses(resumed) == losses(record)
    assert resumed["test"] == record["test"]
    assert_same_weights(tmp_path / "killed", undisturbed)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_give_the_curve_of_one(reference, generator_recipe, tmp_path, accumulation):
    _, one = reference
    two = train(
        generator_recipe,
        tmp_path / "two",
        f"training.gradient_accumulation_steps={accumulation}",
        script=SCRIPT,
        processes=2,
    )
    assert (two["num_processes"], two["steps"]) == (2, one["steps"])
    np.testing.assert_allclose(losses(two), losses(one), rtol=2e-5)
    assert two["test"]["answer"]["nats_per_token"] == pytest.approx(one["test"]["answer"]["nats_per_token"], rel=1e-5)
