"""The task "crystal-generation": what was asked for, seeds, repeats, filters, bad prompts, saving."""

import json
import sys

import pytest
import torch
from pymatgen.core import Composition, Structure
from pymatgen.io.cif import CifFile
from transformers import AutoTokenizer, pipeline

from hf_crystal import (
    CrystalGenerationPipeline,
    Mat2SeqForCausalLM,
    Mat2SeqTokenizer,
    canonicalize,
    load_reference,
)
from hf_crystal.checkpoints import embedded_checkpoint
from hf_crystal.crystals.reading import as_record
from hf_crystal.loading import load_generation_pipeline, load_property_pipeline
from hf_crystal.mat2seq.modeling_mat2seq import mat2seq_config
from hf_crystal.mat2seq.space_groups import space_group_number
from hf_crystal.pipelines.pipeline_crystal_generation import result_of

TASK = "crystal-generation"


@pytest.fixture(scope="module")
def pipe() -> CrystalGenerationPipeline:
    tokenizer = Mat2SeqTokenizer()
    torch.manual_seed(0)
    model = Mat2SeqForCausalLM(mat2seq_config("tiny", tokenizer, max_position_embeddings=300))
    return CrystalGenerationPipeline(model=model, tokenizer=tokenizer, task=TASK)


@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")  # 0.3333 is read as a third
def test_results_are_the_composition_and_decode_again(pipe):
    results = pipe("SrTiO3", num_return_sequences=4, seed=0)
    assert len(results) == 4
    for result in results:
        fields = ["structure", "cif", "formula", "space_group", "sequence", "log_likelihood"]
        assert list(result) == [*fields, "score", "probability", "known_e_above_hull", "source", "warnings"]
        assert result["structure"].composition == Composition("SrTiO3")
        assert all("volume per atom" in text for text in result["warnings"])  # of a model without training
        read = Structure.from_str(result["cif"], fmt="cif", primitive=True)
        assert canonicalize(read).to_text() == canonicalize(result["structure"]).to_text()
        assert f"_symmetry_space_group_name_H-M   {result['space_group']}\n" in result["cif"].replace("'", "")
        assert result["formula"] == "SrTiO3"
        assert result["sequence"].startswith(("Sr 1 Ti 1 O 3 |", "Ti 1 Sr 1 O 3 |"))
        assert result["log_likelihood"] < 0
        assert pipe.tokenizer.decode_structure(pipe.tokenizer.encode(result["sequence"])) == result["structure"]


@pytest.fixture(scope="module")
def default_pipe() -> CrystalGenerationPipeline:
    return load_generation_pipeline()


def test_a_formula_gives_known_crystals_then_prototypes_then_those_of_the_model(default_pipe):
    *found, last = default_pipe("TiO2", num_return_sequences=3, seed=0)
    assert [(item["formula"], item["space_group"]) for item in found] == [("Ti4O8", "C2/m"), ("Ti2O4", "I4_1/amd")]
    assert all(item["source"].startswith("known mp-") and 0 < item["score"] < 1 for item in found)
    assert (last["source"], last["score"]) == ("model", None)
    new = default_pipe("TiO2", known=False, space_group="P4_2/nmc", num_return_sequences=1)
    assert new[0]["source"].startswith("prototype mp-")
    few = default_pipe("NaCl", space_group=225, num_return_sequences=2, seed=0)
    assert [item["source"].split()[0] for item in few] == ["known", "model"]
    assert len(default_pipe("NaCl", space_group=225, candidates="prototypes", num_return_sequences=2)) == 1
    for item in (*found, last):  # whoever wrote them, the likelihood begins after the composition
        ids = torch.tensor([default_pipe.tokenizer.encode(item["sequence"])])
        begin = default_pipe.tokenizer.convert_ids_to_tokens(ids[0].tolist()).index("|")
        with torch.no_grad():
            each = default_pipe.model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        assert item["log_likelihood"] == pytest.approx(each[begin:].sum().item(), abs=1e-3)


