"""Hull of known phases: against pymatgen's phase diagram, textbook phases, user's tables."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from hf_crystal import ReferenceHull, load_reference
from hf_crystal.cli.main import run
from hf_crystal.crystals.elements import parse_composition
from hf_crystal.stability import add_stability, energy_target, read_energies


def random_phases(elements: list[str], count: int, seed: int) -> dict[str, float]:
    """Formulas of a chemical system with energies, a third of them above zero."""
    rng = np.random.default_rng(seed)
    phases = {}
    for _ in range(count):
        chosen = rng.choice(elements, rng.integers(2, len(elements) + 1), replace=False)
        formula = "".join(f"{symbol}{rng.integers(1, 6)}" for symbol in chosen)
        phases[formula] = float(rng.uniform(-1.5, 0.7))
    return phases


@pytest.mark.parametrize(("elements", "seed"), [("Li O", 0), ("Li Fe O", 1), ("Li Fe P O", 2), ("K Na Mg Al Cl", 3)])
def test_equals_the_phase_diagram_of_pymatgen(elements, seed):
    elements = elements.split()
    phases = random_phases(elements, 40, seed)
    hull = ReferenceHull(map(parse_composition, phases), phases.values())
    entries = [PDEntry(Composition(f), e * Composition(f).num_atoms) for f, e in phases.items()]
    diagram = PhaseDiagram([*entries, *(PDEntry(Composition(symbol), 0.0) for symbol in elements)])
    for formula in [*itertools.islice(phases, 20), *random_phases(elements, 10, seed + 10)]:
        expected = diagram.get_hull_energy_per_atom(Composition(formula))
        found = hull.stability(formula, 0.25)
        assert found.hull_energy == pytest.approx(expected, abs=1e-9)
        assert found.e_above_hull == pytest.approx(0.25 - expected, abs=1e-9)
        assert sum(found.decomposition.values()) == pytest.approx(1.0, abs=1e-5)
        mixture = sum(
            share * (0.0 if len(Composition(name)) == 1 else diagram.get_hull_energy_per_atom(Composition(name)))
            for name, share in found.decomposition.items()
        )
        assert mixture == pytest.approx(expected, abs=1e-5)  # shares have six decimals
        assert found.competing_energy >= found.hull_energy - 1e-12
        assert found.formula not in found.competing_phases


def test_embedded_reference_knows_the_textbook():
    hull = load_reference()
    for formula in ("NaCl", "SrTiO3", "TiO2", "Al2O3", "Fe2O3", "CaCO3", "GaAs", "LiFePO4", "Ca3(PO4)2"):
        found = hull.stability(formula)
        assert found.decomposition == {found.formula: 1.0}
        assert found.competing_energy > found.hull_energy
    assert hull.stability("NaCl").hull_energy == pytest.approx(-2.1, abs=0.15)
    water = hull.stability({"H": 2, "O": 4})  # HO2: no such phase on the hull
    assert set(water.decomposition) == {"H2O", "O2"} or set(water.decomposition) == {"H2O2", "O2"}
    assert hull.stability("Si", 0.1).e_above_hull == pytest.approx(0.1)  # elements are at zero
    assert len(hull) > 80_000
    assert hull.stability("MgO").competing_phases.keys() == {"MgO2", "Mg"}  # phases above the hull compete, too
    assert hull.stability("Li0.5CoO2") == hull.stability("LiCo2O4")
    mixed = hull.stability("Li3.4608Ge1.5402P0.4988S6.0004")  # 100 million atoms as whole numbers
    assert mixed.hull_energy == pytest.approx(hull.stability("Li3.461Ge1.54P0.499S6").hull_energy, abs=1e-3)


@pytest.mark.parametrize(
    "composition", ["PoO2", "Fe1000000000000000000000O2", "Li1.2.3O", "", "LiBeBCNOFNaMgAlSiPSClKCaSc"]
)
def test_composition_that_nothing_is_known_of_is_refused(composition):
    with pytest.raises(ValueError, match=r"no phase of matbench_mp_e_form has Po|accepted|empty"):
        load_reference().stability(composition, -0.8)


def test_total_energies_are_no_formation_energies():
    table = {"Li": -1.9, "Li2O": -2.0}
    with pytest.raises(ValueError, match="formation_energy of Li is -1.9"):
        ReferenceHull(map(parse_composition, table), table.values())
    with pytest.raises(ValueError, match="formation_energy of LiFePO4 is -17.4 eV/atom.*column energy"):
        load_reference().stability("LiFePO4", -17.4)
    with pytest.raises(ValueError, match="reference has no phases"):
        ReferenceHull([], [])


def test_total_energies_need_every_element():
    table = {"Li": -1.9, "O2": -4.9, "Li2O": -4.5}
    hull = ReferenceHull(map(parse_composition, table), table.values(), energy_column="energy", name="mine")
    expected = -4.5 - (2 * -1.9 - 4.9) / 3
    assert hull.stability("Li2O").hull_energy == pytest.approx(expected)
    assert hull.stability("Li2O", -4.4).e_above_hull == pytest.approx(0.1)
    with pytest.raises(ValueError, match="no phase of mine has Na"):
        hull.stability("Na2O", -4.0)
    table = {"Li": -1.9, "Li2O": -4.5}
    with pytest.raises(ValueError, match="no energy of the element O, which Li2O needs"):
        ReferenceHull(map(parse_composition, table), table.values(), energy_column="energy", name="mine")


@pytest.mark.parametrize("energy", [math.nan, math.inf])
def test_energy_that_is_no_number_is_refused(energy):
    with pytest.raises(ValueError, match="energy of NaCl is"):
        load_reference().stability("NaCl", energy)
    with pytest.raises(ValueError, match="energy of NaCl in reference is"):
        ReferenceHull([{11: 1, 17: 1}], [energy])


def test_table_of_a_user(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("\ufeffFormula;Formation_energy\nNaN;-0.3\nNaCl;-2.0\n")  # sodium nitride is no missing value
    hull = load_reference(file)
    assert hull.stability("NaN").decomposition == {"NaN": 1.0}
    assert read_energies(file, "formation_energy") == [
        {"formula": "NaN", "formation_energy": -0.3},
        {"formula": "NaCl", "formation_energy": -2.0},
    ]
    with pytest.raises(ValueError, match=r"column formation_energy, the reference has energy"):
        read_energies(file, "energy")
    file.write_text("formula,formation_energy\nNaCl,-2\nXx,1\n")
    with pytest.raises(ValueError, match=r"mine.csv, row 2: .*Xx"):
        load_reference(file)
    with pytest.raises(ValueError, match="nothing does not exist.*embedded references: matbench_mp_e_form"):
        load_reference("nothing")
    for content, reason in (("", "mine.csv is empty"), ("formula,energy\n", "mine.csv has no rows")):
        file.write_text(content)
        with pytest.raises(ValueError, match=reason):
            load_reference(file)
    other = tmp_path / "other.csv"
    other.write_text("formula,gap\nNaCl,8\n")
    with pytest.raises(ValueError, match="has the columns formula, gap"):
        load_reference(other)


def test_command_line(tmp_path, capsys):
    table = tmp_path / "mine.csv"
    table.write_text("formula,formation_energy\nNaCl,-2.0\nQq,1\nMgAl2O4,\n")
    out = tmp_path / "out.jsonl"
    assert run(["stability", "--energies", str(table), "--output-file", str(out)]) == 0
    rows = pd.read_json(out, lines=True)
    hull = load_reference()
    assert rows["e_above_hull"][0] == pytest.approx(hull.stability("NaCl", -2.0).e_above_hull)
    assert "Qq" in rows["error"][1]
    assert "MgAl2O4 is nan" in rows["error"][2]
    assert run(["stability", "LiFePO₄", "DO2"]) == 0
    printed, told = capsys.readouterr()
    assert (
        told.splitlines()[-1] + "\n"
        == "hf-crystal: warning: DO2: D read as H: the isotopes of hydrogen are not told apart\n"
    )
    assert "LiFePO4" in printed
    assert " + " in printed
    assert run(["stability"]) == 2
    assert run(["stability", "Qq"]) == 1  # nothing was found


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_other_columns_of_a_table_stay_and_text_is_quoted(tmp_path, encoding):
    table, out = tmp_path / "mine.csv", tmp_path / "out.jsonl"
    lines = ["id;Formula;formation_energy;e_above_hull", "007;NaCl;-1,5;0,6", "NA;NaCl;low;"]
    table.write_text("\n".join(lines), encoding=encoding)  # as Excel writes it
    assert run(["stability", "--energies", str(table), "--output-file", str(out)]) == 0
    good, bad = map(json.loads, out.read_text().splitlines())
    assert (good["id"], good["e_above_hull_given"], good["energy"]) == ("007", "0,6", -1.5)
    assert good["e_above_hull"] == pytest.approx(load_reference().stability("NaCl", -1.5).e_above_hull)
    assert (bad["id"], bad["error"]) == ("NA", "energy of NaCl is 'low'; accepted: a number, eV/atom")
    with pytest.raises(ValueError, match=r"mine.csv, row 2: energy of NaCl is 'low'"):
        load_reference(table)
    table.write_text("formula\nNaCl\n")  # no delimiter to guess
    with pytest.raises(ValueError, match="has the columns formula; needed"):
        load_reference(table)


def test_predict_adds_the_distance_from_the_hull(tmp_path, capsys):
    out = tmp_path / "out.csv"
    (tmp_path / "bad.cif").write_text("data_bad")
    files = ["examples/NaCl.cif", "examples/LiFePO4.cif", str(tmp_path / "bad.cif")]
    assert run(["predict", *files, "--stability", "--output-file", str(out)]) == 0
    rows, hull = pd.read_csv(out), load_reference()
    for row in rows[:2].itertuples():
        assert row.e_above_hull == pytest.approx(hull.stability(row.formula, row.formation_energy).e_above_hull)
        assert row.decomposes_to == row.formula
    assert np.isnan(rows["e_above_hull"][2])
    folder = ["--output-dir", str(tmp_path / "shards"), "--output", "csv"]
    assert run(["predict", *files, *folder, "--stability"]) == 0
    (part,) = (tmp_path / "shards").rglob("part-*.csv")
    assert pd.read_csv(part).equals(rows)
    assert run(["predict", *files, *folder]) == 1
    assert "begun with other stability" in capsys.readouterr().err
    assert run(["predict", files[0], "--model", "crystalformer-mp20", "--stability"]) == 0
    assert "crystals near the hull only" in capsys.readouterr().err
    # energies of a model that is not ours are of an unknown kind
    assert run(["predict", *files, "--model", "some/model", "--stability"]) == 2
    assert "--reference" in capsys.readouterr().err


def test_results_of_the_pipeline_get_two_fields():
    class Config:
        target_names, target_units = ["formation_energy_per_atom", "band_gap"], ["eV/atom", "eV"]

    target = energy_target(Config)
    result = {"formula": "NaCl", "formation_energy_per_atom": -1.9}
    hull = load_reference()
    found = add_stability(result, target, hull)
    assert found["e_above_hull"] == pytest.approx(-1.9 - hull.stability("NaCl").hull_energy)
    assert found["decomposes_to"] == "NaCl"
    mixed = {"formula": "Na0.9Cl", "ordering_formula": "NaCl", "formation_energy_per_atom": -1.9}
    assert add_stability(mixed, target, hull)["e_above_hull"] == found["e_above_hull"]  # whose energy it is
    assert add_stability({"error": "x"}, target, hull) == {"error": "x"}
    unknown = add_stability({"formula": "PoO2", "formation_energy_per_atom": -1.0, "warnings": ["odd"]}, target, hull)
    assert (unknown["e_above_hull"], unknown["decomposes_to"]) == (None, None)
    assert unknown["warnings"] == ["odd", "PoO2: no phase of matbench_mp_e_form has Po"]
    low = add_stability({**result, "formation_energy_per_atom": -2.9, "warnings": ["odd"]}, target, hull)
    assert low["warnings"][0] == "odd" and low["warnings"][1].startswith("more than 0.05 eV/atom below the hull")
    Config.target_units = ["eV", "eV"]
    with pytest.raises(ValueError, match="one target formation_energy"):
        energy_target(Config)
