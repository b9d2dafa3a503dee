"""Classifier-free guidance: the formula, token by token, in batches that rows leave."""

import pytest
import torch

from hf_crystal.cli.main import run
from hf_crystal.mat2seq.grammar import CrystalGrammar
from hf_crystal.mat2seq.logits_processor import PlainCrystalLogitsProcessor
from hf_crystal.mat2seq.modeling_mat2seq import Mat2SeqForCausalLM, generate_crystals_for_prompts, mat2seq_config
from hf_crystal.mat2seq.prompts import CrystalPrompt, prepare_prompt

PROMPTS = [
    {"composition": formula, "space_group": group, "properties": properties}
    for formula, group in (("NaCl", 225), ("Ti2O4", 136), ("SrTiO3", 221), ("Cs2Cl2", [12, 59]), ("Si2", 227))
    for properties in ({"formation_energy": -2.0}, {"band_gap": 3.0, "formation_energy": 0.1})
]


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = mat2seq_config("tiny", tokenizer, max_position_embeddings=300, initializer_range=0.2)
    return Mat2SeqForCausalLM(config).eval()


def greedy_reference(model, tokenizer, fields, scale):
    """The formula of the paper, one prompt, everything read anew for each token."""
    grammar = CrystalGrammar(tokenizer, max_atoms=20, max_tokens=300 - 2 * 2)
    prompt = prepare_prompt(CrystalPrompt(**fields), tokenizer, grammar)
    plain = prepare_prompt(CrystalPrompt(**{**fields, "properties": None}), tokenizer, grammar)
    allowed = PlainCrystalLogitsProcessor(tokenizer, grammar, [prompt.constraint])
    written: list[int] = []
    while not written or written[-1] != tokenizer.eos_token_id:
        conditional, free = (
            model(torch.tensor([[*ids, *written]])).logits[:, -1].log_softmax(-1) for ids in (prompt.ids, plain.ids)
        )
        scores = allowed(torch.tensor([[*prompt.ids, *written]]), scale * conditional + (1 - scale) * free)
        written.append(int(scores.argmax()))
    return tokenizer.batch_decode_structures([[*prompt.ids, *written]])[0].sequence


@torch.no_grad()
def test_each_token_follows_the_formula_in_a_batch_of_different_prompts(tokenizer, model):
    guided = generate_crystals_for_prompts(model, tokenizer, PROMPTS, temperature=0, guidance=2.5, collisions="keep")
    plain = generate_crystals_for_prompts(model, tokenizer, PROMPTS, temperature=0, collisions="keep")
    found = [item[0].sequence for item in guided]
    assert found == [greedy_reference(model, tokenizer, fields, 2.5) for fields in PROMPTS]
    assert found != [item[0].sequence for item in plain]


def test_a_scale_of_zero_ignores_the_properties(tokenizer, model):
    without = [{**fields, "properties": None} for fields in PROMPTS]
    ignored = generate_crystals_for_prompts(model, tokenizer, PROMPTS, temperature=0, guidance=0)
    free = generate_crystals_for_prompts(model, tokenizer, without, temperature=0)
    assert [item[0].canonical for item in ignored] == [item[0].canonical for item in free]


def test_prompts_without_properties_are_left_alone(tokenizer, model):
    prompts = [{"composition": "NaCl"}, {}]
    guided, plain = (
        generate_crystals_for_prompts(model, tokenizer, prompts, num_return=5, seed=1, guidance=scale)
        for scale in (3.0, 1.0)
    )
    assert [[c.sequence for c in row] for row in guided] == [[c.sequence for c in row] for row in plain]


def test_likelihoods_stay_those_of_the_model(tokenizer, model):
    found = model.generate_crystals(tokenizer, num_return=12, seed=2, guidance=2.0, **PROMPTS[1])
    scores = {c.sequence: c.log_likelihood for c in found}
    grammar = CrystalGrammar(tokenizer, max_atoms=20, max_tokens=296)
    prompt = prepare_prompt(CrystalPrompt(**PROMPTS[1]), tokenizer, grammar)
    for sequence, value in scores.items():
        ids = tokenizer.encode(sequence)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = sum(float(logits[k - 1, ids[k]]) for k in range(len(prompt.ids), len(ids)))
        assert value == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("options", [{"guidance": -1}, {"num_beams": 2}])
def test_what_guidance_cannot_do_is_refused(tokenizer, model, options):
    with pytest.raises(ValueError, match=r"guidance is .*; accepted"):
        model.generate_crystals(tokenizer, **{"guidance": 2.0, **options})


def test_the_command_line_hands_it_on(capsys):
    assert run(["generate", "--composition", "NaCl", "--property", "band_gap=5", "--guidance", "-1"]) == 1
    assert "guidance is -1.0; accepted: at least 0" in capsys.readouterr().err
