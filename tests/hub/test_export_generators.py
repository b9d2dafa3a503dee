"""An exported generator is a stock Llama, and its tokenizer and grammar travel with it."""

import json
import os

import pytest
import torch
from hub_exports import run_without_package, tiny_generator
from tiny_models import NACL, SRTIO3
from transformers import AutoTokenizer, pipeline

from hf_crystal import Mat2SeqTokenizer, export_pretrained
from hf_crystal.hub import generators
from hf_crystal.hub.generators import check_serving, serving_problems


def test_folder_is_complete(exported_generator):
    names = {path.name for path in exported_generator.iterdir()}
    assert names >= {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "README.md"}
    assert names >= {
        "tokenizer_config.json",
        "LICENSE",
        "NOTICE",
        "metrics.json",
        "recipe.yaml",
        "tokenizer_without_code",
    }
    assert names >= {"tokenization_mat2seq.py", "modeling_mat2seq.py", "mat2seq_grammar.py", "mat2seq_canonicalize.py"}
    config = json.loads((exported_generator / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["auto_map"] == {"AutoModelForCausalLM": "modeling_mat2seq.Mat2SeqForCausalLM"}
    assert set(config["custom_pipelines"]) == {"crystal-generation"}
    assert "commit of hf_crystal: 0123abcd" in (exported_generator / "recipe.yaml").read_text()


def test_stock_classes_load_without_package_and_without_remote_code(exported_generator, tmp_path):
    model, tokenizer = tiny_generator()
    code = f"""
    import json, sys, torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], subfolder="tokenizer_without_code")
    export_check.check_nothing_hidden_was_imported()
    ids = tokenizer({tokenizer.to_text(SRTIO3)!r})["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits
    print(json.dumps([type(model).__module__, type(tokenizer).__module__, ids, logits[0, -1].tolist()]))
    """
    done = run_without_package(code, exported_generator, tmp_path, OMP_NUM_THREADS=str(torch.get_num_threads()))
    assert done.returncode == 0, done.stderr
    *modules, ids, logits = json.loads(done.stdout.splitlines()[-1])
    assert all(module.startswith("transformers.") for module in modules)
    assert ids == tokenizer.encode(SRTIO3)[:-1]  # no end: text may be a prompt
    with torch.no_grad():
        assert logits == model(input_ids=torch.tensor([ids])).logits[0, -1].tolist()


def test_pipeline_travels(exported_generator, tmp_path):
    code = """
    import sys
    from transformers import pipeline
    pipe = pipeline("crystal-generation", model=sys.argv[1], trust_remote_code=True)
    print(pipe("TiO2", formula_units=2, seed=3)[0]["sequence"])
    """
    threads = str(torch.get_num_threads())
    done = run_without_package(code, exported_generator, tmp_path, show_structures=True, OMP_NUM_THREADS=threads)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == pipeline(model=str(exported_generator))("Ti2O4", seed=3)[0]["sequence"]


def test_grammar_travels(exported_generator, tmp_path):
    """Independent of the check inside `export_pretrained`: another prompt, with a space group."""
    code = """
    import sys
    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
    options = dict(composition={"Ti": 2, "O": 4}, space_group="P4_2/mnm", seed=3)
    crystal = model.generate_crystals(tokenizer, **options)[0]
    print(crystal.sequence, "#", crystal.structure.composition.formula, "#", type(model).__module__)
    """
    threads = str(torch.get_num_threads())
    done = run_without_package(code, exported_generator, tmp_path, show_structures=True, OMP_NUM_THREADS=threads)
    assert done.returncode == 0, done.stderr
    sequence, formula, module = done.stdout.splitlines()[-1].split(" # ")
    model, tokenizer = tiny_generator()
    expected = model.generate_crystals(tokenizer, composition={"Ti": 2, "O": 4}, space_group="P4_2/mnm", seed=3)[0]
    assert sequence == expected.sequence
    assert formula == "Ti2 O4"
    assert module.startswith("transformers_modules.")


def test_with_the_package_the_folder_needs_no_consent(exported_generator):
    assert type(AutoTokenizer.from_pretrained(exported_generator)) is Mat2SeqTokenizer
    crystal = pipeline("crystal-generation", model=str(exported_generator))("NaCl", seed=1)[0]
    assert crystal["formula"] == "NaCl"


def test_exported_folder_can_be_exported_again(exported_generator, tmp_path):
    again = export_pretrained(exported_generator, tmp_path / "again", hub_config={"title": "Tiny generator"})
    for name in ("config.json", "tokenizer_config.json", "model.safetensors", "README.md", "recipe.yaml"):
        assert (again / name).read_bytes() == (exported_generator / name).read_bytes()


def test_card_holds_the_figures(exported_generator):
    from huggingface_hub import ModelCard

    card = ModelCard.load(exported_generator / "README.md")
    assert "{{" not in card.text
    assert "| match rate | n 1, temperature 1.0, split test | 40 | **0.1250** | 0.0500 to 0.2600 |" in card.text
    assert "| share that decodes | n 1, temperature 1.0, split test | 40 | **1.0000** | – |" in card.text
    assert "mean RMS" not in card.text
    assert "shown in training, each at random: band gap" in card.text
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "decoded": 1.0,
        "match_rate": 0.125,
        "nats_per_token": 2.5,
    }


def test_a_generator_in_memory_needs_its_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="a generator in memory needs its tokenizer"):
        export_pretrained(tiny_generator()[0], tmp_path / "out")


