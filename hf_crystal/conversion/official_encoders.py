"""Official checkpoints of Crystalformer and CrystalFramer (Lightning `.ckpt`) to this package's models.

Names on the left are those of github.com/omron-sinicx/crystalformer and .../crystalframer; their weights carry over
one to one. A key that is not listed here is an error: a checkpoint is either understood completely or refused.
"""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hf_crystal.encoders.configuration_crystalformer import CrystalformerConfig
from hf_crystal.encoders.configuration_crystalframer import CrystalFramerConfig
from hf_crystal.encoders.modeling_crystalformer import CrystalformerForPropertyPrediction
from hf_crystal.encoders.modeling_crystalframer import CrystalFramerForPropertyPrediction

from .official_settings import check_settings_are_given, settings_of_hyper_parameters

__all__ = ["convert_official_checkpoint", "convert_state_dict", "infer_config", "read_official_checkpoint"]

BLOCK = re.compile(r"encoder\.layers\.(\d+)\.(.+)")
RENAMED_IN_BLOCK = {
    "self_attn.q_proj_weight": "attention.q_proj.weight",
    "self_attn.k_proj_weight": "attention.k_proj.weight",
    "self_attn.v_proj_weight": "attention.v_proj.weight",
    "self_attn.out_proj.weight": "attention.o_proj.weight",
    "self_attn.out_proj.bias": "attention.o_proj.bias",
    "self_attn.gauss_scale": "attention.width_calibration",
    "linear1.weight": "mlp.fc1.weight",
    "linear1.bias": "mlp.fc1.bias",
    "linear2.weight": "mlp.fc2.weight",
    "linear2.bias": "mlp.fc2.bias",
}
RENAMED_IN_HEAD = {
    "mlp.0.weight": "head.dense.weight",
    "mlp.0.bias": "head.dense.bias",
    "mlp.3.weight": "head.out_proj.weight",
    "mlp.3.bias": "head.out_proj.bias",
    "target_mean": "head.target_mean",
    "target_std": "head.target_std",
}
IGNORED_IN_BLOCK = {"self_attn.atten_scale"}  # never used by the released code
# Lightning keeps several copies of a network; the first of these that is present is the published one.
PREFIXES = ("swa_model.module.", "model.", "")
IGNORED_PREFIXES = ("swa_model.", "model.", "n_averaged")


