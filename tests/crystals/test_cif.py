"""What a CIF says is read as it says, or refused with both sides of the contradiction."""

import json

import gemmi
import numpy as np
import pytest
from crystal_forms import NACL_CIF
from transformers.testing_utils import CaptureLogger

from hf_crystal.crystals import cif
from hf_crystal.crystals.reading import CHEMICAL_SYMBOLS, CrystalInputError, as_record, parse_structure

CELL = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")


def text_of(sites, head="", cell=(7.1, 8.3, 9.7, 90, 90, 90), columns="label type_symbol fract_x fract_y fract_z"):
    """CIF text of one block; `head` comes before the sites."""
    lines = ["data_t", *(f"_cell_{name} {value:.6f}" for name, value in zip(CELL, cell, strict=True)), head, "loop_"]
    return "\n".join([*lines, *(f"_atom_site_{column}" for column in columns.split()), sites, ""])


def counts(text):
    """Atoms of each element."""
    numbers = parse_structure(text).atomic_numbers
    return {CHEMICAL_SYMBOLS[z]: int((numbers == z).sum()) for z in sorted(set(numbers.tolist()))}


def listed(*operations):
    """A loop of symmetry operations."""
    return "loop_\n_symmetry_equiv_pos_as_xyz\n" + "\n".join(f"'{operation}'" for operation in operations)


# ---------------------------------------------------------------------------------------------------- space groups

POINT = np.array([0.113, 0.297, 0.371])


def full_symbols():
    """Full Hermann-Mauguin symbol of each Hall symbol."""
    from moyopy import HallSymbolEntry

    entries = [HallSymbolEntry(number) for number in range(1, 531)]
    return {entry.hall_symbol.replace("=", '"'): entry.hm_full.replace("_", "") for entry in entries}


def cell_kept_by(rotations):
    """Lengths and angles of a cell that these rotations keep, wide enough for `POINT` to be far from its images."""
    metric = np.array([[324.0, 45, 63], [45, 576, 81], [63, 81, 900]])
    metric = sum(rotation.T @ metric @ rotation for rotation in rotations) / len(rotations)
    lengths = np.sqrt(np.diag(metric))
    cosines = [metric[i, j] / lengths[i] / lengths[j] for i, j in ((1, 2), (0, 2), (0, 1))]
    return [*lengths, *np.degrees(np.arccos(cosines))]


@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("form", ["xhm", "hm", "short", "short and hall", "full", "full and hall"])
def test_every_setting_is_right_or_refused(form, numbered):
    full = full_symbols()
    right, refused = 0, []
    for group in gemmi.spacegroup_table():
        rotations = [np.array(op.rot) / 24 for op in group.operations()]
        shifts = [np.array(op.tran) / 24 for op in group.operations()]
        images = {tuple(np.round((r @ POINT + t) % 1, 4) % 1) for r, t in zip(rotations, shifts, strict=True)}
        symbol = {"xhm": group.xhm(), "hm": group.hm, "short": group.short_name()}.get(
            form.removesuffix(" and hall"), full.get(group.hall)
        )
        if symbol is None:
            continue
        head = f"_symmetry_space_group_name_H-M '{symbol}'\n"
        head += f"_symmetry_Int_Tables_number {group.number}\n" if numbered else ""
        head += f"_symmetry_space_group_name_Hall '{group.hall}'\n" if "hall" in form else ""
        try:
            record = parse_structure(text_of("P1 P 0.113 0.297 0.371", head, cell_kept_by(rotations)))
        except CrystalInputError as error:
            assert "does not say which" in error.reason, symbol
            refused.append(symbol)
            continue
        assert {tuple(np.round(x % 1, 4) % 1) for x in record.frac_coords} == images, group.xhm()
        assert len(record) == len(images)
        right += 1
    if form == "xhm" or "hall" in form:
        assert not refused
    print(f"{form}, {'with' if numbered else 'without'} number: {right} right, {len(refused)} refused, 0 wrong")
    assert right > 440 and len(refused) < 75


