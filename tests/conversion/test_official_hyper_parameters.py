"""Settings of an official run come from its file: all of them are understood, or the file is refused."""

import argparse

import numpy as np
import pytest
import torch

from hf_crystal import AutoModelForCrystalPropertyPrediction
from hf_crystal.conversion import convert_official_checkpoint, infer_config
from hf_crystal.conversion.official_settings import settings_of_hyper_parameters
from hf_crystal.testing import Crystal, collate

TRAINING = {"seed": 123, "lr": 5e-4, "adam_betas": [0.9, 0.98], "pretrained_model": None, "loss_func": "L1"}
NETWORK = {
    "encoder_name": "latticeformer",
    "num_layers": 4,
    "model_dim": 32,
    "head_num": 4,
    "ff_dim": 128,
    "embedding_dim": [32],
    "k_dim": 0,
    "v_dim": 0,
    "t_fixup_init": True,
    "t_activation": "relu",
    "lattice_range": 2,
    "minimum_range": True,
    "adaptive_cutoff_sigma": -3.5,
    "domain": "real",
    "scale_real": [1.4],
    "scale_reci": [2.2],
    "gauss_lb_real": 0.5,
    "gauss_lb_reci": 0.5,
    "gauss_state": "q",
    "normalize_gauss": True,
    "value_pe_dist_real": 64,
    "value_pe_dist_max": -10.0,
    "pooling": "avr",
    "pre_pooling_op": "no",
    "norm_type": "no",
    "use_cuda_code": True,
    "targets": "e_form",
}
CRYSTALFORMER = {
    **TRAINING,
    **NETWORK,
    "positive_func": "elu=0.1",
    "value_pe_width_scale": 1.0,
    "use_low_memory": True,
}
CRYSTALFRAMER = {
    **TRAINING,
    **NETWORK,
    "positive_func_beta": 0.1,
    "value_pe_dist_wscale": 1.0,
    "value_pe_dist_coef": 1.0,
    "frame_method": "max",
    "cos_abs": 0,
    "value_pe_angle_real": 64,
    "value_pe_angle_wscale": 4.0,
    "value_pe_angle_coef": 1.0,
    "symm_break_noise": 1e-5,
}
LARGE = {"model_dim": 128, "head_num": 8, "ff_dim": 512, "embedding_dim": [128]}
RUNS = {
    "cf_a_default": (LARGE, "rattled/cuda_adaptive/"),
    "cf_b_simplified": ({"value_pe_dist_real": 0}, "rattled/cuda_adaptive/"),
    "cf_d_multihead": ({"domain": "multihead"}, "rattled/cuda_adaptive/"),
    "cf_e_realreci": ({"domain": "real-reci"}, "rattled/cuda_adaptive/"),
    "cfr_f_max": (LARGE, "rattled/"),
    "cfr_f3_max_small": ({}, "rattled/"),
    "cfr_g_weighted_pca": ({"frame_method": "weighted_pca"}, "rattled/cols/"),
    "cfr_h_max_static": ({"frame_method": "max_static"}, "rattled/"),
    "cfr_i_pca": ({"frame_method": "pca"}, "rattled/"),
    "cfr_j_lattice": ({"frame_method": "lattice"}, "rattled/"),
}


def hyper_parameters(name: str, **changes) -> dict:
    return {**(CRYSTALFRAMER if name.startswith("cfr_") else CRYSTALFORMER), **RUNS[name][0], **changes}


def load(fixtures_dir, name: str) -> dict[str, np.ndarray]:
    with np.load(fixtures_dir / f"{name}.npz") as data:
        return {key: data[key] for key in data.files if key.startswith("param/") or key.endswith("/y")}


def official_state(arrays) -> dict[str, torch.Tensor]:
    return {key.removeprefix("param/"): torch.tensor(arrays[key]) for key in arrays if key.startswith("param/")}


def write(path, arrays, settings) -> None:
    """As Lightning saves a run."""
    state = {f"model.{key}": tensor for key, tensor in official_state(arrays).items()}
    saved = {"epoch": 3, "state_dict": state, "optimizer_states": [{"state": {}}], "loops": {"fit_loop": {"done": 3}}}
    torch.save(saved if settings is None else {**saved, "hyper_parameters": settings}, path)


