"""Settings of an official run, which Lightning saves as `hyper_parameters`, to configuration fields.

Names on the left are those of the JSON files of github.com/omron-sinicx/crystalformer and .../crystalframer. Weights
of one shape belong to many settings (frames, cut-offs, domains), and a wrong one changes predictions without an error:
whatever is not understood is refused, and what is absent has to be given.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch

from hf_crystal.encoders.configuration_crystalframer import CrystalFramerConfig

__all__ = ["check_settings_are_given", "settings_of_hyper_parameters"]

Reader = tuple[tuple[str, ...], Callable[..., Any]]

# nothing that changes a prediction of trained weights
TRAINING = {
    *("seed", "experiment_name", "save_path", "param_file", "pretrained_model", "model_checkpoint_save_top_k"),
    *("optimizer", "lr", "lr_sch", "sch_params", "adam_betas", "momentum", "weight_decay", "loss_func", "dropout"),
    *("clip_norm", "clip_grad", "scale_grad", "batch_size", "n_epochs", "swa_epochs", "freeze_bn_epochs"),
    *("training_data", "target_set", "normalize_targets", "train_filter_max", "train_filter_min"),
    *("train_percent_check", "val_percent_check", "num_workers", "ddp", "use_low_memory", "reproduciblity_state"),
    "symm_break_noise",
}
# what the releases can be set to and this package does not have: the accepted values
FIXED: dict[str, tuple[Any, ...]] = {
    "encoder_name": ("latticeformer",),
    "k_dim": (0,),
    "v_dim": (0,),
    "t_fixup_init": (True,),
    "t_activation": ("relu",),
    "gauss_state": ("q",),
    "normalize_gauss": (True,),
    "use_cgcnn_feat": (False,),
    "value_pe_dist_reci": (0,),
    "value_pe_wave_real": (0,),
    "value_pe_wave_reci": (0,),
    "value_pe_headed": (True,),
    "value_pe_condproj": ("no",),
    "exclude_self": (False,),
    "norm_func_mode": (0,),
    "minimum_range": (True,),
    "frame_mode": ("both",),
    "pooling": ("avr",),
    "pre_pooling_op": ("no",),
    "norm_type": ("no", "id"),
}
FIXED_WITH_FRAMES: dict[str, tuple[Any, ...]] = {"cos_abs": (0,), "use_cuda_code": (True,)}
# values that the releases take for absent entries, where these are none of the accepted ones
ABSENT = {"pooling": "max", "pre_pooling_op": "w+bn+relu", "norm_type": "bn"}
ABSENT_WITH_FRAMES = {**ABSENT, "cos_abs": 1}


def _same(value: Any) -> Any:
    return value


def _one(value: Any) -> Any:
    """A number, which the releases also give as a list: one entry, or all entries equal."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values or any(item != values[0] for item in values):
        raise ValueError("one value for all blocks is accepted")
    return values[0]


