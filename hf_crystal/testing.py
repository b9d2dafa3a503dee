"""Checks that any crystal encoder must pass: other descriptions of one crystal, and models that can tell them apart.

Shipped, so that a model written elsewhere can be held to the same claims (`scripts/report_invariance.py` prints them
as a table; the test suite asserts them).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

__all__ = ["DESCRIPTIONS", "Crystal", "collate", "make_discriminating"]


@dataclass(frozen=True)
class Crystal:
    """Plain arrays of one crystal.

    Attributes:
        atomic_numbers (`np.ndarray` of shape `(N,)`).
        positions (`np.ndarray` of shape `(N, 3)`): Å.
        cell (`np.ndarray` of shape `(3, 3)`): lattice vectors as rows, Å.
    """

    atomic_numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray


def collate(
    crystals: Sequence[Crystal], dtype: torch.dtype = torch.float64, extra: int = 0
) -> dict[str, torch.Tensor]:
    """Padded batch of crystals, `extra` columns wider than needed."""
    width = max(len(crystal.atomic_numbers) for crystal in crystals) + extra
    numbers = torch.zeros(len(crystals), width, dtype=torch.long)
    positions = torch.zeros(len(crystals), width, 3, dtype=dtype)
    for row, crystal in enumerate(crystals):
        size = len(crystal.atomic_numbers)
        numbers[row, :size] = torch.as_tensor(crystal.atomic_numbers.astype(np.int64))
        positions[row, :size] = torch.as_tensor(crystal.positions, dtype=dtype)
    cell = torch.as_tensor(np.stack([crystal.cell for crystal in crystals]), dtype=dtype)
    return {"atomic_numbers": numbers, "positions": positions, "cell": cell, "attention_mask": numbers.ne(0).long()}


def rotated(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """A random proper rotation of positions and cell."""
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    return replace(crystal, positions=crystal.positions @ rotation.T, cell=crystal.cell @ rotation.T)


def translated(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """All atoms moved by one random vector."""
    return replace(crystal, positions=crystal.positions + rng.uniform(-5, 5, size=3))


def permuted(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """Atoms in another order."""
    order = rng.permutation(len(crystal.atomic_numbers))
    return replace(crystal, atomic_numbers=crystal.atomic_numbers[order], positions=crystal.positions[order])


def shifted_by_lattice(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """Each atom moved by a lattice vector of its own."""
    shifts = rng.integers(-2, 3, size=crystal.positions.shape)
    return replace(crystal, positions=crystal.positions + shifts @ crystal.cell)


def recelled(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """Another basis of the same lattice, by a random unimodular matrix."""
    matrix = np.eye(3, dtype=int)
    for _ in range(3):
        i, j = rng.choice(3, size=2, replace=False)
        step = np.eye(3, dtype=int)
        step[i, j] = rng.choice([-1, 1])
        matrix = step @ matrix
    return replace(crystal, cell=matrix @ crystal.cell)


def supercell(crystal: Crystal, repeats: tuple[int, int, int]) -> Crystal:
    """The crystal repeated along its cell vectors."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in repeats), indexing="ij"), axis=-1).reshape(-1, 3)
    positions = (crystal.positions[None] + (grid @ crystal.cell)[:, None]).reshape(-1, 3)
    numbers = np.tile(crystal.atomic_numbers, len(grid))
    return Crystal(numbers, positions, crystal.cell * np.array(repeats)[:, None])


def mirrored(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """The mirror image, in a random orientation."""
    reflection = np.diag([1.0, 1.0, -1.0])
    return rotated(replace(crystal, positions=crystal.positions @ reflection, cell=crystal.cell @ reflection), rng)


def left_handed(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """Two cell vectors swapped: the same crystal described with axes of the other handedness."""
    del rng
    return replace(crystal, cell=crystal.cell[[1, 0, 2]])


DESCRIPTIONS: dict[str, Callable[[Crystal, np.random.Generator], Crystal]] = {
    "rotation": rotated,
    "translation": translated,
    "permutation": permuted,
    "lattice shifts": shifted_by_lattice,
    "left-handed axes": left_handed,
    "unimodular cell": recelled,
    "supercell 2x1x1": lambda crystal, _: supercell(crystal, (2, 1, 1)),
    "supercell 2x2x2": lambda crystal, _: supercell(crystal, (2, 2, 2)),
    "mirror image": mirrored,
}


@torch.no_grad()
def make_discriminating(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Scales the small T-Fixup initialization up, so that predictions of different crystals differ by order 1.

    Args:
        model: a crystal encoder of this package, or a property model.
        seed: of the biases.
    """
    generator = torch.Generator().manual_seed(seed)
    gains = {"value_": 6.0, "embeddings": 5.0, "mlp": 1.5}
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
        else:
            parameter.mul_(next((gain for part, gain in gains.items() if part in name), 2.0))
    return model