def converted(arrays, settings, folder, **overrides):
    write(folder / "last.ckpt", arrays, settings)
    convert_official_checkpoint(folder / "last.ckpt", folder / "out", **overrides)
    return AutoModelForCrystalPropertyPrediction.from_pretrained(folder / "out").double().eval()


def prediction_error(model, arrays, fixtures_dir, prefix: str) -> float:
    with np.load(fixtures_dir / "crystals.npz") as data:
        stops = np.cumsum(data["sizes"])[:-1]
        atoms = np.split(data["Z"], stops), np.split(data["rattled_pos"], stops)
        parts = list(zip(*atoms, data["rattled_lat"], strict=True))
    with torch.no_grad():
        logits = model(**collate([Crystal(*part) for part in parts])).logits
    error = np.abs(logits.numpy() - arrays[f"{prefix}y"])[:, 0]
    if getattr(model.config, "frame_method", None) == "pca":
        error[1] = 0.0  # two atoms: two of three eigenvalues are 0, and rounding chooses the axes
    return float(error.max())


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_converted_with_its_own_settings(fixtures_dir, tmp_path, name):
    arrays = load(fixtures_dir, name)
    settings = hyper_parameters(name)
    model = converted(arrays, argparse.Namespace(**settings) if "_f" in name else settings, tmp_path)
    assert prediction_error(model, arrays, fixtures_dir, RUNS[name][1]) <= 1e-9
    assert model.config.target_names == ["e_form"]


def test_the_pytorch_path_of_a_run_has_a_fixed_box(fixtures_dir, tmp_path):
    arrays = load(fixtures_dir, "cf_b_simplified")
    model = converted(arrays, hyper_parameters("cf_b_simplified", use_cuda_code=False), tmp_path)
    assert prediction_error(model, arrays, fixtures_dir, "rattled/torch_R2/") <= 1e-9
    assert prediction_error(model, arrays, fixtures_dir, "rattled/cuda_adaptive/") > 1e-9


@pytest.mark.parametrize("name", RUNS)
def test_a_file_without_settings_is_refused(fixtures_dir, tmp_path, name):
    with pytest.raises(ValueError, match="has no hyper_parameters, and its weights do not show domain, ") as refusal:
        converted(load(fixtures_dir, name), None, tmp_path)
    assert ("--set frame_method=max " in str(refusal.value)) == name.startswith("cfr_")
    assert ("--set num_attention_heads=8" in str(refusal.value)) == (name == "cf_b_simplified")
    assert not (tmp_path / "out").exists()


def test_settings_can_be_given_in_place_of_the_files(fixtures_dir, tmp_path):
    arrays = load(fixtures_dir, "cf_e_realreci")
    real = {"real_scale": 1.4, "real_lower_bound": 0.5, "width_slope": 0.1, "radial_cutoff": 14.0}
    real |= {"radial_width_scale": 1.0, "cell_range": 2, "adaptive_cutoff_sigmas": 3.5}
    with pytest.raises(ValueError, match="do not show reciprocal_scale, reciprocal_lower_bound"):
        converted(arrays, None, tmp_path, domain="real-reci", **real)
    given = {**real, "domain": "real-reci", "reciprocal_scale": 2.2, "reciprocal_lower_bound": 0.5}
    model = converted(arrays, None, tmp_path, **given)
    assert prediction_error(model, arrays, fixtures_dir, "rattled/cuda_adaptive/") <= 1e-9
    wrong = hyper_parameters("cf_e_realreci", domain="real", targets="energy")
    model = converted(arrays, wrong, tmp_path, domain="real-reci", target_units=["eV"])
    assert prediction_error(model, arrays, fixtures_dir, "rattled/cuda_adaptive/") <= 1e-9
    assert (model.config.target_names, model.config.target_units) == (["energy"], ["eV"])