def test_the_formula_decides_between_two_origins():
    sites = "Zn1 Zn 0.125 0.125 0.125\nCr1 Cr 0.5 0.5 0.5\nSe1 Se 0.2594 0.2594 0.2594"
    head = "_space_group_name_H-M_alt 'F d -3 m'\n_space_group_IT_number 227\n"
    cell = (10.49, 10.49, 10.49, 90, 90, 90)
    with pytest.raises(CrystalInputError, match="does not say which"):
        parse_structure(text_of(sites, head, cell))
    head += "_chemical_formula_sum 'Cr2 Se4 Zn'\n_cell_formula_units_Z 8\n"
    assert counts(text_of(sites, head, cell)) == {"Cr": 16, "Zn": 8, "Se": 32}


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("_symmetry_space_group_name_H-M 'P q 3'", "not known"),
        ("_symmetry_space_group_name_H-M 'P m m m'\n_symmetry_Int_Tables_number 62", "gives number 62"),
        ("_symmetry_space_group_name_H-M 'P m m m'\n_symmetry_space_group_name_Hall '-P 2ac 2n'", "Hall symbol"),
        ("_symmetry_space_group_name_Hall '-P 9'", "Hall symbol '-P 9' is not known"),
        ("_symmetry_Int_Tables_number 225", "contradicts the cell"),
        (listed("x,y,z", "-x,-y"), "operation '-x,-y' is not understood"),
        (listed("x,y,z", "-x,-y,−z"), "is not understood"),
        (listed("x,y,z", "-x,-y,z", "x,-y,-z"), "form no group"),
        (listed("x,y,z") + "\n_symmetry_space_group_name_H-M 'P m m m'", "nothing in the file says which"),
        (listed(*["x,y,z"] * 400), "at most 384"),
        ("_cell_modulation_dimension 2", "modulated"),
        ("_cell_length_a 8.2", "_cell_length_a twice"),
        ("_chemical_formula_sum 'Li P'", "is Li1 P1, but P1 was read"),
        ("_chemical_formula_sum 'P2'\n_cell_formula_units_Z 4", "Z = 4, but P1 was read"),
        ("x" * 70_000, "line of more than 65536 characters"),
        ("_symmetry_Int_Tables_number 231", "space-group number 231; accepted are 1 to 230"),
        ("_symmetry_Int_Tables_number 22x", "space-group number 22x; accepted are 1 to 230"),
        ("_space_group_IT_number " + "9" * 400, "accepted are 1 to 230"),
    ],
)
def test_contradictions_are_refused(head, reason):
    with pytest.raises(CrystalInputError, match=reason):
        parse_structure(text_of("P1 P 0.1 0.2 0.3", head))


def test_multiplicities_are_compared():
    columns = "label type_symbol fract_x fract_y fract_z site_symmetry_multiplicity"
    head = "_space_group_name_H-M_alt 'P m m m'"
    assert counts(text_of("K1 K 0 0 0 1\nF1 F 0.5 0.2 0.3 4", head, columns=columns)) == {"F": 4, "K": 1}
    assert counts(text_of("K1 K 0 0 0 8\nF1 F 0.5 0.2 0.3 2", head, columns=columns)) == {"F": 4, "K": 1}  # SHELXL-97
    with pytest.raises(CrystalInputError, match="site 1 has multiplicity 8 in the file, but 4 were read"):
        parse_structure(text_of("K1 K 0 0 0 1\nF1 F 0.5 0.2 0.3 8", head, columns=columns))


def test_an_atom_less_than_the_formula_of_a_large_cell_is_announced():
    sites = [f"C{n} C 0.{n % 10}5 0.{n // 10 % 10}5 0.{n // 100}5" for n in range(180)] + ["K1 K 0 0 0"]
    for head in ("_chemical_formula_sum 'C180 K'", "_chemical_formula_sum 'C180 K'\n_cell_formula_units_Z 1"):
        assert parse_structure(text_of("\n".join(sites), head, (20,) * 3 + (90,) * 3)).warnings == ()
        lost = parse_structure(text_of("\n".join(sites[1:]), head, (20,) * 3 + (90,) * 3))
        assert "_chemical_formula_sum is C180 K1" in lost.warnings[0] and "but C179 K1 was read" in lost.warnings[0]
    decimals = "_chemical_formula_sum 'C179.2 K0.99'"  # rounded: nothing to say
    assert parse_structure(text_of("\n".join(sites), decimals, (20,) * 3 + (90,) * 3)).warnings == ()


