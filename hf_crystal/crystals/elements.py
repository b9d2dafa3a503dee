# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The chemical elements, and the order in which a composition lists them."""

__all__ = ["CHEMICAL_SYMBOLS", "ELEMENT_ORDER", "FORMULA_RANK"]

_SYMBOL_TABLE = (
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr "
    "Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu "
    "Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr "
    "Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
)
# index = atomic number; 0 is padding
CHEMICAL_SYMBOLS: tuple[str, ...] = tuple(_SYMBOL_TABLE.split())

# Formulas are written from electropositive to electronegative: the element sequence of IUPAC's Nomenclature of
# Inorganic Chemistry (2005), table VI, read backwards; so SrTiO3, NH3, H2O come out as usual.
_ORDER = """
Og Rn Xe Kr Ar Ne He Fr Cs Rb K Na Li Ra Ba Sr Ca Mg Be Lr No Md Fm Es Cf Bk Cm Am Pu Np U Pa Th Ac Lu Yb Tm Er Ho Dy
Tb Gd Eu Sm Pm Nd Pr Ce La Y Sc Rf Hf Zr Ti Db Ta Nb V Sg W Mo Cr Bh Re Tc Mn Hs Os Ru Fe Mt Ir Rh Co Ds Pt Pd Ni Rg
Au Ag Cu Cn Hg Cd Zn Nh Tl In Ga Al B Fl Pb Sn Ge Si C Mc Bi Sb As P N H Lv Po Te Se S O Ts At I Br Cl F
"""
ELEMENT_ORDER = tuple(_ORDER.split())

# Atomic number → place in a formula.
FORMULA_RANK = {CHEMICAL_SYMBOLS.index(symbol): rank for rank, symbol in enumerate(ELEMENT_ORDER)}
