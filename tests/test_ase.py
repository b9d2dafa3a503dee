"""The models as ASE calculators, and relaxation with calculators of ASE."""

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from tiny_models import NACL, OVERLAPPING, save_tiny_model, tiny_model

from hf_crystal import CrystalFeatureExtractor
from hf_crystal.ase import CrystalCalculator, load_calculator, relax
from hf_crystal.evaluation.results import find_space_group
from hf_crystal.loading import load_property_model
from hf_crystal.pipelines.pipeline_crystal_property import CrystalPropertyPipeline
from hf_crystal.testing import make_discriminating


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def salt(model) -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.6406)
    atoms.calc = CrystalCalculator(model)
    return atoms


def test_values_are_those_of_the_pipeline(salt, tmp_path):
    model, extractor = load_property_model(save_tiny_model(tmp_path))
    expected = CrystalPropertyPipeline(model=model, feature_extractor=extractor)(salt, return_embedding=True)
    for name in ("formation_energy", "band_gap"):
        assert salt.calc.get_property(name, salt) == pytest.approx(expected[name], abs=1e-5)
    assert salt.calc.get_property("embedding") == pytest.approx(np.array(expected["embedding"]), abs=1e-5)
    assert salt.calc.units == {"formation_energy": "eV/atom", "band_gap": "eV"}


def test_a_moved_atom_is_computed_anew(salt):
    before = salt.calc.get_property("formation_energy", salt)
    salt.positions[0] += [0.3, 0.0, 0.0]
    assert salt.calc.get_property("formation_energy", salt) != before


def test_energy_is_that_of_the_whole_cell_and_only_on_request(salt, model):
    with pytest.raises(PropertyNotImplementedError, match="energy is not predicted .*choose the target that stands"):
        salt.get_potential_energy()
    per_atom = salt.calc.get_property("formation_energy", salt)
    salt.calc = CrystalCalculator(model, energy="formation_energy")
    assert salt.get_potential_energy() == pytest.approx(2 * per_atom)
    salt.calc = CrystalCalculator(model, energy="band_gap")
    assert salt.get_potential_energy() == pytest.approx(salt.calc.results["band_gap"])
    with pytest.raises(
        ValueError, match=r"energy='volume'; accepted .* formation_energy \(eV/atom\), band_gap \(eV\)"
    ):
        CrystalCalculator(model, energy="volume")


@pytest.mark.parametrize("method", ["get_forces", "get_stress", "get_stresses"])
def test_forces_and_stress_need_a_target_that_is_the_energy(salt, method):
    reason = "use an interatomic potential" if method == "get_stresses" else "choose the target whose derivatives"
    with pytest.raises(PropertyNotImplementedError, match=reason):
        getattr(salt, method)()


@pytest.mark.parametrize(
    ("architecture", "changes", "step"),
    [
        ("crystalformer", {}, 1e-4),
        ("crystalformer", {"domain": "multihead"}, 1e-4),
        ("crystalformer", {"image_selection": "cells"}, 1e-4),
        ("crystalframer", {"frame_method": "none"}, 1e-4),
        # differences themselves, of one step: another would show how the energy curves where frames turn
        ("crystalframer", {"frame_method": "max_static"}, 1e-3),
    ],
)
def test_forces_and_stress_are_derivatives_of_the_energy(architecture, changes, step):
    """The cut-off is wide: with a narrow one the energy has steps of its own, of a millionth."""
    from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress

    model = make_discriminating(tiny_model(architecture, cutoff_sigmas=6.5, **changes).double())
    extractor = CrystalFeatureExtractor(float_dtype="float64")
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.rattle(0.2, seed=1)
    atoms.set_cell(atoms.cell[:] @ (np.eye(3) + 0.05 * np.random.default_rng(0).normal(size=(3, 3))), scale_atoms=True)
    atoms.calc = CrystalCalculator(model, energy="formation_energy", feature_extractor=extractor)
    forces, stress = atoms.get_forces(), atoms.get_stress()
    assert np.abs(forces).max() > 1e-2 and np.abs(stress).max() > 1e-3
    np.testing.assert_allclose(forces, calculate_numerical_forces(atoms, eps=step), atol=1e-5)
    np.testing.assert_allclose(forces.sum(axis=0), 0, atol=1e-8)
    np.testing.assert_allclose(stress, calculate_numerical_stress(atoms, eps=step / 10), atol=step / 10)


def test_a_molecule_has_forces_and_no_stress(model):
    atoms = Atoms("CO", [[0, 0, 0], [0, 0, 1.1]], calculator=CrystalCalculator(model, energy="formation_energy"))
    forces = atoms.get_forces()
    assert np.abs(forces[:, :2]).max() < 1e-5 and abs(forces[0, 2] + forces[1, 2]) < 1e-5
    with pytest.raises(PropertyNotImplementedError, match="no stress"):
        atoms.get_stress()


def test_optimizers_lower_the_energy(model):
    from ase.optimize import BFGS

    atoms = bulk("NaCl", "rocksalt", a=5.64)
    atoms.rattle(0.2, seed=1)
    atoms.calc = CrystalCalculator(model, energy="formation_energy")
    before = atoms.get_potential_energy()
    BFGS(atoms, logfile=None).run(fmax=1e-3, steps=5)
    assert atoms.get_potential_energy() < before


