"""Candidates from known crystals: a small index of rock salt, CsCl, perovskites and rutile."""

import dataclasses

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from hf_crystal import canonicalize
from hf_crystal.cli.main import run
from hf_crystal.prototypes import PrototypeIndex, embedded_index, propose
from hf_crystal.prototypes.families import Family, read_contents
from hf_crystal.prototypes.similarity import fit_volumes

ROCK_SALT = {"NaF": 4.7, "NaCl": 5.64, "KF": 5.35, "KCl": 6.29, "KBr": 6.6, "NaBr": 5.97, "MgO": 4.21, "CaO": 4.81}
CESIUM_CHLORIDE = {"CsCl": 4.12, "CsBr": 4.29, "TlCl": 3.83, "TlBr": 3.99}
RUTILE = {"TiO2": (4.594, 2.959, 0.305), "SnO2": (4.737, 3.186, 0.307), "MgF2": (4.62, 3.05, 0.303)}
PEROVSKITE = {"SrTiO3": 3.905, "BaTiO3": 4.0, "KNbO3": 4.02, "CaTiO3": 3.84}


def split(formula: str) -> list[str]:
    from pymatgen.core import Composition

    return [element.symbol for element in Composition(formula).elements]


def known_crystals() -> dict[str, Structure]:
    known = {f: Structure.from_spacegroup(225, Lattice.cubic(a), split(f), [[0] * 3, [0.5] * 3])
             for f, a in ROCK_SALT.items()}  # fmt: skip
    known |= {f: Structure(Lattice.cubic(a), split(f), [[0] * 3, [0.5] * 3]) for f, a in CESIUM_CHLORIDE.items()}
    known |= {f: Structure.from_spacegroup(136, Lattice.tetragonal(a, c), split(f), [[0] * 3, [u, u, 0]])
              for f, (a, c, u) in RUTILE.items()}  # fmt: skip
    sites = [[0] * 3, [0.5] * 3, [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    known |= {f: Structure(Lattice.cubic(a), [*split(f)[:2], *["O"] * 3], sites) for f, a in PEROVSKITE.items()}
    return known


@pytest.fixture(scope="module")
def index() -> PrototypeIndex:
    return PrototypeIndex.build(known_crystals(), epochs=60)


def test_a_new_salt_takes_the_prototype_of_its_like(index):
    for formula in ("NaI", "KI", "CsI", "TlI"):
        found = index.candidates(formula, 5)
        assert all(item.structure.composition.reduced_formula == formula for item in found)
        assert {item.canonical.space_group for item in found} == {221, 225}
        assert 0.9 < sum(item.score for item in found) <= 1.0 + 1e-9
        assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
        assert len({item.sequence for item in found}) == len(found)
        assert all(item.source.split(" ", 1)[1] in index.names for item in found)
    best = {name: index.candidates(name)[0].canonical.space_group for name in ("KF", "TlBr")}
    assert best == {"KF": 225, "TlBr": 221}


def test_elements_that_share_prototypes_come_close(index):
    distance = index.distances
    assert distance[19, 11] < distance[19, 55] and distance[81, 55] < distance[81, 12]
    assert np.array_equal(distance, distance.T) and not np.diag(distance).any()


def test_own_crystal_comes_back_unless_it_is_excluded(index):
    known = known_crystals()
    for name in ("SrTiO3", "TiO2"):
        composition = known[name].composition.formula.replace(" ", "")
        best = index.candidates(composition, exclude=[n for n in known if n != name])[0]
        assert (best.source, best.canonical) == (f"known {name}", canonicalize(known[name]))
        assert f"known {name}" not in [item.source for item in index.candidates(composition, 9, exclude={name})]


def test_a_known_crystal_far_above_the_hull_is_doubted_and_comes_after_prototypes(tmp_path):
    known = known_crystals()
    known["KCl in the CsCl structure"] = Structure(Lattice.cubic(3.7), ["K", "Cl"], [[0] * 3, [0.5] * 3])
    heights = {name: 0.0 for name in known if name != "NaBr"} | {"CsBr": 0.3}
    known_heights = {"above_hull": {**heights, "KCl": 0.6}, "predicted_above_hull": {"NaBr": 0.25}}
    PrototypeIndex.build(known, epochs=60, **known_heights).save(tmp_path / "index.parquet")
    doubtful = PrototypeIndex.load(tmp_path / "index.parquet")
    assert np.isnan(doubtful.above_hull[doubtful.names.index("NaBr")])
    found = doubtful.candidates("KCl", 5, formula=True)
    assert [item.source for item in found] == ["known KCl in the CsCl structure", "known KCl"]
    assert found[0].warnings == () and "0.60 eV/atom above the hull" in found[1].warnings[0]
    salt = doubtful.candidates("CsBr", 3, formula=True)
    assert salt[0].source == "known CsBr" and "0.30 eV/atom above the hull" in salt[0].warnings[0]
    assert salt[1].source.startswith("prototype") and salt[1].warnings == ()
    assert (salt[0].known_e_above_hull, salt[1].known_e_above_hull) == (0.3, None)
    guessed = doubtful.candidates("NaBr", 1, formula=True)[0]
    assert guessed.known_e_above_hull is None and "was predicted 0.25 eV/atom above" in guessed.warnings[0]


def test_the_cell_gets_the_predicted_volume(index):
    best = index.candidates("BaO", exclude=["KF", "CaO", "NaF"], space_groups=[225])[0]
    source = index.known(index.names.index(best.source.removeprefix("prototype ")))
    numbers = source.to_record().atomic_numbers
    predicted = index.volumes[[56, 8]].sum() / index.volumes[numbers].sum() * source.to_structure().volume
    assert best.structure.volume == pytest.approx(predicted, rel=0.02)


def test_formula_looks_at_all_its_multiples(index):
    assert index.candidates("ZrO2") == []  # no crystal of three atoms is known
    found = index.candidates("ZrO2", 3, formula=True)
    assert found[0].canonical.space_group == 136
    assert found[0].structure.composition.get_el_amt_dict() == {"Zr": 2, "O": 4}
    assert index.candidates("ZrO2", 3, formula=True, max_atoms=5) == []
    assert index.compositions({40: 4, 8: 8}) == [{40: 2, 8: 4}]


def test_known_crystals_of_a_formula_come_first_by_energy_and_can_be_left_out(index):
    rutile, fluorite = known_crystals()["TiO2"], Structure.from_spacegroup(
        225, Lattice.cubic(4.8), ["Ti", "O"], [[0] * 3, [0.25] * 3])  # fmt: skip
    known = known_crystals() | {"rutile": rutile, "fluorite": fluorite}
    del known["TiO2"]
    energies = {"rutile": -3.4, "fluorite": -3.0}
    built = PrototypeIndex.build(known, energies=energies, distances=index.distances)
    found = built.candidates("TiO2", 3, formula=True)
    assert [item.source for item in found[:2]] == ["known rutile", "known fluorite"]
    assert found[0].canonical == canonicalize(rutile)  # its own cell, not a scaled one
    assert 0.99 < found[0].score < 1
    assert built.candidates("TiO2", 3, formula=True, known=False) == []  # all others are one of the two again
    assert [item.source for item in built.candidates("SnO2", 3, formula=True)][0] == "known SnO2"
    new = built.candidates("SnO2", 3, formula=True, known=False)
    assert [(item.canonical.space_group, item.source) for item in new] == [(225, "prototype fluorite")]


def test_a_formula_has_one_vote_that_its_crystals_share(index):
    """Many high crystals of one formula do not outvote the low ones of others."""
    cubic = {f"{f} {k}": Structure(Lattice.cubic(a + k / 10), split(f), [[0] * 3, [0.5] * 3])
             for f, a in (("KF", 3.3), ("NaCl", 3.4)) for k in range(8)}  # fmt: skip
    known = {f: known_crystals()[f] for f in ("KF", "NaCl", "KCl")} | cubic
    energies = dict.fromkeys(known, -2.0) | dict.fromkeys(cubic, -1.9)
    built = PrototypeIndex.build(known, energies=energies, distances=index.distances)
    assert built.candidates("NaBr", 1, formula=True)[0].canonical.space_group == 225
    assert built.candidates("NaBr", 1, formula=True)[0].score > 0.9


def test_proposals_keep_their_distance_and_are_filled_up_by_a_model(index):
    drawn = index.candidates("NaI", 1, space_groups=[221]) + index.candidates("NaI", 1, space_groups=[225])
    found = propose("NaI", 2, space_group="Fm-3m", generate=lambda n: drawn, index=index)
    assert [item.canonical.space_group for item in found] == [225, 221]  # the second of the two is there already
    same = dataclasses.replace(drawn[0], sequence="Na 1 I 1 | another", source="model")
    both = propose("NaI", 2, generate=lambda n: [*drawn, same][-n:], index=index)
    assert "model" not in [item.source for item in both]  # what StructureMatcher takes for one of the list
    blende = Structure.from_spacegroup("F-43m", Lattice.cubic(7.0), ["Na", "I"], [[0, 0, 0], [0.25, 0.25, 0.25]])
    other = dataclasses.replace(same, structure=blende.get_primitive_structure())
    both = propose(
        "NaI", 2, generate=lambda n: [*drawn, other][-n:], index=index
    )  # of several the last is the model's
    assert [item.source for item in both] == [propose("NaI", 1, index=index)[0].source, "model"]
    assert len(propose("NaI", 9, index=index)) == 2
    assert propose("NaI", 9, min_distance=4.0, index=index) == []
    assert propose({"Ti": 1, "O": 2}, 2, index=index) == []  # exact contents
    assert propose("Ti", 1, generate=lambda n: [], index=index) == []

    def refuse(n):
        raise ValueError("no crystal")

    assert len(propose("NaI", 9, generate=refuse, index=index)) == 2
    with pytest.raises(ValueError, match="no crystal"):
        propose("Ti", 1, generate=refuse, index=index)


def test_novel_leaves_out_what_a_model_finds_again_and_unseen_elements_are_told(index):
    drawn = index.candidates("NaCl", 2) + index.candidates("KCl", 1)  # Fm-3m is known, Pm-3m is not
    assert {item.canonical.space_group for item in drawn[:2]} == {221, 225}
    found = propose("NaCl", 9, known=False, generate=lambda n: drawn[:2], index=index)
    assert [item.canonical.space_group for item in found] == [221]
    assert found[0].warnings == ()
    assert all("Fm: in no known crystal" in item.warnings[0] for item in propose("FmCl", 2, index=index))
    with pytest.raises(ValueError, match="Fm: in no known crystal"):
        propose("FmCl", 2, unseen="refuse", index=index)
    apart = "Mg and Cl: never together in one known crystal; its size, and what it is like, are guesses"
    assert all(item.warnings == (apart,) for item in propose("MgCl", 2, index=index))
    assert propose("NaCl", 1, index=index)[0].warnings == ()
    heavy = propose("NaD", 1, index=PrototypeIndex.build({"a": known_crystals()["NaF"]}, distances=index.distances))
    assert heavy[0].warnings[-1].startswith("D read as H")
    with pytest.raises(ValueError, match="Mg and Cl: never together"):
        propose("MgCl", 2, unseen="refuse", index=index)


@pytest.mark.parametrize("distance", [0, -1, 50, float("nan")])
def test_a_distance_that_no_crystal_keeps_is_refused_at_once(index, distance):
    with pytest.raises(ValueError, match="min_distance is .*; accepted: above 0 up to 6 Å"):
        propose("NaCl", index=index, min_distance=distance)


def test_embedded_index_of_the_materials_project_has_what_users_ask_for():
    expected = {"TiO2": "C2/m I4_1/amd", "LiFePO4": "Pnma", "Al2O3": "R-3c", "CaCO3": "R-3c", "Si": "Fd-3m"}
    for formula, groups in expected.items():
        found = propose(formula, len(groups.split()))
        assert [item.sequence.split(" | ")[1] for item in found] == groups.split()
        assert all(item.source.startswith("known mp-") for item in found)
    assert propose("Y3Al5O12")[0].structure.composition.num_atoms == 80
    assert not {"mp-1096496", "mp-1097495"} & set(embedded_index("mp").names)  # failed relaxations, 13 times too large


def test_a_judge_puts_prototypes_of_low_energy_first(index):
    voted = propose("Sr2CuSbS4", 4)
    lowest = voted[2].structure

    def judge(structures):
        return [None if k == 1 else 0.25 * (each != lowest) for k, each in enumerate(structures)]

    judged = propose("Sr2CuSbS4", 4, judge=judge)
    assert judged[0].structure == lowest and judged[0].probability > voted[2].probability
    assert [item.probability for item in judged] == sorted((item.probability for item in judged), reverse=True)
    assert propose("Sr2CuSbS4", 1, judge=judge)[0].structure == lowest  # whatever is wanted
    (unknown,) = propose("Sr2CuSbS4", 1, judge=lambda structures: [None] * len(structures))
    assert (unknown.source, unknown.probability) == (voted[0].source, voted[0].probability)
    plain = index.candidates("NaI", 1, formula=True)
    assert index.candidates("NaI", 1, formula=True, judge=judge)[0].sequence == plain[0].sequence  # nobody has counted


def test_prototypes_of_an_unknown_formula_say_how_likely_they_are(index):
    likely, unlikely = (propose(formula, 2) for formula in ("Cs2NaNdI6", "NaZn2Sb3O5"))
    assert likely[0].probability > 0.8 > 0.4 > unlikely[0].probability > unlikely[1].probability > 0
    assert propose("NaCl", 5)[-1].probability is None  # known crystals, and prototypes beside them
    for other in ({"space_group": 225}, {"max_atoms": 10}):  # votes of a part of the known crystals
        assert propose("Cs2NaNdI6", 1, **other)[0].probability is None
    assert propose({"Cs": 2, "Na": 1, "Nd": 1, "I": 6})[0].probability is None  # cell contents, no formula
    assert propose("NaI", 1, index=index)[0].probability is None  # an index of which nobody has counted it
    found = propose("NaCl", 2, space_group=221, index=index)
    assert found[0].warnings == ("no known crystal of NaCl has this space group; known: Fm-3m",)
    squeezed = known_crystals()["NaCl"].copy()
    squeezed.scale_lattice(4.6**3)
    known = PrototypeIndex.build({**known_crystals(), "NaCl": squeezed}, distances=index.distances)
    (salt,) = propose("NaCl", 1, space_group=225, min_distance=2.4, index=known)  # the known one has 2.3 Å
    assert salt.source.startswith("prototype") and salt.warnings == ()


def test_filters_and_unknown_contents(index):
    assert [c.canonical.space_group for c in index.candidates("NaI", 9, space_groups=[221])] == [221]
    assert index.candidates("NaI", 9, keeps=lambda item: item.canonical.space_group == 1) == []
    assert index.candidates("Na7I5") == []
    with pytest.raises(ValueError, match="accepted: a formula"):
        index.candidates("no formula")


def test_atoms_that_come_too_close_are_refused():
    """Two hydrogen atoms keep a distance that iodine in their place would not."""
    sites = [[0, 0, 0], [0.05, 0.05, 0.05], [0.5, 0.5, 0.5], [0.9, 0.7, 0.4]]
    known = {
        "near": Structure(Lattice.cubic(12), ["H", "H", "C", "C"], sites),
        "far": Structure(
            Lattice.cubic(6), ["I", "I", "C", "C"], sites[:1] + [[0.4, 0.5, 0], [0, 0.45, 0.5], [0.5, 0, 0.6]]
        ),
    }
    index = PrototypeIndex.build(known, epochs=1)
    index.volumes[:] = 20.0
    index.volumes[1] = 0.5
    assert {item.source for item in index.candidates("I2C2", 9)} == {"known far"}


def test_a_saved_index_gives_the_same(index, tmp_path):
    index.save(tmp_path / "index.parquet")
    again = PrototypeIndex.load(tmp_path / "index.parquet")
    assert len(again) == len(index)
    for formula in ("NaI", "TlI", "PbO2", "KTaO3"):
        first, second = (i.candidates(formula, 4, formula=True) for i in (index, again))
        assert [c.sequence for c in first] == [c.sequence for c in second]
        assert [c.score for c in first] == pytest.approx([c.score for c in second], abs=1e-6)


def test_energies_weigh(index):
    known = {"low": known_crystals()["KBr"], "high": known_crystals()["CsBr"].copy()}
    known["high"].replace_species({"Cs": "K"})
    order = {}
    for energies in ({"low": -2.0, "high": -1.8}, {"low": -1.8, "high": -2.0}, {}):
        built = PrototypeIndex.build(known, energies=energies, epochs=1)
        order[tuple(energies.values())] = [item.source for item in built.candidates("KBr", 2)]
    assert order[-2.0, -1.8] == ["known low", "known high"] == order[-1.8, -2.0][::-1]


def test_labels_follow_their_elements():
    sequences = [
        "Sr 1 Ti 1 O 3 | Pm-3m | a 3.90 | Ti 1a Sr 1b O 3d",
        "Ba 1 Ti 1 O 3 | Pm-3m | a 4.00 | Ba 1a Ti 1b O 3d",
    ]
    counts, _ = read_contents(sequences[0])
    elements = np.array([read_contents(sequence)[1] for sequence in sequences])
    family = Family.build(counts, [0, 1], elements, sequences)
    assert counts == (1, 1, 3) and elements.tolist() == [[22, 38, 8], [22, 56, 8]]
    assert family.labels.tolist() == [[0, 1], [1, 0]]  # the second is the first with both metals exchanged


def test_volumes_of_atoms_add_up():
    volumes = fit_volumes([{11: 1, 17: 1}, {11: 1, 9: 1}, {19: 1, 17: 1}], np.array([44.0, 25.0, 62.0]))
    assert volumes[[11, 17]].sum() == pytest.approx(44, rel=0.05)
    assert (volumes > 0).all()


def test_faults_are_named(tmp_path):
    with pytest.raises(ValueError, match="no crystal"):
        PrototypeIndex.build({})
    with pytest.raises(FileNotFoundError, match="no such index"):
        PrototypeIndex.load(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="available: .*mp20_train"):
        embedded_index("nothing")


def test_command_writes_an_index(tmp_path, capfd):
    import pandas

    from hf_crystal.crystals.reading import as_columns

    rows = [{"material_id": name, "split": "val" if name == "KF" else "train", "e": -1.0}
            | as_columns(structure, nested=True) for name, structure in known_crystals().items()]  # fmt: skip
    table, out = tmp_path / "known.parquet", tmp_path / "index.parquet"
    pandas.DataFrame(rows).to_parquet(table)
    assert run(["index", str(table), str(out), "--split", "train", "--energy-column", "e"]) == 0
    index = PrototypeIndex.load(out)
    assert set(index.names) == set(known_crystals()) - {"KF"}
    assert f"hf-crystal: {len(index)} crystals, 0 left out" in capfd.readouterr().err
    assert run(["index", str(table), str(out), "--split", "nothing"]) == 1
    assert "it has" not in (error := capfd.readouterr().err) and "train, val" in error


def test_embedded_index_knows_the_training_part():
    index = embedded_index()
    assert len(index) == 27109
    best = index.candidates("SrTiO3")[0]
    assert best.canonical.space_group == 221
    assert 3.8 < best.structure.lattice.a < 4.05