def read_official_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Tensors of an official checkpoint under their plain names, without executing anything it contains.

    Args:
        path (`str` or `Path`): a Lightning `.ckpt` or a plain `torch.save`d state dict.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of one of the two encoders, or one that needs arbitrary code to load.
    """
    return _network_state(_load(Path(path)), Path(path))


def _load(path: Path) -> Any:
    """Content of the file: tensors, numbers, texts, containers of them and `argparse.Namespace`."""
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {str(path)!r} does not exist.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # of hyper_parameters; it only holds values
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        # torch's own message advises weights_only=False, which would run whatever the file contains
        held = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds an object of {held[1]}" if held else "it is no checkpoint of torch, or damaged"
        raise ValueError(
            f"checkpoint {str(path)!r} cannot be read as tensors alone: {reason}; accepted are Lightning checkpoints "
            "and state dicts that hold no other objects."
        ) from error


def _hyper_parameters(loaded: Any, path: Path) -> dict[str, Any] | None:
    """Settings of the run; none where the file has none."""
    saved = loaded.get("hyper_parameters") if isinstance(loaded, Mapping) else None
    if isinstance(saved, argparse.Namespace):
        saved = vars(saved)
    if saved is not None and not isinstance(saved, Mapping):
        raise ValueError(
            f"hyper_parameters of checkpoint {str(path)!r} are a {type(saved).__name__}; a dict or an "
            "argparse.Namespace is accepted."
        )
    return dict(saved) if saved else None


def _network_state(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    """Weights of the published copy of the network, and the scaling of the targets."""
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"checkpoint {str(path)!r} holds {type(loaded).__name__}, not a state dict.")
    scaling = {key: value for key, value in state.items() if key in ("target_mean", "target_std")}
    for prefix in PREFIXES:
        if f"{prefix}input_embeddings.weight" in state:
            chosen = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
            if prefix:
                other = [k for k in state if not k.startswith(IGNORED_PREFIXES) and k not in scaling]
                if other:
                    raise ValueError(f"checkpoint {str(path)!r} has unknown keys: {sorted(other)}.")
            return {**chosen, **scaling}
    raise ValueError(
        f"checkpoint {str(path)!r} has no 'input_embeddings.weight' (looked under {list(PREFIXES)}); its keys begin "
        f"with {sorted(state)[:5]}."
    )


def convert_state_dict(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of an official network under this package's names.

    Args:
        state: official names without prefix (`input_embeddings.weight`, `encoder.layers.0.…`, `mlp.0.…`), optionally
            `target_mean` and `target_std`.

    Raises:
        ValueError: unknown keys, all listed.
    """
    converted: dict[str, torch.Tensor] = {}
    unknown = []
    for name, tensor in state.items():
        block = BLOCK.fullmatch(name)
        if block:
            entries = _convert_block_entry(block[2], tensor)
            if entries is None:
                unknown.append(name)
            else:
                converted.update({f"encoder.layers.{block[1]}.{key}": value for key, value in entries.items()})
        elif name == "input_embeddings.weight":
            converted["encoder.embeddings.weight"] = tensor.T
        elif name in RENAMED_IN_HEAD:
            converted[RENAMED_IN_HEAD[name]] = tensor.reshape(-1) if name.startswith("target_") else tensor
        else:
            unknown.append(name)
    if unknown:
        raise ValueError(f"unknown keys in the official checkpoint: {sorted(unknown)}.")
    converted = _merge_angles(converted)
    return {name: tensor.contiguous() for name, tensor in converted.items()}


