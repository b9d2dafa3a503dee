"""An exported folder stands alone: it loads without this package and computes the same bits."""

import importlib
import json
import os
from pathlib import Path

import pytest
import torch
from hub_exports import run_without_package
from safetensors.torch import load_file
from tiny_models import IRON, NACL, SRTIO3, WITH_ERROR_HEAD, tiny_model
from transformers import pipeline

from hf_crystal import (
    AutoModelForCrystalPropertyPrediction,
    CrystalFeatureExtractor,
    CrystalPropertyPipeline,
    export_pretrained,
    render_model_card,
)
from hf_crystal.cards import fill_slots, read_hub_config
from hf_crystal.hub import files, properties
from hf_crystal.loading import load_property_model

CRYSTALS = [NACL, SRTIO3, IRON]


@pytest.fixture
def exported(exported_property) -> Path:
    return exported_property


def test_folder_is_complete_and_flat(exported):
    names = {path.name for path in exported.iterdir()}
    assert names >= {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert names >= {"LICENSE", "NOTICE", "metrics.json", "modeling_crystalframer.py", "modeling_crystalformer.py"}
    assert names >= {"configuration_crystalframer.py", "feature_extraction_crystal.py", "pipeline_crystal_property.py"}
    assert all(path.is_file() for path in exported.iterdir())
    config = json.loads((exported / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_crystalframer.CrystalFramerConfig",
        "AutoModel": "modeling_crystalframer.CrystalFramerModel",
        "AutoModelForSequenceClassification": "modeling_crystalframer.CrystalFramerForPropertyPrediction",
    }
    extractor = json.loads((exported / "preprocessor_config.json").read_text())
    assert extractor["auto_map"] == {"AutoFeatureExtractor": "feature_extraction_crystal.CrystalFeatureExtractor"}


def test_nothing_is_left_beside_the_folder(exported):
    assert sorted(path.name for path in exported.parent.iterdir()) == ["exported", "source"]


def test_loads_without_the_package_and_gives_the_same_bits(exported, tmp_path):
    """Independent of the check inside `export_pretrained`: other crystals, packages checked by import."""
    code = f"""
    import json, sys
    import torch
    import transformers
    from safetensors.torch import save_file
    torch.set_num_threads({torch.get_num_threads()})
    for name in ("hf_crystal", "pymatgen", "ase", "datasets", "moyopy"):
        try:
            __import__(name)
        except ModuleNotFoundError:
            continue
        sys.exit(f"{{name}} can be imported")
    folder, crystals = sys.argv[1], json.loads({json.dumps(json.dumps(CRYSTALS))})
    load = dict(trust_remote_code=True)
    batch = transformers.AutoFeatureExtractor.from_pretrained(folder, **load)(crystals)
    config = transformers.AutoConfig.from_pretrained(folder, **load)
    encoder = transformers.AutoModel.from_pretrained(folder, **load)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, **load)
    pipe = transformers.pipeline("crystal-property-prediction", model=folder, **load)
    with torch.no_grad():
        hidden = encoder(**batch)
        outputs = {{"logits": model(**batch).logits, "last_hidden_state": hidden.last_hidden_state,
                    "pooler_output": hidden.pooler_output}}
    save_file(outputs, "outputs.safetensors")
    rows = pipe(crystals, batch_size=3)
    bad = pipe([crystals[0], "no/such.cif"])[1]
    print(json.dumps([rows, bad, type(config).__module__, type(pipe).__module__]))
    """
    done = run_without_package(code, exported, tmp_path)
    assert done.returncode == 0, done.stderr
    received = load_file(tmp_path / "outputs.safetensors")
    model, extractor = tiny_model("crystalframer", **WITH_ERROR_HEAD), CrystalFeatureExtractor()
    batch = extractor(CRYSTALS)
    with torch.no_grad():
        expected, hidden = model(**batch), model.base_model(**batch)
    assert torch.equal(received["logits"], expected.logits)
    assert torch.equal(received["last_hidden_state"], hidden.last_hidden_state)
    assert torch.equal(received["pooler_output"], hidden.pooler_output)
    rows, bad, *modules = json.loads(done.stdout.splitlines()[-1])
    assert rows == CrystalPropertyPipeline(model=model, feature_extractor=extractor)(CRYSTALS, batch_size=3)
    assert bad == {"error": "no such file: no/such.cif"}
    assert all(module.startswith("transformers_modules.") for module in modules)


def test_cif_without_gemmi_gives_a_named_error(exported, tmp_path):
    example = Path(__file__).resolve().parents[2] / "examples" / "NaCl.cif"
    code = f"""
    import sys, transformers
    pipe = transformers.pipeline("crystal-property-prediction", model=sys.argv[1], trust_remote_code=True)
    print(pipe({str(example)!r}))
    """
    done = run_without_package(code, exported, tmp_path)
    assert "pip install gemmi" in (done.stdout + done.stderr).splitlines()[-1]


def test_loading_without_consent_is_refused(exported, tmp_path):
    code = "import sys, transformers\ntransformers.AutoModel.from_pretrained(sys.argv[1], trust_remote_code=False)"
    done = run_without_package(code, exported, tmp_path)
    assert done.returncode != 0
    assert "trust_remote_code=True" in done.stderr


def test_with_the_package_the_folder_needs_no_consent_and_uses_the_package(exported):
    pipe = pipeline("crystal-property-prediction", model=str(exported))
    assert type(pipe) is CrystalPropertyPipeline
    assert pipe(NACL)["formula"] == "NaCl"


def test_exported_folder_can_be_exported_again(exported, tmp_path):
    again = export_pretrained(exported, tmp_path / "again")
    for name in ("config.json", "hub_config.json", "README.md"):
        assert (again / name).read_text() == (exported / name).read_text()
    assert (again / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()


def test_card_holds_the_figures_of_the_evaluation(exported):
    card = (exported / "README.md").read_text()
    assert card.startswith("---\n")
    assert "{{" not in card
    assert "| formation_energy | eV/atom | 20 | **0.1234** | 0.1134 to 0.1334 | 0.2468 | 0.3702 |" in card
    assert "| rows per split | train 100, validation 10, test 20 |" in card
    assert "license: cc-by-4.0" in card
    assert "value: 0.5678" in card
    assert "arXiv:2503.02209" in card


def test_hub_accepts_the_header_of_the_card(exported):
    from huggingface_hub import ModelCard

    data = ModelCard.load(exported / "README.md").data
    assert data.library_name == "transformers"
    assert [result.metric_value for result in data.eval_results] == [0.1234, 0.5678]


def test_card_without_figures_says_so():
    assert "No figures were supplied with this checkpoint." in render_model_card(tiny_model())


def test_card_of_an_embedded_model_in_memory_has_its_license():
    card = render_model_card(load_property_model("crystalformer-elastic")[0])
    assert "license: cc-by-4.0" in card and "base_model: hf_crystal/crystalformer-elastic" in card


def test_a_model_trained_by_any_trainer_is_exported_with_its_base_and_license(tmp_path):
    model = AutoModelForCrystalPropertyPrediction.from_pretrained(
        "crystalformer-mp", target_names=["Tc"], target_units=["K"], ignore_mismatched_sizes=True
    )
    model.set_target_scaling(589.0, 500.0)  # whose last digits depend on the addresses of weights
    model.save_pretrained(tmp_path / "saved")
    for license_, kept in (({}, "cc-by-4.0"), ({"license": "apache-2.0"}, "apache-2.0")):
        words = {"title": "Critical temperatures", **license_}
        folder = export_pretrained(tmp_path / "saved", tmp_path / "own", hub_config=words, overwrite=True)
        assert f"license: {kept}" in (folder / "README.md").read_text()
        assert json.loads((folder / "hub_config.json").read_text()) == words
    for place, source in enumerate((model, tmp_path / "saved")):
        card = (export_pretrained(source, tmp_path / str(place)) / "README.md").read_text()
        assert "license: cc-by-4.0" in card and "base_model: hf_crystal/crystalformer-mp" in card
        assert "(in the training of `hf_crystal/crystalformer-mp`; later ones are not recorded)" in card


def test_a_folder_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    write = properties.write_folder

    def write_other_weights(model, feature_extractor, folder):
        write(model, feature_extractor, folder)
        tiny_model(seed=1).save_pretrained(folder / "other")
        os.replace(folder / "other" / "model.safetensors", folder / "model.safetensors")

    monkeypatch.setattr(properties, "write_folder", write_other_weights)
    with pytest.raises(RuntimeError, match=r"\w+ of the exported folder is not that of the model in memory"):
        export_pretrained(tiny_model(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_load_is_not_written(tmp_path, monkeypatch):
    write = properties.write_folder

    def forget_a_file(model, feature_extractor, folder):
        write(model, feature_extractor, folder)
        (folder / "encoders_ops_periodic_geometry.py").unlink()

    monkeypatch.setattr(properties, "write_folder", forget_a_file)
    with pytest.raises(RuntimeError, match=r"does not load without hf_crystal: .*ops_periodic_geometry"):
        export_pretrained(tiny_model(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_code_file_that_would_not_load_from_the_hub_is_refused(tmp_path, monkeypatch):
    """From the Hub each file is checked for missing packages; from a local folder only the main one."""
    for file, text in {
        "house/crystals/reader.py": "def read():\n    import pymatgen\n",
        "house/encoders/modeling_other.py": "from ..crystals.reader import read\n\n\nclass Other:\n    pass\n",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    other = importlib.import_module("house.encoders.modeling_other").Other
    with pytest.raises(ValueError, match=r"reader.py imports \['pymatgen'\] outside `try`"):
        files.code_files(other)
    (tmp_path / "house/crystals/reader.py").write_text("def read():\n    pass\n")
    texts = files.code_files(other)
    assert list(texts) == ["crystals_reader.py", "modeling_other.py"]
    assert texts["modeling_other.py"].startswith("from .crystals_reader import read\n")


def test_wrong_arguments_are_named(exported, tmp_path):
    with pytest.raises(ValueError, match=r"exists already; overwrite=True \(--overwrite\) replaces it"):
        export_pretrained(tiny_model(), exported)
    with pytest.raises(ValueError, match=r"exists already; choose another folder"):
        export_pretrained(tiny_model(), tmp_path, overwrite=True)
    with pytest.raises(ValueError, match="model folder not found: no/such"):
        export_pretrained("no/such", tmp_path / "out")
    with pytest.raises(TypeError, match="model is a CrystalformerModel; a crystal model with a property head"):
        export_pretrained(tiny_model().base_model, tmp_path / "out")
    with pytest.raises(ValueError, match="no such metrics file"):
        export_pretrained(tiny_model(), tmp_path / "out", metrics=tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"metrics has no list `targets`"):
        render_model_card(tiny_model(), metrics={"mae": 1.0})
    with pytest.raises(ValueError, match=r"unknown fields \['titel'\]"):
        read_hub_config({"titel": "x"})
    with pytest.raises(ValueError, match="no card template 'poem'; available"):
        render_model_card(tiny_model(), hub_config={"template": "poem"})
    with pytest.raises(ValueError, match=r"no value for slots \['b'\]"):
        fill_slots("{{a}} {{b}}", {"a": "1"})
