"""The training scripts in processes of their own: started as a user starts them, or forked, which is quicker."""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from hf_crystal.training.run_control import last_complete_checkpoint

SCRIPTS = Path(__file__).parents[2] / "scripts"
# forked processes find these imported, which is most of the work of a small run
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["hf_crystal.training.property_run", "hf_crystal.training.generator_run"])


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


def _run_script(words, variables, log):
    """Body of a forked process: what `python WORDS` does."""
    with open(log, "wb") as stream:
        for output in (1, 2):
            os.dup2(stream.fileno(), output)
    os.environ.clear()
    os.environ.update(variables)
    torch.set_num_threads(1)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def run_forked(script, *arguments, processes=1):
    """`run` without torchrun and imports; the variables are those that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(word) for word in (SCRIPTS / script, *arguments)]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, f"{rank}.log") for rank in range(processes)]
        started = []
        for rank, log in enumerate(logs):
            variables = environment()
            if processes > 1:
                variables |= group | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
            started.append(FORKS.Process(target=_run_script, args=(words, variables, str(log)), daemon=True))
            started[-1].start()
        for process in started:
            process.join(300)
        codes = [process.exitcode for process in started]
        assert codes == [0] * processes, "\n".join(log.read_text()[-4000:] for log in logs)


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


def train(recipe, folder, *overrides, processes=1, script="train_property.py", options=(), runner=run_forked):
    """Record of a run; `runner=run` starts it as a user does."""
    settings = [part for override in overrides for part in ("--set", override)]
    runner(script, recipe, "--output-dir", folder, *settings, *options, processes=processes)
    return json.loads((folder / "run.json").read_text())


def losses(record):
    return [entry["loss"] for entry in record["training_curve"]]


def assert_same_weights(first, second):
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (first, second))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert (ours[name] == theirs[name]).all(), name
