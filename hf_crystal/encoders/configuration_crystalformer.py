"""Configuration of Crystalformer."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..crystals.doubts import update_checkpoint
from .ops_decay_laws import DECAY_LAWS, HeadLaws, heads_by_law, tail_share

__all__ = ["CrystalformerConfig"]


def update_v1_v2(values: dict[str, Any]) -> dict[str, Any]:
    """`attention_kernel="fast"`, Triton where there is a GPU, became `"eager"`: kernels are chosen by name."""
    return {**values, "attention_kernel": "eager"} if values.get("attention_kernel") == "fast" else values


UPDATES = (update_v1_v2,)
CHECKPOINT_VERSION = len(UPDATES) + 1
# settings with which the same weights compute something else, those of CrystalFramer among them
_OF_THE_FUNCTION = (
    *("domain", "decay", "routing", "radial_cutoff", "radial_width_scale", "real_scale"),
    *("reciprocal_scale", "real_lower_bound", "reciprocal_lower_bound", "width_slope", "match_release", "pooling"),
    *(
        "frame_method",
        "frame_tie_tolerance",
        "angular_width_scale",
        "radial_gain",
        "angular_gain",
        "image_selection",
        "cell_range",
    ),
)


@strict
class CrystalformerConfig(PreTrainedConfig):
    r"""Configuration of [`CrystalformerModel`] (Taniai et al., ICLR 2024, arXiv 2403.11686).

    The defaults are the published four-block model, with images chosen by distance.

    Args:
        num_elements (`int`): elements 1..num_elements have an embedding (the released models: 98).
        hidden_size (`int`): width D of an atom's state.
        num_hidden_layers (`int`): number of attention blocks L.
        num_attention_heads (`int`): heads H.
        intermediate_size (`int`): width of the feed-forward layers.
        domain (`str`): where images are summed. `"real"`; `"reciprocal"`; `"multihead"`: the first half of the heads
            real, the others reciprocal; `"real-reci"` or `"reci-real"`: blocks alternate.
        decay (`str` or `list[str]`): how weights fall with distance in real space, for all heads or one law for each:
            `"gaussian"`, `"yukawa"`, `"vdw"` (see `ops_decay_laws`); heads in reciprocal space are Gaussian.
        routing (`str`): with `domain="multihead"`: `"fixed"`; `"learned"`: every head sums in both spaces, and a gate
            of its own weighs the two (`model.routing_gates`).
        num_radial_basis (`int`): K of the value encoding psi; 0 gives the paper's "simplified" model.
        radial_cutoff (`float`): r_max, center of the last radial function, Å.
        radial_width_scale (`float`): width of a radial function in units of their spacing.
        real_scale (`float`): r0, Gaussian width at rho = 1 in real space, Å.
        reciprocal_scale (`float`): the same in reciprocal space, Å.
        real_lower_bound (`float`): b, lower bound of rho; sigma < r0 / sqrt b.
        reciprocal_lower_bound (`float`): the same in reciprocal space; there sigma > r0 sqrt b.
        width_slope (`float`): a, slope of rho at 0.
        image_selection (`str`): `"radius"`: images within `cutoff_sigmas` times the largest possible sigma,
            independent of how the unit cell was chosen; `"cells"`: boxes of unit cells as in the papers' code.
        cutoff_sigmas (`float`): radius rule: cut-off in units of r0 / sqrt b (reciprocal space: of its inverse).
        cell_range (`int`): cells rule: smallest |n_k| of the box; in reciprocal space the fixed range of m.
        adaptive_cutoff_sigmas (`float`, *optional*): cells rule: the box covers this many sigma_i; none: fixed box.
        attention_kernel (`str`): how real-space attention is computed; results are equal to rounding. `"eager"`:
            PyTorch operations; `"reference"`: the plain equations; `"triton"`: the kernels of `hf_crystal.kernels` on
            an NVIDIA GPU (not yet run on one; what they cannot run falls back to eager with a line in the log).
        match_release (`bool`): reproduce the released code where it departs from the paper (parity tests, converted
            checkpoints).
        pooling (`str`): how atoms are pooled; `"mean"`.
        head_hidden_size (`int`): hidden width of the property head.
        target_names (`list[str]`): predicted properties, one output each.
        target_units (`list[str]`): their units.
        gap_target (`str`, *optional*): the one of `target_names` that is a band gap: in evaluation it is never below
            0, and 0 where the error head calls the crystal a metal. Another name than theirs does nothing.
        error_head_size (`int`): hidden width of the error head (`scripts/fit_error_heads.py`): standard errors, and
            the probability that the crystal is a metal. 0: no such head.
        error_head_states (`bool`): the error head reads which elements are there, and the means of the atoms' states
            before every block, beside the crystal's embedding.
        error_head_geometry (`bool`): the error head also says how much longer the edges of a crystal are than those
            of training crystals of its kind, and whether it looks unlike a crystal at rest.
        error_head_outdated (`bool`): training has changed the weights since the error head was fitted to them; it is
            kept, and gives nothing.
        error_scale_bounds (`list[list[float]]`, *optional*): smallest and largest logarithm of a scale of errors, per
            target, on scaled targets: those of the crystals of the fit. A crystal unlike them gets no other.
        loss_function (`str`): `"l1"`, `"mse"` or `"smooth_l1"`, on scaled targets.
        trained_elements (`dict[str, int]`, *optional*): elements of the training data, with the number of crystals
            that hold each; written by training. Without it nothing is known to be unseen.
        trained_pairs (`dict[str, str]`, *optional*): per element the heavier ones beside it in a training crystal.
        trained_disordered (`int`, *optional*): training crystals with partly occupied sites. Without it predictions of
            such crystals have a warning.
        base_model (`str`, *optional*): repository of the published checkpoint whose weights these are, or were trained
            from: for the card and its license.
        checkpoint_version (`int`): version of these settings; older ones are updated on loading, newer ones refused.
    """

    model_type = "crystalformer"
    keys_to_ignore_at_inference = ["hidden_states", "attentions", "pooler_output"]

    num_elements: int = 118
    hidden_size: int = 128
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    intermediate_size: int = 512
    domain: Literal["real", "reciprocal", "multihead", "real-reci", "reci-real"] = "real"
    decay: str | list[str] = "gaussian"
    routing: Literal["fixed", "learned"] = "fixed"
    num_radial_basis: int = 64
    radial_cutoff: float | int = 14.0
    radial_width_scale: float | int = 1.0
    real_scale: float | int = 1.4
    reciprocal_scale: float | int = 2.2
    real_lower_bound: float | int = 0.5
    reciprocal_lower_bound: float | int = 0.5
    width_slope: float | int = 0.1
    image_selection: Literal["radius", "cells"] = "radius"
    cutoff_sigmas: float | int = 4.5
    cell_range: int = 2
    adaptive_cutoff_sigmas: float | int | None = 3.5
    attention_kernel: Literal["eager", "triton", "reference"] = "eager"
    match_release: bool = False
    pooling: Literal["mean"] = "mean"
    head_hidden_size: int = 128
    if TYPE_CHECKING:  # None asks `__post_init__` for the defaults and is never read back
        target_names: list[str] = []
        target_units: list[str] = []
    else:
        target_names: list[str] | None = None
        target_units: list[str] | None = None
    gap_target: str | None = None
    error_head_size: int = 0
    error_head_states: bool = False
    error_head_geometry: bool = False
    error_head_outdated: bool = False
    error_scale_bounds: list[list[float]] | None = None
    loss_function: Literal["l1", "mse", "smooth_l1"] = "l1"
    trained_elements: dict[str, int] | None = None
    trained_pairs: dict[str, str] | None = None
    trained_disordered: int | None = None
    base_model: str | None = None
    checkpoint_version: int = CHECKPOINT_VERSION

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers has it, for settings of any version up to this code's; `ValueError` for a newer one."""
        return super().from_dict(update_checkpoint(config_dict, UPDATES, f"a {cls.model_type} model"), **kwargs)

    def changed_settings(self, saved: Mapping[str, Any]) -> list[str]:
        """Settings that may let the encoder compute something else than with a saved configuration."""
        theirs = type(self).from_dict(dict(saved))
        found = [name for name in _OF_THE_FUNCTION if getattr(self, name, None) != getattr(theirs, name, None)]
        for name in ("cutoff_sigmas", "adaptive_cutoff_sigmas"):  # sums that reach farther are only more exact
            own, other = (math.inf if (value := getattr(of, name)) is None else value for of in (self, theirs))
            found += [name] * (own < other)
        return [*found, *["model_type"] * (saved.get("model_type", self.model_type) != self.model_type)]

    def __setattr__(self, name, value):
        if name == "num_labels" and value != len(self.target_names or ["target"]):
            raise ValueError(f"num_labels={value}: the model predicts {self.target_names}; set target_names instead.")
        super().__setattr__(name, value)
        if name == "target_names" and value is not None:
            # also where from_pretrained(..., target_names=...) sets them on a config that has been read
            super().__setattr__("id2label", dict(enumerate(value)))
            super().__setattr__("label2id", {target: index for index, target in enumerate(value)})

    def __post_init__(self, **kwargs):
        if self.target_names is None:
            self.target_names = ["target"]
        if self.target_units is None:
            self.target_units = [""] * len(self.target_names)
        # transformers derives num_labels from id2label (two classes unless told otherwise)
        kwargs.pop("num_labels", None)
        self.problem_type = "regression"
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Checks that fields fit together; raises `ValueError` naming the field and its value."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}."
            )
        if self.domain == "multihead" and self.num_attention_heads % 2:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be even with domain='multihead': half of the "
                "heads work in reciprocal space."
            )
        self._validate_decay()
        names, units = self.target_names or [], self.target_units or []
        if len(units) != len(names):
            raise ValueError(f"target_units={units} must have one unit for each of target_names={names}.")
        if len(set(names)) != len(names):
            raise ValueError(f"target_names={names} must not repeat a name.")
        for name in ("real_lower_bound", "reciprocal_lower_bound"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie strictly between 0 and 1.")
        positive = ["num_elements", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"]
        positive += ["radial_cutoff", "radial_width_scale", "real_scale", "reciprocal_scale", "width_slope"]
        positive += ["cutoff_sigmas", "cell_range", "head_hidden_size"]
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive.")
        if self.error_head_size < 0:
            raise ValueError(f"error_head_size={self.error_head_size} must be 0 (no error head) or positive.")
        if self.num_radial_basis < 0:
            raise ValueError(f"num_radial_basis={self.num_radial_basis} must be 0 (simplified model) or positive.")
        if self.num_elements > 118:
            raise ValueError(f"num_elements={self.num_elements}: there are 118 elements.")

    def _validate_decay(self):
        laws = [self.decay] * self.num_attention_heads if isinstance(self.decay, str) else self.decay
        unknown = sorted({law for law in laws if law not in DECAY_LAWS})
        if unknown:
            raise ValueError(f"decay={self.decay!r}: {unknown} are none of the laws {list(DECAY_LAWS)}.")
        if len(laws) != self.num_attention_heads:
            raise ValueError(f"decay={self.decay} must be one law, or num_attention_heads={self.num_attention_heads}.")
        if self.routing == "learned" and self.domain != "multihead":
            raise ValueError(f"routing='learned' needs domain='multihead', not domain={self.domain!r}.")
        if set(laws) == {"gaussian"}:
            return
        if self.domain == "reciprocal" or self.image_selection != "radius" or self.match_release:
            raise ValueError(
                f"decay={self.decay!r} needs images in real space chosen by radius, not domain={self.domain!r} with "
                f"image_selection={self.image_selection!r} and match_release={self.match_release}."
            )
        if self.domain == "multihead" and self.routing == "fixed" and not isinstance(self.decay, str):
            others = self.decay[self.num_attention_heads // 2 :]
            if set(others) != {"gaussian"}:
                raise ValueError(
                    f"decay={self.decay}: with domain='multihead' the last {len(others)} heads are in reciprocal "
                    "space, where the law is 'gaussian'."
                )

    @property
    def head_laws(self) -> HeadLaws | None:
        """Decay laws of real-space heads, grouped; none where all are Gaussian."""
        laws = [self.decay] * self.num_attention_heads if isinstance(self.decay, str) else list(self.decay)
        if self.domain == "multihead" and self.routing == "fixed":
            laws = laws[: self.num_attention_heads // 2]
        return heads_by_law(laws)

    @property
    def truncation_shares(self) -> dict[str, float]:
        """Per law in use, the largest share of weight beyond `neighbor_radius`: of the widest head, even density."""
        laws = self.head_laws or (("gaussian", ()),)
        return (
            {} if self.domain == "reciprocal" else {law: tail_share(law, float(self.cutoff_sigmas)) for law, _ in laws}
        )

    @property
    def has_errors(self) -> bool:
        """Whether predictions have standard errors."""
        return self.error_head_size > 0 and not self.error_head_outdated

    @property
    def gap_index(self) -> int | None:
        """Place of `gap_target` among the targets."""
        return self.target_names.index(self.gap_target) if self.gap_target in self.target_names else None

    @property
    def largest_real_sigma(self) -> float:
        """Upper bound of sigma_i in real space, r0 / sqrt b, Å."""
        return float(self.real_scale) / float(self.real_lower_bound) ** 0.5

    @property
    def neighbor_radius(self) -> float | None:
        """Distance beyond which an atom sees no other, Å; none where the sum is over reciprocal space only."""
        return None if self.domain == "reciprocal" else self.cutoff_sigmas * self.largest_real_sigma

    @property
    def open_axes_obstacle(self) -> str | None:
        """Why this model takes only what repeats along all three axes; none: it takes slabs, wires and molecules."""
        if self.domain != "real":
            return f"domain={self.domain!r}, and waves need a cell; models of domain='real' accept them"
        return None

    @property
    def smallest_reciprocal_sigma(self) -> float:
        """Lower bound of sigma_i in reciprocal space, r0 sqrt b, Å."""
        return float(self.reciprocal_scale) * float(self.reciprocal_lower_bound) ** 0.5

    @property
    def truncates_bases(self) -> bool:
        """Whether the bases are cut at four sigma; only the released CrystalFramer does."""
        return False

    @property
    def kernel_obstacle(self) -> str | None:
        """What this configuration asks for and the Triton kernels do not have; none: they have everything."""
        if self.domain != "real":
            return f"domain={self.domain!r}, the kernels sum in real space"
        if self.head_laws is not None:
            return f"decay={self.decay!r}, the kernels have Gaussian weights"
        if self.image_selection != "radius" or self.truncates_bases:
            return "the kernels have neither boxes of cells nor the truncated bases of the released code"
        return None

    def layer_domain(self, layer: int) -> str:
        """Domain of one block: `"real"`, `"reciprocal"` or `"multihead"`."""
        if "-" not in self.domain:
            return self.domain
        return {"real": "real", "reci": "reciprocal"}[self.domain.split("-")[layer % 2]]
