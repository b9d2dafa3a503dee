# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""What the label columns of the known tables mean: unit, per atom or per cell, source."""

from dataclasses import dataclass

__all__ = ["PROPERTIES", "PropertySpec", "property_spec"]


@dataclass(frozen=True)
class PropertySpec:
    """Meaning of one label column.

    Attributes:
        name: column name.
        unit: unit of the values, empty for pure numbers.
        per_atom: whether the value is divided by the number of atoms (an intensive energy, for example).
        description: one line for a card or a table.
    """

    name: str
    unit: str
    per_atom: bool
    description: str


_EV_ATOM, _EV, _GPA, _LOG_GPA = "eV/atom", "eV", "GPa", "log10(GPa)"

_SPECS = (
    # Materials Project: MP-20, MPTS-52 and MEGNet 2018.6.1
    PropertySpec("formation_energy_per_atom", _EV_ATOM, True, "Formation energy (PBE, Materials Project)"),
    PropertySpec("e_above_hull", _EV_ATOM, True, "Energy above the convex hull (Materials Project)"),
    PropertySpec("band_gap", _EV, False, "Band gap (PBE)"),
    PropertySpec("mb_e_form", _EV_ATOM, True, "Formation energy (PBE, matbench v0.1)"),
    PropertySpec("mb_band_gap_pbe", _EV, False, "Band gap (PBE, matbench v0.1)"),
    PropertySpec("mb_log10_K_VRH", _LOG_GPA, False, "Bulk modulus, Voigt-Reuss-Hill (matbench v0.1)"),
    PropertySpec("mb_log10_G_VRH", _LOG_GPA, False, "Shear modulus, Voigt-Reuss-Hill (matbench v0.1)"),
    PropertySpec("mb_refractive_index", "", False, "Refractive index (matbench v0.1)"),
    PropertySpec("e_form", _EV_ATOM, True, "Formation energy (PBE, Materials Project 2018.6.1)"),
    PropertySpec("bandgap", _EV, False, "Band gap (PBE; Materials Project 2018.6.1 or OQMD)"),
    PropertySpec("bulk_modulus", _LOG_GPA, False, "Bulk modulus (MEGNet)"),
    PropertySpec("shear_modulus", _LOG_GPA, False, "Shear modulus (MEGNet)"),
    PropertySpec("K_VRH", _GPA, False, "Bulk modulus, Voigt-Reuss-Hill (Materials Project)"),
    PropertySpec("G_VRH", _GPA, False, "Shear modulus, Voigt-Reuss-Hill (Materials Project)"),
    PropertySpec("total_magnetization_mp2018", "muB/cell", False, "Total magnetisation (Materials Project 2018)"),
    # JARVIS-DFT
    PropertySpec("formation_energy", _EV_ATOM, True, "Formation energy (OptB88vdW, JARVIS-DFT)"),
    PropertySpec("formation_energy_peratom", _EV_ATOM, True, "Formation energy (OptB88vdW, JARVIS-DFT)"),
    PropertySpec("total_energy", _EV_ATOM, True, "Total energy (OptB88vdW, JARVIS-DFT)"),
    PropertySpec("optb88vdw_total_energy", _EV_ATOM, True, "Total energy (OptB88vdW, JARVIS-DFT)"),
    PropertySpec("opt_bandgap", _EV, False, "Band gap (OptB88vdW, JARVIS-DFT)"),
    PropertySpec("optb88vdw_bandgap", _EV, False, "Band gap (OptB88vdW, JARVIS-DFT)"),
    PropertySpec("mbj_bandgap", _EV, False, "Band gap (TBmBJ, JARVIS-DFT)"),
    PropertySpec("ehull", _EV, True, "Energy above the convex hull (JARVIS-DFT)"),
    PropertySpec("bulk_modulus_kv", _GPA, False, "Bulk modulus, Voigt (JARVIS-DFT)"),
    PropertySpec("shear_modulus_gv", _GPA, False, "Shear modulus, Voigt (JARVIS-DFT)"),
    PropertySpec("exfoliation_energy", "meV/atom", True, "Exfoliation energy (JARVIS-DFT)"),
    PropertySpec("slme", "%", False, "Spectroscopic limited maximum efficiency (JARVIS-DFT)"),
    PropertySpec("spillage", "", False, "Spin-orbit spillage (JARVIS-DFT)"),
    PropertySpec("Tc_K", "K", False, "Superconducting transition temperature (JARVIS-DFT)"),
    # OQMD
    PropertySpec("delta_e", _EV_ATOM, True, "Formation energy (OQMD)"),
    PropertySpec("stability", _EV_ATOM, True, "Distance to the convex hull (OQMD)"),
    # Perov-5 and Carbon-24
    PropertySpec("heat_all", _EV, False, "Heat of formation as published with CDVAE (Castelli perovskites)"),
    PropertySpec("heat_ref", _EV, False, "Heat of formation against the reference phases (Castelli perovskites)"),
    PropertySpec("dir_gap", _EV, False, "Direct band gap (Castelli perovskites)"),
    PropertySpec("ind_gap", _EV, False, "Indirect band gap (Castelli perovskites)"),
    PropertySpec("energy_per_atom", _EV_ATOM, True, "DFT total energy (Carbon-24)"),
    # AFLOW, dielectric
    PropertySpec("debye_temperature", "K", False, "Debye temperature (AFLOW AGL)"),
    PropertySpec("thermal_conductivity", "W/(m K)", False, "Lattice thermal conductivity at 300 K (AFLOW AGL)"),
    PropertySpec("thermal_expansion", "1/K", False, "Thermal expansion at 300 K (AFLOW AGL)"),
    PropertySpec("refractive_index", "", False, "Refractive index (Petousis 2017)"),
    PropertySpec("poly_electronic", "", False, "Electronic part of the dielectric constant (Petousis 2017)"),
    PropertySpec("poly_total", "", False, "Dielectric constant (Petousis 2017)"),
)

PROPERTIES: dict[str, PropertySpec] = {spec.name: spec for spec in _SPECS}


def property_spec(name: str) -> PropertySpec:
    """Meaning of a known label column.

    Args:
        name: column name.

    Returns:
        `PropertySpec`.

    Raises:
        ValueError: the column is not known here; a recipe then has to state unit and meaning itself.
    """
    if name not in PROPERTIES:
        raise ValueError(f"property {name!r} is not known; known are {', '.join(sorted(PROPERTIES))}")
    return PROPERTIES[name]
