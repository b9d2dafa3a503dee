"""The grammar: no dead ends, nothing but crystals, exactly what was asked for; the language model around it."""

import pytest
import torch
from mat2seq_crystals import baddeleyite, lopsided, perovskite, quartz, rock_salt, rutile

from hf_crystal.models.generation_mat2seq import (
    MAT2SEQ_SIZES,
    CrystalLogitsProcessor,
    Mat2SeqForCausalLM,
    generate_crystals,
    mat2seq_config,
    parse_composition,
)
from hf_crystal.models.grammar_constraint_mat2seq import PromptConstraint
from hf_crystal.models.grammar_mat2seq import CrystalGrammar
from hf_crystal.models.symmetry_crystal import space_group

CRYSTALS = [quartz, rutile, rock_salt, perovskite, baddeleyite, lopsided]


@pytest.fixture(scope="module")
def grammar(tokenizer):
    return CrystalGrammar(tokenizer, max_atoms=20, max_tokens=400)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return Mat2SeqForCausalLM(mat2seq_config("tiny", tokenizer, max_position_embeddings=400)).eval()


def test_impossible_prompts_are_refused(tokenizer, model, grammar):
    for options, reason in [
        ({"composition": "NaKCl", "space_group": 225}, "multiplicities"),
        ({"composition": "NaCl", "space_group": 231}, "space_group"),
        ({"composition": "Xx2"}, "Xx"),
        ({"composition": {"Na": 0.5}}, "whole numbers"),
        ({"composition": {}}, "empty"),
        ({"composition": {"C": 900}}, "900 atoms; accepted: up to 512"),
        ({"chemical_system": "Na-Qq"}, "Qq"),
        ({"composition": "NaCl", "chemical_system": "Na-Cl"}, "exclude"),
        ({"formula_units": [1]}, "composition"),
        ({"prompt": "Ti 2 O 4 | Pm-3m | Ti"}, "prompt token"),
        ({"prompt": "Ti 2 O 4 |", "space_group": 136}, "excludes"),
        ({"properties": {"hardness": 1}}, "hardness"),
        ({"temperature": -1}, "temperature"),
        ({"num_return": 0}, "num_return"),
    ]:
        with pytest.raises(ValueError, match=reason):
            model.generate_crystals(tokenizer, **options)


@pytest.mark.parametrize("temperature", [0.7, 1.5])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"composition": "SrTiO3"},
        {"composition": "Sr2Ti2O6", "space_group": "P-1"},
        {"composition": "SrTiO3", "formula_units": [1, 2]},
        {"space_group": 227},
        {"chemical_system": "Li-Fe-O", "space_group": "Pnma"},
        {"prompt": "Ti 2 O 4 | P4_2/mnm | a 4.59 c 2.96 | Ti 2a"},
        {"properties": {"band_gap": 1.0}, "composition": "ZnO"},
    ],
    ids=str,
)
def test_an_untrained_model_writes_only_what_was_asked_for(tokenizer, model, options, temperature):
    made = model.generate_crystals(tokenizer, num_return=8, temperature=temperature, seed=0, **options)
    assert len(made) == 8
    for item in made:
        assert item.error is None
        assert item.log_likelihood < 0
        assert len(tokenizer.encode(item.sequence)) <= 400
        if "composition" in options:
            units = options.get("formula_units", [1])
            wanted = parse_composition(options["composition"])
            assert item.canonical.composition in [{e: n * k for e, n in wanted.items()} for k in units]
        if "space_group" in options:
            assert options["space_group"] in (
                item.canonical.space_group,
                space_group(item.canonical.space_group).symbol,
            )
        if "chemical_system" in options:
            assert {str(e) for e in item.structure.composition} == set(options["chemical_system"].split("-"))
        if "prompt" in options:
            assert item.sequence.startswith(options["prompt"])


def test_seeds_reproduce_and_leave_the_global_state_alone(tokenizer, model):
    before = torch.random.get_rng_state()
    first, second, third = (
        model.generate_crystals(tokenizer, composition="ZnO", seed=s, num_return=3) for s in (5, 5, 6)
    )
    assert [item.sequence for item in first] == [item.sequence for item in second]
    assert [item.sequence for item in first] != [item.sequence for item in third]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_temperature_zero_is_greedy(tokenizer, model):
    made = model.generate_crystals(tokenizer, composition="ZnO", temperature=0, num_return=2)
    assert made[0].sequence == made[1].sequence


def test_beam_search_and_a_batch_of_different_prompts(tokenizer, model, grammar):
    wanted = [{30: 2, 16: 2}, {6: 4}]
    processor = CrystalLogitsProcessor(tokenizer, grammar, [PromptConstraint.build([c]) for c in wanted])
    ids = torch.full((2, 1), tokenizer.bos_token_id)
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), logits_processor=[processor], num_beams=3, max_length=400
    )
    decoded = tokenizer.batch_decode_structures(output)
    assert [item.error for item in decoded] == [None, None]
    assert [item.canonical.composition for item in decoded] == wanted


def test_left_padded_prompts_are_read_past_the_padding(tokenizer, model, grammar):
    tokenizer_ids = [tokenizer.convert_tokens_to_ids(t.split()) for t in ("<bos> Zn 1 O 1 |", "<bos> C 2 |")]
    width = max(map(len, tokenizer_ids))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in tokenizer_ids])
    output = model.generate(
        input_ids=ids,
        attention_mask=(ids != tokenizer.pad_token_id).long(),
        logits_processor=[CrystalLogitsProcessor(tokenizer, grammar)],
        do_sample=True,
        max_length=400,
    )
    decoded = tokenizer.batch_decode_structures(output)
    assert [item.canonical.composition for item in decoded] == [{30: 1, 8: 1}, {6: 2}]


def test_the_saved_folder_is_a_stock_llama(tokenizer, model, tmp_path):
    import json

    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(stock) is LlamaForCausalLM
    ours = Mat2SeqForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([tokenizer.encode(rutile())])
    assert torch.equal(stock.eval()(ids).logits, ours.eval()(ids).logits)
    assert torch.equal(model(ids).logits, ours(ids).logits)


def test_a_gpt2_generates_too(tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=400,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    made = generate_crystals(GPT2LMHeadModel(config).eval(), tokenizer, composition="GaAs", num_return=4, seed=0)
    assert [item.error for item in made] == [None] * 4
    assert all(item.canonical.composition == {31: 1, 33: 1} for item in made)


@pytest.mark.parametrize("size", MAT2SEQ_SIZES)
def test_named_sizes_have_the_vocabulary_of_the_tokenizer(tokenizer, size):
    config = mat2seq_config(size, tokenizer)
    assert config.vocab_size == len(tokenizer)
    assert config.hidden_size % config.num_attention_heads == 0


def test_an_unknown_size_is_refused(tokenizer):
    with pytest.raises(ValueError, match="huge"):
        mat2seq_config("huge", tokenizer)
