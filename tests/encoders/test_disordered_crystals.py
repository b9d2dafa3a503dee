"""Disordered crystals in the encoders: a site counts as much as it is occupied, exactly."""

import numpy as np
import pytest
import torch
from test_invariance import CRYSTALS, MODELS, build_model
from tolerances import CELL_INVARIANCE, INVARIANCE, KERNEL

from hf_crystal import CrystalFeatureExtractor
from hf_crystal.testing import DESCRIPTIONS, Crystal, collate

EXTRACTOR = CrystalFeatureExtractor(float_dtype="float64")
CELL = np.array([[3.6, 0.2, -0.1], [1.4, 4.2, 0.3], [-0.8, 1.1, 3.7]])
FRAC = np.array([[0.03, 0.05, 0.1], [0.5, 0.5, 0.45], [0.2, 0.55, 0.9]])


@pytest.fixture(scope="module", params=list(MODELS))
def named_model(request):
    return request.param, build_model(request.param)


def alloy(**changes):
    return {"cell": CELL, "frac_coords": FRAC, "species": [{"Si": 0.6, "Ge": 0.3}, "O", {"N": 0.5}], **changes}


@torch.no_grad()
def logits(model, crystals, **changes):
    return model(**{**EXTRACTOR(crystals), **changes}).logits[:, 0]


def with_rows(batch, rows, occupancies):
    """The batch of one crystal with the given atoms, repeated where a row occurs twice, and their occupancies."""
    new = {key: value if key == "cell" else value[:, rows] for key, value in batch.items()}
    return {**new, "occupancies": occupancies}


def test_full_occupancy_changes_no_bit(named_model):
    _, model = named_model
    batch = collate(list(CRYSTALS.values()))
    full = torch.nn.functional.one_hot((batch["atomic_numbers"] - 1).clamp_min(0), 118).double()
    full *= batch["attention_mask"][..., None]
    with torch.no_grad():
        assert torch.equal(model(**batch, occupancies=full).logits, model(**batch).logits)


def test_an_ordered_crystal_beside_a_disordered_one_changes_no_more_than_in_any_batch(named_model):
    _, model = named_model
    ordered = alloy(species=["Si", "O", "N"])
    assert "occupancies" not in EXTRACTOR([ordered])
    assert (logits(model, [ordered, alloy()])[0] - logits(model, [ordered])[0]).abs() <= INVARIANCE
    assert (logits(model, [alloy()]) - logits(model, [ordered])).abs() > 1e-4


def test_an_empty_site_vanishes(named_model):
    _, model = named_model
    crystal = EXTRACTOR([alloy(species=["Si", "O", "N"])])
    full = torch.nn.functional.one_hot(crystal["atomic_numbers"] - 1, 118).double()
    full[0, 1] = 0.0
    with torch.no_grad():
        emptied = model(**crystal, occupancies=full).logits[0, 0]
    without = logits(model, [{"cell": CELL, "frac_coords": FRAC[[0, 2]], "species": ["Si", "N"]}])[0]
    assert torch.isfinite(emptied)
    assert (emptied - without).abs() <= KERNEL


def test_two_half_occupied_copies_are_one_full_site(named_model):
    """Read from a file, where copies are merged; and in the attention itself where no frame has to be chosen."""
    name, model = named_model
    ordered = alloy(species=["Si", "O", "N"])
    halves = alloy(species=["Si", {"O": 0.5}, {"O": 0.5}, "N"], frac_coords=FRAC[[0, 1, 1, 2]])
    assert torch.equal(logits(model, [halves]), logits(model, [ordered]))
    if name.startswith("crystalformer"):
        batch = EXTRACTOR([ordered])
        full = torch.nn.functional.one_hot(batch["atomic_numbers"] - 1, 118).double()[:, [0, 1, 1, 2]]
        full[:, 1:3] *= 0.5
        with torch.no_grad():
            split = model(**with_rows(batch, [0, 1, 1, 2], full)).logits[:, 0]
        assert (split - logits(model, [ordered])).abs().max() <= KERNEL


