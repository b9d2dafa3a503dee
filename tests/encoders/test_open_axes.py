"""Slabs, wires and molecules: copies along the periodic axes only, whatever vacuum they are given in."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc111, graphene, molecule, nanotube
from test_invariance import MODELS, build_model
from tiny_models import NACL, tiny_model
from tolerances import INVARIANCE

from hf_crystal import CrystalFeatureExtractor, CrystalPropertyPipeline, Mat2SeqTokenizer

EXTRACTOR = CrystalFeatureExtractor(float_dtype="float64")
REAL = [name for name in MODELS if not any(part in name for part in ("reci", "multihead", "lattice"))]


@pytest.fixture(scope="module", params=REAL)
def model(request):
    return build_model(request.param)


@torch.no_grad()
def logits(model, *crystals):
    return model(**EXTRACTOR(list(crystals))).logits[:, 0]


def slab(vacuum, pbc=(True, True, False)):
    atoms = fcc111("Al", (1, 1, 3), vacuum=vacuum)
    atoms.pbc = pbc
    return atoms


def water():
    atoms = molecule("H2O")
    atoms.rotate(20, (1, 2, 3))
    return atoms


def test_the_amount_of_vacuum_does_not_matter(model):
    thin, thick, none = slab(7.5), slab(30.0), slab(7.5)
    none.cell[2] = 0.0
    values = logits(model, thin, thick, none)
    assert (values - values[0]).abs().max() <= INVARIANCE
    assert (logits(model, slab(0.5, True)) - values[0]).abs() > 1e-4  # a crystal of touching slabs is another


def test_a_slab_is_a_crystal_of_far_slabs(model):
    """Without the radius rule there is nothing to compare with: the cell alone decides which copies are in reach."""
    far = slab(60.0, True)
    assert (logits(model, far) - logits(model, slab(7.5))).abs() <= INVARIANCE


@pytest.mark.parametrize("make", [lambda: graphene(vacuum=None), lambda: nanotube(5, 0), water])
def test_sheets_tubes_and_molecules_have_values_that_no_description_changes(model, make):
    atoms = make()
    if len(atoms) == 2:
        atoms.pbc = (True, True, False)
    moved = atoms.copy()
    moved.rotate(50, (3, 1, 2), rotate_cell=True)
    moved.translate((1.0, -2.0, 0.5))
    boxed = atoms.copy()
    boxed.center(vacuum=3.0, axis=[axis for axis in range(3) if not atoms.pbc[axis]])
    values = logits(model, atoms, moved, boxed)
    assert torch.isfinite(values).all()
    assert (values - values[0]).abs().max() <= INVARIANCE


def test_a_supercell_in_the_plane_changes_nothing():
    model = build_model("crystalformer real")
    sheet = graphene()
    sheet.pbc = (True, True, False)
    assert (logits(model, sheet * (3, 2, 1)) - logits(model, sheet)).abs() <= INVARIANCE
    large = logits(model, sheet * (9, 8, 1))  # more atoms than all pairs are searched for
    assert (large - logits(model, sheet)).abs() <= INVARIANCE


def test_atoms_of_a_molecule_far_apart_are_alone():
    model = build_model("crystalformer real")
    alone, pair = logits(model, Atoms("He"), Atoms("He2", [[0, 0, 0], [0, 0, 40.0]]))
    assert (alone - pair).abs() <= INVARIANCE


def test_crystals_beside_them_do_not_change():
    model = build_model("crystalformer real")
    batch = EXTRACTOR([NACL, water()])
    assert batch["pbc"].tolist() == [[True] * 3, [False] * 3]
    assert "pbc" not in EXTRACTOR([NACL])
    assert (logits(model, NACL, water())[0] - logits(model, NACL)[0]).abs() <= INVARIANCE


@pytest.mark.parametrize("domain", ["reciprocal", "multihead", "real-reci"])
def test_waves_need_a_cell(domain):
    with pytest.raises(ValueError, match=rf"domain='{domain}', and waves need a cell"):
        logits(
            build_model("crystalformer reciprocal") if domain == "reciprocal" else tiny_model(domain=domain), water()
        )


def test_lattice_frames_need_three_vectors():
    with pytest.raises(ValueError, match="three lattice vectors"):
        logits(build_model("crystalframer lattice"), water())


def test_a_cell_that_brings_copies_into_reach_is_refused():
    batch = EXTRACTOR([NACL])
    with pytest.raises(ValueError, match="looks 8.9.* Å far"):
        tiny_model().double()(**batch, pbc=torch.tensor([[True, True, False]]))


def test_pipeline_says_that_it_extrapolates():
    pipe = CrystalPropertyPipeline(model=tiny_model(), feature_extractor=CrystalFeatureExtractor())
    crystal, sheet, tube, drop = pipe([NACL, graphene(vacuum=8.0), nanotube(5, 0), water()])
    assert crystal["warnings"] == []
    for result, size in ((sheet, 2), (tube, 20), (drop, 3)):
        assert result["num_atoms"] == size and np.isfinite(result["formation_energy"])
        assert "trained on bulk crystals" in " ".join(result["warnings"])
        assert not any("volume per atom" in text for text in result["warnings"])
    waves = CrystalPropertyPipeline(model=tiny_model(domain="reciprocal"), feature_extractor=CrystalFeatureExtractor())
    good, bad = waves([NACL, water()])
    assert "error" not in good and "waves need a cell" in bad["error"]


def test_sequences_are_of_crystals():
    with pytest.raises(ValueError, match=r"pbc is \(False, False, False\)"):
        Mat2SeqTokenizer()(water())
