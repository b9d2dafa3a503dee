import math
import subprocess
import sys

import numpy as np
import pytest
from crystals_for_metrics import Decoded, cesium_chloride, chain, rocksalt
from scipy.stats import wasserstein_distance

import hf_crystal.evaluation
from hf_crystal.evaluation import COVERAGE_CUTOFFS, coverage, distribution_distances
from hf_crystal.evaluation.distributions import _nearest, wasserstein

BROKEN = Decoded(None, ValueError("dead end"))


def edge_and_mass(structure):
    """Fingerprints one can see through: the first edge (Å), and the atomic number of the first atom."""
    if structure[0].specie.symbol == "Rb":
        return None
    if structure[0].specie.symbol == "Li":
        raise ValueError("cannot be described")
    return [structure.lattice.a], [structure[0].specie.Z]


def test_coverage_worked_by_hand():
    references = [cesium_chloride(3.0), cesium_chloride(4.0), cesium_chloride(5.0), cesium_chloride(3.0, "K")]
    generated = [
        cesium_chloride(3.05),  # near the first in both
        cesium_chloride(4.2),  # 0.2 Å from the second: too far
        cesium_chloride(5.0, "Cs"),  # Z = 55: 36 from potassium
        cesium_chloride(3.0, "Rb"),  # no fingerprint
        cesium_chloride(3.0, "Li"),  # raises
        BROKEN,
    ]
    result = coverage(generated, references, fingerprint=edge_and_mass, structure_cutoff=0.1, composition_cutoff=8.0)
    # references: 3.0 (0.05, 0), 4.0 (0.2, 0), 5.0 (0, 0), K 3.0 (0.05, 8): the nearest structure and the nearest
    # composition may be different crystals, as in the protocol
    assert (result.recall, result.num_references_covered) == (3 / 4, 3)
    # generated: (0.05, 0), (0.2, 0), (0, 36), and three without fingerprint, all of them in the denominator
    assert (result.precision, result.num_generated_covered) == (1 / 6, 1)
    assert (result.num_generated, result.num_unreadable, result.num_no_fingerprint) == (6, 1, 2)
    assert result.structure_distance_recall == pytest.approx((0.05 + 0.2 + 0.0 + 0.05) / 4)
    assert result.structure_distance_precision == pytest.approx((0.05 + 0.2 + 0.0) / 3)
    assert result.composition_distance_recall == pytest.approx((0 + 0 + 0 + 8) / 4)
    assert result.composition_distance_precision == pytest.approx((0 + 0 + 36) / 3)
    assert "edge_and_mass" in result.protocol
    scaled = coverage(
        generated,
        references,
        fingerprint=edge_and_mass,
        structure_cutoff=0.1,
        composition_cutoff=8.0,
        composition_scale=([11.0], [9.0]),
    )
    assert scaled.composition_distance_precision == pytest.approx(36 / 9 / 3)
    assert (scaled.recall, scaled.num_generated_covered) == (3 / 4, 2)


def test_nothing_generated_covers_nothing():
    result = coverage([BROKEN], [chain()], fingerprint=edge_and_mass, structure_cutoff=0.4, composition_cutoff=10.0)
    assert (result.recall, result.precision) == (0.0, 0.0)
    assert math.isnan(result.structure_distance_recall)
    assert result.to_dict()["structure_distance_recall"] is None


def test_coverage_refuses_what_it_cannot_judge():
    cutoffs = {"structure_cutoff": 0.4, "composition_cutoff": 10.0}
    with pytest.raises(ValueError, match="reference 1 has no fingerprint"):
        coverage([chain()], [chain(), rocksalt(first="Rb")], fingerprint=edge_and_mass, **cutoffs)
    with pytest.raises(ValueError, match=r"structure fingerprints have lengths \[1, 2\]"):
        coverage([rocksalt()], [chain()], fingerprint=lambda s: ([0.0] * (1 + (s[0].specie.Z == 11)), [0]), **cutoffs)
    with pytest.raises(ValueError, match="composition_scale has shapes"):
        coverage([chain()], [chain()], fingerprint=edge_and_mass, composition_scale=([0, 0], [1, 1]), **cutoffs)