def test_a_molecule_has_values_that_no_box_changes(model):
    atoms = Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]], calculator=CrystalCalculator(model))
    alone = atoms.calc.get_property("band_gap", atoms)
    atoms.center(vacuum=2.0)
    assert atoms.calc.get_property("band_gap", atoms) == pytest.approx(alone, abs=1e-5)
    atoms.pbc = True
    assert atoms.calc.get_property("band_gap", atoms) != pytest.approx(alone, abs=1e-5)


def test_any_name_of_a_model_is_taken_and_other_objects_refused(model, tmp_path):
    folder = save_tiny_model(tmp_path)
    loaded, extractor = load_property_model(folder)
    pipe = CrystalPropertyPipeline(model=loaded, feature_extractor=extractor)
    for given in (folder, str(folder), model, pipe):
        loaded, extractor = load_property_model(given)
        assert loaded.config.target_names == ["formation_energy", "band_gap"]
        assert extractor.max_atomic_number == 118
        assert not loaded.training
    with pytest.raises(TypeError, match="model is a Atoms; a crystal model with a property head"):
        load_property_model(Atoms())


def test_relaxation_lowers_the_energy_to_that_of_the_perfect_crystal():
    shaken = bulk("Cu", "fcc", a=3.7, cubic=True)
    shaken.rattle(0.1, seed=0)
    result = relax(shaken, EMT(), max_force=0.01)[0]
    perfect = relax(bulk("Cu", "fcc", a=3.6), EMT(), max_force=0.01)[0]
    assert result.converged
    assert result.error is None
    assert result.energy < result.initial_energy
    assert result.energy == pytest.approx(perfect.energy, abs=1e-3)
    assert result.max_force < 0.01
    assert result.structure.volume / 4 == pytest.approx(perfect.structure.volume, rel=5e-3)
    assert result.volume_change == pytest.approx(result.structure.volume / shaken.get_volume() - 1)


def test_formation_energy_against_elements():
    alloy = bulk("Cu", "fcc", a=3.9, cubic=True)
    alloy.symbols[0] = "Au"
    elements = {symbol: relax(bulk(symbol), EMT())[0].energy for symbol in ("Cu", "Au")}
    result = relax(alloy, EMT(), reference_energies=elements)[0]
    assert result.formation_energy == pytest.approx(result.energy - 0.75 * elements["Cu"] - 0.25 * elements["Au"])
    assert "lacks Au" in relax(alloy, EMT(), reference_energies={"Cu": 0.0})[0].error


def test_fixed_cell_keeps_its_volume_and_a_function_may_make_the_calculator():
    shaken = bulk("Ar", "fcc", a=5.3, cubic=True)
    shaken.rattle(0.1, seed=1)
    made = []

    def make() -> LennardJones:
        made.append(LennardJones(sigma=3.4, epsilon=0.0104, rc=8.0, smooth=True))
        return made[-1]

    results = relax([shaken, shaken], make, relax_cell=False, max_force=1e-3)
    assert [result.volume_change for result in results] == pytest.approx([0.0, 0.0])
    assert results[0].energy == results[1].energy < results[0].initial_energy
    assert len(made) == 2


def test_a_crystal_that_fails_gives_its_reason_and_the_others_go_on(tmp_path):
    generated = {"structure": NACL, "cif": "", "formula": "NaCl"}
    results = relax([OVERLAPPING, generated, bulk("Al"), "no/such.cif"], EMT())
    assert "overlapping atoms" in results[0].error
    assert results[1].error.startswith("NotImplementedError: No EMT-potential for ")
    assert results[2].converged
    assert "no/such.cif" in results[3].error
    assert [result.structure is None for result in results] == [True, True, False, True]


def test_a_relaxation_can_keep_the_space_group():
    nearly_cubic = Atoms("Cu2", scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=[2.9, 2.9, 2.905], pbc=True)
    free, kept = (relax(nearly_cubic, EMT(), keep_symmetry=keep, max_force=0.005)[0] for keep in (False, True))
    assert free.converged and kept.converged
    assert [find_space_group(result.structure, 1e-4) for result in (free, kept)] == [139, 229]
    assert kept.energy < kept.initial_energy


def test_calculators_by_name():
    assert isinstance(load_calculator("ase.calculators.emt:EMT"), EMT)
    for name in ("emt", "ase.calculators.emt:Nothing", "ase:__version__"):
        with pytest.raises(ValueError, match=rf"calculator is '{name}'; accepted: chgnet, or module:class"):
            load_calculator(name)


def test_an_unfinished_relaxation_says_so():
    shaken = bulk("Cu", "fcc", a=3.7, cubic=True)
    shaken.rattle(0.1, seed=0)
    result = relax(shaken, EMT(), max_steps=2)[0]
    assert not result.converged
    assert result.num_steps == 2
    with pytest.raises(ValueError, match="max_steps 0"):
        relax(shaken, EMT(), max_steps=0)


def test_the_module_does_not_hide_the_real_ase():
    code = (
        "import hf_crystal.ase, ase; print(ase.Atoms is hf_crystal.ase.Atoms, ase.__file__ != hf_crystal.ase.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_threads_that_share_a_calculator_get_their_own_values(model):
    crystals = [bulk("NaCl", "rocksalt", a=5.0 + 0.1 * number) for number in range(8)]
    expected = [CrystalCalculator(model).get_property("band_gap", atoms) for atoms in crystals]
    assert len(set(expected)) == len(crystals)
    shared = copy.deepcopy(CrystalCalculator(model))  # a copy has a lock too

    def compute(job):
        return shared.get_property("band_gap", crystals[job % 8])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(compute, range(80))) == expected * 10
