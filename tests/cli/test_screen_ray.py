"""The Ray Data recipe: a worker is killed in the middle, and nothing is lost and nothing comes twice."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet
import pytest
from tiny_models import IRON, NACL, SRTIO3, save_tiny_model

pytest.importorskip("ray.data", reason="ray is not installed: pip install .[ray]")
psutil = pytest.importorskip("psutil")

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "screen_ray.py"
NUM_ROWS = 120


def workers_of(process: subprocess.Popen) -> list:
    """Ray's worker processes that run the recipe's class."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "MapWorker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def test_killing_a_worker_loses_nothing_and_repeats_nothing(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    table = tmp_path / "crystals.parquet"
    rows = [{"material_id": f"mp-{index:03d}", **(NACL, SRTIO3, IRON)[index % 3]} for index in range(NUM_ROWS)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    # reading the named pipe stops shard 0 of 4 until somebody writes: the kill comes at a known place
    pipe = tmp_path / "stuck.cif"
    os.mkfifo(pipe)
    out = tmp_path / "out"
    command = [
        *(sys.executable, SCRIPT, table, pipe, "--output-dir", out, "--model", model),
        *("--num-shards", "4", "--workers", "2", "--rows-per-file", "5"),
    ]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 400
        # the pipe is crystal number 120, in shard 0; the other worker finishes other shards meanwhile
        while not list(out.glob("*/_SUCCESS")):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        workers = workers_of(process)
        assert len(workers) == 2
        for worker in workers:  # one of them holds shard 0
            os.kill(worker.pid, signal.SIGKILL)
        psutil.wait_procs(workers, timeout=60)  # a dying reader would take what is written
        # goes on when the worker that took over reads it
        threading.Thread(target=pipe.write_text, args=(f"data_x\n{CIF}",), daemon=True).start()
        output = process.communicate(timeout=400)[0]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, output
    sources = [row["source"] for file in sorted(out.rglob("part-*")) for row in read(file)]
    assert sorted(sources) == sorted([*(row["material_id"] for row in rows), str(pipe)])
    assert len(list(out.glob("*/_SUCCESS"))) == 4


def read(file: Path) -> list[dict]:
    return pyarrow.parquet.read_table(file).to_pylist()


CIF = """_cell_length_a 3
_cell_length_b 3
_cell_length_c 3
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Fe1 Fe 0 0 0
"""
