"""Training on energies, forces and stresses: of a potential, or of a model of vectors.

A table has the columns of a crystal (`lattice`, `frac_coords`, `atomic_numbers`) and `energy`, eV of the cell,
`forces`, 3 n numbers in eV/Å, and `stress`, 9 numbers in eV/Å³, ASE's sign; any of them may be unknown.
`scripts/train_forces.py` is its command.
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from transformers import set_seed

from hf_crystal.crystals.elements import CHEMICAL_SYMBOLS
from hf_crystal.encoders.feature_extraction_crystal import CrystalFeatureExtractor
from hf_crystal.evaluation.run_files import MODEL_FOLDER, RECIPE_NAME, RUN_NAME
from hf_crystal.loading import load_property_model
from hf_crystal.training.arguments import CrystalTrainingArguments
from hf_crystal.training.property_data import trained_on
from hf_crystal.training.recipe_files import Recipe, read_section, read_training, without_folders
from hf_crystal.training.run_control import environment_record, open_run
from hf_crystal.training.trainer import CrystalTrainer

__all__ = [
    "ForceCollator",
    "ForceRecipe",
    "fit_element_energies",
    "potential_from",
    "predict_forces",
    "train_forces",
    "vectors_from",
]

# settings of an encoder that a head beside another one must share
_NOT_OF_THE_ENCODER = {
    "target_names",
    "target_units",
    "gap_target",
    "error_head_size",
    "error_head_states",
    "error_head_geometry",
    "error_head_outdated",
    "error_scale_bounds",
    "model_type",
    "architectures",
    "id2label",
    "label2id",
    "trained_elements",
    "trained_pairs",
    "trained_disordered",
    "base_model",
    "dtype",
}
_MIN_HUBER = 0.1  # eV/atom: residuals of calm crystals around the fit; larger ones weigh as an absolute error does


def fit_element_energies(
    atomic_numbers: Sequence[Sequence[int]], energies: Sequence[float], steps: int = 30
) -> dict[str, float]:
    """Energy of an atom of each element such that their sums are nearest to the energies of crystals.

    Least squares with Huber's weights: hot and compressed crystals, eV/atom above the others, would bend the plain
    fit. Elements that only occur together are determined together; the smallest energies are taken.

    Args:
        atomic_numbers: elements of the atoms of each crystal.
        energies: eV/atom, one for each crystal; less the predictions of a model where that is to be completed.
        steps: of reweighting.

    Returns:
        Symbol → eV.

    Raises:
        ValueError: no crystal, not one energy for each, or an energy that is no number.
    """
    targets = np.asarray(energies, dtype=np.float64)
    if len(targets) == 0 or targets.shape != (len(atomic_numbers),) or not np.isfinite(targets).all():
        raise ValueError(f"{len(atomic_numbers)} crystals and energies {targets}: expected one finite energy for each")
    shares = np.stack([np.bincount(numbers, minlength=119) / len(numbers) for numbers in atomic_numbers])
    present = np.flatnonzero(shares.any(axis=0))
    shares = shares[:, present]
    weights = np.ones(len(targets))
    for _ in range(steps):
        root = np.sqrt(weights)
        values = np.linalg.lstsq(shares * root[:, None], targets * root, rcond=None)[0]
        residuals = np.abs(shares @ values - targets)
        weights = np.minimum(1.0, _MIN_HUBER / np.maximum(residuals, 1e-12))
    return {CHEMICAL_SYMBOLS[number]: float(value) for number, value in zip(present, values, strict=True)}


@dataclass
class ForceCollator:
    """Rows of a table → padded batch with labels, NaN where unknown.

    Attributes:
        feature_extractor: reads and pads.
        kind: "potential": `labels (B, 1)` eV/atom, `forces (B, N, 3)`, `stress (B, 3, 3)`; "vectors": forces as
            `labels (B, N, 3)`.
    """

    feature_extractor: CrystalFeatureExtractor = field(default_factory=CrystalFeatureExtractor)
    kind: Literal["potential", "vectors"] = "potential"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad the crystals of the rows and gather what is to be learned.

        Raises:
            ValueError: forces of another number than the atoms', or a stress that is not 3 x 3.
        """
        batch = dict(self.feature_extractor(list(rows), return_tensors="np"))
        dtype, (size, width) = batch["positions"].dtype, batch["atomic_numbers"].shape
        energies, stress = np.full((size, 1), np.nan), np.full((size, 3, 3), np.nan)
        forces = np.full((size, width, 3), np.nan)
        for place, row in enumerate(rows):
            number = int(batch["attention_mask"][place].sum())
            if row.get("energy") is not None:
                energies[place] = row["energy"] / number
            for name, target in (("forces", forces[place, :number]), ("stress", stress[place])):
                if row.get(name) is None:
                    continue
                values = np.asarray(row[name], dtype=np.float64)
                if values.size != target.size:
                    raise ValueError(f"{name} of row {place} are {values.size} numbers; expected {target.size}")
                target[:] = values.reshape(target.shape)
        if self.kind == "vectors":
            batch["labels"] = forces.astype(dtype)
        else:
            labels = {"labels": energies, "forces": forces, "stress": stress}
            batch |= {name: value.astype(dtype) for name, value in labels.items()}
        return {name: torch.from_numpy(value) for name, value in batch.items()}