def test_the_model_alone_gives_atoms_of_the_primitive_cell(default_pipe):
    assert default_pipe("CaTiO3")[0]["formula"] == "Ca4Ti4O12"
    asked = [{"candidates": "model"}, {"temperature": 0.5}, {"properties": {"band_gap": 2}}, {"formula_units": 1}]
    for options in asked:
        result = default_pipe("CaTiO3", seed=0, **options)[0]
        assert (result["source"], result["formula"]) == ("model", "CaTiO3")
    mapping, text = default_pipe([{"Ca": 1, "Ti": 1, "O": 3}, "CaTiO3"], seed=0)
    assert (mapping[0]["source"], text[0]["source"][:5]) == ("model", "known")


def test_likelihood_of_a_known_crystal_is_what_sampling_it_has(default_pipe):
    sampled = default_pipe("SrTiO3", candidates="model", seed=0, num_return_sequences=3)
    for result in sampled:
        item = default_pipe.tokenizer.batch_decode_structures([default_pipe.tokenizer.encode(result["sequence"])])[0]
        again = default_pipe._with_likelihood(item).log_likelihood
        assert again == pytest.approx(result["log_likelihood"], abs=1e-4)
    assert default_pipe("SrTiO3")[0]["log_likelihood"] < 0


def test_distance_from_the_hull_is_that_of_predict_and_orders_nothing(default_pipe, monkeypatch):
    prompts = ["TiO2", "Xx2"]
    options = {"num_return_sequences": 2, "seed": 0}
    plain = default_pipe(prompts, **options)
    found = default_pipe(prompts, stability=True, **options)
    assert found[1] == plain[1]
    hull, predict = load_reference(), load_property_pipeline()
    for before, after in zip(plain[0], found[0], strict=True):
        value = predict(after["structure"])
        expected = value["formation_energy"] - hull.stability("TiO2").hull_energy
        assert after["e_above_hull"] == pytest.approx(expected, abs=1e-5)
        error = value["formation_energy_standard_error"]
        assert after["e_above_hull_standard_error"] == pytest.approx(error, rel=1e-3)
        assert after["energy_of"] == "the unrelaxed crystal, by crystalformer-mp"
        assert after["decomposes_to"] == "TiO2"
        assert after["sequence"] == before["sequence"]
    with pytest.warns(UserWarning, match="Po: not in the training data"):
        (polonium,) = default_pipe("PoO2", stability=True)
    assert polonium["e_above_hull"] is None and "no phase of matbench_mp_e_form has Po" in polonium["warnings"][-1]
    assert any("Po: not in the training data of crystalformer-mp" in warning for warning in polonium["warnings"])
    monkeypatch.setitem(sys.modules, "hf_crystal.stability", None)  # as where the file was exported
    with pytest.raises(ValueError, match="stability is True; accepted is False: the package hf_crystal"):
        default_pipe("TiO2", stability=True, candidates="model")


def test_candidates_that_cannot_be_are_refused(pipe, monkeypatch):
    with pytest.raises(ValueError, match="candidates is 'both'; accepted: 'auto', 'prototypes', 'model'"):
        pipe("NaCl", candidates="both")
    with pytest.raises(ValueError, match=r"takes composition and space_group, not \['properties'\]"):
        pipe("NaCl", candidates="prototypes", properties={"band_gap": 2})
    results = pipe(["NaCl", "Xx2"], candidates="auto")
    assert (results[0][0]["source"][:5], "Xx" in results[1][0]["error"]) == ("known", True)
    monkeypatch.setitem(sys.modules, "hf_crystal.prototypes", None)  # as where the file was exported
    with pytest.raises(ValueError, match="candidates is 'auto'; accepted is 'model'"):
        pipe("NaCl", candidates="auto")
    assert pipe("NaCl", seed=0)[0]["source"] == "model"


def test_space_group_and_mapping(pipe):
    results = pipe({"Ti": 2, "O": 4}, space_group="P4_2/mnm", num_return_sequences=2, seed=1)
    assert {result["space_group"] for result in results} == {"P4_2/mnm"}
    assert {result["formula"] for result in results} == {"Ti2O4"}


@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")  # 0.3333 is read as a third
@pytest.mark.filterwarnings("ignore:No Pauling electronegativity")  # an untrained model takes any element
@pytest.mark.parametrize("group", ["Fm-3m", "R-3c", "I4_1/amd", "P6_3/mmc", "C2/c", "Fddd", "P2_1/c", "P-1", "Ia-3d"])
def test_cif_has_the_space_group_and_is_the_same_crystal(pipe, group):
    for result in pipe(space_group=group, num_return_sequences=2, seed=1, max_atoms=12):
        assert as_record(result["cif"]).num_atoms % len(result["structure"]) == 0
        assert canonicalize(result["cif"]).to_text() == canonicalize(result["structure"]).to_text()
        tags = CifFile.from_str(result["cif"]).data.popitem()[1].data
        assert tags["_symmetry_space_group_name_H-M"] == group
        assert int(tags["_symmetry_Int_Tables_number"]) == space_group_number(group)


