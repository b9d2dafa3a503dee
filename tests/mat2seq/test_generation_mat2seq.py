"""The grammar: no dead ends, nothing but crystals, exactly what was asked for; the language model around it."""

import random
from collections import Counter

import pytest
import torch
from mat2seq_crystals import DATASETS, baddeleyite, lopsided, perovskite, quartz, read_records, rock_salt, rutile

from hf_crystal.models.canonical_crystal import canonicalize
from hf_crystal.models.canonical_text import parse_tokens, write_tokens
from hf_crystal.models.feasibility_mat2seq import (
    can_finish,
    collapsing_values,
    equivalent_parameters,
)
from hf_crystal.models.generation_mat2seq import (
    MAT2SEQ_SIZES,
    CrystalLogitsProcessor,
    Mat2SeqForCausalLM,
    generate_crystals,
    mat2seq_config,
    parse_composition,
)
from hf_crystal.models.grammar_mat2seq import CrystalGrammar, GrammarState, PromptConstraint
from hf_crystal.models.symmetry_crystal import space_group

CRYSTALS = [quartz, rutile, rock_salt, perovskite, baddeleyite, lopsided]


@pytest.fixture(scope="module")
def grammar(tokenizer):
    return CrystalGrammar(tokenizer, max_atoms=20, max_tokens=400)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    return Mat2SeqForCausalLM(mat2seq_config("tiny", tokenizer, max_position_embeddings=400)).eval()


def walk(grammar, constraint, source):
    """Tokens of a random walk through the grammar."""
    state, tokens = GrammarState(), []
    while not tokens or tokens[-1] != grammar.eos_token:
        allowed = grammar.allowed_tokens(state, constraint)
        assert allowed, (tokens, state)
        tokens.append(source.choice(allowed))
        state = grammar.advance(state, tokens[-1])
    return tokens


@pytest.mark.slow
def test_random_walks_end_in_crystals_in_every_space_group(grammar):
    source = random.Random(0)
    for number in range(1, 231):
        constraint = PromptConstraint.build(None, [number])
        grammar.check(constraint)
        tokens = walk(grammar, constraint, source)
        crystal = parse_tokens(tokens[:-1], grammar.layout)
        assert crystal.space_group == number
        assert len(tokens) + 1 <= grammar.max_tokens


@pytest.mark.parametrize("composition", [{38: 1, 22: 1, 8: 3}, {14: 6, 8: 12}, {6: 20}, {1: 1}])
def test_random_walks_keep_the_composition(grammar, composition):
    source = random.Random(1)
    constraint = PromptConstraint.build([composition])
    for _ in range(25):
        tokens = walk(grammar, constraint, source)
        crystal = parse_tokens(tokens[:-1], grammar.layout)
        assert crystal.composition == composition
        assert Counter(crystal.to_record()["atomic_numbers"].tolist()) == composition


@pytest.mark.parametrize("number", [2, 14, 62, 136])
def test_orbits_are_written_by_their_smallest_parameters(grammar, number):
    source = random.Random(number)
    for _ in range(15):
        tokens = walk(grammar, PromptConstraint.build(None, [number]), source)
        for site in parse_tokens(tokens[:-1], grammar.layout).sites:
            if site.parameters:
                images = equivalent_parameters(number, site.position, site.parameters, grammar.steps)
                assert min(images) == site.parameters


@pytest.mark.parametrize("make", CRYSTALS)
def test_canonical_sequences_are_in_the_grammar(grammar, make):
    state, constraint = GrammarState(), PromptConstraint()
    for token in [*write_tokens(canonicalize(make())), grammar.eos_token]:
        assert token in grammar.allowed_tokens(state, constraint)
        state = grammar.advance(state, token)
    assert state.phase == "end"


@pytest.mark.parametrize(("name", "split"), DATASETS)
def test_real_crystals_are_in_the_grammar(tokenizer, data_dir, name, split):
    wide = CrystalGrammar(tokenizer, max_atoms=512, max_tokens=6000, length_range=(1.0, 199.0))
    for record in read_records(data_dir, name, split, 10, seed=11):
        state = GrammarState()
        for token in [*write_tokens(canonicalize(record)), wide.eos_token]:
            assert token in wide.allowed_tokens(state, PromptConstraint())
            state = wide.advance(state, token)


def test_counts_that_do_not_add_up_are_seen():
    assert can_finish(225, ((11, 1), (17, 1)), None)
    assert can_finish(225, ((11, 1), (17, 1), (19, 2)), None)
    assert not can_finish(225, ((11, 1), (17, 1), (19, 1)), None)  # 4a and 4b are taken
    assert not can_finish(225, ((11, 1),), (1, 17))  # after 4b only larger positions come
    assert can_finish(1, tuple((z, 3) for z in range(1, 60)), None)
    assert not can_finish(14, ((8, 1),), None)  # P2_1/c: 2 or 4


def test_values_that_collapse_an_orbit_are_seen():
    forbidden = set(collapsing_values(136, space_group(136).letters["f"].index, (), 2000).nonzero()[0].tolist())
    assert forbidden == {0, 1000}  # 4f x,x,0 passes through 2a at 0 and 2a again at 1/2


def test_equivalent_parameters_hold_the_mirror_partner():
    assert equivalent_parameters(136, space_group(136).letters["f"].index, (611,), 2000) == {(611,), (1389,)}


def test_impossible_prompts_are_refused(tokenizer, model, grammar):
    for options, reason in [
        ({"composition": "NaKCl", "space_group": 225}, "multiplicities"),
        ({"composition": "NaCl", "space_group": 231}, "space_group"),
        ({"composition": "Xx2"}, "Xx"),
        ({"composition": {"Na": 0.5}}, "whole numbers"),
        ({"composition": {}}, "empty"),
        ({"composition": {"C": 900}}, "multiplicities|tokens"),
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


@pytest.mark.parametrize(
    "options", [{"max_tokens": 20}, {"length_range": (5, 2)}, {"angle_range": (80, 100)}], ids=lambda o: next(iter(o))
)
def test_bounds_that_leave_no_crystal_are_refused(tokenizer, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        CrystalGrammar(tokenizer, **options)
