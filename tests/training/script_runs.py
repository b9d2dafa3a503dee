"""The training scripts in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from hf_crystal.training.run_control import last_complete_checkpoint

SCRIPTS = Path(__file__).parents[2] / "scripts"


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


def run_until_killed(script, recipe, folder):
    """SIGKILL soon after the first complete checkpoint."""
    process = subprocess.Popen(
        command(script, recipe, "--output-dir", folder),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while last_complete_checkpoint(folder / "checkpoints") is None:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(0.02)  # on into the next steps
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "run.json").exists()


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