def test_a_formula_with_foreign_digits_is_announced():
    text = text_of("Na1 Na 0 0 0\nCl1 Cl 0.5 0.5 0.5", head="_chemical_formula_sum 'Na Cl\u0664'")
    assert "foreign signs" in as_record(text).warnings[0]


def test_rounded_special_positions_are_one_site():
    cell = (4.6, 4.6, 6.1, 90, 90, 120)
    head = "_space_group_name_H-M_alt 'P 63/m m c'"
    assert counts(text_of("Ti1 Ti 0.67 0.33 0.25\nS1 S 0.17 0.339 0.75", head, cell)) == {"S": 6, "Ti": 2}
    record = parse_structure(text_of("Ti1 Ti 0.67 0.33 0.25", head, cell))
    np.testing.assert_allclose(record.frac_coords[0], [2 / 3, 1 / 3, 0.25], atol=4e-3)


# --------------------------------------------------------------------------------------------------------- elements


@pytest.mark.parametrize(
    ("label", "formula", "element"),
    [
        ("Fe2A", "", "Fe"),
        ("OW1", "", "O"),
        ("HF1", "Cl H", "H"),
        ("CD", "C Cl", "C"),
        ("CD", "Cd Cl", "Cd"),
        ("CD", "", None),
        ("OH", "", None),
        ("Wat", "", None),
        ("NH3", "Cl H3 N", None),
        ("M1", "", None),
        ("Q1", "Cl N", None),
    ],
)
def test_elements_of_labels(label, formula, element):
    head = f"_chemical_formula_sum '{formula}'" if formula else ""
    text = text_of(f"{label} 0.1 0.2 0.3\nCl1 0.6 0.7 0.1", head, columns="label fract_x fract_y fract_z")
    if element is None:
        with pytest.raises(CrystalInputError, match="is not clear|but .* was read"):
            parse_structure(text)
    else:
        assert counts(text) == dict(sorted({element: 1, "Cl": 1}.items(), key=lambda i: CHEMICAL_SYMBOLS.index(i[0])))


@pytest.mark.parametrize("symbol", ["NH3", "OH", "X", "Cu+Zn", "Uuu"])
def test_type_symbols_of_no_element_are_refused(symbol):
    with pytest.raises(CrystalInputError, match="unknown element"):
        parse_structure(text_of(f"A1 {symbol} 0.1 0.2 0.3"))


@pytest.mark.parametrize("occupancy", [".", "1.000(3)", "0.5", "-1", "1.5"])
def test_occupancy(occupancy):
    text = text_of(f"P1 P {occupancy} 0.1 0.2 0.3", columns="label type_symbol occupancy fract_x fract_y fract_z")
    if occupancy in ("-1", "1.5"):
        with pytest.raises(CrystalInputError, match="occupancy of site P1 is .*accepted"):
            parse_structure(text)
    else:
        assert counts(text) == {"P": 1}
        assert (parse_structure(text).occupancies is not None) == (occupancy == "0.5")


# ------------------------------------------------------------------------------------------------------------- text


def test_case_dots_and_text_fields_are_those_of_cif():
    text = text_of("P1 P 0.1 0.2 0.3", ";\n".join(["_publ_section_comment\n", "data_second loop_\n", ""]))
    text = (
        text.replace("data_t", "DaTa_t")
        .replace("loop_\n_atom", "Loop_\n_ATOM")
        .replace("_cell_length", "_CELL_Length")
    )
    assert counts(text) == {"P": 1}
    operations = listed("x,y,z", "-x,y,-z").replace("_symmetry_equiv_pos_as_xyz", "_Space_Group_Symop.Operation_XYZ")
    assert counts(text_of("P1 P 0.1 0.2 0.3", operations)) == {"P": 2}


