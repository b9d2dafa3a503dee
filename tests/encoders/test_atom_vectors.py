"""Vectors of atoms turn with the crystal, obey the symmetry of their sites, and are learned and saved."""

import numpy as np
import pytest
import torch
from tolerances import CELL_INVARIANCE, INVARIANCE
from transformers import AutoModelForTokenClassification

from hf_crystal import CrystalFramerConfig, CrystalFramerForAtomVectors
from hf_crystal.hub.files import code_files
from hf_crystal.loading import load_property_model
from hf_crystal.testing import Crystal, collate, make_discriminating, recelled, shifted_by_lattice, supercell

SIZE = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}
SIZE |= {"head_hidden_size": 16, "num_angular_basis": 16, "angular_width_scale": 2.0}
SIZE |= {"target_names": ["forces"], "target_units": ["eV/Å"]}
METHODS = ["max", "weighted_pca", "max_static", "pca", "lattice"]
RNG = np.random.default_rng(0)


def wurtzite() -> Crystal:
    """ZnO: sites with a threefold axis and mirrors, no inversion."""
    cell = np.array([[3.25, 0, 0], [-1.625, 1.625 * 3**0.5, 0], [0, 0, 5.2]])
    sites = [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, 0.3819], [2 / 3, 1 / 3, 0.8819]]
    return Crystal(np.array([30, 30, 8, 8]), np.array(sites) @ cell, cell)


def selenium() -> Crystal:
    """Trigonal Se (P3_1 21): a chiral crystal, each site on one twofold axis."""
    cell = np.array([[4.366, 0, 0], [-2.183, 2.183 * 3**0.5, 0], [0, 0, 4.954]])
    sites = [[0.2254, 0, 1 / 3], [0, 0.2254, 2 / 3], [-0.2254, -0.2254, 0]]
    return Crystal(np.array([34] * 3), np.array(sites) @ cell, cell)


def lead_titanate() -> Crystal:
    """Tetragonal PbTiO3: sites of symmetry 4mm and, of two oxygens, 2mm."""
    cell = np.diag([3.9, 3.9, 4.15])
    sites = [[0, 0, 0], [0.5, 0.5, 0.54], [0.5, 0.5, 0.11], [0.5, 0, 0.62], [0, 0.5, 0.62]]
    return Crystal(np.array([82, 22, 8, 8, 8]), np.array(sites) @ cell, cell)


def rocksalt() -> Crystal:
    """NaCl: every site an inversion center."""
    return Crystal(np.array([11, 17]), 2.82 * np.array([[0, 0, 0], [1.0, 1, 1]]), 2.82 * (1 - np.eye(3)))


def low_symmetry() -> Crystal:
    """Three atoms and no symmetry."""
    positions = np.array([[0.1, 0.2, 0.3], [1.9, -0.7, 2.2], [2.0, 2.1, 0.4]])
    return Crystal(np.array([14, 8, 7]), positions, np.array([[3.6, 0.2, -0.1], [1.4, 4.2, 0.3], [-0.8, 1.1, 3.7]]))


CRYSTALS = {make.__name__: make() for make in (wurtzite, selenium, lead_titanate, rocksalt, low_symmetry)}


def build_model(**changes) -> CrystalFramerForAtomVectors:
    torch.manual_seed(0)
    model = CrystalFramerForAtomVectors(CrystalFramerConfig(**{**SIZE, **changes})).double()
    with torch.no_grad():
        make_discriminating(model)
    model.calibrate(collate(list(CRYSTALS.values())))
    return model.eval()


@pytest.fixture(scope="module", params=METHODS)
def model(request):
    return build_model(frame_method=request.param)


@torch.no_grad()
def vectors_of(model, *crystals: Crystal) -> list[np.ndarray]:
    """Vectors `(N, 3)` of each crystal, by one batch."""
    vectors = model(**collate(crystals)).logits.numpy()
    return [own[: len(crystal.atomic_numbers)] for own, crystal in zip(vectors, crystals, strict=True)]


