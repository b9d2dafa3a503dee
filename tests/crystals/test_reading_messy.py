"""Files of the real world, damaged text and odd values are read or named, and nothing else."""

import json
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from crystal_forms import (
    JARVIS_ATOMS,
    NACL_CIF,
    NACL_POSCAR,
    NACL_XYZ,
    nacl,
    pymatgen_nacl,
)

from hf_crystal.crystals.reading import as_record
from hf_crystal.crystals.record import (
    CrystalInputError,
)


def test_records_need_numpy_only():
    code = """
import sys
for name in ("pymatgen", "gemmi", "ase", "moyopy", "datasets", "pandas"):
    sys.modules[name] = None
from hf_crystal.crystals.reading import as_record
record = {"lattice": [4, 0, 0, 0, 4, 0, 0, 0, 4], "frac_coords": [0, 0, 0], "atomic_numbers": [84]}
assert as_record(record).num_atoms == 1
assert as_record("Po\\n4.0\\n1 0 0\\n0 1 0\\n0 0 1\\nPo\\n1\\nDirect\\n0 0 0\\n").formula == "Po"
try:
    as_record("data_x\\n_cell_length_a 4\\n")
except ImportError as error:
    assert "pip install gemmi" in str(error)
else:
    raise AssertionError("CIF was read without gemmi")
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_messy_file_ends_in_a_record_or_a_reason(data_dir, tmp_path):
    with zipfile.ZipFile(data_dir / "messy_structures.zip") as archive:
        archive.extractall(tmp_path)
        manifest = archive.read("manifest.csv").decode().splitlines()
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.name != "manifest.csv")
    assert len(files) == len(manifest) - 1 == 336
    records, reasons = {}, {}
    for path in files:
        try:
            records[path.name] = as_record(path)
        except CrystalInputError as error:
            assert error.name == path.name and len(error.reason) > 10
            reasons[path.name] = error.reason
    kinds = Counter(reason.split(":")[0].split(" (")[0][:40] for reason in reasons.values())
    split = f"{len(records)} records, {len(reasons)} reasons: {dict(kinds)}"
    assert len(records) + len(reasons) == 336, split
    assert len(records) == 229, split
    doubtful = {name: record.warnings for name, record in records.items() if record.warnings}
    assert {name: text[:23] for name, (text,) in doubtful.items()} == {
        "0699ad_crystalnets_jl__MIL-53.cif": "D read as H: the isotop",
        "crystalnets_jl__ALPO-3.1.1.49.001.cif": "fractional coordinates ",
        "derived__deuterium.cif": "D read as H: the isotop",
    }
    expected = {row.split(",")[0]: row.split(",")[1] for row in manifest[1:]}
    assert not [name for name in records if expected[name] == "disordered"], split
    # the first file is legal UTF-16; the second has unknown oxidation numbers only
    accepted = {name for name in records if expected[name] == "broken"}
    assert accepted == {
        "derived__utf16.cif",
        "crystalnets_jl__MIL-53.cif",
    }, split
    # refused although pymatgen reads them: it invents elements (VASP 4), loses hydrogens or water that the formula
    # counts; one file has text outside its text field
    known = ("VASP 4", "hydrogens", "_chemical_formula_sum", "the element of site", "CIF syntax")
    refused = [reasons[name] for name in reasons if expected[name] == "ok"]
    assert all(any(part in reason for part in known) for reason in refused), split
    assert sum("_chemical_formula_sum" in reason or "CIF syntax" in reason for reason in refused) == 5, split


def test_messy_records_agree_with_pymatgen(data_dir, tmp_path):
    """The parsers of our own give what pymatgen gives, where both read a file."""
    import warnings

    from pymatgen.core import Structure

    names = ["jarvis__POSCAR-JVASP-155", "derived__POSCAR_lefthanded.vasp", "derived__POSCAR_selective_cart.vasp"]
    with zipfile.ZipFile(data_dir / "messy_structures.zip") as archive:
        members = {Path(name).name: name for name in archive.namelist()}
        for name in [*names, "abipy__MgO_phonopy_POSCAR", "pyxtal__NaCl-POSCAR"]:
            text = archive.read(members[name]).decode()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = Structure.from_str(text, fmt="poscar")
            ours = as_record(text)
            np.testing.assert_allclose(ours.cell, theirs.lattice.matrix, atol=1e-10)
            np.testing.assert_allclose(ours.positions, theirs.cart_coords, atol=1e-8)
            np.testing.assert_array_equal(ours.atomic_numbers, theirs.atomic_numbers)


# ------------------------------------------------------------------------------------------------------- fuzzing

ODD_TEXT = [
    "nan",
    "-1",
    "1e400",
    "0",
    "?",
    ".",
    '"',
    "'",
    "{",
    "}",
    "[",
    "]",
    "null",
    "\x00",
    "\n",
    "loop_",
    "data_",
    "#",
]
ODD_VALUES = [None, "", "abc", 0, -1, 1e400, True, [], {}, [[]], [None], {"a": 1}, 10**30, 1e308, b"x", [[1, 2], [3]]]


def damaged_text(rng, text):
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(0, len(text) + 1))
        end = start + int(rng.integers(0, 12))
        insert = ODD_TEXT[rng.integers(len(ODD_TEXT))] if rng.random() < 0.7 else ""
        text = text[:start] + insert + ("" if rng.random() < 0.1 else text[end:])
    return text


def damaged_record(rng, record):
    """A copy with one entry somewhere inside replaced or taken out."""
    record = json.loads(json.dumps(record))
    node = record
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = keys[rng.integers(len(keys))]
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.4:
            break
        node = node[key]
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    return record


@pytest.mark.parametrize("form", ["cif", "poscar", "xyz", "json", "jarvis", "as_dict", "record"])
def test_damaged_input_is_read_or_named_and_nothing_else(form):
    """Anything but a record or a `CrystalInputError` (a warning too, as they are errors here) fails the test."""
    rng = np.random.default_rng(7)
    as_dict = json.loads(pymatgen_nacl().to_json())
    texts = {"cif": NACL_CIF, "poscar": NACL_POSCAR, "xyz": NACL_XYZ, "json": json.dumps(as_dict)}
    records = {"jarvis": {"atoms": JARVIS_ATOMS}, "as_dict": as_dict, "record": nacl()}
    outcomes = Counter()
    for _ in range(150):
        damaged = damaged_text(rng, texts[form]) if form in texts else damaged_record(rng, records[form])
        try:
            outcomes["record"] += as_record(damaged).num_atoms > 0
        except CrystalInputError as error:
            outcomes["reason"] += bool(error.reason)
    assert outcomes.total() == 150 and outcomes["reason"] > 20