def _shared_settings(config: Any, config_class: Any) -> dict[str, Any]:
    """Settings of an encoder for a configuration of another head."""
    names = {entry.name for entry in dataclasses.fields(config_class)} - _NOT_OF_THE_ENCODER
    return {name: value for name, value in config.to_dict().items() if name in names}


def potential_from(pretrained: Any, target: str, **settings: Any) -> Any:
    """A potential with the encoder and head of a property model that predicts an energy of the same crystals.

    Args:
        pretrained: see `hf_crystal.loading.load_property_model`; a Crystalformer.
        target: its energy in eV/atom, such as a formation energy; what it lacks to the total energy are energies of
            elements.
        **settings: fields of `CrystalPotentialConfig` that differ.

    Raises:
        ValueError: the model has frames, which have no gradient, or no such target in eV/atom.
    """
    from hf_crystal.encoders.configuration_crystal_potential import CrystalPotentialConfig
    from hf_crystal.encoders.modeling_crystal_potential import CrystalformerForPotentialEnergy

    source, _ = load_property_model(pretrained)
    units = dict(zip(source.config.target_names, source.config.target_units, strict=True))
    if source.config.model_type != "crystalformer" or units.get(target) != "eV/atom":
        raise ValueError(
            f"{pretrained} is a {source.config.model_type} that predicts {units}; a crystalformer with {target!r} in "
            "eV/atom is needed"
        )
    config = CrystalPotentialConfig(**{**_shared_settings(source.config, CrystalPotentialConfig), **settings})
    model = CrystalformerForPotentialEnergy(config)
    model.encoder.load_state_dict(source.encoder.state_dict())
    model.head.copy_targets(source.head, [list(units).index(target)])
    return model


def vectors_from(pretrained: Any, **settings: Any) -> Any:
    """A model of vectors with the encoder of a CrystalFramer and a new head.

    Args:
        pretrained: see `hf_crystal.loading.load_property_model`; a CrystalFramer.
        **settings: fields of `CrystalFramerConfig` that differ.

    Raises:
        ValueError: the model is no CrystalFramer.
    """
    from hf_crystal.encoders.configuration_crystalframer import CrystalFramerConfig
    from hf_crystal.encoders.modeling_atom_vectors import CrystalFramerForAtomVectors

    source, _ = load_property_model(pretrained)
    if source.config.model_type != "crystalframer":
        raise ValueError(
            f"{pretrained} is a {source.config.model_type}; vectors need frames, those of a crystalframer"
        )
    shared = {"target_names": ["forces"], "target_units": ["eV/Å"], **settings}
    model = CrystalFramerForAtomVectors(
        CrystalFramerConfig(**{**_shared_settings(source.config, CrystalFramerConfig), **shared})
    )
    model.encoder.load_state_dict(source.encoder.state_dict())
    return model


