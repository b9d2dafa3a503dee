"""Official checkpoints become folders that `from_pretrained` loads, or are refused with every unknown key named."""

import numpy as np
import pytest
import torch

from hf_crystal.conversion import convert_official_checkpoint, convert_state_dict, infer_config
from hf_crystal.encoders.configuration_crystalframer import CrystalFramerConfig
from hf_crystal.encoders.modeling_crystalformer import CrystalformerForPropertyPrediction
from hf_crystal.encoders.modeling_crystalframer import CrystalFramerForPropertyPrediction
from hf_crystal.testing import Crystal, collate

HIDDEN, HEADS, BLOCKS, BASIS, ANGLES, ELEMENTS = 8, 2, 2, 5, 6, 98
SETTINGS = {"domain": "real", "real_scale": 1.4, "real_lower_bound": 0.5, "width_slope": 0.1, "cell_range": 2}
SETTINGS |= {"adaptive_cutoff_sigmas": 3.5, "radial_cutoff": 14.0, "radial_width_scale": 1.0}
FRAMES = {"frame_method": "max", "angular_width_scale": 4.0, "radial_gain": 1.0, "angular_gain": 1.0}


def official_state(framer: bool = False, targets: int = 1) -> dict[str, torch.Tensor]:
    """A random network under the official names and shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "input_embeddings.weight": (HIDDEN, ELEMENTS),
        "mlp.0.weight": (4, HIDDEN),
        "mlp.0.bias": (4,),
        "mlp.3.weight": (targets, 4),
        "mlp.3.bias": (targets,),
    }
    for block in range(BLOCKS):
        own = {
            "self_attn.gauss_scale": (2,),
            "self_attn.atten_scale": (1,),
            "self_attn.q_proj_weight": (HIDDEN, HIDDEN),
            "self_attn.k_proj_weight": (HIDDEN, HIDDEN),
            "self_attn.v_proj_weight": (HIDDEN, HIDDEN),
            "self_attn.in_proj_bias": (3 * HIDDEN,),
            "self_attn.lattice_pos_weights": (HIDDEN,),
            "self_attn.pe_dist_proj": (1, HEADS, HIDDEN // HEADS, BASIS),
            "self_attn.out_proj.weight": (HIDDEN, HIDDEN),
            "self_attn.out_proj.bias": (HIDDEN,),
            "linear1.weight": (12, HIDDEN),
            "linear1.bias": (12,),
            "linear2.weight": (HIDDEN, 12),
            "linear2.bias": (HIDDEN,),
        }
        if framer:
            own |= {f"self_attn.proj_angle{axis}": (1, HEADS, HIDDEN // HEADS, ANGLES) for axis in (1, 2, 3)}
        shapes |= {f"encoder.layers.{block}.{name}": shape for name, shape in own.items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def lightning(state: dict[str, torch.Tensor]) -> dict:
    """As Lightning saves a run: raw and averaged weights, and the scaling of the targets."""
    raw = {f"model.{name}": tensor + 1.0 for name, tensor in state.items()}
    averaged = {f"swa_model.module.{name}": tensor for name, tensor in state.items()}
    scaling = {"target_mean": torch.tensor([-1.5]), "target_std": torch.tensor([0.5])}
    return {"epoch": 500, "state_dict": {**raw, **averaged, "swa_model.n_averaged": torch.tensor(3), **scaling}}


@pytest.mark.parametrize("framer", [False, True], ids=["crystalformer", "crystalframer"])
def test_converted_checkpoint_holds_the_averaged_weights_and_the_units(tmp_path, framer):
    state = official_state(framer)
    torch.save(lightning(state), tmp_path / "official.ckpt")
    settings = {**SETTINGS, **(FRAMES if framer else {}), "target_names": ["e"], "target_units": ["eV/atom"]}
    convert_official_checkpoint(tmp_path / "official.ckpt", tmp_path / "out", **settings)
    model_class = CrystalFramerForPropertyPrediction if framer else CrystalformerForPropertyPrediction
    model = model_class.from_pretrained(tmp_path / "out").eval()
    assert model.config.match_release
    assert model.config.target_units == ["eV/atom"]
    attention = model.encoder.layers[1].attention
    assert torch.equal(model.encoder.embeddings.weight, state["input_embeddings.weight"].T)
    assert torch.equal(attention.k_proj.bias, state["encoder.layers.1.self_attn.in_proj_bias"][HIDDEN : 2 * HIDDEN])
    assert torch.equal(attention.width_calibration, state["encoder.layers.1.self_attn.gauss_scale"])
    assert torch.equal(attention.value_radial, state["encoder.layers.1.self_attn.pe_dist_proj"][0])
    if framer:
        assert torch.equal(attention.value_angular[2], state["encoder.layers.1.self_attn.proj_angle3"][0])
    assert model.is_calibrated
    crystal = Crystal(np.array([11, 17]), np.array([[0.0, 0, 0], [2.0, 2.1, 1.9]]), 4.0 * np.eye(3))
    with torch.no_grad():
        output = model(**collate([crystal], dtype=torch.float32))
        torch.testing.assert_close((output.logits + 1.5) / 0.5, model.head(output.pooler_output))
    assert float(model.head.target_mean) == -1.5


def test_unknown_keys_are_all_listed(tmp_path):
    state = official_state() | {"encoder.layers.0.norm1.weight": torch.ones(1), "extra": torch.ones(1)}
    with pytest.raises(ValueError, match=r"unknown keys.*encoder\.layers\.0\.norm1\.weight.*extra"):
        convert_state_dict(state)
    saved = lightning(official_state())
    saved["state_dict"]["ema.weight"] = torch.ones(1)
    torch.save(saved, tmp_path / "official.ckpt")
    with pytest.raises(ValueError, match=r"unknown keys.*ema\.weight"):
        convert_official_checkpoint(tmp_path / "official.ckpt", tmp_path / "out")


def test_checkpoint_that_does_not_fit_says_what_is_missing(tmp_path):
    state = official_state()
    del state["encoder.layers.1.linear2.bias"]
    torch.save(state, tmp_path / "official.ckpt")
    with pytest.raises(ValueError, match=r"missing.*encoder\.layers\.1\.mlp\.fc2\.bias"):
        convert_official_checkpoint(tmp_path / "official.ckpt", tmp_path / "out", **SETTINGS)


class NotATensor:
    """Something that only arbitrary code can load."""


@pytest.mark.parametrize("kind", ["missing", "text", "code", "other"])
def test_files_that_are_no_checkpoint_are_refused(tmp_path, kind):
    path = tmp_path / "official.ckpt"
    if kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "code":
        torch.save({"state_dict": official_state(), "hyper": NotATensor()}, path)
    elif kind == "other":
        torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises((ValueError, FileNotFoundError), match=r"official\.ckpt"):
        convert_official_checkpoint(path, tmp_path / "out")


def test_configuration_is_read_off_the_shapes():
    config = infer_config(official_state(framer=True, targets=3), frame_method="max_static")
    assert isinstance(config, CrystalFramerConfig)
    assert (config.num_elements, config.hidden_size, config.num_hidden_layers) == (ELEMENTS, HIDDEN, BLOCKS)
    assert (config.num_attention_heads, config.num_radial_basis, config.num_angular_basis) == (HEADS, BASIS, ANGLES)
    assert config.target_names == ["target_0", "target_1", "target_2"]
    assert config.image_selection == "cells"
    assert config.frame_method == "max_static"