def _choice(table: Mapping[str, str]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in table:
            raise ValueError(f"accepted are {', '.join(table)}")
        return table[value]

    return read


def _domain(domain: Any, on_gpu: Any, num_basis: Any) -> str:
    names = {"reci": "reciprocal"}
    if domain == "multihead" and not on_gpu and num_basis:
        raise ValueError(
            "the release's PyTorch path drops the value encoding of this domain; its CUDA path is accepted"
        )
    accepted = ("real", "reci", "multihead", "real-reci", "reci-real")
    return _choice({name: names.get(name, name) for name in accepted})(domain)


def _adaptive(sigmas: Any, on_gpu: Any) -> float | None:
    if not on_gpu:
        return None  # the release's PyTorch path has a fixed box
    if not sigmas < 0:
        raise ValueError("negative values are accepted, whose box follows sigma")
    return -sigmas


def _slope(text: Any) -> float:
    name, _, value = str(text).partition("=")
    if name != "elu" or not value:
        raise ValueError("elu=NUMBER is accepted")
    return float(value)


def _radial_cutoff(largest: Any, scale: Any) -> Any:
    return largest if largest > 0 else -largest * _one(scale)


def _names(targets: Any) -> list[str]:
    return [targets] if isinstance(targets, str) else list(targets)


READERS: dict[str, Reader] = {
    "num_hidden_layers": (("num_layers",), _same),
    "hidden_size": (("model_dim",), _same),
    "num_attention_heads": (("head_num",), _same),
    "intermediate_size": (("ff_dim",), _same),
    "head_hidden_size": (("embedding_dim",), _one),
    "domain": (("domain", "use_cuda_code", "value_pe_dist_real"), _domain),
    "cell_range": (("lattice_range",), _same),
    "adaptive_cutoff_sigmas": (("adaptive_cutoff_sigma", "use_cuda_code"), _adaptive),
    "real_scale": (("scale_real",), _one),
    "reciprocal_scale": (("scale_reci",), _one),
    "real_lower_bound": (("gauss_lb_real",), _same),
    "reciprocal_lower_bound": (("gauss_lb_reci",), _same),
    "num_radial_basis": (("value_pe_dist_real",), _same),
    "radial_cutoff": (("value_pe_dist_max", "scale_real"), _radial_cutoff),
    "target_names": (("targets",), _names),
}
CRYSTALFORMER: dict[str, Reader] = {
    "radial_width_scale": (("value_pe_width_scale",), _same),
    "width_slope": (("positive_func",), _slope),
}
CRYSTALFRAMER: dict[str, Reader] = {
    "radial_width_scale": (("value_pe_dist_wscale",), _same),
    "width_slope": (("positive_func_beta",), _same),
    "radial_gain": (("value_pe_dist_coef",), _same),
    "num_angular_basis": (("value_pe_angle_real",), _same),
    "angular_width_scale": (("value_pe_angle_wscale",), _same),
    "angular_gain": (("value_pe_angle_coef",), _same),
    "frame_method": (
        ("frame_method",),
        _choice({name: name for name in ("max", "weighted_pca", "max_static", "pca", "lattice")}),
    ),
}
KNOWN = TRAINING | set(FIXED) | set(FIXED_WITH_FRAMES)
for _names_read, _ in (*READERS.values(), *CRYSTALFORMER.values(), *CRYSTALFRAMER.values()):
    KNOWN |= set(_names_read)
# what shapes do not show; without hyper-parameters these have to be given
UNSEEN = ("domain", "cell_range", "adaptive_cutoff_sigmas", "real_scale", "real_lower_bound", "width_slope")
UNSEEN_RECIPROCAL = ("reciprocal_scale", "reciprocal_lower_bound")
UNSEEN_RADIAL = ("radial_cutoff", "radial_width_scale")
UNSEEN_FRAMES = ("frame_method", "angular_width_scale", "radial_gain", "angular_gain")


def settings_of_hyper_parameters(hyper_parameters: Mapping[str, Any], given: Collection[str] = ()) -> dict[str, Any]:
    """Configuration fields of an official run.

    Args:
        hyper_parameters: Entries of the run's JSON, as Lightning saves them.
        given: Fields that the caller sets; what the run says of them is not read.

    Returns:
        Field → value. `frame_method` is absent where the run has no frames.

    Raises:
        ValueError: entries that are unknown, missing, or of a value that this package does not have; all are listed.
    """
    from_framer_release = "frame_method" in hyper_parameters
    framed = from_framer_release and hyper_parameters["frame_method"] != "no"
    framed = framed and hyper_parameters.get("value_pe_angle_real") != 0
    values = {**(ABSENT_WITH_FRAMES if framed else ABSENT), **hyper_parameters}
    problems = [f"{name}={values[name]!r} is unknown" for name in sorted(set(values) - KNOWN)]
    for name, accepted in {**FIXED, **(FIXED_WITH_FRAMES if framed else {})}.items():
        if name in values and values[name] not in accepted:
            problems.append(f"{name}={values[name]!r}: accepted is {' or '.join(map(repr, accepted))}")
    readers = {**READERS, **(CRYSTALFRAMER if from_framer_release else CRYSTALFORMER)}
    if from_framer_release and not framed:
        readers = {field: readers[field] for field in (*READERS, *CRYSTALFORMER)}  # without frames it is Crystalformer
    fields: dict[str, Any] = {}
    for field, (names, read) in readers.items():
        if field in given:
            continue
        missing = [name for name in names if name not in values]
        if missing:
            problems.append(f"{' and '.join(missing)} missing (--set {field}=…)")
            continue
        try:
            fields[field] = read(*(values[name] for name in names))
        except (TypeError, ValueError) as error:
            problems.append(f"{', '.join(f'{name}={values[name]!r}' for name in names)}: {error}")
    if problems:
        raise ValueError(f"hyper_parameters of the checkpoint are not understood: {'; '.join(problems)}.")
    return fields


def check_settings_are_given(state: Mapping[str, torch.Tensor], given: Mapping[str, Any]) -> None:
    """Refuses a checkpoint without hyper-parameters as long as settings that shapes do not show are missing.

    Args:
        state: official names without prefix.
        given: configuration fields that the caller sets.

    Raises:
        ValueError: naming the missing fields, with the released defaults.
    """
    radial = any(name.endswith("pe_dist_proj") for name in state)
    needed: Sequence[str] = [*UNSEEN, *(UNSEEN_RADIAL if radial else ("num_attention_heads",))]
    if given.get("domain", "real") != "real":
        needed = [*needed, *UNSEEN_RECIPROCAL]
    if any(name.endswith("proj_angle1") for name in state):
        needed = [*needed, *UNSEEN_FRAMES]
    missing = [name for name in needed if name not in given]
    if missing:
        released = {field.name: field.default for field in dataclasses.fields(CrystalFramerConfig)}
        options = " ".join(f"--set {name}={released[name]}" for name in missing)
        raise ValueError(
            "the checkpoint has no hyper_parameters, and its weights do not show "
            f"{', '.join(missing)}. The release's defaults would be: {options}"
        )