def test_a_property_out_of_range_is_refused_or_warned_of(pipe):
    results = pipe("ZnO", properties={"formation_energy": 1.2}, num_return_sequences=2, seed=0)
    for result in results:
        assert "formation_energy is 1.2 eV/atom; the trained bins reach from -4 to 1 eV/atom" in result["warnings"][0]
    refused = pipe(["ZnO", {"composition": "ZnO", "properties": {"formation_energy": 40}}], seed=0)
    assert "structure" in refused[0][0]
    assert "formation_energy is 40 eV/atom; the trained bins reach from -4 to 1" in refused[1][0]["error"]


def test_seed_reproduces_and_another_differs(pipe):
    first, second, third = (
        [result["sequence"] for result in pipe("NaCl", num_return_sequences=3, seed=seed)] for seed in (3, 3, 4)
    )
    assert first == second != third


def test_prompts_in_a_list_and_as_fields(pipe):
    results = pipe(["NaCl", {"composition": "ZnO", "space_group": "P-1"}], seed=0)
    assert [[item["formula"] for item in row] for row in results] == [["NaCl"], ["ZnO"]]
    assert results[1][0]["space_group"] == "P-1"


def test_a_bad_prompt_in_a_list_gives_its_reason_and_the_others_go_on(pipe):
    asked = ["NaCl", "Xx2", {"composition": "NaKCl", "space_group": 225}, {"C": 600}, "ZnO"]
    results = pipe(asked, num_return_sequences=2, seed=0)
    assert [len(row) for row in results] == [2, 1, 1, 1, 2]
    assert [list(row[0]) for row in results[1:4]] == [["error"]] * 3
    for row, reason in zip(results[1:4], ("Xx", "multiplicities", "600 atoms"), strict=True):
        assert reason in row[0]["error"]
    assert pipe([]) == []


def test_a_crystal_given_in_part(pipe):
    result = pipe("TiO2", formula_units=2, space_group=136, cell={"a": 4.6}, sites=["Ti 2a"], seed=0)[0]
    assert "Ti 2 O 4 | P4_2/mnm | a 4.60 c " in result["sequence"]
    assert " Ti 2a" in result["sequence"]


@pytest.mark.filterwarnings("ignore:No Pauling electronegativity")  # an untrained model takes any element
def test_nothing_and_a_chemical_system_are_prompts(pipe):
    assert len(pipe(seed=0, max_atoms=6)) == 1
    assert {str(e) for e in pipe(chemical_system="Li-O", seed=0)[0]["structure"].composition} == {"Li", "O"}


def test_repeats_are_left_out_unless_wanted(pipe):
    greedy = pipe("NaCl", num_return_sequences=3, temperature=0)
    assert len(greedy) == 1
    repeated = pipe("NaCl", num_return_sequences=3, temperature=0, unique=False)
    assert [item["sequence"] for item in repeated] == [greedy[0]["sequence"]] * 3


