"""Configuration of CrystalFramer."""

from typing import Literal

from huggingface_hub.dataclasses import strict

from .configuration_crystalformer import CrystalformerConfig

__all__ = ["CrystalFramerConfig", "FrameMethod"]

FrameMethod = Literal["max", "weighted_pca", "max_static", "pca", "lattice", "none"]


@strict
class CrystalFramerConfig(CrystalformerConfig):
    r"""Configuration of [`CrystalFramerModel`] (Ito et al., ICLR 2025, arXiv 2503.02209).

    All fields of [`CrystalformerConfig`], and those of the frames.

    Args:
        frame_method (`str`): `"max"` (dynamic, the paper's best), `"weighted_pca"` (dynamic), `"max_static"`, `"pca"`,
            `"lattice"` (static; cells of more than 512 atoms are taken as primitive), `"none"` (Crystalformer).
        num_angular_basis (`int`): D, functions per axis.
        angular_width_scale (`float`): width of an angular function in units of their spacing.
        radial_gain (`float`): c_dist, factor of the distance part of the value encoding.
        angular_gain (`float`): c_angl, factor of the angle part.
        frame_tie_tolerance (`float`): candidates for a frame axis whose scores differ by less share the choice in
            evaluation, and are drawn at random in training; for static frames squared lengths in Å²,
            for PCA relative gaps of eigenvalues. Ignored with `match_release`.
    """

    model_type = "crystalframer"

    frame_method: FrameMethod = "max"
    num_angular_basis: int = 64
    angular_width_scale: float | int = 4.0
    radial_gain: float | int = 1.0
    angular_gain: float | int = 1.0
    frame_tie_tolerance: float | int = 1e-2

    def validate_architecture(self):
        """Checks that fields fit together; raises `ValueError` naming the field and its value."""
        super().validate_architecture()
        if self.frame_method == "none":
            return
        if self.domain != "real":
            raise ValueError(
                f"domain={self.domain!r}: frames are defined from images in real space; use domain='real' or "
                "frame_method='none'."
            )
        if self.num_radial_basis == 0:
            raise ValueError("num_radial_basis=0: frames extend the value encoding, which needs radial functions.")
        if self.num_angular_basis < 2:
            raise ValueError(f"num_angular_basis={self.num_angular_basis} must be at least 2.")
        if not self.frame_tie_tolerance > 0:
            raise ValueError(f"frame_tie_tolerance={self.frame_tie_tolerance} must be positive.")

    @property
    def truncates_bases(self) -> bool:
        """Whether the bases are cut at four sigma, as the released code does where it has frames."""
        return self.match_release and self.frame_method != "none"

    @property
    def open_axes_obstacle(self) -> str | None:
        """Why this model takes only what repeats along all three axes; none: it takes slabs, wires and molecules."""
        if self.frame_method == "lattice":
            return "frame_method='lattice', and these frames need three lattice vectors"
        return super().open_axes_obstacle

    @property
    def kernel_obstacle(self) -> str | None:
        """What this configuration asks for and the Triton kernels do not have; none: they have everything."""
        if self.frame_method not in ("max", "none"):
            return f"frame_method={self.frame_method!r}, the kernels have 'max' frames"
        return super().kernel_obstacle
