"""What follows generation: grouping, relaxation, distance from the hull by one potential; `hf-crystal propose`."""

import json

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from pymatgen.core import Lattice, Structure

from hf_crystal import ReferenceHull, canonicalize
from hf_crystal.ase import relax
from hf_crystal.candidates import (
    RelaxedHull,
    equal_known,
    group_candidates,
    likely_stable,
    nothing_found,
    relax_candidates,
    shortlist,
)
from hf_crystal.cli.main import run
from hf_crystal.mat2seq.canonicalize import CanonicalSettings
from hf_crystal.prototypes import PrototypeIndex

EMT_OPTIONS = ("--relax", "--calculator", "ase.calculators.emt:EMT")


def result(structure: Structure, source: str = "model") -> dict:
    canonical = canonicalize(structure)
    return {
        "structure": structure,
        "cif": canonical.to_cif(),
        "formula": structure.formula.replace(" ", ""),
        "space_group": "?",
        "sequence": canonical.to_text(),
        "log_likelihood": None,
        "score": None,
        "probability": None,
        "known_e_above_hull": None,
        "source": source,
        "warnings": [],
    }


def alloy(edge: float = 3.8, ratio: float = 1.0) -> Structure:
    """CuAu: layers in an fcc cell."""
    return Structure(Lattice.tetragonal(edge / 2**0.5, edge * ratio), ["Cu", "Au"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def salt(first: str, second: str, edge: float) -> Structure:
    """Rocksalt, primitive."""
    half = edge / 2
    return Structure(
        [[0, half, half], [half, 0, half], [half, half, 0]], [first, second], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


def test_equal_crystals_are_one_candidate_and_are_counted():
    given = [result(alloy()), result(salt("Cu", "Au", 5.2)), result(alloy(3.9), "prototype"), {"error": "no crystal"}]
    found = group_candidates([*given, result(salt("Na", "Cl", 5.64)), result(salt("Na", "Cl", 5.7) * (2, 1, 1))])
    assert [(item["formula"], item["source"], item["num_equal"]) for item in found] == [
        ("Cu1Au1", "model", 2),
        ("Cu1Au1", "model", 1),
        ("Na1Cl1", "model", 2),
    ]
    assert [item["num_equal"] for item in group_candidates([*found, given[0]])] == [3, 1, 2]
    assert group_candidates([{"error": "no crystal"}]) == []


def test_a_crystal_of_any_form_is_known_or_not():
    rock_salt = salt("Na", "Cl", 5.4)
    for form in (rock_salt, {"structure": rock_salt}, rock_salt.to(fmt="cif")):
        assert equal_known(form) == "known mp-22862"
    assert equal_known(salt("Na", "Xe", 6.0)) is None


def test_what_cannot_be_relaxed_stays_with_its_reason():
    given = [result(alloy()), {"error": "none"}, result(salt("Na", "Cl", 5.64))]
    counts: list[int] = []
    first, failed, kept = relax_candidates(given, EMT(), progress=counts.append)
    assert counts == [1, 2, 3]
    assert first["converged"] and first["space_group"] == "P4/mmm" and not first["warnings"]
    assert first["energy"] == pytest.approx(relax(alloy(), EMT())[0].energy)
    relaxed = Structure.from_str(first["cif"], fmt="cif", primitive=True)
    assert relaxed.volume == pytest.approx(first["structure"].volume, rel=2e-3)
    assert relaxed.volume != pytest.approx(alloy().volume, rel=1e-2)
    again = canonicalize(first["structure"], settings=CanonicalSettings.preset("fine"))
    assert first["sequence"] == again.to_text() != given[0]["sequence"]
    assert first["space_group"] in first["sequence"] and first["log_likelihood"] is None
    assert failed == {"error": "none"}
    assert (kept["structure"], kept["energy"], kept["cif"]) == (given[2]["structure"], None, given[2]["cif"])
    assert kept["warnings"][0].startswith("not relaxed: NotImplementedError: No EMT-potential for ")
    (shrunk,) = relax_candidates([result(alloy(4.5))], EMT())
    assert shrunk["warnings"] == [
        f"the relaxation changed the volume by {shrunk['volume_change']:+.0%}: another crystal"
    ]


def test_distance_is_between_energies_of_one_potential():
    elements = ReferenceHull([{29: 1}, {79: 1}], [0.0, 0.0], name="elements")
    hull = RelaxedHull(EMT(), reference=elements)
    energy, phases = hull.energy("CuAu")
    assert phases == {"Cu": 0.5, "Au": 0.5}
    expected = sum(relax(bulk(symbol), EMT())[0].energy for symbol in phases) / 2
    assert energy == pytest.approx(expected, abs=1e-3)
    (judged,) = hull.judge(relax_candidates([result(alloy())], EMT()))
    assert judged["e_above_hull"] == pytest.approx(judged["energy"] - energy) and judged["e_above_hull"] < 0
    assert (judged["decomposes_to"], judged["energy_of"]) == ("0.50 Cu + 0.50 Au", "the relaxed crystal, by EMT")


def test_a_hull_that_is_not_known_is_a_warning():
    index = PrototypeIndex.build([("mine", alloy())], distances=np.zeros((119, 119)))
    (relaxed,) = relax_candidates([result(alloy())], EMT())
    elements = ReferenceHull([{29: 1}, {79: 1}], [0.0, 0.0])
    (judged,) = RelaxedHull(EMT(), reference=elements, index=index).judge([relaxed])
    assert judged["e_above_hull"] is None
    assert judged["warnings"][0].startswith("distance from the hull is not known: no crystal of the phase ")
    alone = ReferenceHull([{29: 1, 79: 1}], [-1.0])
    (judged,) = RelaxedHull(EMT(), reference=alone, index=index).judge([relaxed])
    assert judged["e_above_hull"] == pytest.approx(0, abs=1e-3)
    assert judged["warnings"] == ["model of P4/mmm, relaxed, matches known mine loosely"]
    (judged,) = RelaxedHull(EMT(), reference=alone, index=index, max_steps=1).judge([relaxed])
    assert "the phase CuAu (known mine) was not relaxed: not converged after 1 steps" in judged["warnings"][0]


def test_a_short_list_is_ordered_where_it_was_relaxed():
    given = [result(salt("Na", "Cl", 5.64)), result(salt("Cu", "Au", 5.2)), result(alloy()), result(alloy(3.9))]
    found = shortlist(given, calculator=EMT(), keep_symmetry=True)
    assert [item["num_equal"] for item in found] == [2, 1, 1]
    assert found[0]["e_above_hull"] < found[1]["e_above_hull"] and found[2]["e_above_hull"] is None
    assert [item["formula"] for item in found] == ["Cu1Au1", "Cu1Au1", "Na1Cl1"]
    predicted = shortlist(given)
    assert [item["sequence"] for item in predicted] == [item["sequence"] for item in given[:3]]
    assert all("unrelaxed" in item["energy_of"] and item["e_above_hull"] is not None for item in predicted)


def test_command(capfd, tmp_path):
    words = ["propose", "CuAu", "--candidates", "prototypes", "--num", "3", "--output", "json"]
    assert run([*words, "--output-dir", str(tmp_path / "made")]) == 0
    out, err = capfd.readouterr()
    rows = json.loads(out)
    assert "of the unrelaxed crystal, by crystalformer-mp: a hint, no ranking of stability" in err
    assert sum(row["num_equal"] for row in rows) == 3
    assert {path.name for path in (tmp_path / "made").iterdir()} == {row["file"].split("/")[-1] for row in rows}
    assert run([*words, "--output-dir", str(tmp_path / "made")]) == 1
    assert run([*words, *EMT_OPTIONS]) == 0
    out, err = capfd.readouterr()
    relaxed = json.loads(out)
    assert [row["e_above_hull"] for row in relaxed] == sorted(row["e_above_hull"] for row in relaxed)
    assert relaxed[0]["energy_of"] == "the relaxed crystal, by EMT" and "no ranking" not in err
    assert run(["generate", *words[1:], *EMT_OPTIONS, "--stability"]) == 0
    generated = json.loads(capfd.readouterr().out)
    assert min(row["e_above_hull"] for row in generated) == pytest.approx(relaxed[0]["e_above_hull"])
    assert run(["propose", "Xx2"]) == 1
    for command in ("generate", "propose"):  # EMT has no titanium
        assert run([command, "TiO2", *words[2:-2], "--num", "1", *EMT_OPTIONS]) == 1
        assert "none of 1 crystals could be relaxed: not relaxed: NotImplementedError" in capfd.readouterr().err


def test_of_many_compositions_the_likely_stable_ones_are_kept():
    diamond = Structure.from_spacegroup("Fd-3m", Lattice.cubic(3.567), ["C"], [[0, 0, 0]]).get_primitive_structure()
    given = [
        result(salt("Na", "Cl", 5.64)),
        result(salt("K", "Mg", 6.0)),
        result(salt("Na", "Cl", 5.66)),
        {"error": "none"},
        result(alloy()),
        result(salt("Mg", "O", 4.21)),
        result(salt("Rb", "Cl", 6.6)),
        result(diamond),
    ]
    found = likely_stable(given, 3)
    distances = [item["e_above_hull"] for item in found]
    assert distances == sorted(distances) and distances[-1] < 0.1
    assert "Na1Cl1" in {item["formula"] for item in found} and "K1Mg1" not in {item["formula"] for item in found}
    assert len(likely_stable(given, 20)) == 6  # equal ones are one
    novel = [item["formula"] for item in likely_stable(given, 20, known=False)]
    assert "K1Mg1" in novel and not {"Na1Cl1", "Mg1O1", "C2"} & set(novel)
    with pytest.raises(ValueError, match="num is 0"):
        likely_stable(given, 0)
    with pytest.raises(ValueError, match="results holds a list"):
        likely_stable([given[:1], given[1:2]], 1)


def test_command_without_a_formula_keeps_the_likely_stable_ones(capsys, tmp_path):
    assert run(["propose", "--chemical-system", "Cu-Au", "--num", "2", "--seed", "0", "--output", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 1 <= len(found) <= 2 and all(item["source"] == "model" for item in found)
    distances = [item["e_above_hull"] for item in found]
    assert distances == sorted(distances)
    assert run(["propose", "--candidates", "prototypes"]) != 0
    assert "need a formula" in capsys.readouterr().err
    assert run(["propose", "CuAu", "--smact"]) == 2
    assert "chooses among formulas" in capsys.readouterr().err
    assert run(["propose", "TiO2", "--chemical-system", "Ti-O"]) == 2
    assert "Ti-O beside the formula TiO2" in capsys.readouterr().err
    (tmp_path / "mine.cif").touch()
    assert run(["propose", "TiO2", "--seed", "0", "--output-dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "holds 1 other crystal, the first is mine.cif" in err and "same --seed" not in err
    assert run(["propose", "--chemical-system", "He-Ne", "--num", "1", "--seed", "0"]) == 1
    err = capsys.readouterr().err
    assert "0 of 1 crystals: " in err and "without a distance from the hull" in err and "has He or Ne" in err


def test_a_relaxed_crystal_has_no_standard_error_of_the_model():
    kept = likely_stable([result(alloy())], 1)
    assert "e_above_hull_standard_error" in kept[0]
    found = shortlist(kept, calculator=EMT(), max_steps=2)
    assert found[0]["energy"] is not None and "e_above_hull_standard_error" not in found[0]


def test_where_nothing_is_found_the_reason_is_that_of_what_was_asked():
    assert nothing_found("TiO2", "model") == "no crystal found for TiO2"
    assert nothing_found("TiO2", "prototypes").endswith("no known prototype fits")
    assert nothing_found("TiO2", limits="--max-atoms 1") == "no crystal found for TiO2 with --max-atoms 1"
    text = "no crystal found for La7Sr3Mn10O30: no known crystal has these counts of atoms"
    assert nothing_found("La7Sr3Mn10O30", "prototypes") == text
    assert nothing_found("La7Sr3Mn10O30") == f"{text}, and the language model wrote none"