def test_a_gpt2_generator_is_refused_with_the_way_out(tmp_path):
    from hf_crystal.training.generator_init import build_generator
    from hf_crystal.training.generator_recipe import GeneratorModelArguments

    tokenizer = Mat2SeqTokenizer()
    shape = GeneratorModelArguments(model_type="gpt2", hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    build_generator(shape, tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="generator of type 'gpt2'; accepted is llama.*model.model_type=llama"):
        export_pretrained(tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    write = generators.write_folder

    def write_other_weights(model, tokenizer, folder):
        write(model, tokenizer, folder)
        tiny_generator(seed=1)[0].save_pretrained(folder / "other")
        os.replace(folder / "other" / "model.safetensors", folder / "model.safetensors")

    monkeypatch.setattr(generators, "write_folder", write_other_weights)
    model, tokenizer = tiny_generator()
    with pytest.raises(RuntimeError, match="of the exported folder is not that of the model in memory"):
        export_pretrained(model, tmp_path / "out", tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"architectures": ["Mat2SeqForCausalLM"]}, "architectures is"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', not silu"),
        ({"head_dim": 12}, "head size 12 is no multiple of 8 up to 256"),
        ({"mlp_bias": True}, "layers have biases"),
        ({"tie_word_embeddings": False}, r"weights \['lm_head.weight'\] are missing or unknown"),
        ({"vocab_size": 7}, "tokens, the model 7"),
        ({"eos_token_id": None}, "config.json lacks one of bos_token_id"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_vllm_would_refuse_is_named(exported_generator, tmp_path, change, problem):
    assert serving_problems(exported_generator) == []
    for name in ("generation_config.json", "model.safetensors", "tokenizer_without_code"):
        (tmp_path / name).symlink_to(exported_generator / name)
    config = json.loads((exported_generator / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=f"vLLM would not serve .*{problem}"):
        check_serving(tmp_path)


def test_missing_files_are_named(tmp_path):
    assert "config.json" in serving_problems(tmp_path)[0]


def test_tokens_of_a_crystal_outside_the_check(exported_generator):
    """The stock tokenizer agrees on a crystal that the check after an export does not see."""
    stock = AutoTokenizer.from_pretrained(exported_generator / "tokenizer_without_code")
    tokenizer = Mat2SeqTokenizer.from_pretrained(exported_generator)
    assert (
        stock(tokenizer.to_text(NACL, properties={"band_gap": 5.0}))["input_ids"]
        == tokenizer.encode(NACL, properties={"band_gap": 5.0})[:-1]
    )
