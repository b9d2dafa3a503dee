"""The kernel files without a GPU and without triton: they load, stay apart, and say why eager operations run."""

import importlib
import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch
from kernel_cases import INTERPRETS, random_edges, random_inputs

from hf_crystal.encoders import kernels_attention, modeling_crystalframer
from hf_crystal.encoders.kernels_choice import runs_triton


def test_a_copy_with_remote_code_loads_without_triton_and_has_its_own_operators(tmp_path, monkeypatch):
    folder = tmp_path / "folder_of_a_checkpoint"
    shutil.copytree(Path(kernels_attention.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "triton", None)  # what Python does where it is not installed
    copy = importlib.import_module("folder_of_a_checkpoint.kernels_attention")
    model = importlib.import_module("folder_of_a_checkpoint.modeling_crystalframer")
    assert model.CrystalFramerModel is not modeling_crystalframer.CrystalFramerModel
    assert copy.NAMESPACE != kernels_attention.NAMESPACE == "hf_crystal"
    edges = random_edges([2], "cpu", torch.float32)
    lists = (edges.row_start, edges.key, edges.squared, edges.key_start, edges.key_order, edges.query)
    with pytest.raises(ImportError, match="pip install triton"):
        copy.edge_attention(*random_inputs(edges, 1, 4, torch.float32), *lists, 0, 14.0, 1.0, False)


@pytest.mark.skipif(INTERPRETS, reason="in the interpreter the kernels run on a CPU")
@pytest.mark.parametrize(
    ("attention_kernel", "says"), [("fast", False), ("eager", False), ("reference", False), ("triton", True)]
)
def test_a_cpu_takes_the_eager_operations(attention_kernel, says, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("hf_crystal"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="hf_crystal"):
        assert not runs_triton(attention_kernel, None, torch.zeros(1, 3), torch.eye(3)[None])
    assert bool(caplog.messages) == says