def assert_equal(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float = INVARIANCE) -> None:
    for own, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, other, atol=tolerance)


def turned(crystal: Crystal, matrix: np.ndarray) -> Crystal:
    return Crystal(crystal.atomic_numbers, crystal.positions @ matrix.T, crystal.cell @ matrix.T)


def test_vectors_turn_with_the_crystal(model):
    expected = vectors_of(model, *CRYSTALS.values())
    assert (
        min(np.abs(vectors).max() for name, vectors in zip(CRYSTALS, expected, strict=True) if name != "rocksalt")
        > 1e-3
    )
    for sign in (1.0, -1.0):  # rotation, reflection
        matrix = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
        matrix *= sign * np.sign(np.linalg.det(matrix))
        found = vectors_of(model, *(turned(crystal, matrix) for crystal in CRYSTALS.values()))
        assert_equal(found, [vectors @ matrix.T for vectors in expected])


def test_vectors_belong_to_atoms_whatever_their_order_and_cell(model):
    expected = vectors_of(model, *CRYSTALS.values())
    orders = [RNG.permutation(len(vectors)) for vectors in expected]
    others = [
        Crystal(crystal.atomic_numbers[order], crystal.positions[order] + [0.3, -4.0, 1.0], crystal.cell)
        for crystal, order in zip(CRYSTALS.values(), orders, strict=True)
    ]
    wanted = [vectors[order] for vectors, order in zip(expected, orders, strict=True)]
    assert_equal(vectors_of(model, *others), wanted)
    for change in (shifted_by_lattice, recelled):
        assert_equal(vectors_of(model, *(change(crystal, RNG) for crystal in CRYSTALS.values())), expected)
    larger = vectors_of(model, *(supercell(crystal, (2, 1, 1)) for crystal in CRYSTALS.values()))
    assert_equal(larger, [np.tile(vectors, (2, 1)) for vectors in expected], CELL_INVARIANCE)


def test_vectors_obey_every_operation_of_the_space_group(model):
    """v of the atom that an operation {R|t} maps atom i to is R v_i; for operations that fix i: the site symmetry."""
    moyopy = pytest.importorskip("moyopy")
    symmetric = {name: crystal for name, crystal in CRYSTALS.items() if name != "low_symmetry"}
    for (name, crystal), vectors in zip(symmetric.items(), vectors_of(model, *symmetric.values()), strict=True):
        inverse = np.linalg.inv(crystal.cell)
        fractional = crystal.positions @ inverse
        found = moyopy.MoyoDataset(
            moyopy.Cell(crystal.cell.tolist(), fractional.tolist(), crystal.atomic_numbers.tolist()), symprec=1e-4
        ).operations
        assert len(found.rotations) >= 6
        for rotation, translation in zip(found.rotations, found.translations, strict=True):
            moved = fractional @ np.array(rotation).T + translation
            difference = moved[:, None] - fractional
            target = np.abs(difference - np.round(difference)).max(-1).argmin(1)
            matrix = crystal.cell.T @ np.array(rotation) @ inverse.T  # the same operation on Cartesian vectors
            np.testing.assert_allclose(vectors[target], vectors @ matrix.T, atol=INVARIANCE)
        if name == "rocksalt":
            np.testing.assert_allclose(vectors, 0, atol=INVARIANCE)


def test_a_tie_with_the_opposite_frame_leaves_a_vector():
    """The nearest image is one of the atom itself: frames tie in pairs, and coefficients of the atom alone cancel."""
    cell = np.diag([2.4, 6.0, 6.0])
    crystal = Crystal(np.array([14, 8]), np.array([[0, 0, 0], [0.7, 2.9, 0.4]]), cell)
    vectors = vectors_of(build_model(frame_method="max_static"), crystal)[0]
    assert np.abs(vectors[:, 0]).min() > 1e-4