def test_filter_and_rank(pipe, monkeypatch):
    monkeypatch.setattr("hf_crystal.mat2seq.validity._LARGEST_DISTANCE", 60.0)  # no trained model writes such cells
    everything = pipe("NaCl", num_return_sequences=6, seed=0, max_rounds=1, rank=False)
    assert len(everything) == 6
    closest = sorted(min(item["structure"].get_neighbor_list(60.0)[3], default=60.0) for item in everything)
    limit = (closest[2] + closest[3]) / 2
    apart = pipe("NaCl", num_return_sequences=6, seed=0, max_rounds=1, min_distance=limit)
    assert len(apart) == 3
    assert all(min(item["structure"].get_neighbor_list(60.0)[3], default=60.0) > limit for item in apart)
    ranked = pipe("NaCl", num_return_sequences=6, seed=0, max_rounds=1)
    likelihoods = [item["log_likelihood"] for item in ranked]
    assert likelihoods == sorted(likelihoods, reverse=True)
    assert {item["sequence"] for item in ranked} == {item["sequence"] for item in everything}


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ("Xx2", {}, ValueError, "Xx"),
        ("NaCl", {"space_group": "Pnope"}, ValueError, "Pnope"),
        ("NaCl", {"space_group": 300}, ValueError, "300"),
        ("Na1Cl1", {"space_group": "Fd-3m"}, ValueError, "Fd-3m|227"),
        ("NaCl", {"temperature": -1}, ValueError, "temperature"),
        ("NaCl", {"num_return_sequences": 0}, ValueError, "num_return_sequences is 0"),
        ("NaCl", {"batch_size": 0}, ValueError, "batch_size is 0"),
        ("NaCl", {"properties": {"color": 1}}, ValueError, "color"),
        ("NaCl", {"chemical_system": "Na-Cl"}, ValueError, "exclude each other"),
        ("Na2Cl2", {"max_atoms": 3}, ValueError, "max_atoms is 3; the composition asked for has 4 atoms"),
        ("NaCl", {"max_atoms": "6"}, ValueError, "max_atoms is '6'; accepted: a whole number"),
        ("NaCl", {"max_atoms": 0}, ValueError, "max_atoms is 0; accepted: at least 1"),
        ("NaCl", {"known": False, "candidates": "model"}, ValueError, "known is False .*; accepted: with a formula"),
        ("NaCl0", {}, ValueError, "composition is 'NaCl0', with a count of 0"),
        ("NaCl", {"color": "red"}, TypeError, "unknown arguments .*color"),
        ({"composition": "NaCl"}, {"composition_": 1}, TypeError, "composition_"),
    ],
)
def test_bad_prompts_give_one_clear_error(pipe, prompt, options, error, message):
    with pytest.raises(error, match=message):
        pipe(prompt, **options)


def test_saved_folder_loads_by_task_name(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = pipeline(TASK, model=str(tmp_path))
    assert isinstance(again, CrystalGenerationPipeline)
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), Mat2SeqTokenizer)
    expected = pipe("ZnS", num_return_sequences=2, seed=7)
    got = again("ZnS", num_return_sequences=2, seed=7)
    assert [item["sequence"] for item in got] == [item["sequence"] for item in expected]


def test_model_of_another_class_is_refused(pipe):
    from transformers import LlamaForCausalLM

    with pytest.raises(ValueError, match="LlamaForCausalLM"):
        CrystalGenerationPipeline(model=LlamaForCausalLM(pipe.model.config), tokenizer=pipe.tokenizer, task=TASK)


def test_embedded_generator_is_the_default_and_its_card_is_of_it():
    folder = embedded_checkpoint("mat2seq-mp20")
    embedded = pipeline(TASK)
    results = embedded("SrTiO3", candidates="model", num_return_sequences=4, seed=0)
    assert [result["formula"] for result in results] == ["SrTiO3"] * 4
    assert sum(result["log_likelihood"] for result in results) / 4 > -120  # an untrained one has about -200
    card, metrics = (folder / "README.md").read_text(), json.loads((folder / "metrics.json").read_text())
    assert f"{metrics['num_parameters']:,}" in card
    assert sum(p.numel() for p in embedded.model.parameters()) == metrics["num_parameters"]


def test_a_formula_whose_crystal_is_not_in_the_index_has_a_note():
    pipe = load_generation_pipeline()
    formulas = ("EuSi2(NO)2", "TiO2", "Sr2CuSbS4")
    unlisted, listed, new = (pipe(formula, candidates="prototypes")[0] for formula in formulas)
    assert unlisted["source"].startswith("prototype")
    assert any("a phase of this formula that is none of the known crystals" in text for text in unlisted["warnings"])
    assert listed["warnings"] == [] and not any("a phase of this formula" in text for text in new["warnings"])


def test_a_decoded_crystal_of_absurd_size_has_the_warning_of_predictions():
    tokenizer = Mat2SeqTokenizer()
    huge = {"lattice": [[16, 0, 0], [0, 16, 0], [0, 0, 16]], "frac_coords": [[0, 0, 0]], "species": ["Fe"]}
    (item,) = tokenizer.batch_decode_structures([tokenizer.encode(huge)])
    (warning,) = result_of(item)["warnings"]
    assert warning.startswith("volume per atom is")
