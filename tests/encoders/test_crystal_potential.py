"""Energies with those of the elements, their derivatives, and a loss of the derivatives that trains weights."""

import numpy as np
import pytest
import torch
import transformers
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from huggingface_hub.errors import StrictDataclassError
from tiny_models import IRON, NACL, SRTIO3

from hf_crystal import CrystalFeatureExtractor, CrystalformerForPotentialEnergy, CrystalPotentialConfig
from hf_crystal.ase import CrystalCalculator
from hf_crystal.crystals.reading import record_to_structure
from hf_crystal.loading import load_property_model
from hf_crystal.testing import make_discriminating

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SIZE |= {"num_radial_basis": 8, "head_hidden_size": 16, "cutoff_sigmas": 6.5}
ELEMENTS = {"Na": -1.0, "Cl": -2.0, "Sr": -3.0, "Ti": -7.0, "O": -4.0, "Fe": -8.0}


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    found = dict(CrystalFeatureExtractor(float_dtype="float64")([NACL, SRTIO3, IRON]))
    found["positions"] = found["positions"] + 0.1 * torch.randn_like(found["positions"])
    return found


def build_model(batch, **changes) -> CrystalformerForPotentialEnergy:
    torch.manual_seed(0)
    model = CrystalformerForPotentialEnergy(
        CrystalPotentialConfig(**{**SIZE, "element_energies": ELEMENTS, **changes})
    )
    with torch.no_grad():
        make_discriminating(model.double())
    model.calibrate(batch)
    return model.eval()


def labels_of(batch) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = {"labels": (3, 1), "forces": batch["positions"].shape, "stress": (3, 3, 3)}
    labels = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    labels["forces"][~batch["attention_mask"].bool()] = torch.nan
    labels["labels"][1] = labels["stress"][2, 0, 1] = torch.nan
    return labels


@pytest.mark.parametrize("changes", [{}, {"domain": "multihead"}, {"attention_kernel": "reference"}], ids=str)
def test_forces_and_stress_are_derivatives_of_the_energy(batch, changes):
    """Those of the model, of the calculator, and differences of energies."""
    model = build_model(batch, **changes)
    with torch.no_grad():
        output = model(**batch, output_forces=True)
        assert torch.equal(output.logits, model(**batch).logits)
    assert not output.forces.requires_grad and not output.logits.requires_grad
    assert not output.forces[0, 2:].any()
    atoms = record_to_structure(SRTIO3).to_ase_atoms()
    atoms.positions = batch["positions"][1].numpy()
    extractor = CrystalFeatureExtractor(float_dtype="float64")
    atoms.calc = CrystalCalculator(model, energy="energy", feature_extractor=extractor)
    assert atoms.get_potential_energy() == pytest.approx(5 * output.logits[1, 0].item(), abs=1e-9)
    forces, stress = output.forces[1].numpy(), output.stress[1].numpy()
    assert np.abs(forces).max() > 1e-2 and np.abs(stress).max() > 1e-3
    np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-9)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), stress, atol=1e-9)
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, eps=1e-4), atol=1e-5)
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=1e-5, voigt=False), atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"domain": "multihead"}, {"image_selection": "cells"}], ids=str)
def test_gradients_of_a_loss_of_forces_are_differences_of_that_loss(batch, changes):
    model, labels = build_model(batch, loss_function="mse", **changes).train(), labels_of(batch)
    model(**batch, **labels).loss.backward()
    for name, parameter in model.named_parameters():
        if name.endswith("k_proj.bias"):  # the same for all keys: the softmax does not see it
            continue
        place, values = int(parameter.grad.abs().flatten().argmax()), parameter.data.view(-1)
        kept, losses = values[place].item(), []
        for step in (1e-6, -1e-6):
            values[place] = kept + step
            losses.append(model(**batch, **labels).loss.item())
        values[place] = kept
        gradient = parameter.grad.flatten()[place].item()
        assert gradient == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4, abs=1e-6), name


