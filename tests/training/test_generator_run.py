"""Training of generators: token rows, masks, a run that stops, resumes and saves, recipes."""

import dataclasses
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_crystal import Mat2SeqForCausalLM, Mat2SeqTokenizer
from hf_crystal.mat2seq.modeling_mat2seq import generate_crystals
from hf_crystal.training.generator_data import IGNORED_LABEL, Mat2SeqCollator, tokenize_splits
from hf_crystal.training.generator_init import build_generator
from hf_crystal.training.generator_recipe import GeneratorModelArguments, GeneratorRecipe
from hf_crystal.training.generator_run import (
    LAST_RATE,
    learning_rate_factor,
    prepare_generator_task,
    train_generator,
)
from hf_crystal.training.run_control import WallBudgetCallback

RECIPES = sorted((Path(__file__).parents[2] / "scripts" / "recipes_mat2seq").glob("*.yaml"))
TINY = {
    "description": "made-up crystals",
    "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "data": {"conditions": {"formation_energy": "energy", "band_gap": "gap"}},
    "training": {
        "batch_size": 8,
        "num_train_epochs": 2,
        "warmup_steps": 2,
        "eval_steps": 4,
        "logging_steps": 2,
        "validity_samples": 2,
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> Mat2SeqTokenizer:
    return Mat2SeqTokenizer()


@pytest.fixture(scope="module")
def recipe(crystal_table):
    return GeneratorRecipe.from_dict({**TINY, "data": {**TINY["data"], "path": str(crystal_table)}})


@pytest.fixture(scope="module")
def tokens(recipe, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "rows"
    return folder, tokenize_splits(recipe.data, tokenizer, folder, recipe.training.seed)


def test_rows_decode_and_are_read_again_from_disk(recipe, tokenizer, tokens):
    folder, splits = tokens
    assert {role: len(rows) for role, rows in splits.items()} == {"train": 42, "validation": 11, "test": 13}
    row = splits["train"][0]
    assert tokenizer.decode_structure(row["input_ids"]).composition is not None
    assert tokenizer.convert_ids_to_tokens(row["input_ids"])[row["answer_start"] - 1] == "|"
    assert row["length"] == len(row["input_ids"])
    again = tokenize_splits(recipe.data, tokenizer, folder, recipe.training.seed)
    assert again["train"]["input_ids"][:] == splits["train"]["input_ids"][:]


def test_blocks_and_workers_write_the_same_rows_and_none_into_memory(recipe, tokenizer, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_crystal.training.generator_data.ROWS_PER_BLOCK", 5)
    data = dataclasses.replace(recipe.data, num_workers=2)
    again = tokenize_splits(data, tokenizer, tmp_path / "rows", recipe.training.seed)
    for role, rows in tokens[1].items():
        assert again[role].cache_files  # memory-mapped
        assert str(again[role].to_dict()) == str(rows.to_dict())  # as text NaN equals NaN
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


def test_rows_made_with_other_settings_are_refused(recipe, tokens):
    with pytest.raises(ValueError, match="other settings .*tokenizer"):
        tokenize_splits(recipe.data, Mat2SeqTokenizer(length_step=0.005), tokens[0], recipe.training.seed)


def test_given_tokens_carry_no_loss(tokenizer, tokens):
    rows = [tokens[1]["train"][index] for index in range(3)]
    batch = Mat2SeqCollator(tokenizer, condition_probability=1.0, composition_loss_probability=0.0)(rows)
    for place, row in enumerate(rows):
        known = [name for name in ("band_gap", "formation_energy") if not math.isnan(row[name])]
        words = tokenizer.convert_ids_to_tokens(batch["input_ids"][place, : row["length"] + 2 * len(known)])
        given = row["answer_start"] + 2 * len(known)
        assert sorted(words[1 : 1 + 2 * len(known) : 2]) == [f"<{name}>" for name in known]
        assert words[given - 1] == "|"
        labels = batch["labels"][place]
        assert (labels[:given] == IGNORED_LABEL).all()
        assert labels[given : len(words)].tolist() == row["input_ids"][row["answer_start"] :]
        assert (labels[len(words) :] == IGNORED_LABEL).all()
        assert batch["attention_mask"][place].sum() == len(words)


def test_composition_is_learned_with_its_probability_and_validation_rows_do_not_vary(tokenizer, tokens):
    row = tokens[1]["train"][0]
    rows = [{**row, "material_id": str(number)} for number in range(200)]  # draws depend on the row
    batch = Mat2SeqCollator(tokenizer, 0.0, composition_loss_probability=0.5)(rows)
    learned = int((batch["labels"][:, 1] != IGNORED_LABEL).sum())
    assert 60 < learned < 140
    coupled = Mat2SeqCollator(tokenizer, 1.0, 0.5, given_condition_probability=0.0)(rows)
    conditioned = coupled["attention_mask"].sum(dim=1) > row["length"]
    assert torch.equal(conditioned, (coupled["labels"] != IGNORED_LABEL).sum(dim=1) == row["length"] - 1)
    assert 60 < int(conditioned.sum()) < 140
    fixed = Mat2SeqCollator(tokenizer, 1.0, 1.0)([{**row, "fixed": True}])
    assert fixed["input_ids"][0].tolist() == row["input_ids"]
    assert (fixed["labels"][0, : row["answer_start"]] == IGNORED_LABEL).all()


def test_cosine_ends_with_the_steps_or_with_the_budget():
    clock = WallBudgetCallback(1.0)
    options = {"warmup_steps": 10, "total_steps": 110, "clock": clock}
    assert [learning_rate_factor(step, **options) for step in (0, 9)] == [0.1, 1.0]
    assert learning_rate_factor(60, **options) == pytest.approx((1 + LAST_RATE) / 2)
    assert learning_rate_factor(110, **options) == pytest.approx(LAST_RATE)
    clock._step_fraction = 1.0
    assert learning_rate_factor(20, **options) == pytest.approx(LAST_RATE)


def test_run_saves_a_generator_and_its_record_and_resumes(recipe, tokens, tmp_path):
    record = train_generator(recipe, tmp_path, tokens_folder=tokens[0])
    assert (record["steps"], record["epochs"]) == (12, 2.0)
    assert record == json.loads((tmp_path / "run.json").read_text())
    assert record["recipe"]["data"]["path"] == "crystals.parquet"
    assert record["training_curve"][-1]["loss"] < record["training_curve"][0]["loss"]
    assert [entry["step"] for entry in record["validation_curve"]] == [4, 8, 12]
    assert {"loss", "decoded", "composition"} <= record["validation_curve"][0].keys()
    assert record["test"]["answer"]["crystals"] == 13
    assert np.isfinite(record["test"]["answer_with_conditions"]["nats_per_token"])
    model = Mat2SeqForCausalLM.from_pretrained(tmp_path / "model")
    texts = [Mat2SeqTokenizer().decode(row["input_ids"][1:]) for row in tokens[1]["train"]]
    heads = [text.partition(" | ")[0].split()[::2] for text in texts]
    assert model.config.trained_elements == dict(Counter(symbol for head in heads for symbol in set(head)))
    made = model.generate_crystals(
        Mat2SeqTokenizer.from_pretrained(tmp_path / "model"), composition="NaCl", max_length=200, seed=0
    )
    assert made[0].structure is not None
    with pytest.raises(FileExistsError, match="checkpoints of another run"):
        train_generator(recipe, tmp_path, tokens_folder=tokens[0])
    # the same as one run of three epochs would take: it goes on after step 12
    longer = GeneratorRecipe.from_dict({**recipe.to_dict(), "training": {**TINY["training"], "num_train_epochs": 3}})
    resumed = train_generator(longer, tmp_path, tokens_folder=tokens[0], resume=True)
    assert resumed["steps"] == 18
    assert resumed["training_curve"][: len(record["training_curve"])] == record["training_curve"]
    assert resumed["training_seconds"] > record["training_seconds"]


@pytest.mark.parametrize("changes", [{"optimizer": "adamw"}, {"optimizer": "muon", "bf16": True}])
def test_resumed_in_the_middle_of_an_epoch_it_is_the_same_run(recipe, tokens, tmp_path, changes):
    values = recipe.to_dict()
    values["training"] |= changes
    values["model"]["dropout"] = 0.1
    values["training"]["swa_epochs"] = 1
    recipe = GeneratorRecipe.from_dict(values)
    train_generator(recipe, tmp_path / "whole", tokens_folder=tokens[0])
    # epochs have 6 steps; as if killed after the checkpoint of step 8, the averages of two steps with it
    (tmp_path / "cut").mkdir()
    shutil.copytree(tmp_path / "whole/checkpoints/checkpoint-8", tmp_path / "cut/checkpoints/checkpoint-8")
    train_generator(recipe, tmp_path / "cut", tokens_folder=tokens[0], resume=True)
    whole, cut = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_without_instructions_for_bfloat16_a_run_computes_in_float32(recipe, tokens, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    values = recipe.to_dict()
    curves = []
    for place, bf16 in enumerate((False, True)):
        values["training"]["bf16"] = bf16
        run = train_generator(GeneratorRecipe.from_dict(values), tmp_path / str(place), tokens_folder=tokens[0])
        curves.append(run["training_curve"])
    assert curves[0] == curves[1]
    assert "no instructions for bfloat16" in caplog.text


def test_gpt2_shape_trains_and_generates(recipe, tokens, tmp_path):
    values = recipe.to_dict()
    values["model"] = {**TINY["model"], "model_type": "gpt2", "dropout": 0.1}
    values["training"]["num_epochs"] = 1
    train_generator(GeneratorRecipe.from_dict(values), tmp_path, tokens_folder=tokens[0])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert model.config.model_type == "gpt2"
    tokenizer = Mat2SeqTokenizer.from_pretrained(tmp_path / "model")
    assert generate_crystals(model, tokenizer, composition="NaCl", max_length=100, seed=0)[0].structure is not None


def test_dropout_acts_in_training_only(tokenizer):
    shape = GeneratorModelArguments(**TINY["model"], dropout=0.5)
    model = build_generator(shape, tokenizer)
    ids = torch.arange(8)[None]
    assert torch.equal(model.eval()(ids).logits, model(ids).logits)
    assert not torch.equal(model.train()(ids).logits, model(ids).logits)


def test_embeddings_by_meaning_put_like_tokens_near_each_other(tokenizer):
    model = build_generator(
        GeneratorModelArguments(**TINY["model"] | {"hidden_size": 64}, embedding_init="meaning"), tokenizer
    )
    weight = model.get_input_embeddings().weight.detach()
    assert torch.isfinite(weight).all()
    assert weight.std() == pytest.approx(0.02, rel=0.1)

    def likeness(first: str, second: str) -> float:
        return float(torch.cosine_similarity(*weight[tokenizer.convert_tokens_to_ids([first, second])][:, None]))

    assert likeness("K", "Rb") > likeness("K", "Cl") + 0.2
    assert likeness(".99", ".00") > likeness(".50", ".00") + 0.2
    assert likeness("<bin_3>", "<bin_4>") > likeness("<bin_3>", "<bin_15>") + 0.2
    assert weight[tokenizer.convert_tokens_to_ids("P")].ne(weight[tokenizer.convert_tokens_to_ids("As")]).all()


def test_nothing_to_resume_and_unknown_condition(recipe, tokens, tmp_path):
    with pytest.raises(ValueError, match="no complete checkpoint"):
        train_generator(recipe, tmp_path, tokens_folder=tokens[0], resume=True)
    values = recipe.to_dict()
    values["data"]["conditions"] = {"hardness": "energy"}
    accepted = "band_gap, formation_energy, e_above_hull, bulk_modulus"
    with pytest.raises(ValueError, match=rf"\['hardness'\] unknown; accepted: {accepted}"):
        train_generator(GeneratorRecipe.from_dict(values), tmp_path, tokens_folder=tokens[0])


def test_a_recipe_begins_with_the_weights_and_names_the_conditions_that_it_says(recipe, tokens, tmp_path):
    values = {**recipe.to_dict(), "model": {**recipe.to_dict()["model"], "pretrained": "mat2seq-perov5"}}
    with pytest.raises(ValueError, match="pretrained=mat2seq-perov5: not of the shape of the recipe"):
        prepare_generator_task(GeneratorRecipe.from_dict(values), tokens[0])
    first = prepare_generator_task(recipe, tokens[0])
    first.tokenizer.save_pretrained(tmp_path)
    changes = {"model": {**values["model"], "pretrained": str(tmp_path)}}
    first.model.get_input_embeddings().weight.data += 1  # not what the seed gives
    first.model.save_pretrained(tmp_path)
    again = prepare_generator_task(GeneratorRecipe.from_dict({**values, **changes}), tokens[0])
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    values["data"]["conditions"] = {"e_above_hull": "energy"}
    steered = prepare_generator_task(GeneratorRecipe.from_dict({**values, **changes}), tmp_path / "tokens")
    assert [bins.name for bins in steered.tokenizer.property_bins] == ["band_gap", "formation_energy", "e_above_hull"]


def test_weights_of_another_vocabulary_go_to_the_same_tokens(recipe, tokens, tmp_path):
    values = recipe.to_dict()
    first = prepare_generator_task(recipe, tokens[0])
    first.model.get_input_embeddings().weight.data += 1  # not what the seed gives
    first.model.save_pretrained(tmp_path)
    first.tokenizer.save_pretrained(tmp_path)
    values["model"]["pretrained"] = str(tmp_path)
    values["data"]["conditions"] = {"e_above_hull": "energy"}
    further = prepare_generator_task(GeneratorRecipe.from_dict(values), tmp_path / "tokens")
    its_vocabulary = first.tokenizer.get_vocab()
    weight, its_weight = (task.model.get_input_embeddings().weight for task in (further, first))
    for token, row in further.tokenizer.get_vocab().items():
        if token in its_vocabulary:
            assert torch.equal(weight[row], its_weight[its_vocabulary[token]])
        else:
            assert "e_above_hull" in token and weight[row].abs().max() < 0.5
    assert torch.equal(further.model.model.norm.weight, first.model.model.norm.weight)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads_and_states_its_cost(path):
    recipe = GeneratorRecipe.load(path)
    assert any(word in recipe.cost.lower() for word in ("not measured", "measured on"))
    assert len(recipe.description) > 20


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("training", "learnin_rate", 1e-3, r"unknown key 'learnin_rate' \(did you mean 'learning_rate'\?\)"),
        ("training", "condition_probability", 1.5, "training.condition_probability=1.5: expected 0 to 1"),
        ("training", "given_condition_probability", 2.0, "given_condition_probability=2.0: expected 0 to 1"),
        ("training", "batch_size", 0, "training.batch_size=0: expected 1 or more"),
        ("training", "learning_rate", "5e-4", "YAML reads 5e-4 as text"),
        ("model", "model_type", "bert", "model: Field 'model_type' expected one of .*gpt2.*got bert"),
        ("model", "embedding_init", "zero", "model: Field 'embedding_init' expected one of .*meaning.*got zero"),
        ("model", "dropout", 1.0, "model.dropout=1.0: expected 0 up to"),
        ("training", "optimizer", "sgd", "training.optimizer='sgd': .* expected one of .*adamw.*muon"),
        ("training", "muon_learning_rate", 0.0, "training.muon_learning_rate=0.0: expected above 0"),
        ("training", "swa_epochs", 3, "training.swa_epochs=3: expected 0 to num_train_epochs=2"),
        ("model", "hidden_size", 18, "model.hidden_size=18: expected a multiple"),
        ("data", "color", "red", "data: unknown key 'color'"),
    ],
)
def test_mistakes_are_named(section, key, value, message, tmp_path):
    values = {name: dict(part) if isinstance(part, dict) else part for name, part in TINY.items()}
    values[section][key] = value
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=message):
        GeneratorRecipe.load(path)


def test_overrides_and_round_trip(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(TINY))
    recipe = GeneratorRecipe.load(path, ["training.num_train_epochs=7", "data.path=y.parquet"])
    assert (recipe.training.num_train_epochs, recipe.data.path) == (7, "y.parquet")
    recipe.save(tmp_path / "again.yaml")
    assert GeneratorRecipe.load(tmp_path / "again.yaml") == recipe
    with pytest.raises(ValueError, match="override 'epochs': expected section.key=value"):
        GeneratorRecipe.load(path, ["epochs"])
