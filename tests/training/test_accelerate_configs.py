"""Launch files: accelerate reads them, two processes start with them, Slurm's script builds the right command."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "scripts" / "accelerate"
EXPECTED = {
    "one_cpu": ("NO", 1, 1, True),
    "one_gpu": ("NO", 1, 1, False),
    "one_node": ("MULTI_GPU", 1, 8, False),
    "many_nodes": ("MULTI_GPU", 2, 16, False),
    "fsdp2": ("FSDP", 1, 8, False),
}


def test_every_file_is_expected():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_file_loads(name):
    """The loader refuses unknown keys."""
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    found = (config.distributed_type.value, config.num_machines, config.num_processes, config.use_cpu)
    assert found == EXPECTED[name]
    assert config.mixed_precision == ("bf16" if name == "fsdp2" else "no")


def launch_arguments(name, *words):
    """What `accelerate launch` makes of a file and words of the command line."""
    given = ["--config_file", str(FOLDER / f"{name}.yaml"), *words, "scripts/train_property.py", "recipe.yaml"]
    return _validate_launch_command(launch_command_parser().parse_args(given))[0]


def test_words_of_the_command_line_win_over_the_file():
    words = ["--num_machines", "4", "--num_processes", "32", "--machine_rank", "3", "--main_process_ip", "node7"]
    arguments = launch_arguments("many_nodes", *words, "--same_network")
    environment = prepare_multi_gpu_env(arguments)
    assert (arguments.nproc_per_node, arguments.nnodes, arguments.node_rank) == ("8", "4", 3)
    assert (arguments.master_addr, arguments.master_port) == ("node7", "29500")
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"


def test_fsdp_settings_fit_together(monkeypatch):
    environment = prepare_multi_gpu_env(launch_arguments("fsdp2"))
    for name, value in environment.items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"


@pytest.mark.slow
def test_two_processes_start_with_the_file_of_one_node(recipe_file, tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    setting = ["--config_file", FOLDER / "one_node.yaml", "--num_processes", 2, "--main_process_port", 0]
    script = [ROOT / "scripts" / "train_property.py", recipe_file, "--output-dir", tmp_path / "run"]
    recipe = ["--set", "training.num_train_epochs=1", "--set", "training.swa_epochs=0"]
    done = subprocess.run(
        [str(word) for word in (*launcher, *setting, *script, *recipe)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["num_processes"] == 2
    assert record["steps"] == 5


@pytest.mark.slow
def test_two_launchers_make_one_run_with_the_file_of_many_nodes(recipe_file, tmp_path):
    """Two machines are two launchers that know one address; here both are on this machine, with a process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", FOLDER / "many_nodes.yaml"]
    words += ["--num_machines", 2, "--num_processes", 2, "--main_process_ip", "127.0.0.1", "--same_network"]
    script = [ROOT / "scripts" / "train_property.py", recipe_file, "--output-dir", tmp_path / "run"]
    recipe = ["--set", "training.num_train_epochs=1", "--set", "training.swa_epochs=0"]
    nodes = [
        subprocess.Popen(
            [str(word) for word in (*words, "--main_process_port", port, "--machine_rank", rank, *script, *recipe)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    messages = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], messages
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["num_processes"], record["steps"]) == (2, 5)


@pytest.fixture
def submit(tmp_path):
    """Runs slurm.sbatch on a made-up allocation of two nodes; gives exit code, words of accelerate, and stderr."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, text in {
        "scontrol": 'printf "n1\\nn2\\n"',
        "srun": 'shift; SLURM_NODEID=1 exec "$@"',
        "accelerate": 'printf "%s\\n" "$@"',
    }.items():
        (stubs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (stubs / name).chmod(0o755)

    def call(*words):
        allocation = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2"}
        environment = {**os.environ, **allocation, "SLURM_GPUS_ON_NODE": "4", "PATH": f"{stubs}:{os.environ['PATH']}"}
        command = ["bash", str(FOLDER / "slurm.sbatch"), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.splitlines(), done.stderr

    return call


def test_slurm_starts_one_launcher_per_node(submit, tmp_path):
    code, words, _ = submit("train.py", "recipe.yaml", "--output-dir", "my run")
    assert code == 0
    options = dict(zip(words[1:11:2], words[2:11:2], strict=True))
    assert options == {
        "--config_file": "scripts/accelerate/many_nodes.yaml",
        "--num_machines": "2",
        "--num_processes": "8",
        "--machine_rank": "1",
        "--main_process_ip": "n1",
    }
    assert words[11:] == ["--same_network", "train.py", "recipe.yaml", "--output-dir", "my run"]
    (tmp_path / "my run" / "checkpoints").mkdir(parents=True)
    assert submit("train.py", "recipe.yaml", "--output-dir", "my run")[1][-1] == "--resume"


def test_slurm_names_what_is_missing(submit):
    assert submit("train.py")[0] == 2
    code, _, stderr = submit("train.py", "recipe.yaml")
    assert (code, stderr) == (2, "give --output-dir\n")
