# Copyright 2026 The hf_crystal authors. Licensed under the Apache License, Version 2.0.
"""The chemical elements, the order in which a composition lists them, and formulas without pymatgen.

A formula is written as chemists do, from atomic numbers: reduced (`TiO2`) or of a cell (`Ti2O4`).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "CHEMICAL_SYMBOLS",
    "ELEMENT_ORDER",
    "FORMULA_RANK",
    "SUBSCRIPTS",
    "cell_formula",
    "formula_sum",
    "isotope_notes",
    "mixture_formula",
    "parse_composition",
    "reduced_formula",
]

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

SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_UNKNOWN = math.inf  # no Pauling value: written last
# Pauling electronegativities, same order; 0 where none is tabulated
_PAULING = [
    2.20, 0, 0.98, 1.57, 2.04, 2.55, 3.04, 3.44, 3.98, 0, 0.93, 1.31, 1.61, 1.90, 2.19, 2.58, 3.16, 0,
    0.82, 1.00, 1.36, 1.54, 1.63, 1.66, 1.55, 1.83, 1.88, 1.91, 1.90, 1.65, 1.81, 2.01, 2.18, 2.55, 2.96, 3.00,
    0.82, 0.95, 1.22, 1.33, 1.60, 2.16, 1.90, 2.20, 2.28, 2.20, 1.93, 1.69, 1.78, 1.96, 2.05, 2.10, 2.66, 2.60,
    0.79, 0.89, 1.10, 1.12, 1.13, 1.14, 1.13, 1.17, 1.20, 1.20, 1.10, 1.22, 1.23, 1.24, 1.25, 1.10, 1.27,
    1.30, 1.50, 2.36, 1.90, 2.20, 2.20, 2.28, 2.54, 2.00, 1.62, 2.33, 2.02, 2.00, 2.20, 2.20,
    0.70, 0.90, 1.10, 1.30, 1.50, 1.38, 1.36, 1.28, *[1.30] * 9,
]  # fmt: skip
_ELECTRONEGATIVITY = {
    symbol: (_PAULING[index] if index < len(_PAULING) and _PAULING[index] else _UNKNOWN)
    for index, symbol in enumerate(CHEMICAL_SYMBOLS[1:])
}

# molecules and peroxides whose formula is not divided down
_KEPT_DOUBLE = frozenset(("LiO", "NaO", "KO", "RbO", "CsO", "HO", "O", "N", "F", "Cl", "H"))


def _write(counts: Mapping[str, int | str]) -> str:
    return "".join(symbol if str(count) == "1" else f"{symbol}{count}" for symbol, count in counts.items())


def _counts(atomic_numbers: Iterable[int]) -> dict[str, int]:
    """Atoms of each element, elements by electronegativity.

    Raises:
        ValueError: a number outside 1 to 118.
    """
    numbers = Counter(int(number) for number in atomic_numbers)
    for number in numbers:
        if not 1 <= number < len(CHEMICAL_SYMBOLS):
            raise ValueError(f"atomic number {number} is not known; accepted are 1 to {len(CHEMICAL_SYMBOLS) - 1}")
    counts = {CHEMICAL_SYMBOLS[number]: count for number, count in numbers.items()}
    return {name: counts[name] for name in sorted(counts, key=lambda name: (_ELECTRONEGATIVITY[name], name))}


def cell_formula(atomic_numbers: Iterable[int]) -> str:
    """Formula of all atoms, elements by electronegativity: `[8, 8, 22] * 2` → `Ti2O4`.

    Args:
        atomic_numbers: one integer between 1 and 118 per atom, any order.

    Raises:
        ValueError: a number outside 1 to 118.
    """
    return _write(_counts(atomic_numbers))


def formula_sum(atomic_numbers: Iterable[int]) -> str:
    """Formula of atoms as CIF has it in `_chemical_formula_sum`: `Sr1 Ti1 O3`.

    Args:
        atomic_numbers: one integer between 1 and 118 per atom, any order.

    Raises:
        ValueError: a number outside 1 to 118.
    """
    return " ".join(f"{symbol}{count}" for symbol, count in _counts(atomic_numbers).items())


def mixture_formula(occupancies: "np.ndarray") -> str:
    """Formula of the cell of a disordered crystal, to 4 decimals: `K1.2Na2.8Cl4`; reduced where all numbers are whole.

    Args:
        occupancies (`np.ndarray` of shape `(N, 118)`): of element Z in column Z - 1.
    """
    amounts = {number: round(float(amount), 4) for number, amount in enumerate(occupancies.sum(axis=0), 1)}
    if all(amount % 1 == 0 for amount in amounts.values()):
        return reduced_formula(number for number, amount in amounts.items() for _ in range(int(amount)))
    counts = _counts(number for number, amount in amounts.items() if amount)
    return _write({symbol: f"{amounts[CHEMICAL_SYMBOLS.index(symbol)]:.9g}" for symbol in counts})


def reduced_formula(atomic_numbers: Iterable[int]) -> str:
    """Reduced formula, elements by electronegativity, anion groups in brackets: `[11, 17] * 4` → `NaCl`.

    Args:
        atomic_numbers: one integer between 1 and 118 per atom, any order.

    Returns:
        The formula; the same text as pymatgen's `reduced_formula` for elements with a Pauling electronegativity.

    Raises:
        ValueError: a number outside 1 to 118.
    """
    counts = _counts(atomic_numbers)
    divisor = math.gcd(*counts.values())
    counts = {symbol: count // divisor for symbol, count in counts.items()}
    symbols = list(counts)
    anion = ""
    # the two most electronegative elements form a group where they are close (PO4, NO3, OH), not in a plain salt
    if len(symbols) >= 3 and _ELECTRONEGATIVITY[symbols[-1]] - _ELECTRONEGATIVITY[symbols[-2]] < 1.65:
        repeats = math.gcd(counts[symbols[-1]], counts[symbols[-2]])
        if repeats > 1:
            group = {symbol: counts.pop(symbol) // repeats for symbol in symbols[-2:]}
            anion = f"({_write(group)}){repeats}"
    formula = _write(counts) + anion
    if formula in _KEPT_DOUBLE:
        return _write({symbol: 2 * count for symbol, count in counts.items()})
    return formula


def isotope_notes(composition: object) -> list[str]:
    """A list with a warning where a formula names deuterium or tritium, which are hydrogen here."""
    words = re.findall("[A-Z][a-z]?", composition) if isinstance(composition, str) else []
    found = sorted({"D", "T"} & set(words))
    return [f"{' and '.join(found)} read as H: the isotopes of hydrogen are not told apart"] if found else []


def _in_whole(items: Iterable[tuple[Any, Any]]) -> str:
    """`, such as Li11P2S9Cl3` for 5.5 Li, P, 4.5 S and 1.5 Cl; nothing where there is no small multiple."""
    try:
        amounts = [(getattr(key, "symbol", key), Fraction(amount).limit_denominator(24)) for key, amount in items]
        whole = math.lcm(*(amount.denominator for _, amount in amounts))
    except (TypeError, ValueError, OverflowError):
        return ""
    if whole > 24 or not all(amount > 0 for _, amount in amounts):
        return ""
    counts = [(symbol, int(amount * whole)) for symbol, amount in amounts]
    return ", such as " + "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in counts)


def parse_composition(composition: str | Mapping[Any, Any]) -> dict[int, int]:
    """Atomic number → count of a formula (`"SrTiO3"`, `"SrTiO₃"`), mapping of symbols or numbers, or `Composition`.

    Raises:
        ValueError: for unknown elements, fractional or missing counts.
    """
    if isinstance(composition, str):
        try:
            from pymatgen.core import Composition
        except ImportError as error:
            raise ImportError("a formula as text needs pymatgen: pip install pymatgen") from error

        composition = composition.translate(SUBSCRIPTS)
        if re.search(r"(?<![\d.])0+(?:\.0*)?(?![\d.])", composition):
            raise ValueError(f"composition is {composition!r}, with a count of 0; accepted: whole numbers of atoms")
        try:
            composition = Composition(composition)
        except ValueError as error:
            raise ValueError(f"composition is {composition!r}; accepted: a formula such as 'SrTiO3'") from error
    if not isinstance(composition, Mapping) and not hasattr(composition, "element_composition"):
        raise ValueError(f"composition is {composition!r}; accepted: a formula or a mapping of elements to counts")
    items = composition.items() if isinstance(composition, Mapping) else composition.element_composition.items()
    counts: dict[int, int] = {}
    for key, amount in items:
        symbol = getattr(key, "symbol", key)
        number = CHEMICAL_SYMBOLS.index(symbol) if symbol in CHEMICAL_SYMBOLS[1:] else symbol
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 118:
            raise ValueError(f"composition has {symbol!r}; accepted: element symbols or atomic numbers 1 to 118")
        if isinstance(amount, str) or amount != int(amount) or amount < 1:
            raise ValueError(
                f"composition has {amount} {symbol}; accepted: whole numbers of atoms{_in_whole(items)} (sites that "
                "elements share: a CIF with occupancies for predict)"
            )
        counts[number] = counts.get(number, 0) + int(amount)
    if not counts:
        raise ValueError("composition is empty")
    return counts
