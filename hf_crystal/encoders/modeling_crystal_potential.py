"""Potential energy of a crystal with its derivatives, the forces on atoms and the stress.

The energy is Crystalformer's prediction and a sum of energies of elements: total energies of DFT differ by tens of eV
from element to element, which no encoder needs to learn. Forces are -dE/dx, the stress is (dE/d strain) / V, both
exact: Crystalformer's energy is smooth in the positions but for the kinks of its ReLUs and the cut-off of images. A
loss of forces is a second derivative for the weights; the eager attention has one (`ops_periodic_attention`).
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import can_return_tuple

from ..crystals.elements import CHEMICAL_SYMBOLS
from .configuration_crystal_potential import CrystalPotentialConfig
from .heads import known_loss
from .modeling_crystalformer import CrystalformerForPropertyPrediction, CrystalPropertyOutput
from .ops_periodic_geometry import cell_volume

__all__ = ["CrystalPotentialOutput", "CrystalformerForPotentialEnergy"]


@dataclass
class CrystalPotentialOutput(CrystalPropertyOutput):
    """Output of a potential; `logits (B, 1)` is the energy in eV/atom, energies of elements included.

    Args:
        loss, logits, hidden_states, attentions, pooler_output, standard_errors, interval_widths, metal_probability,
            strain: as in [`CrystalPropertyOutput`]; the loss is in eV/atom, eV/Å and eV/Å³ times the weights of the
            config.
        forces (`torch.FloatTensor` of shape `(B, N, 3)`, *optional*): eV/Å, zero for padding.
        stress (`torch.FloatTensor` of shape `(B, 3, 3)`, *optional*): eV/Å³, positive where the crystal would shrink
            (ASE's sign).
    """

    forces: torch.Tensor | None = None
    stress: torch.Tensor | None = None


class CrystalformerForPotentialEnergy(CrystalformerForPropertyPrediction):
    """Crystalformer as an interatomic potential: energy, forces and stress, and a loss of all three."""

    config: CrystalPotentialConfig
    config_class = CrystalPotentialConfig

    @can_return_tuple
    def forward(
        self,
        atomic_numbers: torch.Tensor,
        positions: torch.Tensor,
        cell: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        forces: torch.Tensor | None = None,
        stress: torch.Tensor | None = None,
        output_forces: bool = False,
        occupancies: torch.Tensor | None = None,
        pbc: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CrystalPotentialOutput:
        """Predicts the energy, its derivatives on request, and the loss of the labels that are given.

        Args:
            atomic_numbers, positions, cell, attention_mask, occupancies, pbc: as in [`CrystalformerModel.forward`].
            labels (`torch.FloatTensor` of shape `(B, 1)` or `(B,)`, *optional*): energies, eV/atom.
            forces (`torch.FloatTensor` of shape `(B, N, 3)`, *optional*): eV/Å.
            stress (`torch.FloatTensor` of shape `(B, 3, 3)`, *optional*): eV/Å³. Unknown labels are NaN.
            output_forces (`bool`): return forces and stress too, as happens where labels of either are given. Without
                a loss to differentiate the output is then detached.
            **kwargs: as the parent's.

        Raises:
            ValueError: as the parent, and for an element without an energy in `config.element_energies`.
        """
        kwargs.pop("return_dict", None)
        mask = atomic_numbers.ne(0) if attention_mask is None else attention_mask
        rest = {"attention_mask": mask, "occupancies": occupancies, "pbc": pbc, **kwargs, "return_dict": True}
        if not (output_forces or forces is not None or stress is not None):
            output = super().forward(atomic_numbers, positions, cell, **rest)
            found: dict[str, Any] = {
                **output,
                "logits": self._complete(output.logits, atomic_numbers, mask, occupancies),
            }
        else:
            for_loss = torch.is_grad_enabled() and (forces is not None or stress is not None)
            with torch.enable_grad():
                found = self._with_derivatives(atomic_numbers, positions, cell, rest, for_loss)
        if any(given is not None for given in (labels, forces, stress)):
            found["loss"] = self._potential_loss(found, labels, forces, stress)
        return CrystalPotentialOutput(**found)

    def _with_derivatives(
        self,
        atomic_numbers: torch.Tensor,
        positions: torch.Tensor,
        cell: torch.Tensor,
        rest: dict[str, Any],
        for_loss: bool,
    ) -> dict[str, Any]:
        """Outputs with forces and stress; with a graph of these where a loss follows."""
        mask, occupancies = rest["attention_mask"], rest["occupancies"]
        dtype = torch.promote_types(positions.dtype, torch.float32)
        positions = positions.detach().to(dtype).requires_grad_()
        strain = torch.zeros_like(cell, dtype=dtype, requires_grad=True)
        deformation = torch.eye(3, dtype=dtype, device=cell.device) + 0.5 * (strain + strain.transpose(1, 2))
        output = super().forward(atomic_numbers, positions @ deformation, cell.to(dtype) @ deformation, **rest)
        energies = self._complete(output.logits, atomic_numbers, mask, occupancies)
        size = mask.sum(1) if occupancies is None else (occupancies.sum(-1) * mask).sum(1)
        total = (energies[:, 0] * size).sum()
        gradient, virial = torch.autograd.grad(total, (positions, strain), create_graph=for_loss)
        found = {**output, "logits": energies, "forces": -gradient}
        found["stress"] = virial / cell_volume(cell.to(dtype))[:, None, None]
        if for_loss:
            return found
        return {name: x.detach() if isinstance(x, torch.Tensor) else x for name, x in found.items()}

    def _complete(
        self,
        energies: torch.Tensor,
        atomic_numbers: torch.Tensor,
        mask: torch.Tensor,
        occupancies: torch.Tensor | None,
    ) -> torch.Tensor:
        """Energies `(B, 1)` with those of the elements, eV/atom."""
        known = self.config.element_energies
        if known is None:
            return energies
        values = [known.get(symbol, torch.nan) for symbol in CHEMICAL_SYMBOLS[1:119]]
        table = torch.tensor(values, dtype=energies.dtype, device=energies.device)
        if occupancies is None:
            atoms = torch.where(mask.bool(), table[(atomic_numbers - 1).clamp_min(0)], 0.0)
            mean = atoms.sum(1) / mask.sum(1)
        else:
            shares = occupancies.to(table.dtype) * mask[..., None]
            amounts = shares.sum(1)  # (B, 118)
            mean = torch.where(amounts > 0, table * amounts, 0.0).sum(1) / amounts.sum(1)
        if not torch.isfinite(mean).all():
            crystal = int((~torch.isfinite(mean)).nonzero()[0, 0])
            raise ValueError(
                f"crystal {crystal} of the batch holds an element without an energy in config.element_energies, which "
                f"has {', '.join(sorted(known))}."
            )
        return energies + mean[:, None]

    def _potential_loss(
        self,
        found: dict[str, Any],
        labels: torch.Tensor | None,
        forces: torch.Tensor | None,
        stress: torch.Tensor | None,
    ) -> torch.Tensor:
        config, losses = self.config, []
        energies = None if labels is None else labels.reshape(-1, 1)
        for name, wanted, weight in (
            ("logits", energies, config.energy_weight),
            ("forces", forces, config.force_weight),
            ("stress", stress, config.stress_weight),
        ):
            if wanted is None:
                continue
            predicted = found[name]
            if wanted.shape != predicted.shape:
                raise ValueError(
                    f"{name if name != 'logits' else 'labels'} have shape {tuple(wanted.shape)}; expected "
                    f"{tuple(predicted.shape)}."
                )
            losses.append(float(weight) * known_loss(config.loss_function, predicted, wanted.to(predicted.dtype)))
        return torch.stack(losses).sum()
