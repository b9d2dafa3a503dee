"""Configuration of a potential energy with forces and stress."""

from huggingface_hub.dataclasses import strict

from ..crystals.elements import CHEMICAL_SYMBOLS
from .configuration_crystalformer import CrystalformerConfig

__all__ = ["CrystalPotentialConfig"]


@strict
class CrystalPotentialConfig(CrystalformerConfig):
    r"""Configuration of [`CrystalformerForPotentialEnergy`].

    All fields of [`CrystalformerConfig`] with one target, `energy` in eV/atom, and:

    Args:
        element_energies (`dict[str, float]`, *optional*): symbol → energy of an atom of the element, eV, that is added
            to what the head predicts (`hf_crystal.training.forces.fit_element_energies`). None: the head predicts all.
        energy_weight (`float`): weight of the loss of energies, eV/atom.
        force_weight (`float`): of the loss of forces, eV/Å.
        stress_weight (`float`): of the loss of stresses, eV/Å³.
    """

    model_type = "crystal_potential"

    element_energies: dict[str, float | int] | None = None
    energy_weight: float | int = 1.0
    force_weight: float | int = 1.0
    stress_weight: float | int = 1.0

    def __post_init__(self, **kwargs):
        if self.target_names is None:
            self.target_names, self.target_units = ["energy"], ["eV/atom"]
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Checks that fields fit together; raises `ValueError` naming the field and its value."""
        super().validate_architecture()
        if self.target_units != ["eV/atom"]:
            raise ValueError(
                f"target_names={self.target_names} in target_units={self.target_units}: a potential has one target, "
                "its energy in eV/atom."
            )
        unknown = sorted(set(self.element_energies or {}) - set(CHEMICAL_SYMBOLS[1:]))
        if unknown:
            raise ValueError(f"element_energies names {unknown}, which are no elements.")
        for name in ("energy_weight", "force_weight", "stress_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative.")
