"""`hf-crystal generate`: the table, the CIF files, one line per error."""

import json

import pytest
import torch
from pymatgen.core import Composition, Structure
from tiny_models import save_tiny_model
from transformers.utils import logging

from hf_crystal import Mat2SeqForCausalLM, Mat2SeqTokenizer, canonicalize
from hf_crystal.cli.main import run
from hf_crystal.data.sources import STRUCTURE_COLUMN, iter_rows
from hf_crystal.mat2seq.modeling_mat2seq import mat2seq_config


@pytest.fixture(scope="module")
def generator(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("generator")
    tokenizer = Mat2SeqTokenizer()
    torch.manual_seed(0)
    Mat2SeqForCausalLM(mat2seq_config("tiny", tokenizer, max_position_embeddings=300)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def command(capfd):
    """Call `hf-crystal generate` in this process: exit code, standard output, standard error."""

    def call(*words) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(["generate", *[str(word) for word in words]])
        return (code, *capfd.readouterr())

    verbosity = logging.get_verbosity()
    yield call
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")  # 0.3333 is read as a third
def test_table_and_cif_files(command, generator, tmp_path):
    words = ("--composition", "SrTiO3", "--num", 3, "--seed", 0, "--model", generator)
    code, out, err = command(*words, "--output-dir", tmp_path / "made")
    lines = out.splitlines()
    assert code == 0 and err.endswith(f"hf-crystal: written: {tmp_path / 'made'} (3 cif files)\n")
    assert lines[0].split() == ["formula", "space_group", "num_atoms", "volume", "log_likelihood", "source", "file"]
    assert lines[1].split() == ["Å³"]
    assert [line.split()[0] for line in lines[3:]] == ["SrTiO3"] * 3
    files = sorted((tmp_path / "made").iterdir())
    assert [file.name[:10] for file in files] == ["SrTiO3_001", "SrTiO3_002", "SrTiO3_003"]
    assert {Structure.from_file(file).composition.reduced_composition for file in files} == {Composition("SrTiO3")}
    assert command(*words, "--output-dir", tmp_path / "made")[1] == out


def test_known_crystals_of_the_language_model_are_counted_and_marked(command):
    asked = ("--candidates", "model", "--temperature", 0, "--output", "json")
    code, out, err = command("Na1Cl1", *asked, "--space-group", "Fm-3m")
    (salt,) = json.loads(out)
    assert code == 0 and "1 of 1 crystals of the language model are known ones by StructureMatcher" in err
    assert "StructureMatcher takes it for known mp-" in salt["warnings"][0]
    code, out, err = command("Na5Cl4", *asked)
    assert code == 0 and "StructureMatcher" not in err + out


def test_a_folder_with_other_crystals_is_refused_and_left_alone(command, generator, tmp_path):
    words = ("MgO", "--model", generator, "--output-dir", tmp_path)
    tmp_path.joinpath("notes.txt").write_text("not a crystal")
    assert command(*words, "--num", 3, "--seed", 7)[0] == 0
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert len(before) == 4
    others = [("--num", 3, "--seed", 8), ("--num", 2, "--seed", 7), ("--num", 3), ("--num", 4, "--seed", 9)]
    for options in others:
        code, out, err = command(*words, *options)
        assert (code, out) == (1, "")
        assert "holds 3 other crystals, the first is MgO_001_" in err
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
    for form in ("cif", "poscar", "extxyz"):  # the same crystals
        assert command(*words, "--num", 3, "--seed", 7, "--format", form)[0] == 0
    assert len(list(tmp_path.iterdir())) == 10
    code, _, err = command(*words, "--num", 3, "--seed", 8, "--format", "poscar")
    assert code == 1 and "holds 9 other crystals" in err


def test_warnings_are_one_line_each_on_standard_error(command, generator):
    code, out, err = command("MgO", "--property", "band_gap=8.5", "--num", 3, "--seed", 0, "--model", generator)
    assert code == 0
    assert len(out.splitlines()) == 6
    assert err.startswith("hf-crystal: warning: band_gap is 8.5 eV; the trained bins reach from 0 to 8 eV")
    assert err.count("band_gap is") == 1
    lines = [line for line in err.splitlines() if "warning:" in line][1:]  # a model without training has odd volumes
    assert lines and all("volume per atom" in line for line in lines)


@pytest.mark.parametrize(("form", "suffix"), [("poscar", ".vasp"), ("extxyz", ".extxyz")])
def test_other_forms_hold_the_same_crystals(command, generator, tmp_path, form, suffix):
    words = ("--composition", "SrTiO3", "--num", 2, "--seed", 0, "--model", generator, "--output", "json")
    tokenizer = Mat2SeqTokenizer()
    code, out, err = command(*words, "--output-dir", tmp_path, "--format", form)
    assert code == 0 and err.endswith(f"hf-crystal: written: {tmp_path} (2 {form} files)\n")
    for row in json.loads(out):
        assert row["file"].endswith(suffix)
        assert canonicalize(row["cif"]).to_text() == canonicalize(row["file"]).to_text()
        written = tokenizer.decode_structure(tokenizer.encode(row["sequence"]))
        assert canonicalize(row["file"]).to_text() == canonicalize(written).to_text()


def test_json_has_sequences_in_order_of_likelihood_and_the_space_group(command, generator):
    words = ("--composition", "Ti2O4", "--space-group", "136", "--num", 3, "--property", "band_gap=2")
    code, out, _ = command(*words, "--model", generator, "--output", "json", "--seed", 1)
    rows = json.loads(out)
    assert code == 0
    assert {row["space_group"] for row in rows} == {"P4_2/mnm"}
    assert all("Ti 2 O 4 | P4_2/mnm |" in row["sequence"] for row in rows)
    likelihoods = [row["log_likelihood"] for row in rows]
    assert likelihoods == sorted(likelihoods, reverse=True)
    assert len({row["sequence"] for row in rows}) == len(rows)


def test_a_crystal_given_in_part_by_beam_search(command, generator):
    words = ("--composition", "TiO2", "--formula-units", 2, "--space-group", 136, "--cell", "a=4.5..4.7")
    code, out, _ = command(
        *words, "--cell", "c=2.96", "--site", "O 4f 0.305", "--num-beams", 2, "--model", generator, "--output", "json"
    )
    sequence = json.loads(out)[0]["sequence"]
    assert code == 0
    assert " c 2.96 |" in sequence
    assert "O 4f .3050" in sequence


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--composition", "Xx2"], 1, "Xx"),
        (["srtio3"], 1, "composition is 'srtio3'; accepted: a formula such as 'SrTiO3'"),
        (["NaCl", "--composition", "KCl"], 2, "--composition: KCl, and NaCl without the option; give one of the two"),
        (["--composition", "NaCl", "--space-group", "Pnope"], 1, "Pnope"),
        (["--composition", "NaCl", "--space-group", "Fd-3m"], 1, "no crystal"),
        (["--composition", "NaCl", "--num", "0"], 2, "0 is not positive"),
        (["--composition", "NaCl", "--property", "band_gap"], 2, "expected name=value"),
        (["--composition", "NaCl", "--property", "band_gap=wide"], 2, "expected name=value"),
        (["--composition", "NaCl", "--property", "color=1"], 1, "color"),
        (["--composition", "NaCl", "--temperature", "-1"], 2, "temperature"),
        (["--composition", "NaCl", "--cell", "a=wide"], 2, "expected name=value or name=low..high"),
        (["--composition", "NaCl", "--formula-units", "some"], 2, "expected whole numbers or any"),
        (["--composition", "NaCl", "--site", "Na 4a"], 1, "need one space_group"),
        (["--composition", "NaCl", "--min-distance", "100"], 1, "min_distance is 100.0; accepted: above 0 up to 6 Å"),
        (["--composition", "NaCl", "--output", "parquet"], 2, "needs --output-file"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(command, generator, words, code, message):
    got, out, err = command(*words, "--model", generator)
    assert (got, out) == (code, "")
    assert err.startswith("hf-crystal: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_composition_without_the_option(command, generator, tmp_path):
    words = ("--num", 2, "--seed", 0, "--model", generator, "--output", "csv")
    expected = command("--composition", "NaCl", *words)
    assert expected[0] == 0
    assert command("NaCl", *words) == expected
    assert command("NaCl", "--composition", "NaCl", *words) == expected
    assert command("NaCl", *words[:-2], "--output-file", tmp_path / "list.csv")[:2] == (0, "")  # the ending says csv
    assert (tmp_path / "list.csv").read_text() == expected[1]


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "parquet"])
def test_what_is_generated_can_be_predicted(command, generator, tmp_path, monkeypatch, form):
    model, made, values = (tmp_path / name for name in ("model", f"made.{form}", "values.json"))
    words = ("SrTiO3", "--space-group", 221, "--num", 2, "--seed", 0, "--model", generator, "--output-file", made)
    assert command(*words)[0] == 0
    with made.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)  # as `generate … | predict -`
        assert run(["predict", "-", "--model", str(save_tiny_model(model)), "--output-file", str(values)]) == 0
    found = json.loads(values.read_text())
    assert [row["formula"] for row in found] == ["SrTiO3"] * 2
    number = "_symmetry_Int_Tables_number"
    assert {row[STRUCTURE_COLUMN].partition(number)[2].split()[0] for row in iter_rows(made)} == {"221"}


def test_formula_of_the_default_generator(command, generator):
    code, out, _ = command("LiFePO4", "--num", 2)
    rows = [line.split() for line in out.splitlines()[3:]]
    assert (code, rows[0][:3], len(rows)) == (0, ["Li4Fe4P4O16", "Pnma", "28"], 2)
    assert "known mp-" in out.splitlines()[3]
    code, out, _ = command("LiFePO4", "--space-group", "Pnma", "--novel", "--output", "json")
    assert code == 0 and json.loads(out)[0]["source"].startswith("prototype mp-")
    words = ("NaCl", "--num", 2, "--seed", 0, "--model", generator, "--output", "json")
    assert {row["source"] for row in json.loads(command(*words)[1])} == {"model"}
    assert json.loads(command(*words, "--candidates", "auto")[1])[0]["source"].startswith("known mp-")
    code, _, err = command(*words, "--candidates", "prototypes", "--property", "band_gap=2")
    assert code == 1 and "takes composition and space_group" in err


def test_distance_from_the_hull_has_its_caveat(command, generator):
    words = ("NaCl", "--num", 2, "--seed", 0, "--model", generator)
    _, plain, _ = command(*words, "--output", "json")
    code, out, err = command(*words, "--stability", "--output", "json")
    rows = json.loads(out)
    added = {"e_above_hull", "e_above_hull_standard_error", "decomposes_to", "energy_of"}
    assert code == 0
    assert [{key: row[key] for key in row if key not in added | {"warnings"}} for row in rows] == [
        {key: row[key] for key in row if key != "warnings"} for row in json.loads(plain)
    ]
    assert all(row["e_above_hull"] > -0.5 and row["decomposes_to"] == "NaCl" for row in rows)
    assert "e_above_hull is of the unrelaxed crystal, by crystalformer-mp: a hint, no ranking of stability" in err
    head = command(*words, "--stability")[1].splitlines()[0].split()
    assert "e_above_hull" in head and "energy_of" not in head


def test_relaxed_crystals_are_written_relaxed(command, tmp_path):
    words = ("CuAu", "--num", 2, "--candidates", "prototypes", "--output", "json")
    emt = ("--relax", "--keep-symmetry", "--calculator", "ase.calculators.emt:EMT")
    plain = json.loads(command(*words)[1])
    code, out, err = command(*words, *emt, "--output-dir", tmp_path / "made")
    assert code == 0
    for before, after in zip(plain, json.loads(out), strict=True):
        assert after["converged"] and after["num_steps"] > 0
        assert after["volume"] == pytest.approx(before["volume"] * (1 + after["volume_change"]))
        assert after["space_group"] == before["space_group"] and after["sequence"] != before["sequence"]
        written = Structure.from_file(after["file"], primitive=True)
        assert written.volume == pytest.approx(after["volume"], rel=2e-3)  # lengths have three decimals
    code, out, err = command("CuAu", *words[1:], *emt, "--max-steps", 1)
    assert code == 0 and "warning: the relaxation has not converged after 1 steps\n" in err
    code, out, err = command("NaCl", "--relax", "--calculator", "ase.calculators.emt:EMT", "--output", "json")
    (row,) = json.loads(out)  # the potential has no sodium
    assert (code, row["energy"], row["converged"]) == (1, None, False)
    assert "warning: not relaxed: NotImplementedError: No EMT-potential for" in err
    code, out, err = command("NaCl", "--relax", "--calculator", "emt")
    assert (code, out) == (1, "") and "calculator is 'emt'; accepted: chgnet, or module:class" in err


def test_model_that_is_no_generator(command, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    got, out, err = command("--composition", "NaCl", "--model", tmp_path)
    assert (got, out) == (1, "")
    assert "has no tokenizer" in err
