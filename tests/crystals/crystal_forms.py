"""Rock salt in every form that is accepted."""

import json

import numpy as np

from hf_crystal.crystals.reading import as_record
from hf_crystal.crystals.record import (
    CHEMICAL_SYMBOLS,
)

A = 5.64
FCC = [[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]
NACL_FRAC = np.array(FCC + [[x + 0.5, y, z] for x, y, z in FCC])
NACL_NUMBERS = np.array([11] * 4 + [17] * 4)
NACL_CELL = np.eye(3) * A


def nacl(**changes):
    record = {
        "lattice": NACL_CELL.reshape(-1).tolist(),
        "frac_coords": NACL_FRAC.tolist(),
        "atomic_numbers": NACL_NUMBERS.tolist(),
    }
    return {**record, **changes}


NACL_CIF = f"""data_NaCl
_cell_length_a {A}(2)
_cell_length_b {A}
_cell_length_c {A}
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'F m -3 m'
_symmetry_Int_Tables_number 225
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Na1 Na1+ 0 0 0 1
Cl1 Cl1- 0.5 0.5 0.5 1
"""
NACL_POSCAR = f"NaCl\n{A}\n1 0 0\n0 1 0\n0 0 1\nNa Cl\n4 4\nDirect\n" + "\n".join(
    " ".join(f"{x:.6f}" for x in row) for row in NACL_FRAC
)
NACL_XYZ = f'8\nLattice="{A} 0 0 0 {A} 0 0 0 {A}" Properties=species:S:1:pos:R:3 pbc="T T T"\n' + "\n".join(
    f"{CHEMICAL_SYMBOLS[z]} " + " ".join(f"{x:.6f}" for x in row)
    for z, row in zip(NACL_NUMBERS, NACL_FRAC @ NACL_CELL, strict=True)
)
JARVIS_ATOMS = {
    "lattice_mat": NACL_CELL.tolist(),
    "coords": (NACL_FRAC @ NACL_CELL).tolist(),
    "elements": ["Na "] * 4 + ["Cl"] * 4,
    "cartesian": "True",
    "abc": [A, A, A],
}


def pymatgen_nacl():
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice(NACL_CELL), [CHEMICAL_SYMBOLS[z] for z in NACL_NUMBERS], NACL_FRAC)


def forms():
    from ase import Atoms
    from pymatgen.core import IStructure

    structure = pymatgen_nacl()
    jarvis_fractional = {**JARVIS_ATOMS, "coords": NACL_FRAC.tolist(), "cartesian": False}
    lattice_parameters = {"a": A, "b": A, "c": A, "alpha": 90, "beta": 90, "gamma": 90}
    by_parameters = json.loads(structure.to_json())
    by_parameters["lattice"] = lattice_parameters
    return {
        "structure": structure,
        "istructure": IStructure.from_sites(structure),
        "oxidation states": structure.copy().add_oxidation_state_by_element({"Na": 1, "Cl": -1}),
        "atoms": Atoms(numbers=NACL_NUMBERS, scaled_positions=NACL_FRAC, cell=NACL_CELL, pbc=True),
        "cif text": NACL_CIF,
        "cif bytes": NACL_CIF.encode("utf-16"),
        "cif with mark": "\ufeff" + NACL_CIF,
        "poscar text": NACL_POSCAR,
        "poscar volume": NACL_POSCAR.replace(f"\n{A}\n", f"\n-{A**3}\n"),
        "extxyz text": NACL_XYZ,
        "json text": structure.to_json(),
        "json bytes": structure.to_json().encode(),
        "as_dict": structure.as_dict(),
        "as_dict, lattice parameters": by_parameters,
        "jarvis cartesian": JARVIS_ATOMS,
        "jarvis fractional": jarvis_fractional,
        "jarvis entry": {"jid": "JVASP-1", "atoms": JARVIS_ATOMS},
        "row with CIF": {"id": "x", "cif": NACL_CIF},
        "nine floats": nacl(),
        "flat coordinates": nacl(frac_coords=NACL_FRAC.reshape(-1).tolist()),
        "cell and positions": {
            "cell": NACL_CELL,
            "positions": NACL_FRAC @ NACL_CELL,
            "atomic_numbers": NACL_NUMBERS,
        },
        "symbols": {"cell": NACL_CELL, "frac_coords": NACL_FRAC, "elements": ["Na"] * 4 + ["Cl"] * 4},
        "record": as_record(nacl()),
    }


def sites(record):
    """Sites as a set, coordinates modulo 1."""
    rounded = np.round(record.frac_coords, 5) % 1.0
    return {
        (int(z), *(float(x) for x in np.round(row, 5) % 1.0))
        for z, row in zip(record.atomic_numbers, rounded, strict=True)
    }
