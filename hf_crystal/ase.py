"""ASE: the models as a calculator, and relaxation of generated crystals with any calculator.

```python
from ase.build import bulk
from hf_crystal.ase import CrystalCalculator, relax

atoms = bulk("NaCl", "rocksalt", a=5.64)
atoms.calc = CrystalCalculator()                       # the embedded model
atoms.calc.get_property("formation_energy", atoms)     # in atoms.calc.units["formation_energy"]
relax(generated_structures, any_ase_calculator)        # energies before and after
```

`hf_crystal.ase` is a module of this package; `import ase` here and everywhere else is the real one.
"""

import contextlib
import copy
import importlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict, cast

import numpy as np

try:
    from ase import Atoms
    from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
except ImportError as error:
    raise ImportError("hf_crystal.ase needs ASE: pip install 'hf_crystal[relax]', which has CHGNet, too") from error

from typing import TYPE_CHECKING

from .crystals.reading import as_record, record_to_structure
from .typing import CrystalLike, Decoded, Device, PropertyModelLike

if TYPE_CHECKING:
    from ase.optimize.optimize import Optimizer

    from .encoders.feature_extraction_crystal import CrystalFeatureExtractor

__all__ = ["CrystalCalculator", "RelaxOptions", "RelaxedCrystal", "load_calculator", "relax"]

_DERIVATIVES = ("forces", "stress")
_PER_ATOM = ("stresses", "energies")
_STEP, _STRAIN = 1e-3, 1e-3  # Å and 1; of the finite differences for models whose frames have no gradient
_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
# what calculators and optimizers raise for a crystal they cannot treat
_CALCULATOR_ERRORS = (ValueError, RuntimeError, KeyError, ArithmeticError, AssertionError)


