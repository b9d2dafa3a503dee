"""Names of embedded checkpoints, and folders of any origin, in the calls that users of transformers know."""

import json

import pytest
import torch
import transformers
from tiny_models import IRON, NACL, SRTIO3, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, pipeline

import hf_crystal
from hf_crystal.checkpoints import embedded_checkpoints, embedded_generators
from hf_crystal.hub.properties import check_folder

pytestmark = pytest.mark.skipif(not embedded_checkpoints(), reason="this checkout has no embedded checkpoint")
PROPERTY, GENERATOR = "crystalformer-mp20", "mat2seq-perov5"


@pytest.mark.parametrize(("auto_class", "name", "expected"), [
    ("AutoConfig", PROPERTY, "CrystalformerConfig"),
    ("AutoModel", PROPERTY, "CrystalformerModel"),
    ("AutoModelForSequenceClassification", PROPERTY, "CrystalformerForPropertyPrediction"),
    ("AutoFeatureExtractor", PROPERTY, "CrystalFeatureExtractor"),
    ("AutoModelForCausalLM", GENERATOR, "Mat2SeqForCausalLM"),
    ("AutoTokenizer", GENERATOR, "Mat2SeqTokenizer"),
])  # fmt: skip
def test_auto_classes_take_names(auto_class, name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert type(getattr(transformers, auto_class).from_pretrained(name)).__name__ == expected
    own = getattr(hf_crystal, expected)
    assert type(own.from_pretrained(pretrained_model_name_or_path=name)) is own


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained(PROPERTY)
    assert transformers.AutoModel.from_pretrained(PROPERTY).config.hidden_size == 16


def test_pipelines_take_names_and_know_the_task():
    (value,) = pipeline(model=PROPERTY)([NACL])
    assert value["formula"] == "NaCl"
    assert pipeline("crystal-property-prediction", model=PROPERTY)([NACL]) == [value]
    assert GENERATOR in embedded_generators()
    assert pipeline(model=GENERATOR)("SrTiO3", seed=0)[0]["formula"] == "SrTiO3"


def test_a_llama_stays_a_llama(tmp_path):
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=9
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert type(transformers.AutoModelForCausalLM.from_pretrained(tmp_path)) is LlamaForCausalLM


def test_what_a_trainer_saves_loads_without_the_package(tmp_path):
    """Weights, code and feature extractor; `check_folder` loads them in a process that cannot see this package."""
    model, extractor = tiny_model(), hf_crystal.CrystalFeatureExtractor(max_atomic_number=90)
    rows = [{**crystal, "a": 1.0, "b": 2.0} for crystal in (NACL, SRTIO3, IRON)]
    arguments = TrainingArguments(
        tmp_path / "run", remove_unused_columns=False, max_steps=1, use_cpu=True, report_to=[]
    )
    collator = hf_crystal.CrystalCollator(extractor, label_names=["a", "b"])
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/preprocessor_config.json").read_text())["max_atomic_number"] == 90
    check_folder(tmp_path / "saved", model.eval(), extractor)
    loaded = hf_crystal.AutoModelForCrystalPropertyPrediction.from_pretrained(tmp_path / "saved")
    assert type(loaded) is hf_crystal.CrystalformerForPropertyPrediction  # no question about remote code
    batch = extractor([NACL])
    assert torch.equal(loaded.eval()(**batch).logits, model.cpu()(**batch).logits)
