"""What a transformers user expects of the encoders: loading, precision, outputs, gradients, errors."""

import numpy as np
import pytest
import torch
from tolerances import KERNEL

from hf_crystal.encoders.configuration_crystalformer import CrystalformerConfig
from hf_crystal.encoders.configuration_crystalframer import CrystalFramerConfig
from hf_crystal.encoders.modeling_crystalformer import CrystalformerForPropertyPrediction, CrystalformerModel
from hf_crystal.encoders.modeling_crystalframer import CrystalFramerForPropertyPrediction, CrystalFramerModel
from hf_crystal.testing import Crystal, collate, make_discriminating, supercell

SIZE = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "num_radial_basis": 12,
    "head_hidden_size": 8,
}
FRAMES = {"num_angular_basis": 12, "angular_width_scale": 1.5}
CRYSTALS = [
    Crystal(
        np.array([38, 22, 8, 8, 8]),
        3.905 * np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]),
        3.905 * np.eye(3),
    ),
    Crystal(np.array([26]), np.zeros((1, 3)), 1.43 * np.array([[-1.0, 1, 1], [1, -1, 1], [1, 1, -1]])),
    Crystal(
        np.array([14, 8, 7]),
        np.array([[0.1, 0.2, 0.3], [1.9, -0.7, 2.2], [2.0, 2.1, 0.4]]),
        np.array([[3.6, 0.2, -0.1], [1.4, 4.2, 0.3], [-0.8, 1.1, 3.7]]),
    ),
]
VARIANTS = {
    "real": (CrystalformerForPropertyPrediction, {}),
    "reciprocal": (CrystalformerForPropertyPrediction, {"domain": "reciprocal"}),
    "multihead": (CrystalformerForPropertyPrediction, {"domain": "multihead"}),
    "real-reci": (CrystalformerForPropertyPrediction, {"domain": "real-reci"}),
    "decay laws": (CrystalformerForPropertyPrediction, {"decay": ["yukawa", "vdw"]}),
    "vdw": (CrystalformerForPropertyPrediction, {"decay": "vdw", "num_radial_basis": 0}),
    "routed": (CrystalformerForPropertyPrediction, {"domain": "multihead", "routing": "learned"}),
    "routed yukawa": (
        CrystalformerForPropertyPrediction,
        {"domain": "multihead", "routing": "learned", "decay": ["gaussian", "yukawa"]},
    ),
    "simplified": (CrystalformerForPropertyPrediction, {"num_radial_basis": 0}),
    "cells": (CrystalformerForPropertyPrediction, {"image_selection": "cells"}),
    "max yukawa": (CrystalFramerForPropertyPrediction, {"frame_method": "max", "decay": "yukawa", **FRAMES}),
    "max": (CrystalFramerForPropertyPrediction, {"frame_method": "max", **FRAMES}),
    "weighted_pca": (CrystalFramerForPropertyPrediction, {"frame_method": "weighted_pca", **FRAMES}),
    "max_static": (CrystalFramerForPropertyPrediction, {"frame_method": "max_static", **FRAMES}),
    "pca": (CrystalFramerForPropertyPrediction, {"frame_method": "pca", **FRAMES}),
    "lattice": (CrystalFramerForPropertyPrediction, {"frame_method": "lattice", **FRAMES}),
    "no frames": (CrystalFramerForPropertyPrediction, {"frame_method": "none"}),
}


def build(variant: str, *, dtype=torch.float64, seed=0, **options):
    model_class, fields = VARIANTS[variant]
    config = model_class.config_class(**{**SIZE, **fields, **options})
    torch.manual_seed(seed)
    model = make_discriminating(model_class(config).to(dtype))
    model.calibrate(collate(CRYSTALS, dtype=dtype))
    return model.eval()


@pytest.fixture(params=list(VARIANTS))
def variant(request) -> str:
    return request.param