def test_every_setting_is_read():
    values = {
        **CRYSTALFRAMER,
        "scale_real": [1.3, 1.3],
        "scale_reci": 2.0,
        "gauss_lb_real": 0.4,
        "gauss_lb_reci": 0.3,
        "lattice_range": 3,
        "adaptive_cutoff_sigma": -4.0,
        "positive_func_beta": 0.2,
        "value_pe_dist_max": -8.0,
        "value_pe_dist_wscale": 1.2,
        "value_pe_dist_coef": 1.5,
        "value_pe_angle_real": 16,
        "value_pe_angle_wscale": 1.0,
        "value_pe_angle_coef": 6.0,
        "targets": ["e_form", "bandgap"],
    }
    fields = settings_of_hyper_parameters(values)
    assert fields.pop("radial_cutoff") == pytest.approx(10.4)
    assert fields == {
        "num_hidden_layers": 4,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "head_hidden_size": 32,
        "domain": "real",
        "cell_range": 3,
        "adaptive_cutoff_sigmas": 4.0,
        "real_scale": 1.3,
        "reciprocal_scale": 2.0,
        "real_lower_bound": 0.4,
        "reciprocal_lower_bound": 0.3,
        "num_radial_basis": 64,
        "radial_width_scale": 1.2,
        "width_slope": 0.2,
        "radial_gain": 1.5,
        "num_angular_basis": 16,
        "angular_width_scale": 1.0,
        "angular_gain": 6.0,
        "frame_method": "max",
        "target_names": ["e_form", "bandgap"],
    }
    former = settings_of_hyper_parameters({**CRYSTALFORMER, "value_pe_dist_max": 9.0, "positive_func": "elu=0.3"})
    assert (former["radial_cutoff"], former["width_slope"]) == (9.0, 0.3)


REFUSED = [
    ({"new_option": 3}, "new_option=3 is unknown"),
    ({"pooling": "max"}, "pooling='max': accepted is 'avr'"),
    ({"domain": "real-RECI"}, "domain='real-RECI', .*: accepted are real, reci"),
    ({"scale_real": [1.4, 1.0]}, r"scale_real=\[1.4, 1.0\]: one value for all blocks"),
    ({"embedding_dim": [32, 64]}, r"embedding_dim=\[32, 64\]: one value"),
    ({"adaptive_cutoff_sigma": 3.5}, "adaptive_cutoff_sigma=3.5, .*: negative values"),
    ({"minimum_range": False}, "minimum_range=False: accepted is True"),
    ({"frame_method": "max_wo_orthogonal"}, "frame_method='max_wo_orthogonal': accepted are max, weighted_pca"),
    ({"cos_abs": 1}, "cos_abs=1: accepted is 0"),
    ({"use_cuda_code": False}, "use_cuda_code=False: accepted is True"),
    ({"k_dim": 16}, "k_dim=16: accepted is 0"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_is_not_understood_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        settings_of_hyper_parameters({**CRYSTALFRAMER, **changes})


def test_missing_entries_and_values_of_one_release_only_are_named():
    absent = {name: value for name, value in CRYSTALFORMER.items() if name not in ("gauss_lb_real", "pooling")}
    with pytest.raises(ValueError, match=r"pooling='max': .*gauss_lb_real missing \(--set real_lower_bound=…\)"):
        settings_of_hyper_parameters(absent)
    multihead = {**CRYSTALFORMER, "domain": "multihead", "use_cuda_code": False}
    with pytest.raises(ValueError, match="drops the value encoding"):
        settings_of_hyper_parameters(multihead)
    with pytest.raises(ValueError, match="positive_func='exp': elu=NUMBER is accepted"):
        settings_of_hyper_parameters({**CRYSTALFORMER, "positive_func": "exp"})
    without_frames = {**CRYSTALFRAMER, "value_pe_angle_real": 0, "cos_abs": 1}
    assert "frame_method" not in settings_of_hyper_parameters(without_frames)


def test_frames_need_weights_of_angles(fixtures_dir, tmp_path):
    arrays = load(fixtures_dir, "cf_b_simplified")
    with pytest.raises(ValueError, match="frame_method='max': the checkpoint has no weights of angles"):
        converted(arrays, {**CRYSTALFRAMER, "value_pe_dist_real": 0}, tmp_path)
    state = official_state(arrays)
    assert infer_config(state, num_attention_heads=4, frame_method="none").model_type == "crystalformer"


def test_settings_of_another_type_are_refused(fixtures_dir, tmp_path):
    with pytest.raises(ValueError, match="hyper_parameters of checkpoint .* are a list"):
        converted(load(fixtures_dir, "cf_b_simplified"), [1, 2], tmp_path)
