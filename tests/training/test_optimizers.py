import math

import pytest
import torch

from hf_crystal import Mat2SeqTokenizer
from hf_crystal.encoders.configuration_crystalformer import CrystalformerConfig
from hf_crystal.encoders.modeling_crystalformer import CrystalformerForPropertyPrediction
from hf_crystal.training import (
    RELEASE_BIAS_WEIGHT_DECAY,
    CrystalTrainingArguments,
    InverseSqrtSchedule,
    build_optimizer,
    parameter_groups,
)
from hf_crystal.training.generator_init import build_generator
from hf_crystal.training.generator_recipe import GeneratorModelArguments, GeneratorTrainingArguments
from hf_crystal.training.optimizers import Muon, orthogonalized


@pytest.fixture
def model():
    config = CrystalformerConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_radial_basis=4
    )
    return CrystalformerForPropertyPrediction(config)


def test_every_trainable_parameter_is_in_exactly_one_group(model):
    grouped = [id(p) for group in parameter_groups(model) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_biases_and_only_biases_have_their_own_decay(model):
    weights, biases = parameter_groups(model, weight_decay=1e-5, bias_weight_decay=RELEASE_BIAS_WEIGHT_DECAY)
    assert (weights["weight_decay"], biases["weight_decay"]) == (1e-5, 1e-2)
    # one-dimensional parameters of this model are its biases, and nothing else is
    assert all(p.dim() == 1 for p in biases["params"])
    assert all(p.dim() > 1 for p in weights["params"])


def test_frozen_parameters_are_left_out(model):
    model.encoder.embeddings.weight.requires_grad_(False)
    grouped = {id(p) for group in parameter_groups(model) for p in group["params"]}
    assert id(model.encoder.embeddings.weight) not in grouped


def test_defaults_are_the_papers(model):
    optimizer = build_optimizer(model, CrystalTrainingArguments())
    assert isinstance(optimizer, torch.optim.AdamW)
    for group, decay in zip(optimizer.param_groups, (1e-5, 0.0), strict=True):
        assert (group["lr"], group["betas"], group["eps"]) == (5e-4, (0.9, 0.98), 1e-8)
        assert group["weight_decay"] == decay


def test_muon_takes_the_linear_maps_of_the_encoder_and_adamw_the_rest(model):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    model.encoder.layers[0].mlp.fc1.weight.requires_grad_(False)
    settings = {"muon_learning_rate": 0.01, "learning_rate": 1e-3, "weight_decay": 0.1}
    muon, adamw = build_optimizer(model, CrystalTrainingArguments(optimizer="muon", **settings)).parts
    ours, theirs = ([names[id(p)] for group in part.param_groups for p in group["params"]] for part in (muon, adamw))
    assert sorted(ours) == sorted(
        f"encoder.layers.0.{layer}.weight"
        for layer in ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc2")
    )
    assert sorted(ours + theirs) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    assert (muon.param_groups[0]["lr"], muon.param_groups[0]["weight_decay"]) == (0.01, 0.1)
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.1, 0.0]
    assert all(group["lr"] == 1e-3 for group in adamw.param_groups)


def test_muon_on_a_cpu_is_that_of_torch_in_full_precision():
    torch.manual_seed(0)
    mine = [torch.nn.Parameter(torch.randn(shape)) for shape in ((24, 8), (8, 24), (8, 8))]
    theirs = [torch.nn.Parameter(matrix.detach().clone()) for matrix in mine]
    settings = {"lr": 0.1, "weight_decay": 0.05, "momentum": 0.9}
    ours, torchs = Muon(mine, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(3):
        for first, second in zip(mine, theirs, strict=True):
            first.grad = torch.randn_like(first)
            second.grad = first.grad.clone()
        ours.step()
        torchs.step()
    for first, second in zip(mine, theirs, strict=True):
        assert (first - second).abs().max() < 0.005  # bfloat16; an entry of an update is up to 0.1
        torch.testing.assert_close(ours.state[first], torchs.state[second])
    matrix = torch.randn(6, 4, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalized(matrix, (3.4445, -4.775, 2.0315), 5, 1e-7), u * s @ vt)


def test_muon_gives_a_generator_decay_of_its_matrices_only():
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    tokenizer = Mat2SeqTokenizer()
    for model_type, num_matrices in (("llama", 7), ("gpt2", 4)):
        model = build_generator(GeneratorModelArguments(model_type=model_type, **shape), tokenizer)
        args = GeneratorTrainingArguments(optimizer="muon", weight_decay=0.1)
        muon, adamw = build_optimizer(model, args, rest_weight_decay=0.0).parts
        (group,) = muon.param_groups
        assert (len(group["params"]), group["weight_decay"]) == (num_matrices, 0.1)
        rest = [p for group in adamw.param_groups for p in group["params"]]
        assert model.get_input_embeddings().weight in {*rest}
        assert len(rest) + num_matrices == len(list(model.parameters()))
        assert {group["weight_decay"] for group in adamw.param_groups} == {0.0}


def make_schedule(decay_steps=4):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    return optimizer, InverseSqrtSchedule(optimizer, decay_steps)


def rates(optimizer, schedule, steps, freeze_before=None):
    seen = []
    for step in range(steps):
        if step == freeze_before:
            schedule.freeze()
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_rate_is_the_formula_of_finished_steps():
    optimizer, schedule = make_schedule()
    assert rates(optimizer, schedule, 6) == pytest.approx([0.5 * math.sqrt(4 / (4 + t)) for t in range(6)], rel=1e-15)


def test_frozen_rate_is_that_of_the_first_frozen_step():
    optimizer, schedule = make_schedule()
    seen = rates(optimizer, schedule, 6, freeze_before=3)
    assert seen[3] == seen[4] == seen[5] == pytest.approx(0.5 * math.sqrt(4 / 7), rel=1e-15)
    assert seen[2] > seen[3]


def test_freeze_survives_a_restart():
    optimizer, schedule = make_schedule()
    rates(optimizer, schedule, 4, freeze_before=2)
    new_optimizer, new_schedule = make_schedule()
    new_optimizer.load_state_dict(optimizer.state_dict())
    new_schedule.load_state_dict(schedule.state_dict())
    assert rates(new_optimizer, new_schedule, 3) == rates(optimizer, schedule, 3)


def test_decay_steps_must_be_positive():
    with pytest.raises(ValueError, match="decay_steps=0"):
        make_schedule(decay_steps=0)