def test_padding_and_neighbors_in_the_batch_change_nothing():
    model = build_model()
    with torch.no_grad():
        batch = model(**collate(list(CRYSTALS.values()), extra=2)).logits
    for row, crystal in enumerate(CRYSTALS.values()):
        size = len(crystal.atomic_numbers)
        np.testing.assert_allclose(batch[row, :size], vectors_of(model, crystal)[0], atol=INVARIANCE)
        assert not batch[row, size:].any()


def test_loss_is_the_mean_over_known_components_in_units_of_their_spread():
    model = build_model(loss_function="mse")
    model.set_target_scaling(2.0)
    batch = collate([CRYSTALS["lead_titanate"], CRYSTALS["selenium"]])
    labels = torch.randn(2, 5, 3, dtype=torch.float64)
    labels[0, 0, 1] = torch.nan
    output = model(**batch, labels=labels)
    known = torch.isfinite(labels) & batch["attention_mask"].bool()[..., None]
    assert output.loss.item() == pytest.approx(((output.logits - labels)[known] / 2).square().mean().item())
    with pytest.raises(ValueError, match=r"labels have shape \(2, 5\); expected \(2, 5, 3\)"):
        model(**batch, labels=labels[..., 0])


def test_training_draws_frames_and_hands_whose_mean_is_the_evaluation():
    model = build_model()
    with torch.no_grad():
        for layer in model.encoder.layers:  # states without angles: what is drawn enters the vectors linearly
            layer.attention.value_angular.zero_()
        batch = collate([CRYSTALS["wurtzite"]])
        expected = model(**batch).logits[0]
        model.train()
        torch.manual_seed(0)
        drawn = model(**{name: value.expand(200, *value.shape[1:]) for name, value in batch.items()}).logits
    spread, error = drawn.std(0), (drawn.mean(0) - expected).abs()
    assert spread[:, :2].min() > 1e-3
    assert (error < 5 * spread / 200**0.5 + INVARIANCE).all()
    assert expected[:, 2].abs().min() > 1e-2


def test_gradients_are_those_of_the_loss():
    model = build_model(frame_method="max_static", loss_function="mse")
    batch = collate([CRYSTALS["low_symmetry"]])
    labels = torch.randn(1, 3, 3, dtype=torch.float64)
    model(**batch, labels=labels).loss.backward()
    for parameter in (model.head.value_angular, model.head.out_proj.weight, model.encoder.layers[1].mlp.fc1.weight):
        place = int(parameter.grad.abs().flatten().argmax())
        values = parameter.data.view(-1)
        losses = []
        for step in (1e-5, -1e-5):
            kept = values[place].item()
            values[place] = kept + step
            losses.append(model(**batch, labels=labels).loss.item())
            values[place] = kept
        assert parameter.grad.flatten()[place].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5)


def test_a_saved_model_is_the_same_and_carries_its_code(tmp_path):
    model = build_model()
    model.set_target_scaling(1.7)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(loaded) is CrystalFramerForAtomVectors
    assert_equal(vectors_of(loaded, *CRYSTALS.values()), vectors_of(model, *CRYSTALS.values()))
    assert set(code_files(CrystalFramerForAtomVectors)) <= {path.name for path in tmp_path.glob("*.py")}
    entry = loaded.config.auto_map["AutoModelForTokenClassification"]
    assert entry.endswith("modeling_atom_vectors.CrystalFramerForAtomVectors")
    with pytest.raises(ValueError, match="holds a model of type 'CrystalFramerForAtomVectors'; accepted are"):
        load_property_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_method": "none"}, "frame_method='none'"),
        ({"match_release": True}, "match_release=True"),
        ({"attention_kernel": "triton"}, "attention_kernel='triton'"),
        ({"target_names": ["a", "b"], "target_units": ["", ""]}, r"target_names=\['a', 'b'\]"),
    ],
)
def test_what_has_no_equivariant_frames_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CrystalFramerForAtomVectors(CrystalFramerConfig(**{**SIZE, **changes}))


def test_a_scale_must_be_positive():
    with pytest.raises(ValueError, match="std=0"):
        build_model().set_target_scaling(0)