def test_nearest_distances_are_those_of_the_full_table(monkeypatch):
    from scipy.spatial.distance import cdist

    monkeypatch.setattr("hf_crystal.evaluation.distributions._BLOCK_ENTRIES", 40)
    generator = np.random.default_rng(2)
    rows, columns = generator.normal(size=(17, 5)), generator.normal(size=(4, 5))
    to_columns, to_rows = _nearest(rows, columns)
    table = cdist(rows, columns)
    np.testing.assert_allclose(to_columns, table.min(axis=1), rtol=1e-12)
    np.testing.assert_allclose(to_rows, table.min(axis=0), rtol=1e-12)


@pytest.mark.parametrize("sizes", [(1, 1), (5, 5), (7, 40), (200, 3)])
def test_wasserstein_is_that_of_scipy(sizes):
    generator = np.random.default_rng(sum(sizes))
    first, second = generator.normal(2.0, 1.0, sizes[0]), generator.integers(0, 4, sizes[1])
    assert wasserstein(first, second) == pytest.approx(wasserstein_distance(first, second), rel=1e-12)
    assert wasserstein(first, first) == 0.0


def test_wasserstein_worked_by_hand():
    assert wasserstein([0, 1], [3]) == 2.5
    assert wasserstein([1, 1, 2], [1, 2, 2]) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="0 and 1"):
        wasserstein([], [1])


def test_distances_of_density_and_elements():
    references = [rocksalt(), cesium_chloride()]
    element = chain().copy()
    element.replace_species({"Cl": "Cs"})
    result = distribution_distances([element, rocksalt(), BROKEN, cesium_chloride(0.5)], references)
    densities = [float(s.density) for s in (element, rocksalt())]
    assert result.density_distance == pytest.approx(
        wasserstein_distance(densities, [float(s.density) for s in references])
    )
    assert result.num_elements_distance == 0.5  # 1 and 2 against 2 and 2
    assert (result.num_generated, result.num_usable, result.num_sampled, result.num_references) == (4, 2, 2, 2)


def test_samples_are_drawn_by_seed():
    crystals = [cesium_chloride(a) for a in np.linspace(3.0, 5.0, 12)]
    draws = [distribution_distances(crystals, crystals, num_samples=3, seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert draws[0].density_distance != draws[2].density_distance
    assert draws[0].num_sampled == 3
    assert distribution_distances(crystals, crystals, num_samples=None).density_distance == 0.0
    with pytest.raises(ValueError, match="num_samples is 0"):
        distribution_distances(crystals, crystals, num_samples=0)


def test_no_usable_crystal_gives_no_distance():
    result = distribution_distances([BROKEN], [chain()])
    assert math.isnan(result.density_distance)
    assert result.num_sampled == 0


def test_cutoffs_are_those_of_the_protocol():
    assert COVERAGE_CUTOFFS == {"mp_20": (0.4, 10.0), "carbon_24": (0.2, 4.0), "perov_5": (0.2, 4.0)}


def test_every_public_name_loads_and_is_no_module():
    for name in hf_crystal.evaluation.__all__:
        assert not isinstance(getattr(hf_crystal.evaluation, name), type(sys)), name
    assert set(hf_crystal.evaluation.__all__) <= set(dir(hf_crystal.evaluation))
    with pytest.raises(AttributeError, match="accuracy"):
        _ = hf_crystal.evaluation.accuracy


def test_importing_the_package_loads_neither_torch_nor_pymatgen():
    code = "import sys, hf_crystal.evaluation; sys.exit(any(name in sys.modules for name in ('torch', 'pymatgen')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
