"""Files and folders under way: what a killed process left is removed, what a living one writes is not."""

import os
import platform
import subprocess
import sys

import pytest

from hf_crystal._partial import partial_path


@pytest.mark.parametrize("name", ["table.csv", "a folder", "odd[1]*?.json"])
def test_left_overs_of_ended_processes_are_removed(name, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = platform.node()
    dead_file = tmp_path / f".{name}.{host}-{ended.pid}.partial"
    dead_folder = tmp_path / f".{name}.{host}-{2**40}.partial"
    others = [
        tmp_path / f".{name}.{host}-{os.getppid()}.partial",  # runs
        tmp_path / f".{name}.other-host-{ended.pid}.partial",  # nobody here knows
        tmp_path / f".{name}x.{host}-{ended.pid}.partial",  # of another file
        tmp_path / name,
    ]
    dead_file.write_text("cut sho")
    dead_folder.mkdir()
    (dead_folder / "model.safetensors").write_text("cut sho")
    for path in others:
        path.write_text("whole")
    assert partial_path(tmp_path / name) == tmp_path / f".{name}.{host}-{os.getpid()}.partial"
    assert sorted(tmp_path.iterdir()) == sorted(others)