@strict
@dataclass(kw_only=True)
class ForceModelArguments:
    """What is trained.

    Attributes:
        kind: "potential": energy with forces and stress as derivatives; "vectors": forces as they are, by frames.
        pretrained: embedded checkpoint, folder or repository: a Crystalformer for a potential, a CrystalFramer for
            vectors.
        energy_target: target of the pretrained model that a potential goes on with.
        energy_weight, force_weight, stress_weight: of the potential's losses, in eV/atom, eV/Å, eV/Å³.
    """

    kind: Literal["potential", "vectors"]
    pretrained: str
    energy_target: str = "formation_energy"
    energy_weight: float = 1.0
    force_weight: float = 1.0
    stress_weight: float = 1.0


@strict
@dataclass(kw_only=True)
class ForceDataArguments:
    """Rows of a table.

    Attributes:
        path: the table.
        split_column, train_split: column with the split of each row, and its value for training.
        max_atoms: larger cells are left out of the training.
        max_force: rows with a larger component of a force, eV/Å, are left out of the training.
    """

    path: str | None = None
    split_column: str = "split"
    train_split: str = "train"
    max_atoms: int = 40
    max_force: float = 50.0


@dataclass(kw_only=True)
class ForceRecipe(Recipe):
    """A complete description of a training on forces: see the sections' classes."""

    SECTIONS = ("description", "cost", "model", "data", "training")

    model: dict[str, Any]
    data: ForceDataArguments
    training: CrystalTrainingArguments

    @classmethod
    def read_sections(cls, model: dict[str, Any], data: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
        """Checked sections by name."""
        checked = dataclasses.asdict(read_section(ForceModelArguments, model, "model"))
        chosen: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "epoch", "save_total_limit": 2}
        return {
            "model": checked,
            "data": read_section(ForceDataArguments, data, "data"),
            "training": read_training(CrystalTrainingArguments, training, **chosen),
        }


def force_rows(data: ForceDataArguments, split: str, *, for_training: bool = False) -> Any:
    """Rows of one split, a `datasets.Dataset`; for training without those that `data` leaves out.

    Raises:
        ValueError: no path, no such split, or no row left.
    """
    from hf_crystal.data import load_crystal_dataset

    if data.path is None:
        raise ValueError("data.path is not set: give the table (--data)")
    splits = load_crystal_dataset(data.path, split_column=data.split_column)
    if split not in splits:
        raise ValueError(f"split {split!r}: the data has splits {', '.join(map(str, splits))}")
    rows = splits[split]
    if for_training:
        largest = np.array([np.abs(forces).max() if forces is not None else 0.0 for forces in rows["forces"]])
        kept = (np.array(rows["num_atoms"]) <= data.max_atoms) & (largest <= data.max_force)
        rows = rows.select(np.flatnonzero(kept))
    if len(rows) == 0:
        raise ValueError(f"split {split!r}: no row with max_atoms={data.max_atoms}, max_force={data.max_force}")
    return rows


def _predicted_energies(model: Any, rows: Any, batch_size: int = 32) -> np.ndarray:
    """Energies `(rows,)` of a potential in evaluation mode, eV/atom."""
    extractor = CrystalFeatureExtractor(max_atomic_number=model.config.num_elements)
    model.eval()
    with torch.no_grad():
        parts = [
            model(**extractor(list(rows.select(range(start, min(start + batch_size, len(rows))))))).logits[:, 0]
            for start in range(0, len(rows), batch_size)
        ]
    return torch.cat(parts).double().numpy()


