"""One door from the name of a model to the model: what comes first, and what is refused."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import NACL, save_tiny_model, tiny_model
from transformers import BertConfig

from hf_crystal import CrystalFeatureExtractor, Mat2SeqForCausalLM, Mat2SeqTokenizer
from hf_crystal.checkpoints import DEFAULT_GENERATOR, DEFAULT_MODEL, checkpoint_folder, embedded_checkpoints
from hf_crystal.cli.main import run
from hf_crystal.loading import load_generator, load_property_model, load_property_pipeline, resolve_model
from hf_crystal.mat2seq.modeling_mat2seq import mat2seq_config


@pytest.fixture(scope="module")
def generator():
    tokenizer = Mat2SeqTokenizer()
    torch.manual_seed(0)
    return Mat2SeqForCausalLM(mat2seq_config("tiny", tokenizer, max_position_embeddings=64)), tokenizer


@pytest.mark.skipif(DEFAULT_MODEL not in embedded_checkpoints(), reason="this checkout has no embedded checkpoint")
def test_a_folder_comes_before_an_embedded_checkpoint_and_that_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_model(DEFAULT_MODEL) == str(checkpoint_folder(DEFAULT_MODEL))
    (tmp_path / DEFAULT_MODEL).mkdir()  # such as a folder of results
    assert resolve_model(DEFAULT_MODEL) == str(checkpoint_folder(DEFAULT_MODEL))
    (tmp_path / DEFAULT_MODEL / "config.json").write_text("{}")
    assert resolve_model(DEFAULT_MODEL) == DEFAULT_MODEL
    assert resolve_model(f"hf_crystal/{DEFAULT_MODEL}") == str(checkpoint_folder(DEFAULT_MODEL))
    assert resolve_model(f"owner/{DEFAULT_MODEL}") == f"owner/{DEFAULT_MODEL}"


def test_what_no_model_has_for_a_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        resolve_model(tmp_path)
    for name in ("no-such-model", str(tmp_path / "none"), "a/b/c", "owner/name?"):
        with pytest.raises(ValueError, match="model not found: .*accepted are a folder, a repository of the Hub"):
            resolve_model(name)


def test_a_property_model_saved_alone_has_the_default_reader(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model, extractor = load_property_model(tmp_path)
    assert extractor.to_dict() == CrystalFeatureExtractor().to_dict()
    assert not model.training


def test_saved_weights_are_for_the_same_readers_as_their_config(generator, tmp_path):
    save_tiny_model(tmp_path / "property")
    generator[0].save_pretrained(tmp_path / "generator")
    for folder in tmp_path.iterdir():
        modes = {(folder / name).stat().st_mode for name in ("config.json", "model.safetensors")}
        assert len(modes) == 1
    adapter = (
        tmp_path / "adapter/adapter_model.safetensors"
    )  # PEFT writes no config.json, Trainer the collator's reader
    adapter.parent.mkdir()
    adapter.touch()
    CrystalFeatureExtractor().save_pretrained(adapter.parent)
    assert adapter.stat().st_mode == (adapter.parent / "preprocessor_config.json").stat().st_mode


def test_kinds_of_models_are_not_mixed_up(generator, tmp_path):
    property_model = save_tiny_model(tmp_path / "property")
    model, tokenizer = generator
    model.save_pretrained(tmp_path / "generator")
    tokenizer.save_pretrained(tmp_path / "generator")
    BertConfig().save_pretrained(tmp_path / "bert")
    for folder, found in ((tmp_path / "generator", "llama"), (tmp_path / "bert", "bert")):
        with pytest.raises(ValueError, match=f"model of type '{found}'; accepted are crystalformer, crystalframer"):
            load_property_model(folder)
    with pytest.raises(
        ValueError, match=f"has no tokenizer, so it is no generator; embedded are .*{DEFAULT_GENERATOR}"
    ):
        load_generator(property_model)
    tokenizer.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="generator of type 'bert'; accepted is llama"):
        load_generator(tmp_path / "bert")


def test_weights_of_another_shape_or_none_for_a_layer_are_refused(tmp_path):
    save_tiny_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for changes, reason in (
        ({"head_hidden_size": 8}, r"head.dense.bias \(16,\) in place of \(8,\) and 2 more"),
        ({"num_hidden_layers": config["num_hidden_layers"] + 1}, r"encoder.layers.\d.* is missing and \d+ more"),
        ({"num_hidden_layers": config["num_hidden_layers"] - 1}, r"encoder.layers.\d.* has no place and \d+ more"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
        with pytest.raises(ValueError, match=f"{tmp_path}: config.json does not belong to the weights .{reason}"):
            load_property_model(tmp_path)


def test_a_generator_is_a_folder_or_a_model_with_its_tokenizer(generator, tmp_path):
    model, tokenizer = generator
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, read = load_generator(tmp_path, device="cpu")
    assert type(loaded) is Mat2SeqForCausalLM
    assert read.get_vocab() == tokenizer.get_vocab()
    assert torch.equal(loaded.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert load_generator(model, tokenizer) == (model, tokenizer)
    with pytest.raises(ValueError, match="a generator in memory needs its tokenizer"):
        load_generator(model)
    with pytest.raises(TypeError, match="model is a CrystalformerForPropertyPrediction; a crystal generator"):
        load_generator(tiny_model(), tokenizer)
    with pytest.raises(ValueError, match="device moon cannot be used"):
        load_generator(tmp_path, device="moon")


def _cut(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def _wrong_type(name, value):
    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, name: value}))

    return damage


def _pickle_with_code(folder):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(folder / "code-was-run"),)

    (folder / "model.safetensors").unlink()
    torch.save({"weight": Code()}, folder / "pytorch_model.bin")


def _not_a_number(folder):
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


DAMAGES = {
    "weights cut short": _cut,
    "weights of a pickle": _pickle_with_code,
    "weight that is NaN": _not_a_number,
    "text for a number": _wrong_type("hidden_size", "x"),
    "list for a number": _wrong_type("num_hidden_layers", [1]),
    "number for a list": _wrong_type("target_names", 3),
    "null for a number": _wrong_type("hidden_size", None),
    "list for a word": _wrong_type("model_type", [1]),
    "no object": lambda folder: (folder / "config.json").write_text("[1]"),
    "no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "reader that is no object": lambda folder: (folder / "preprocessor_config.json").write_text("[]"),
}


def test_a_pickle_is_refused_in_our_words(tmp_path):
    folder = save_tiny_model(tmp_path / "stranger")
    _pickle_with_code(folder)
    with pytest.raises(ValueError, match="a pickle of more than numbers, which may run code; accepted: safetensors"):
        load_property_model(folder)
    assert not (folder / "code-was-run").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_one_line_that_names_the_model(damage, tmp_path, capfd):
    folder = save_tiny_model(tmp_path / "broken-model")
    DAMAGES[damage](folder)
    crystal = Path(__file__).parents[1] / "examples" / "NaCl.cif"
    assert run(["predict", str(crystal), "--model", str(folder)]) == 1
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("hf-crystal")]
    assert out == ""
    assert len(lines) == 1
    assert "Traceback" not in err
    assert "broken-model" in lines[0], lines
    assert not (folder / "code-was-run").exists()


def test_a_prediction_that_overflows_is_a_reason_and_no_value(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1e30)
    model.save_pretrained(tmp_path)
    result = load_property_pipeline(tmp_path)(NACL)
    assert list(result) == ["error"]
    assert "which is no prediction" in result["error"]