def _convert_block_entry(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """One tensor of a block; `{}` where it has no use, `None` where it is unknown."""
    if name in IGNORED_IN_BLOCK:
        return {}
    if name in RENAMED_IN_BLOCK:
        return {RENAMED_IN_BLOCK[name]: tensor}
    if name == "self_attn.in_proj_bias":
        query, key, value = tensor.chunk(3)
        return {f"attention.{kind}_proj.bias": part for kind, part in zip("qkv", (query, key, value), strict=True)}
    if name == "self_attn.lattice_pos_weights":
        return {"attention.width_query": tensor}
    if name == "self_attn.pe_dist_proj":
        return {"attention.value_radial": tensor[0]}
    if name in ("self_attn.proj_angle1", "self_attn.proj_angle2", "self_attn.proj_angle3"):
        return {f"attention.value_angular.{name[-1]}": tensor[0]}
    return None


def _merge_angles(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stacks the three angle projections of each block; shapes the width query by heads."""
    merged = {name: tensor for name, tensor in state.items() if ".value_angular." not in name}
    stems = sorted({name.rsplit(".", 1)[0] for name in state if ".value_angular." in name})
    for stem in stems:
        merged[stem] = torch.stack([state[f"{stem}.{axis}"] for axis in (1, 2, 3)])
    return merged


def infer_config(state: Mapping[str, torch.Tensor], **overrides: Any) -> CrystalformerConfig | CrystalFramerConfig:
    """Configuration that fits the shapes of an official state dict.

    What shapes do not show comes from overrides, and else is the releases' default: this is for networks whose
    settings are known. `convert_official_checkpoint` reads them from the file and refuses to guess.

    Args:
        state: official names without prefix.
        **overrides: configuration fields, such as `domain`, `num_attention_heads`, `target_names`, `frame_method`.

    Raises:
        ValueError: frames for a network without weights of angles.
    """
    numbers = [int(match[1]) for match in map(BLOCK.fullmatch, state) if match]
    first = "encoder.layers.{}.self_attn.{}"
    hidden_size, num_elements = state["input_embeddings.weight"].shape
    fields: dict[str, Any] = {
        "num_elements": num_elements,
        "hidden_size": hidden_size,
        "num_hidden_layers": max(numbers) + 1,
        "intermediate_size": state["encoder.layers.0.linear1.weight"].shape[0],
        "head_hidden_size": state["mlp.0.weight"].shape[0],
        "num_radial_basis": 0,
        "image_selection": "cells",
        "match_release": True,
    }
    num_targets = state["mlp.3.weight"].shape[0]
    if num_targets > 1:
        fields["target_names"] = [f"target_{index}" for index in range(num_targets)]
    for number in sorted(set(numbers)):
        projection = state.get(first.format(number, "pe_dist_proj"))
        if projection is not None:
            fields["num_attention_heads"], fields["num_radial_basis"] = projection.shape[1], projection.shape[3]
            break
    angles = state.get(first.format(0, "proj_angle1"))
    if angles is not None:
        fields["num_angular_basis"] = angles.shape[3]
        return CrystalFramerConfig(**{**fields, **overrides})
    frame_method = overrides.pop("frame_method", "none")
    if frame_method != "none":
        raise ValueError(f"frame_method={frame_method!r}: the checkpoint has no weights of angles (proj_angle1 to 3).")
    return CrystalformerConfig(**{**fields, **overrides})


def build_model(
    state: Mapping[str, torch.Tensor], config: CrystalformerConfig | CrystalFramerConfig
) -> CrystalformerForPropertyPrediction | CrystalFramerForPropertyPrediction:
    """A property model with the official weights, in their precision.

    Raises:
        ValueError: keys that are unknown, missing, or of another shape than the configuration's.
    """
    converted = convert_state_dict(state)
    is_framer = isinstance(config, CrystalFramerConfig)
    model = (CrystalFramerForPropertyPrediction if is_framer else CrystalformerForPropertyPrediction)(config)
    own = model.state_dict()
    prepared = {}
    for name, tensor in converted.items():
        if name.endswith("width_query"):
            tensor = tensor.reshape(config.num_attention_heads, -1)
        if name.endswith("value_radial") and name in own:
            tensor = tensor[: own[name].shape[0]]  # `multihead`: the released tensor has unused reciprocal heads
        prepared[name] = tensor
    missing = sorted(set(own) - set(prepared) - {"head.target_mean", "head.target_std"})
    unexpected = sorted(set(prepared) - set(own))
    shapes = [n for n in prepared if n in own and own[n].shape != prepared[n].shape]
    if missing or unexpected or shapes:
        raise ValueError(
            f"the checkpoint does not fit the configuration: missing {missing}, unexpected {unexpected}, of another "
            f"shape {shapes}. Pass the fields that shapes cannot tell (num_attention_heads, domain, frame_method)."
        )
    nn.Module.to(model, converted["encoder.embeddings.weight"].dtype)
    model.load_state_dict(prepared, strict=False)
    return model.eval()


def convert_official_checkpoint(path: str | Path, output: str | Path, **overrides: Any) -> None:
    """Writes an official checkpoint as a folder that `from_pretrained` loads.

    Settings of the network are the file's `hyper_parameters`; in a file without them, those in `overrides`.

    Args:
        path: official Lightning `.ckpt`.
        output: folder to write.
        **overrides: configuration fields (`target_names=["formation_energy"]`, `target_units=["eV/atom"]`, …), which
            replace those of the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: weights or hyper-parameters that are not understood, or settings that are missing; all are named.
    """
    path = Path(path)
    loaded = _load(path)
    state, hyper_parameters = _network_state(loaded, path), _hyper_parameters(loaded, path)
    settings: dict[str, Any] = {}
    if hyper_parameters is None:
        check_settings_are_given(state, overrides)
    else:
        settings = settings_of_hyper_parameters(hyper_parameters, overrides)
    build_model(state, infer_config(state, **settings, **overrides)).save_pretrained(output)
