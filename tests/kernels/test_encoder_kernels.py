"""Encoders with the Triton kernels equal encoders with the eager operations; on a GPU, or in Triton's interpreter."""

import logging

import pytest
import tolerances
import torch
from kernel_cases import kernel_device, relative_error
from tiny_models import IRON, NACL, SRTIO3, tiny_model

import hf_crystal
from hf_crystal.encoders.geometry import build_geometry

DEVICE = kernel_device()
# a ragged batch: symmetric sites (tied frames), one atom per cell (its own images only), two, five
TRICLINIC = {
    "lattice": [[2.9, 0.0, 0.0], [0.3, 3.1, 0.0], [0.1, 0.2, 3.4]],
    "frac_coords": [[0.1, 0.2, 0.3]],
    "atomic_numbers": [13],
}
CRYSTALS = [NACL, SRTIO3, TRICLINIC]
ARCHITECTURES = ["crystalformer", "crystalframer"]


def batch_of(crystals):
    return {name: tensor.to(DEVICE) for name, tensor in hf_crystal.CrystalFeatureExtractor()(crystals).items()}


def model_with(architecture: str, kernel: str, **changes):
    model = tiny_model(architecture).to(DEVICE)
    model.config.update({"attention_kernel": kernel, "cutoff_sigmas": 2.0, **changes})
    return model


def predictions_and_gradients(model, batch, **options):
    output = model(**batch, **options)
    output.logits.square().sum().backward()
    return output, {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_predictions_gradients_and_attentions_equal_the_reference(architecture):
    """In evaluation mode, where frames are the mean over ties."""
    batch = batch_of(CRYSTALS)
    results = [
        predictions_and_gradients(model_with(architecture, kernel), batch, output_attentions=True)
        for kernel in ("triton", "reference")
    ]
    (ours, our_grads), (theirs, their_grads) = results
    assert relative_error(ours.logits, theirs.logits) < tolerances.KERNEL_FLOAT32
    for found, wanted in zip(ours.attentions, theirs.attentions, strict=True):
        assert relative_error(found, wanted) < tolerances.KERNEL_FLOAT32
    assert our_grads.keys() == their_grads.keys()
    # in units of all of them: the gradient of a key bias is zero, its value is rounding
    flat = [torch.cat([grad.flatten() for grad in grads.values()]) for grads in (our_grads, their_grads)]
    assert relative_error(*flat) < tolerances.KERNEL_FLOAT32


def test_training_draws_frames_whose_mean_is_the_evaluation():
    # so wide a tolerance that candidates which no symmetry relates are drawn too
    model = model_with("crystalframer", "triton", num_hidden_layers=1, frame_tie_tolerance=0.3)
    with torch.no_grad():
        wanted = model(**batch_of([TRICLINIC])).logits[0]
        model.train()
        torch.manual_seed(0)
        draws = model(**batch_of([TRICLINIC] * 12)).logits
        torch.manual_seed(0)
        torch.testing.assert_close(model(**batch_of([TRICLINIC])).logits[0], draws[0])  # frames follow torch's seed
    assert draws.std(0).min() > 1e-6
    assert ((draws.mean(0) - wanted).abs() < 4 * draws.std(0) / 12**0.5).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_autocast_to_bfloat16_stays_close(architecture):
    batch = batch_of([NACL, TRICLINIC])
    model = model_with(architecture, "triton")
    with torch.no_grad():
        wanted = model(**batch).logits
        with torch.autocast(DEVICE, torch.bfloat16):
            found = model(**batch).logits
            eager = model_with(architecture, "eager")(**batch).logits
    # as close as the eager operations are, up to the luck of rounding
    assert relative_error(found, wanted) < 3 * relative_error(eager, wanted) + 1e-3


def test_compiled_model_uses_the_kernels():
    batch = batch_of([NACL, IRON])
    model = model_with("crystalformer", "triton")
    with torch.no_grad():
        found = torch.compile(model, backend="aot_eager")(**batch).logits
        torch.testing.assert_close(found, model(**batch).logits)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"domain": "multihead"}, "real space"),
        ({"image_selection": "cells"}, "boxes of cells"),
        ({"frame_method": "weighted_pca"}, "weighted_pca"),
    ],
    ids=["domain", "cells", "frames"],
)
def test_what_has_no_kernel_runs_eager_and_says_so(changes, reason, caplog, monkeypatch):
    model = model_with("crystalframer", "triton", **changes)
    monkeypatch.setattr(logging.getLogger("hf_crystal"), "propagate", True)
    names = ("atomic_numbers", "positions", "cell", "attention_mask")
    batch = batch_of([NACL])
    with caplog.at_level(logging.WARNING, logger="hf_crystal"):
        geometry = build_geometry(model.config, *(batch[name] for name in names))
    assert geometry.edges is None
    assert geometry.images
    assert any(reason in message for message in caplog.messages)


def test_gradients_of_positions_take_the_eager_operations():
    batch = batch_of([NACL])
    batch["positions"].requires_grad_()
    model = model_with("crystalformer", "triton")
    grad = torch.autograd.grad(model(**batch).logits.sum(), batch["positions"])[0]
    assert torch.isfinite(grad).all()