def test_of_several_blocks_of_one_name_the_first_is_read_and_announced():
    with CaptureLogger(cif.logger) as log:
        assert counts(text_of("P1 P 0 0 0") + text_of("S1 S 0 0 0")) == {"P": 1}
    assert "2 structures" in log.out


def test_text_in_a_document_is_never_a_path(tmp_path):
    path = tmp_path / "planted.cif"
    path.write_text(NACL_CIF, encoding="utf-8")
    assert as_record(str(path)).num_atoms == 8
    for document in ({"cif": str(path)}, {"structure": {"atoms": str(path)}}, json.dumps([{"crystal": str(path)}])):
        with pytest.raises(CrystalInputError, match="name of a file in place of a crystal") as caught:
            as_record(document)
        assert "planted" not in str(caught.value)
    with pytest.raises(CrystalInputError, match="name of a file in place of a crystal"):
        as_record(str(path), nested=True)
    assert as_record({"cif": NACL_CIF}, nested=True).num_atoms == 8


def test_devices_are_not_opened_and_cut_gzip_files_are_named(tmp_path):
    import gzip

    with pytest.raises(CrystalInputError, match="neither a regular file nor a pipe"):
        as_record("/dev/zero")
    path = tmp_path / "cut.cif.gz"
    path.write_bytes(gzip.compress(NACL_CIF.encode())[:-9])
    with pytest.raises(CrystalInputError, match="truncated"):
        as_record(path)


def test_any_exception_becomes_the_reason_of_its_crystal():
    class Odd(dict):
        def get(self, *_):
            raise KeyError("secret")

    with pytest.raises(CrystalInputError, match="KeyError") as caught:
        as_record(Odd(cell=1), index=4)
    assert caught.value.index == 4 and "secret" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------- other formats

TIO = "TiO\n1.0\n4.2 0 0\n0 4.2 0\n0 0 4.2\nTi O\n1 1\nDirect\n0.25 0 0\n0.75 0.5 0.5\n"
PO = '1\nLattice="4 0 0 0 4 0 0 0 4"\nPo 0 0 0\n'


@pytest.mark.parametrize("change", [("4.2 0 0", "0.42D1 0 0"), ("0.75", "7.5d-1"), ("TiO\n", "\nTiO\n")])
def test_poscar_with_numbers_of_fortran_or_an_empty_first_line(change):
    record, plain = as_record(TIO.replace(*change, 1)), as_record(TIO)
    np.testing.assert_array_equal(record.frac_coords, plain.frac_coords)
    np.testing.assert_array_equal(record.cell, plain.cell)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (TIO.replace("0.75 0.5 0.5", "0.75-0.5-0.5"), "'0.75-0.5-0.5' is not three numbers"),
        (TIO.replace("1.0\n", "2 1 -1\n", 1), "scale factors are '2 1 -1'"),
        (TIO.replace("1 1", "1 ²"), "atom counts are '1 ²'"),
        (TIO.replace("0.25", "0.2_5"), "is not three numbers"),
        (TIO + "Direct configuration= 2\n0.2 0 0\n0.7 0.5 0.5\n", "more than one configuration"),
        (
            PO + "\n" + PO,
            "more than one frame",
        ),
        (
            '2\nLattice="4 0 0 0 4 0 0 0 4" Properties=pos:R:3:species:S:1\n0 0 0 Po\n2 2 2\n',
            "species are in column 4",
        ),
    ],
)
def test_odd_numbers_and_frames_are_named(text, reason):
    with pytest.raises(CrystalInputError, match=reason):
        as_record(text)


def test_xyz_that_is_not_periodic_is_no_crystal():
    text = '1\nLattice="4 0 0 0 4 0 0 0 4" pbc="T F T"\nPo 0 0 0\n'
    with pytest.raises(CrystalInputError, match=r"pbc is \(True, False, True\)"):
        as_record(text)
    assert as_record(text, partly_periodic=True).pbc == (True, False, True)
    with pytest.raises(CrystalInputError, match="XYZ pbc is 'T F'"):
        as_record(text.replace("T F T", "T F"), partly_periodic=True)