class CrystalCalculator(Calculator):
    """Properties of `Atoms` as the model predicts them; copies are along the axes of `atoms.pbc`.

    Each target of the model is a property of ASE under the target's own name, in `units[name]`; `embedding` is the
    pooled vector of the encoder. With `energy`, forces (eV/Å) and stress (eV/Å³) are its derivatives: exact ones, or
    central differences in float64 where a model has frames, which are constants for the gradient. One calculator may
    serve several threads; they take turns.

    Args:
        model: see `hf_crystal.loading.load_property_model`.
        energy: target that `atoms.get_potential_energy()` shall give, in eV of the whole cell; a formation energy has
            the same derivatives as the energy. None: asking for energy, forces or stress is an error, because a
            formation energy is no potential energy, and a model trained on relaxed crystals no potential.
        feature_extractor: replaces the model's own.
        device: torch device.
        **kwargs: passed to ASE's `Calculator`.

    Raises:
        ValueError: `energy` is no target of the model, or its unit is neither eV nor eV/atom.
    """

    atoms: Any  # set by `Calculator.calculate`

    def __init__(
        self,
        model: PropertyModelLike | None = None,
        *,
        energy: str | None = None,
        feature_extractor: "CrystalFeatureExtractor | None" = None,
        device: Device | None = None,
        **kwargs: Any,
    ):
        from .loading import load_property_model

        super().__init__(**kwargs)
        self._lock = threading.RLock()
        self.model, self.feature_extractor = load_property_model(model, feature_extractor, device)
        config = self.model.config
        self.units: dict[str, str] = dict(zip(config.target_names, config.target_units, strict=True))
        if energy is not None and self.units.get(energy) not in ("eV", "eV/atom"):
            raise ValueError(
                f"energy={energy!r}; accepted is a target in eV or eV/atom, and the model has "
                + ", ".join(f"{name} ({unit})" for name, unit in self.units.items())
            )
        self.energy_target = energy
        self.implemented_properties = [
            *self.units,
            "embedding",
            *(["energy", "free_energy", *_DERIVATIVES] if energy else []),
        ]

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """A property of `atoms`: value of a target, `embedding (C,)`, `energy` in eV of the cell, `forces`, `stress`.

        Raises:
            PropertyNotImplementedError: the model does not predict it, or stress of what has no volume (`pbc`).
            CrystalInputError: overlapping atoms, and the like.
        """
        if name not in self.implemented_properties:
            reason = (
                "choose the target that stands for it with energy=..." if name in ("energy", "free_energy") else ""
            )
            if name in _DERIVATIVES:
                reason = "choose the target whose derivatives they are with energy=..."
            if name in _PER_ATOM:
                reason = "these models predict properties of whole crystals; use an interatomic potential"
            raise PropertyNotImplementedError(
                f"{name} is not predicted by this {type(self.model).__name__}; it has "
                f"{', '.join(self.implemented_properties)}{f' ({reason})' if reason else ''}"
            )
        with self._lock:  # ASE keeps the last crystal and its results in the calculator
            return super().get_property(name, atoms, allow_calculation)

    def __getstate__(self) -> dict[str, Any]:
        """State for a copy, which gets a lock of its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill `results` with all targets; called by ASE."""
        import torch

        super().calculate(atoms, properties, system_changes)
        batch = self.feature_extractor([self.atoms]).to(self.model.device)
        with torch.no_grad():
            output = self.model(**batch)
        self.results = dict(zip(self.units, output.logits[0].tolist(), strict=True))
        self.results["embedding"] = output.pooler_output[0].float().cpu().numpy()
        if self.energy_target is not None:
            self.results["energy"] = self.results[self.energy_target] * self._scale(batch["atomic_numbers"].shape[1])
            self.results["free_energy"] = self.results["energy"]  # what optimizers call it; there is no smearing
            if set(_DERIVATIVES) & set(properties or ()):
                self._add_derivatives("stress" in (properties or ()))

    def _scale(self, num_atoms: int) -> int:
        """Energy of the cell in units of the target."""
        return num_atoms if self.units[cast(str, self.energy_target)] == "eV/atom" else 1

    def _add_derivatives(self, wants_stress: bool) -> None:
        """Fill in forces, and the stress of what has a volume."""
        if wants_stress and not all(self.atoms.pbc):
            raise PropertyNotImplementedError(f"pbc is {self.atoms.pbc.tolist()}: there is no volume, and no stress")
        extractor = copy.copy(self.feature_extractor)
        extractor.cell_choice = "as_given"  # forces belong to these atoms
        model = self.model
        if getattr(model.config, "frame_method", "none") == "none":
            gradient, virial = self._gradients(model, extractor([self.atoms]).to(model.device))
        else:
            model = copy.deepcopy(model).double()
            extractor.float_dtype = "float64"
            gradient, virial = self._differences(model, extractor([self.atoms]).to(model.device))
        self.results["forces"] = -gradient
        if all(self.atoms.pbc):
            stress = virial / self.atoms.get_volume()
            self.results["stress"] = np.array([stress[i, j] for i, j in _VOIGT])

    def _energies(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """Energy of each crystal of a batch, eV of the cell, `(B,)`."""
        target = list(self.units).index(cast(str, self.energy_target))
        return model(**batch).logits[:, target] * self._scale(batch["atomic_numbers"].shape[1])

    def _gradients(self, model: Any, batch: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of the energy by positions `(N, 3)`, eV/Å, and by strain `(3, 3)`, eV."""
        import torch

        positions, cell = batch["positions"].detach().requires_grad_(), batch["cell"]
        strain = torch.zeros(3, 3, dtype=cell.dtype, device=cell.device, requires_grad=True)
        deformation = torch.eye(3, dtype=cell.dtype, device=cell.device) + 0.5 * (strain + strain.T)
        with torch.enable_grad():
            strained = {**batch, "positions": positions @ deformation, "cell": cell @ deformation}
            found = torch.autograd.grad(self._energies(model, strained)[0], (positions, strain))
        return found[0][0].double().cpu().numpy(), found[1].double().cpu().numpy()

    def _differences(self, model: Any, batch: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """What `_gradients` gives, by central differences, a batch for each atom and one for the strain."""
        import torch

        positions, cell = batch["positions"][0], batch["cell"][0]
        units = torch.eye(3, dtype=cell.dtype, device=cell.device)
        signs = torch.tensor([1.0, -1.0], dtype=cell.dtype, device=cell.device)

        def slopes(positions: "torch.Tensor", cells: "torch.Tensor", step: float) -> "torch.Tensor":
            """Slopes between neighbors of a batch, `(B / 2,)`."""
            rest = {name: value.expand(len(cells), *value.shape[1:]) for name, value in batch.items()}
            with torch.no_grad():
                energies = self._energies(model, {**rest, "positions": positions, "cell": cells})
            return (energies[0::2] - energies[1::2]) / (2 * step)

        moves = (_STEP * units[:, None] * signs[:, None]).reshape(6, 3)
        gradient = []
        for atom in range(len(positions)):
            moved = positions.repeat(6, 1, 1)
            moved[:, atom] += moves
            gradient.append(slopes(moved, cell.expand(6, 3, 3), _STEP))
        strains = torch.stack([0.5 * (units[i][:, None] * units[j] + units[j][:, None] * units[i]) for i, j in _VOIGT])
        deformations = units + (_STRAIN * strains[:, None] * signs[:, None, None]).reshape(12, 3, 3)
        slope = slopes(positions @ deformations, cell @ deformations, _STRAIN)
        virial = np.zeros((3, 3))
        for (i, j), value in zip(_VOIGT, slope.tolist(), strict=True):
            virial[i, j] = virial[j, i] = value
        return torch.stack(gradient).cpu().numpy(), virial


@dataclass(frozen=True)
class RelaxedCrystal:
    """One relaxation.

    Attributes:
        structure: relaxed pymatgen `Structure`; the last one reached where it did not converge; None after an error.
        energy: eV/atom of the relaxed crystal.
        initial_energy: eV/atom of the crystal as given.
        formation_energy: eV/atom against the reference energies; None without them.
        converged: largest force (and stress times volume) below the threshold.
        num_steps: steps of the optimizer.
        max_force: largest force left on an atom, eV/Å.
        volume_change: relative change of the cell's volume.
        error: why there is no result, or None.
    """

    structure: Any = None
    energy: float | None = None
    initial_energy: float | None = None
    formation_energy: float | None = None
    converged: bool = False
    num_steps: int = 0
    max_force: float | None = None
    volume_change: float | None = None
    error: str | None = None


class RelaxOptions(TypedDict, total=False):
    """Options of `relax`."""

    max_force: float
    max_steps: int
    relax_cell: bool
    keep_symmetry: bool
    optimizer: "type[Optimizer] | None"


def relax(
    structures: CrystalLike | Decoded | Iterable[CrystalLike | Decoded],
    calculator: Calculator | Callable[[], Calculator],
    *,
    max_force: float = 0.05,
    max_steps: int = 500,
    relax_cell: bool = True,
    keep_symmetry: bool = False,
    optimizer: "type[Optimizer] | None" = None,
    reference_energies: Mapping[str, float] | None = None,
) -> list[RelaxedCrystal]:
    """Relax crystals and report their energies; a crystal that fails gives its reason and the others are relaxed.

    Args:
        structures: crystals in any form that `CrystalFeatureExtractor` takes, `DecodedCrystal`, or results of the
            pipeline "crystal-generation"; one or a list.
        calculator: ASE calculator with forces (and stress, to relax the cell), or a function that makes one, for
            calculators that must not be shared between crystals.
        max_force: threshold, eV/Å.
        max_steps: steps of the optimizer at most.
        relax_cell: relax the cell too.
        keep_symmetry: keep the space group (`ase.constraints.FixSymmetry`), found within 0.01 Å.
        optimizer: class from `ase.optimize`; FIRE by default.
        reference_energies: symbol → energy of the element, eV/atom, computed with the same calculator.

    Returns:
        One `RelaxedCrystal` per crystal, in order.

    Raises:
        ValueError: a threshold or number of steps that is not positive.
    """
    if max_force <= 0 or max_steps < 1:
        raise ValueError(f"max_force is {max_force}, max_steps {max_steps}; accepted: above 0, at least 1")
    from ase.constraints import FixSymmetry
    from ase.optimize import FIRE

    from .encoders.feature_extraction_crystal import is_many

    items: list[Any] = list(structures) if is_many(structures) else [structures]
    results = []
    for item in items:
        try:
            atoms = _to_atoms(item)
            atoms.calc = calculator if isinstance(calculator, Calculator) else calculator()
            if keep_symmetry:
                atoms.set_constraint(FixSymmetry(atoms))
            relaxed = _relax_one(atoms, max_force, max_steps, relax_cell, optimizer or FIRE)
            results.append(_with_formation_energy(relaxed, atoms, reference_energies))
        except _CALCULATOR_ERRORS as error:
            results.append(RelaxedCrystal(error=f"{type(error).__name__}: {error}"))
    return results


def load_calculator(name: str = "chgnet") -> Calculator:
    """An interatomic potential by name.

    Args:
        name: "chgnet", a universal one whose weights come with its package (extra `relax`), or `module:name` of a
            class or function that gives a calculator without arguments, such as "ase.calculators.emt:EMT".

    Raises:
        ValueError: the name is none, the module has no such name, or what it gives is no calculator.
        ImportError: its package is not installed.
    """
    module, _, attribute = name.partition(":")
    if name == "chgnet":
        try:
            from chgnet.model.dynamics import CHGNetCalculator
        except ImportError as error:
            raise ImportError(
                f"calculator chgnet needs its package ({error}): pip install 'hf_crystal[relax]', or name another one "
                "as module:class"
            ) from error
        with contextlib.redirect_stdout(sys.stderr):  # it prints, and standard output is for results
            return cast(Calculator, CHGNetCalculator(on_isolated_atoms="error"))
    make = getattr(importlib.import_module(module), attribute, None) if module and attribute else None
    made = make() if callable(make) else make
    if not isinstance(made, Calculator):
        raise ValueError(f"calculator is {name!r}; accepted: chgnet, or module:class of an ASE calculator")
    return made


def _to_atoms(item: Any) -> Atoms:
    """Periodic `Atoms` of a crystal in any accepted form, of a generated or a decoded one."""
    if isinstance(item, Mapping) and "structure" in item:
        item = item["structure"]
    elif hasattr(item, "structure") and hasattr(item, "error"):  # DecodedCrystal
        if item.structure is None:
            raise ValueError(f"not decoded: {item.error}")
        item = item.structure
    record = as_record(item)
    return Atoms(numbers=record.atomic_numbers, scaled_positions=record.frac_coords, cell=record.cell, pbc=True)


def _relax_one(atoms: Atoms, max_force: float, max_steps: int, relax_cell: bool, optimizer: Any) -> RelaxedCrystal:
    from ase.filters import FrechetCellFilter

    initial_energy, initial_volume = float(atoms.get_potential_energy()), atoms.get_volume()
    search = optimizer(FrechetCellFilter(atoms) if relax_cell else atoms, logfile=None)
    # the last step can end in a cell that overflows; it is reported as an error, not as a warning
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "logm result may be inaccurate")  # of almost equal cells, to 1e-13
        converged = search.run(fmax=max_force, steps=max_steps)
    energy = float(atoms.get_potential_energy())
    if not np.isfinite([energy, atoms.get_volume(), *atoms.positions.flat]).all():
        raise ArithmeticError(f"the relaxation of {atoms.get_chemical_formula()} diverged")
    return RelaxedCrystal(
        structure=record_to_structure(atoms),
        energy=energy / len(atoms),
        initial_energy=initial_energy / len(atoms),
        converged=bool(converged),
        num_steps=search.get_number_of_steps(),
        max_force=float(np.linalg.norm(atoms.get_forces(), axis=1).max()),
        volume_change=float(atoms.get_volume() / initial_volume - 1.0),
    )


def _with_formation_energy(
    relaxed: RelaxedCrystal, atoms: Atoms, reference_energies: Mapping[str, float] | None
) -> RelaxedCrystal:
    if reference_energies is None:
        return relaxed
    symbols = atoms.get_chemical_symbols()
    missing = sorted(set(symbols) - set(reference_energies))
    if missing:
        raise ValueError(f"reference_energies lacks {', '.join(missing)}")
    reference = sum(reference_energies[symbol] for symbol in symbols) / len(symbols)
    return replace(relaxed, formation_energy=relaxed.energy - reference)  # type: ignore[operator]
