"""Steps of one token: the logits of the model itself, and the crystals that `generate` of transformers writes."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hf_crystal.mat2seq import sampler as generation_sampler_mat2seq
from hf_crystal.mat2seq.generation_steps import LlamaSteps, has_llama_steps
from hf_crystal.mat2seq.modeling_mat2seq import Mat2SeqForCausalLM, generate_crystals_for_prompts, mat2seq_config


def llama(dtype=torch.float32, **changes):
    torch.manual_seed(0)
    fields = {"vocab_size": 50, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6}
    fields = {**fields, "intermediate_size": 64, "num_key_value_heads": 6, "initializer_range": 0.1, **changes}
    model = LlamaForCausalLM(LlamaConfig(**fields)).to(dtype).eval()
    for parameter in (p for name, p in model.named_parameters() if "norm" in name):
        parameter.data.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)], ids=str)
@pytest.mark.parametrize(
    "changes",
    [{}, {"num_key_value_heads": 2}, {"head_dim": 16, "tie_word_embeddings": True, "rms_norm_eps": 0.1}],
    ids=["plain", "grouped", "other sizes"],
)
@torch.no_grad()
def test_logits_are_those_of_the_model(changes, dtype, tolerance):
    """Prompts of different lengths, rows that are copied and leave, more tokens than a new cache has room for."""
    model = llama(dtype, **changes)
    steps = LlamaSteps(model)
    rows = torch.randint(1, 50, (5, 30))
    heads, mask = rows[:3, :4].clone(), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
    steps.read(heads[:, :-1], mask[:, :-1])
    origin = torch.tensor([2, 0, 1, 1, 0])
    steps.keep(origin)
    ids, mask = heads[origin], mask[origin]
    for step in range(20):
        found = steps(ids[:, -1])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        expected = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        scale = expected.abs().max()
        assert (found - expected).abs().max() <= tolerance * scale, step
        if step in (3, 11):
            left = torch.tensor([2, 0, 1])
            steps.keep(left)
            ids, mask, rows = ids[left], mask[left], rows[left]
        ids, mask = torch.cat([ids, rows[:, step, None]], 1), torch.cat([mask, mask.new_ones(len(ids), 1)], 1)


@torch.no_grad()
def test_a_prompt_of_one_token_needs_no_reading():
    model = llama()
    steps = LlamaSteps(model)
    ids = torch.randint(1, 50, (3, 4))
    steps.read(ids[:, :0], torch.ones_like(ids)[:, :0])
    for place in range(4):
        found = steps(ids[:, place])
    torch.testing.assert_close(found, model(ids).logits[:, -1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0},
        {"temperature": 1.3, "top_p": 0.7},
        {"batch_size": 5},
        {"unique": True},
        {"guidance": 1.7},
    ],
    ids=str,
)
def test_the_same_seed_writes_what_generate_writes(tokenizer, monkeypatch, options):
    torch.manual_seed(0)
    model = Mat2SeqForCausalLM(mat2seq_config("tiny", tokenizer, max_position_embeddings=400)).eval()
    prompts = [{"composition": "SrTiO3"}, {"composition": "Zn2S2", "space_group": 186}, {"chemical_system": "Li-O"}]
    prompts.append({"properties": {"band_gap": 1.0}})

    def write():
        return generate_crystals_for_prompts(model, tokenizer, prompts, num_return=4, seed=1, **options)

    found = write()
    monkeypatch.setattr(generation_sampler_mat2seq, "has_llama_steps", lambda model: False)
    expected = write()
    assert [[item.sequence for item in items] for items in found] == [
        [item.sequence for item in items] for items in expected
    ]
    for item, other in zip(sum(found, []), sum(expected, []), strict=True):
        assert item.error is None
        assert item.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-3)


def test_models_that_compute_something_else_are_left_to_generate(tokenizer):
    from transformers import GPT2Config, GPT2LMHeadModel

    from hf_crystal.training.generator_init import add_residual_dropout

    assert has_llama_steps(llama())
    assert has_llama_steps(Mat2SeqForCausalLM(mat2seq_config("tiny", tokenizer)).eval())
    assert not has_llama_steps(GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2)).eval())
    assert not has_llama_steps(llama().train())
    assert not has_llama_steps(llama(attention_bias=True))
    assert not has_llama_steps(llama(hidden_act="gelu"))
    assert not has_llama_steps(llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}))
    hooked, adapted = llama(), llama()
    add_residual_dropout(hooked, 0.1)
    assert not has_llama_steps(hooked)
    adapted.model.layers[0].self_attn.q_proj = type("LoraLinear", (torch.nn.Linear,), {})(48, 48, bias=False)
    assert not has_llama_steps(adapted)
