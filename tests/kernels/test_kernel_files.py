"""The kernels without a GPU, without triton and without this package: eager operations run, and the log says why."""

import importlib
import logging
import sys

import pytest
import torch
from kernel_cases import INTERPRETS
from tiny_models import NACL, tiny_model

import hf_crystal
from hf_crystal.encoders import geometry as geometry_crystalformer
from hf_crystal.hub.files import code_files
from hf_crystal.kernels.encoder import device_obstacle


@pytest.fixture
def messages(caplog, monkeypatch):
    """What is logged; each message appears again although an earlier test had it."""
    monkeypatch.setattr(logging.getLogger("hf_crystal"), "propagate", True)
    geometry_crystalformer.logger.warning_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        yield lambda: [record.getMessage() for record in caplog.records if "falls back" in record.getMessage()]


def logits(model, kernel):
    model.config.attention_kernel = kernel
    with torch.no_grad():
        return model(**hf_crystal.CrystalFeatureExtractor()([NACL])).logits


def test_remote_code_without_this_package_falls_back_to_eager(tmp_path, monkeypatch, messages):
    folder = tmp_path / "folder_of_a_checkpoint"
    folder.mkdir()
    for name, text in code_files(hf_crystal.CrystalFramerForPropertyPrediction).items():
        (folder / name).write_text(text)
    ours = tiny_model("crystalframer")
    wanted = logits(ours, "eager")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "hf_crystal.kernels", None)  # what Python does where it is not installed
    code = importlib.import_module("folder_of_a_checkpoint.modeling_crystalframer")
    copy = code.CrystalFramerForPropertyPrediction(ours.config).eval()
    copy.load_state_dict(ours.state_dict())
    assert torch.equal(logits(copy, "triton"), wanted)
    assert [("hf_crystal, which is not installed" in message) for message in messages()] == [True]


@pytest.mark.skipif(INTERPRETS, reason="in the interpreter the kernels run on a CPU")
@pytest.mark.parametrize(("kernel", "reason"), [("eager", ""), ("reference", ""), ("triton", "input is on cpu")])
def test_a_cpu_takes_the_eager_operations(kernel, reason, messages):
    pytest.importorskip("triton")
    model = tiny_model("crystalformer")
    torch.testing.assert_close(logits(model, kernel), logits(model, "eager"))
    assert [reason in message for message in messages()] == ([True] if reason else [])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"decay": ["gaussian", "vdw"]}, "decay=['gaussian', 'vdw'], the kernels have Gaussian weights"),
        ({"domain": "multihead", "routing": "learned"}, "domain='multihead', the kernels sum in real space"),
    ],
)
def test_what_has_no_kernel_falls_back_to_eager_and_says_so_once(changes, reason, messages):
    model = tiny_model("crystalformer", **changes)
    expected = logits(model, "eager")
    for _ in range(2):
        assert torch.equal(logits(model, "triton"), expected)
    assert [reason in message for message in messages()] == [True]


def test_missing_triton_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "pip install triton" in device_obstacle(torch.zeros(1, 3), torch.eye(3)[None])