def build_force_model(section: Mapping[str, Any], rows: Any) -> Any:
    """Model of a recipe, with the energies of elements, or the scale of the forces, of training rows."""
    names = ("energy_weight", "force_weight", "stress_weight")
    if section["kind"] == "potential":
        weights = {name: section[name] for name in names}
        model = potential_from(section["pretrained"], section["energy_target"], **weights)
        known = np.asarray(rows["energy"], dtype=np.float64) / np.asarray(rows["num_atoms"])
        rest = known - _predicted_energies(model, rows)
        has_energy = np.flatnonzero(np.isfinite(rest))
        numbers = rows["atomic_numbers"]
        model.config.element_energies = fit_element_energies([numbers[i] for i in has_energy], rest[has_energy])
    else:
        model = vectors_from(section["pretrained"])
        components = np.concatenate([np.ravel(forces) for forces in rows["forces"] if forces is not None])
        model.set_target_scaling(float(np.sqrt(np.mean(components**2))))
    for name, value in trained_on(rows).items():
        setattr(model.config, name, value)
    return model


def train_forces(
    recipe: ForceRecipe, output_dir: str | Path, *, resume: bool = False, max_hours: float | None = None
) -> dict[str, Any]:
    """Train a potential or a model of vectors and save it.

    Writes `model/`, `recipe.yaml`, `run.json` (seed, commit, versions, cost, training curve) and `checkpoints/`.

    Args:
        recipe: what to do.
        output_dir: folder of the run.
        resume: continue from the last complete checkpoint of that folder.
        max_hours: wall budget; the run then ends with a checkpoint.

    Returns:
        The content of `run.json`.

    Raises:
        ValueError: recipes and data that do not fit, and `resume` without a run.
        FileExistsError: the folder has checkpoints already and `resume` is False.
    """
    output_dir = Path(output_dir)
    checkpoints, checkpoint = open_run(output_dir, without_folders(recipe.to_dict()), resume=resume)
    environment = environment_record()
    set_seed(recipe.training.seed)
    rows = force_rows(recipe.data, recipe.data.train_split, for_training=True)
    model = build_force_model(recipe.model, rows)
    extractor = CrystalFeatureExtractor(max_atomic_number=model.config.num_elements)
    trainer = CrystalTrainer(
        model=model,
        args=dataclasses.replace(recipe.training, output_dir=str(checkpoints), max_hours=max_hours),
        data_collator=ForceCollator(extractor, recipe.model["kind"]),
        train_dataset=rows,
        processing_class=extractor,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(output_dir / MODEL_FOLDER))
    recipe.save(output_dir / RECIPE_NAME)
    curve = [entry for entry in trainer.state.log_history if "loss" in entry]
    record = {
        "recipe": without_folders(recipe.to_dict()),
        "seed": recipe.training.seed,
        **environment,
        "rows": len(rows),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "training_seconds": round(trainer.clock.seconds_used, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "num_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "training_curve": [{name: entry[name] for name in ("step", "epoch", "loss")} for entry in curve],
    }
    (output_dir / RUN_NAME).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return record


def predict_forces(model: Any, rows: Any, max_atoms: int = 256) -> list[dict[str, np.ndarray]]:
    """Predictions for the rows of a table.

    Args:
        model: potential or model of vectors.
        rows: rows, a `datasets.Dataset`.
        max_atoms: padded atoms of a batch at most, unless one crystal is larger.

    Returns:
        For each row `forces (n, 3)`, eV/Å; of a potential also `energy`, eV/atom, and `stress (3, 3)`, eV/Å³.
    """
    from hf_crystal.data import AtomBudgetBatchSampler

    extractor = CrystalFeatureExtractor(max_atomic_number=model.config.num_elements)
    sizes = rows["num_atoms"]
    options = {"output_forces": True} if model.config.model_type == "crystal_potential" else {}
    found: list[dict[str, np.ndarray]] = [{} for _ in sizes]
    model.eval()
    for batch in AtomBudgetBatchSampler(sizes, max(max_atoms, *sizes), shuffle=False):
        with torch.no_grad():
            output = model(**extractor(list(rows.select(batch))), **options)
        vectors = output.forces if options else output.logits
        for place, row in enumerate(batch):
            found[row]["forces"] = vectors[place, : sizes[row]].double().numpy()
            if options:
                found[row]["energy"] = output.logits[place, 0].double().numpy()
                found[row]["stress"] = output.stress[place].double().numpy()
    return found
