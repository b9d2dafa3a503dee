"""The evaluation of generators: samples on disk, figures with their intervals, the command line."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pymatgen.core import Element, Lattice, Structure

from hf_crystal import Mat2SeqTokenizer, load_crystal_dataset
from hf_crystal.card_figures import generation_rows
from hf_crystal.cli.main import run
from hf_crystal.crystals.record import CRYSTAL_COLUMNS
from hf_crystal.evaluation import match_rate, samples
from hf_crystal.evaluation.conditions import GenerationSettings, judge_of_pipeline, property_distances
from hf_crystal.evaluation.generator_report import evaluate_generation, prompts_of
from hf_crystal.evaluation.intervals import mean_interval, wilson_interval
from hf_crystal.evaluation.samples import sample_prompts
from hf_crystal.loading import load_property_pipeline
from hf_crystal.training.generator_init import build_generator
from hf_crystal.training.generator_recipe import GeneratorModelArguments

SETTINGS = GenerationSettings(count=4, num_samples=2, num_free=6, num_conditioned=2, guidance=(2.5,))


@pytest.fixture(scope="module")
def tokenizer():
    return Mat2SeqTokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return build_generator(GeneratorModelArguments(**shape, max_position_embeddings=200), tokenizer).eval()


@pytest.fixture(scope="module")
def splits(crystal_table):
    return load_crystal_dataset(str(crystal_table), split_column="split")


def judge(structures):
    return {"band_gap": [1.0 + len(structure) for structure in structures]}


@pytest.fixture(scope="module")
def result(model, tokenizer, splits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, evaluate_generation(
        model, tokenizer, splits, folder, SETTINGS, judge=judge, described={"model": "tiny"}
    )


def test_all_figures_are_there_with_protocol_and_interval(result):
    folder, found = result
    assert found == json.loads((folder / "evaluation.json").read_text())
    assert (found["model"], found["crystals"]) == ("tiny", 4)
    sampled, free = found["generation"]["sampled"], found["generation"]["free"]
    assert sampled["decoding"]["decoded"] == sampled["decoding"]["composition"] == 1.0
    assert sampled["decoding"]["samples"] == 8
    assert [sampled[name]["n"] for name in ("match_1", "match_2")] == [1, 2]
    assert found["generation"]["greedy"]["match_1"]["num_items"] == 4
    for section, figure in (
        (sampled["match_2"], "match_rate"),
        (sampled["metre"], "metre"),
        (sampled, "likelier_than_greedy"),
        (sampled["space_group"], "agreement"),
        (free["validity"], "structure_validity"),
        (free["uniqueness"], "uniqueness"),
        (free["novelty"], "novelty"),
    ):
        low, high = section[f"{figure}_interval"]
        assert 0 <= low <= section[figure] <= high <= 1
        assert section["protocol"] if section is not sampled else True
    assert free["distributions"]["num_generated"] == 6
    conditions = found["generation"]["conditions"]
    # every fourth of 15 inner bins, without guidance and with; nobody judges the other property
    assert [entry["guidance"] for entry in conditions] == [1.0] * 4 + [2.5] * 4
    assert {entry["property"] for entry in conditions} == {"band_gap"}
    (distance,) = free["properties"]
    assert distance["property"] == "band_gap"
    assert distance["property_distance"] >= 0
    assert any(row["figure"] == "property_distance" for row in generation_rows(found))


def test_both_protocols_come_from_one_matching(result, model, tokenizer, splits):
    pytest.importorskip("smact")
    folder, _ = result
    settings = dataclasses.replace(SETTINGS, smact=True, num_free=0)
    found = evaluate_generation(model, tokenizer, splits, folder, settings)["generation"]["sampled"]
    lines = [json.loads(line) for line in (folder / "sampled.jsonl").read_text().splitlines()[1:]]
    drawn = [[tokenizer.decode_structure(tokenizer.encode(c["sequence"])) for c in line["crystals"]] for line in lines]
    rows = splits["test"].select(np.sort(np.random.default_rng(0).permutation(len(splits["test"]))[:4]))
    truths = [dict(row) for row in rows.select_columns(list(CRYSTAL_COLUMNS))]
    for key, options in (
        ("match_2", {}),
        ("match_smact14_2", {"validity_filter": "structure+smact14", "filter_references": True}),
    ):
        expected = match_rate(drawn, truths, **options).to_dict()
        for figure in ("protocol", "match_rate", "rmse", "counts", "num_items", "num_samples"):
            assert found[key][figure] == expected[figure], (key, figure)
    # the prompt is what the cell of the row holds, whatever its primitive cell is
    doubled = truths[0] | {"atomic_numbers": [*truths[0]["atomic_numbers"]] * 2}
    numbers = [
        Element(symbol).Z for symbol, count in prompts_of([doubled])[0]["composition"].items() for _ in range(count)
    ]
    assert sorted(numbers) == sorted(doubled["atomic_numbers"])


def test_conditions_are_judged_by_their_distance(result, tokenizer):
    folder, found = result
    for name, scale in (("conditioned", 1.0), ("conditioned_2.5", 2.5)):
        lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()[1:]]
        entry = next(e for e in found["generation"]["conditions"] if e["guidance"] == scale and e["target"] == 1.375)
        asked = [line["crystals"][0] for line in lines if line["prompt"] == {"properties": {"band_gap": 1.375}}]
        structures = [tokenizer.decode_structure(tokenizer.encode(crystal["sequence"])) for crystal in asked]
        distances = [abs(value - 1.375) for value in judge(structures)["band_gap"]]
        assert entry["mean_deviation"] == pytest.approx(sum(distances) / 2)
        assert entry["success_rate"] == sum(distance <= 0.5 for distance in distances) / 2


def test_distance_of_a_judged_property_by_hand(tokenizer):
    crystals = tokenizer.batch_decode_structures(
        [
            tokenizer.encode(text)
            for text in ("Na 1 | Im-3m | a 4.20 | Na 2a", "Na 1 Cl 1 | Fm-3m | a 5.64 | Na 4a Cl 4b")
        ]
    )
    references = [crystals[0].structure] * 2
    (found,) = property_distances(crystals, references, judge)
    assert found["property_distance"] == pytest.approx(0.5)  # gaps 2 and 3 against 2 and 2
    assert (found["num_sampled"], found["num_references"]) == (2, 2)


def test_sampling_tells_crystals_rate_and_time_left(model, tokenizer, tmp_path, monkeypatch):
    clock, told = itertools.count(0, 60), []
    monkeypatch.setattr(samples, "PROMPTS_AT_A_TIME", 2)
    monkeypatch.setattr(samples, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(samples, "logger", SimpleNamespace(info=told.append))
    prompts = [{"composition": {"Na": 1, "Cl": 1}}] * 5
    options = {"num_return": 3, "temperature": 1.0, "seed": 0}
    path = tmp_path / "sampled.jsonl"
    sample_prompts(model, tokenizer, prompts, path, **options)
    assert told == [
        "sampled.jsonl: 6 of 15 crystals, 0.1 crystals/s, 0:01:30 left",
        "sampled.jsonl: 12 of 15 crystals, 0.1 crystals/s, 0:00:30 left",
        "sampled.jsonl: 15 of 15 crystals, 0.0833 crystals/s, 0:00:00 left",
    ]
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))  # two prompts of an earlier run
    told.clear()
    sample_prompts(model, tokenizer, prompts, path, **options)
    assert told[0] == "sampled.jsonl: 12 of 15 crystals, 0.1 crystals/s, 0:00:30 left"  # they count, at no time


def test_a_stopped_evaluation_goes_on_and_gives_the_same(result, model, tokenizer, splits, tmp_path):
    folder, found = result
    for name in ("greedy", "sampled", "free"):
        content = (folder / f"{name}.jsonl").read_bytes()
        (tmp_path / f"{name}.jsonl").write_bytes(content[: len(content) * 2 // 3])  # killed in the middle of a line
    again = evaluate_generation(model, tokenizer, splits, tmp_path, SETTINGS, judge=judge, described={"model": "tiny"})
    assert again == found
    assert (tmp_path / "sampled.jsonl").read_bytes() == (folder / "sampled.jsonl").read_bytes()


def test_nothing_is_sampled_twice(result, tokenizer):
    prompts = [json.loads(line)["prompt"] for line in (result[0] / "sampled.jsonl").read_text().splitlines()[1:]]
    arguments = {"num_return": 2, **SETTINGS.sampling}
    made = sample_prompts(None, tokenizer, prompts, result[0] / "sampled.jsonl", **arguments)
    assert all(crystal.structure is not None for item in made for crystal in item)


def test_samples_of_other_settings_are_refused(result, model, tokenizer):
    arguments = {"num_return": 2, "temperature": 0.5, "seed": 0}
    with pytest.raises(ValueError, match="sampled.jsonl holds samples of"):
        sample_prompts(model, tokenizer, [{}] * 4, result[0] / "sampled.jsonl", **arguments)


def test_a_property_model_judges_by_the_names_of_its_targets():
    pipeline = load_property_pipeline("crystalformer-mp20", "cpu")
    salt = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    values = judge_of_pipeline(pipeline)([salt, salt])
    assert list(values) == list(pipeline.model.config.target_names)
    assert all(len(answers) == 2 and -10 < answers[0] == answers[1] < 20 for answers in values.values())


def test_missing_split_is_named(model, tokenizer, splits, tmp_path):
    with pytest.raises(ValueError, match="no split 'exam'; available: "):
        evaluate_generation(model, tokenizer, splits, tmp_path, GenerationSettings(split="exam"))


def test_without_compositions_only_free_crystals_are_measured(model, tokenizer, splits, tmp_path):
    found = evaluate_generation(model, tokenizer, splits, tmp_path, GenerationSettings(count=0, num_free=3))
    assert list(found["generation"]) == ["free"]
    assert found["generation"]["free"]["distributions"]["num_references"] == len(splits["test"])


def test_intervals_worked_by_hand():
    low, high = wilson_interval(45, 200)
    assert (low, high) == pytest.approx((0.1727, 0.2877), abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == 1.0
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson_interval(3, 2)
    assert mean_interval([1.0]) is None
    assert mean_interval([2.0, 2.0]) == (2.0, 2.0)


def test_command_line_trains_and_evaluates_a_generator(crystal_table, tmp_path, capfd):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "description: made-up crystals\n"
        "model: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}\n"
        "training: {batch_size: 8, num_train_epochs: 1, eval_steps: 6, validity_samples: 1}\n"
    )
    words = ["--config", str(recipe), "--data", str(crystal_table), "--output-dir", str(tmp_path / "run")]
    assert run(["train", "generator", *words]) == 0
    assert "nats/crystal (n=13)" in capfd.readouterr().out
    words = [
        "--model",
        str(tmp_path / "run/model"),
        "--data",
        str(crystal_table),
        "--output-dir",
        str(tmp_path / "out"),
    ]
    assert run(["evaluate", "generation", *words, "--count", "3", "--num-samples", "0", "--num-free", "3"]) == 0
    out = capfd.readouterr().out
    assert "greedy decoding: decoded 1.0000" in out
    assert "free novelty: novelty" in out
    assert run(["evaluate", "generation", *words, "--count", "3", "--split", "exam"]) == 1
    assert "no split 'exam'" in capfd.readouterr().err