def test_the_second_derivative_of_the_eager_attention_is_that_of_the_reference(batch):
    model, labels = build_model(batch).train(), labels_of(batch)
    found = []
    for kernel in ("eager", "reference"):
        model.config.attention_kernel = kernel
        model.zero_grad()
        model(**batch, **labels).loss.backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for eager, reference in zip(*found, strict=True):
        torch.testing.assert_close(eager, reference, rtol=1e-9, atol=1e-9)


def test_the_loss_counts_known_labels_with_the_weights_of_the_config(batch):
    weights = {"energy_weight": 2.0, "force_weight": 0.5, "stress_weight": 3.0}
    model, labels = build_model(batch, **weights), labels_of(batch)
    output = model(**batch, **labels)
    parts = [(output.logits, "labels", 2.0), (output.forces, "forces", 0.5), (output.stress, "stress", 3.0)]
    expected = sum(weight * (values - labels[name]).abs().nanmean().item() for values, name, weight in parts)
    assert output.loss.item() == pytest.approx(expected)
    with torch.no_grad():  # as Trainer evaluates
        assert model(**batch, **labels).loss.item() == pytest.approx(expected)
        alone = model(**batch, labels=labels["labels"])
    assert alone.forces is None
    assert alone.loss.item() == pytest.approx(2.0 * (output.logits - labels["labels"]).abs().nanmean().item())
    with pytest.raises(ValueError, match=r"forces have shape \(3, 5\); expected \(3, 5, 3\)"):
        model(**batch, forces=labels["forces"][..., 0])


def test_energies_of_elements_are_added_and_missing_ones_named(batch):
    model = build_model(batch)
    complete = model(**batch).logits[:, 0]
    model.config.element_energies = None
    means = torch.tensor([-1.5, (-3 - 7 - 12) / 5, -8.0], dtype=torch.float64)
    torch.testing.assert_close(complete, model(**batch).logits[:, 0] + means)
    model.config.element_energies = {"Na": -1.0, "Cl": -2.0, "Fe": -8.0}
    with pytest.raises(ValueError, match="crystal 1 of the batch holds an element without an energy"):
        model(**batch)
    with pytest.raises(StrictDataclassError, match="element_energies names .*Xx"):
        CrystalPotentialConfig(**SIZE, element_energies={"Xx": 1.0})
    with pytest.raises(StrictDataclassError, match="one target, its energy in eV/atom"):
        CrystalPotentialConfig(**SIZE, target_names=["a"], target_units=["eV"])


def test_a_site_of_two_halves_of_an_element_is_that_element(batch):
    model = build_model(batch)
    occupancies = torch.zeros(3, 5, 118, dtype=torch.float64)
    occupancies.scatter_(2, (batch["atomic_numbers"] - 1).clamp_min(0)[..., None], 1.0)
    occupancies *= batch["attention_mask"][..., None]
    whole, mixed = (model(**batch, occupancies=given, output_forces=True) for given in (None, occupancies))
    torch.testing.assert_close(mixed.logits, whole.logits)
    torch.testing.assert_close(mixed.forces, whole.forces)


def test_a_saved_potential_is_complete_by_every_way_of_loading(batch, tmp_path):
    model = build_model(batch)
    model.save_pretrained(tmp_path)
    CrystalFeatureExtractor().save_pretrained(tmp_path)
    loaded = [load_property_model(tmp_path)[0]]
    loaded += [
        auto_class.from_pretrained(tmp_path)
        for auto_class in (transformers.AutoModel, transformers.AutoModelForSequenceClassification)
    ]
    with torch.no_grad():
        expected = model(**batch, output_forces=True)
        for other in loaded:
            assert type(other) is CrystalformerForPotentialEnergy
            found = other.double().eval()(**batch, output_forces=True)
            torch.testing.assert_close(found.logits, expected.logits)
            torch.testing.assert_close(found.forces, expected.forces, rtol=1e-6, atol=1e-9)
    (row,) = transformers.pipeline("crystal-property-prediction", model=str(tmp_path))([NACL])
    assert row["energy"] == pytest.approx(model(**dict(CrystalFeatureExtractor()([NACL]))).logits.item(), abs=1e-4)