@pytest.mark.parametrize("kind", ["rotation", "translation", "lattice shifts", "unimodular cell", "supercell 2x1x1"])
def test_prediction_does_not_depend_on_the_description(named_model, kind):
    _, model = named_model
    batch = EXTRACTOR([alloy()])
    numbers = batch["atomic_numbers"][0].numpy()
    crystal = Crystal(numbers, batch["positions"][0].numpy(), CELL)
    other = collate([DESCRIPTIONS[kind](crystal, np.random.default_rng(3))])
    repeats = other["atomic_numbers"].shape[1] // len(numbers)
    with torch.no_grad():
        change = model(**other, occupancies=batch["occupancies"].repeat(1, repeats, 1)).logits[:, 0]
    change = (change - logits(model, [alloy()])).abs().max()
    assert change <= (CELL_INVARIANCE if "cell" in kind else INVARIANCE)


@pytest.mark.parametrize("architecture", ["crystalformer", "crystalframer"])
def test_fast_path_is_the_reference_with_gradients(architecture):
    from tiny_models import tiny_model

    batch = EXTRACTOR([alloy(), CRYSTAL_OF_TWO])
    results = []
    model = tiny_model(architecture).double()
    for kernel in ("eager", "reference"):
        model.config.attention_kernel = kernel
        model.zero_grad()
        loss = model(**batch).logits.square().sum()
        loss.backward()
        gradient = torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])
        results.append((loss.detach(), gradient))
    torch.testing.assert_close(*results, rtol=0, atol=KERNEL)


CRYSTAL_OF_TWO = {"cell": 4.0 * np.eye(3), "frac_coords": [[0.0] * 3, [0.5] * 3], "species": [{"Cs": 0.9}, "Cl"]}


def test_a_site_goes_over_from_one_element_to_the_other_without_a_step(named_model):
    _, model = named_model
    pure = logits(model, [alloy(species=["Si", "O", "N"])])
    almost = logits(model, [alloy(species=[{"Si": 1 - 2e-6, "Ge": 2e-6}, "O", "N"])])
    assert (almost - pure).abs().max() < 1e-4
    traces = EXTRACTOR([alloy(species=[{"Si": 0.998, "Ge": 0.002}, "O", "N"])])
    assert traces["occupancies"].shape == (1, 3, 118)
    np.testing.assert_allclose(traces["occupancies"][0, 0, [13, 31]], [0.998, 0.002])


def test_wrong_occupancies_are_named():
    from tiny_models import tiny_model

    batch = EXTRACTOR([alloy(species=[{"Si": 0.6, "Cs": 0.3}, "O", {"N": 0.5}])])
    with pytest.raises(ValueError, match="elements 1 to 40"):
        tiny_model(num_elements=40).double()(**batch)
    good = batch["occupancies"]
    for wrong, reason in ((2 * good, "sum to 1.8"), (good[..., :20], "expected"), (good[:, :2], "expected")):
        with pytest.raises(ValueError, match=reason):
            tiny_model().double()(**{**batch, "occupancies": wrong})


def test_kernels_that_do_not_know_disorder_fall_back():
    from tiny_models import tiny_model
    from transformers.testing_utils import CaptureLogger

    from hf_crystal.encoders import geometry

    model = tiny_model(attention_kernel="triton").double()
    type(geometry.logger).warning_once.cache_clear()
    with CaptureLogger(geometry.logger) as log:
        fallen = logits(model, [alloy()])
    assert "disordered crystals" in log.out
    torch.testing.assert_close(fallen, logits(tiny_model().double(), [alloy()]), rtol=0, atol=KERNEL)


def test_the_primitive_cell_of_a_disordered_crystal():
    extractor = CrystalFeatureExtractor(cell_choice="primitive")
    fcc = [[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]
    record = extractor.read({"cell": 4 * np.eye(3), "frac_coords": fcc, "species": [{"Cu": 0.75, "Au": 0.2}] * 4})
    assert record.num_atoms == 1
    assert record.occupancies[0, [28, 78]].tolist() == [0.75, 0.2]
    layered = [{"Cu": 0.75}, {"Cu": 0.75}, {"Cu": 0.5}, {"Cu": 0.5}]
    assert extractor.read({"cell": 4 * np.eye(3), "frac_coords": fcc, "species": layered}).num_atoms == 2