def test_saved_model_gives_the_same_bits(variant, tmp_path):
    model = build(variant, dtype=torch.float32)
    model.set_target_scaling([-1.5], [0.7])
    batch = collate(CRYSTALS, dtype=torch.float32)
    with torch.no_grad():
        expected = model(**batch)
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path).eval()
        got = loaded(**batch)
    assert torch.equal(got.logits, expected.logits)
    assert loaded.is_calibrated
    assert dict(loaded.named_buffers()).keys() == dict(model.named_buffers()).keys()
    for name, buffer in loaded.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name)), name


def test_missing_weights_are_initialized_after_loading_on_meta(tmp_path):
    """A base model's folder loads into a property model: the head and its units get sound values."""
    encoder = CrystalFramerModel(CrystalFramerConfig(**SIZE, **FRAMES))
    encoder.save_pretrained(tmp_path)
    model = CrystalFramerForPropertyPrediction.from_pretrained(tmp_path)
    assert torch.equal(model.head.target_std, torch.ones(1))
    assert torch.equal(model.head.target_mean, torch.zeros(1))
    bound = SIZE["hidden_size"] ** -0.5
    assert 0 < model.head.dense.weight.abs().max() <= bound
    assert torch.equal(model.encoder.layers[0].attention.value_angular, encoder.layers[0].attention.value_angular)
    assert not model.is_calibrated


def test_whole_model_eager_and_reference_kernels_agree(variant):
    batch = collate(CRYSTALS)
    outputs, gradients = [], []
    for kernel in ("eager", "reference"):
        model = build(variant, attention_kernel=kernel)
        logits = model(**batch).logits
        logits.square().sum().backward()
        outputs.append(logits.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (outputs[0] - outputs[1]).abs().max() <= KERNEL * outputs[1].abs().max()
    assert (gradients[0] - gradients[1]).abs().max() <= KERNEL * gradients[1].abs().max()


def test_every_parameter_receives_a_gradient(variant):
    model = build(variant).train()
    model(**collate(CRYSTALS), labels=torch.tensor([[1.0], [2.0], [3.0]])).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_evaluation_is_deterministic_and_training_noise_is_seeded():
    model = build("max")
    batch = collate(CRYSTALS)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, model(**batch).logits)
        model.train()
        torch.manual_seed(1)
        first = model(**batch).logits
        torch.manual_seed(1)
        assert torch.equal(model(**batch).logits, first)
        torch.manual_seed(2)
        assert not torch.equal(model(**batch).logits[:2], first[:2])  # symmetric crystals draw their frames


@pytest.mark.parametrize("name", ["real", "multihead", "max"])
def test_gradients_are_the_same_bits_on_two_threads(name):
    """Resuming a killed run gives the same weights only if sums have a fixed order."""
    model = build(name, dtype=torch.float32, hidden_size=32).train()
    batch = collate([supercell(crystal, (2, 2, 1)) for crystal in CRYSTALS] * 6, dtype=torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = []
        for _ in range(4):
            torch.manual_seed(0)
            model.zero_grad()
            model(**batch, labels=torch.zeros(18, 1)).loss.backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other, gradients[0]) for other in gradients[1:])


def test_training_frames_have_the_expectation_of_evaluation():
    """One block, where frames enter linearly: the mean over drawn frames is what evaluation computes directly.

    Each atom's strongest images are its own at +T and -T, an exact tie, and its neighbors tell the two apart.
    """
    model = build("max", num_hidden_layers=1)
    chain = Crystal(
        np.array([14, 8]),
        np.array([[0.0, 0, 0], [0.6, 1.9, 1.7]]),
        np.array([[2.1, 0, 0], [0.3, 4, 0], [0.2, 0.1, 5]]),
    )
    batch = collate([chain])
    attention = model.encoder.layers[0].attention
    outputs = []
    attention.register_forward_hook(lambda module, inputs, output: outputs.append(output[0].detach()))
    with torch.no_grad():
        model(**batch)
        expected = outputs.pop()
        model.train()
        torch.manual_seed(0)
        for _ in range(300):
            model(**batch)
    drawn = torch.stack(outputs)
    error = (drawn.mean(0) - expected).abs()
    standard_error = drawn.std(0) / len(drawn) ** 0.5
    assert (drawn.std(0) > 1e-3).any()
    assert (error <= 5 * standard_error + 1e-9).all()


