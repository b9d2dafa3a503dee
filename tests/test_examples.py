"""The CIF files in examples/ describe the crystals they are named after."""

from pathlib import Path

import moyopy
import pytest
from moyopy.interface import MoyoAdapter
from pymatgen.core import Structure

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# file -> formula, space group, density from handbooks (g/cm³, room temperature), bond: shortest distance (Å)
CRYSTALS = {
    "NaCl": ("NaCl", 225, 2.165, 2.820),
    "Si": ("Si", 227, 2.329, 2.352),
    "C_diamond": ("C", 227, 3.515, 1.544),
    "GaAs": ("GaAs", 216, 5.318, 2.448),
    "MgO": ("MgO", 225, 3.58, 2.106),
    "CsCl": ("CsCl", 221, 3.988, 3.571),
    "Fe_bcc": ("Fe", 229, 7.874, 2.482),
    "TiO2_rutile": ("TiO2", 136, 4.25, 1.949),
    "ZnO_wurtzite": ("ZnO", 186, 5.675, 1.974),
    "SrTiO3": ("SrTiO3", 221, 5.12, 1.953),
    "LiFePO4": ("LiFePO4", 62, 3.60, 1.53),
}


def test_every_example_is_checked():
    assert {path.stem for path in EXAMPLES.glob("*.cif")} == set(CRYSTALS)


# pymatgen says that it reads 0.333333 as 1/3
@pytest.mark.filterwarnings("ignore:.*fractional coordinates rounded to ideal values.*:UserWarning")
@pytest.mark.parametrize("name", CRYSTALS)
def test_example_is_the_crystal_it_names(name):
    formula, space_group, density, bond = CRYSTALS[name]
    structure = Structure.from_file(EXAMPLES / f"{name}.cif")
    assert structure.composition.reduced_formula == formula
    assert structure.density == pytest.approx(density, rel=0.01)
    assert min(neighbor.nn_distance for neighbor in structure.get_neighbors(structure[-1], 4.0)) == pytest.approx(
        bond, abs=0.03
    )
    dataset = moyopy.MoyoDataset(MoyoAdapter.from_structure(structure), symprec=1e-3)
    assert dataset.number == space_group