def test_hidden_states_and_attentions_on_request(variant):
    batch = collate(CRYSTALS, extra=2)
    model = build(variant)
    with torch.no_grad():
        plain = model(**batch)
        full = model(**batch, output_hidden_states=True, output_attentions=True)
        as_tuple = model(**batch, return_dict=False)
    assert plain.hidden_states is None
    assert plain.attentions is None
    assert torch.equal(as_tuple[0], plain.logits)
    assert len(full.hidden_states) == 3
    assert full.hidden_states[0].shape == (3, 7, 16)
    assert [tuple(a.shape) for a in full.attentions] == [(3, 2, 7, 7)] * 2
    rows = full.attentions[0].sum(-1)
    torch.testing.assert_close(rows, batch["attention_mask"][:, None].expand(-1, 2, -1).double())
    assert not full.hidden_states[-1][batch["attention_mask"] == 0].any()
    assert full.pooler_output.shape == (3, 16)


def test_gradient_checkpointing_changes_nothing():
    batch = {**collate(CRYSTALS), "labels": torch.tensor([[1.0], [2.0], [3.0]])}
    gradients = []
    for use in (False, True):
        model = build("max").train()
        if use:
            model.activation_checkpointing_enable()
        torch.manual_seed(0)
        model(**batch).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["real", "multihead", "max"])
def test_bfloat16_autocast_keeps_geometry_in_float32(name):
    model = build(name, dtype=torch.float32)
    batch = collate(CRYSTALS, dtype=torch.float32)
    with torch.no_grad():
        exact = model(**batch).logits
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(**batch).logits
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().max() < 0.1 * exact.std()


def test_compiled_model_gives_the_same_values():
    model = build("real", dtype=torch.float32)
    batch = collate(CRYSTALS, dtype=torch.float32)
    with torch.no_grad():
        expected = model(**batch).logits
        got = torch.compile(model, backend="eager")(**batch).logits
    torch.testing.assert_close(got, expected)


def test_unknown_labels_leave_the_loss_and_the_gradient_alone():
    model = build("real", target_names=["a", "b"], target_units=["eV", "GPa"]).train()
    model.set_target_scaling([1.0, 10.0], [2.0, 5.0])
    batch = collate(CRYSTALS)
    labels = torch.tensor([[1.0, float("nan")], [float("nan"), float("nan")], [3.0, 20.0]])
    output = model(**batch, labels=labels)
    scaled = (output.logits - torch.tensor([1.0, 10.0])) / torch.tensor([2.0, 5.0])
    expected = (scaled[0, 0] - 0.0).abs() + (scaled[2, 0] - 1.0).abs() + (scaled[2, 1] - 2.0).abs()
    torch.testing.assert_close(output.loss, expected / 3)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    nothing = model(**batch, labels=torch.full((3, 2), float("nan")))
    assert nothing.loss == 0


@pytest.mark.parametrize(
    ("name", "function"), [("l1", "l1_loss"), ("mse", "mse_loss"), ("smooth_l1", "smooth_l1_loss")]
)
def test_losses(name, function):
    model = build("real", loss_function=name)
    labels = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    output = model(**collate(CRYSTALS), labels=labels)
    torch.testing.assert_close(output.loss, getattr(torch.nn.functional, function)(output.logits, labels))


def test_calibration_makes_unit_variance_block_after_block():
    torch.manual_seed(0)
    model = CrystalformerModel(CrystalformerConfig(**SIZE)).double()
    assert not model.is_calibrated
    batch = collate(CRYSTALS)
    model.calibrate(batch)
    assert model.is_calibrated
    raw = {}
    for number, layer in enumerate(model.layers):
        attention = layer.attention

        def keep(module, inputs, output, number=number, attention=attention):
            raw[number] = (output.view(-1, 2, 8) * attention.width_query).sum(-1)

        attention.q_proj.register_forward_hook(keep)
    with torch.no_grad():
        before = model(**batch).pooler_output
        assert torch.equal(model(**batch).pooler_output, before)  # forward never writes state
    for number, layer in enumerate(model.layers):
        scale, shift = layer.attention.width_calibration
        scaled = (raw[number] + shift) * scale
        assert float(scaled.mean()) == pytest.approx(0, abs=1e-9)
        assert float(scaled.std()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"atomic_numbers": torch.full((3, 5), 200)}, "200.*elements 1 to 118"),
        ({"positions": torch.zeros(3, 4, 3)}, r"shapes \(B, N\)"),
        ({"cell": torch.zeros(3, 9)}, r"shapes \(B, N\)"),
        ({"attention_mask": torch.zeros(3, 5)}, r"no atom.*\[0, 1, 2\]"),
        ({"labels": torch.zeros(3, 2)}, r"labels have shape \(3, 2\); expected \(3, 1\)"),
    ],
)
def test_wrong_inputs_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        build("real")(**{**collate(CRYSTALS), **change})


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (CrystalformerConfig, {"hidden_size": 30}, "hidden_size=30"),
        (CrystalformerConfig, {"domain": "multihead", "num_attention_heads": 1}, "num_attention_heads=1"),
        (CrystalformerConfig, {"target_names": ["a", "b"], "target_units": ["eV"]}, "one unit for each"),
        (CrystalformerConfig, {"target_names": ["a", "a"]}, "repeat"),
        (CrystalformerConfig, {"real_lower_bound": 1.5}, "real_lower_bound=1.5"),
        (CrystalformerConfig, {"cutoff_sigmas": -1.0}, "cutoff_sigmas=-1.0"),
        (CrystalformerConfig, {"domain": "fourier"}, "domain"),
        (CrystalformerConfig, {"num_elements": 200}, "118 elements"),
        (CrystalFramerConfig, {"domain": "reciprocal"}, "frames"),
        (CrystalFramerConfig, {"num_radial_basis": 0}, "num_radial_basis=0"),
        (CrystalFramerConfig, {"frame_tie_tolerance": 0.0}, "frame_tie_tolerance=0.0"),
    ],
)
def test_wrong_configurations_are_named(config, fields, message):
    with pytest.raises(Exception, match=message):
        config(**fields)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [([0.0, 1.0], [1.0], "2 values"), ([0.0], [0.0], "positive"), ([float("nan")], [1.0], "finite")],
)
def test_wrong_target_scalings_are_named(mean, std, message):
    with pytest.raises(ValueError, match=message):
        build("real").set_target_scaling(mean, std)


def test_half_precision_loading_keeps_units_and_calibration_exact(tmp_path):
    model = build("real", dtype=torch.float32)
    model.set_target_scaling([-1.2345678], [0.7654321])
    model.save_pretrained(tmp_path)
    loaded = CrystalformerForPropertyPrediction.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.encoder.layers[0].attention.q_proj.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.head.target_mean, model.head.target_mean)
    calibrated = loaded.encoder.layers[0].attention.width_calibration
    assert torch.equal(calibrated, model.encoder.layers[0].attention.width_calibration)
    with torch.no_grad():
        assert torch.isfinite(loaded.eval()(**collate(CRYSTALS, dtype=torch.float32)).logits).all()


@pytest.mark.slow
def test_four_thousand_atoms_predict_as_their_unit_cell():
    model = build("real", dtype=torch.float32, num_radial_basis=64, hidden_size=32)
    large = supercell(CRYSTALS[0], (10, 10, 8))
    assert len(large.atomic_numbers) == 4000
    with torch.no_grad():
        single = model(**collate([CRYSTALS[0]], dtype=torch.float32)).logits
        many = model(**collate([large], dtype=torch.float32)).logits
    assert (single - many).abs().max() <= 1e-4


def test_labels_of_the_config_follow_new_targets(tmp_path):
    build("real", target_names=["a", "b"], target_units=["eV", "GPa"]).save_pretrained(tmp_path)
    given = {"target_names": ["c"], "target_units": ["K"], "ignore_mismatched_sizes": True}
    config = CrystalformerForPropertyPrediction.from_pretrained(tmp_path, **given).config
    assert (config.id2label, config.label2id, config.num_labels) == ({0: "c"}, {"c": 0}, 1)
    assert CrystalformerConfig.from_pretrained(tmp_path).id2label == {0: "a", 1: "b"}
