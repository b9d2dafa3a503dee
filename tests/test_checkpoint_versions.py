"""What earlier versions saved loads and computes the same; what a later version saved is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hf_crystal
from hf_crystal.checkpoints import checkpoint_folder, embedded_checkpoints, embedded_generators
from hf_crystal.crystals.doubts import update_checkpoint

sys.path.insert(0, str(Path(__file__).parent / "hub"))
from hub_exports import run_without_package

OLD = Path(__file__).parent / "checkpoints_v1"
OUTPUTS = json.loads((OLD / "outputs.json").read_text())
CRYSTALS = OUTPUTS["crystals"]
NEWEST = 2


def assert_equal_to_rounding(logits: torch.Tensor, name: str) -> None:
    """In float64; another processor rounds otherwise."""
    expected = torch.tensor(OUTPUTS[name]["logits"], dtype=torch.float64)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)


@pytest.fixture
def unpack(tmp_path):
    def folder(name: str) -> Path:
        shutil.unpack_archive(OLD / f"{name}.zip", tmp_path / name)
        return tmp_path / name

    return folder


def test_an_archive_is_of_version_1(unpack):
    for archive in sorted(OLD.glob("*.zip")):
        for file in unpack(archive.stem).glob("*config.json"):
            assert "checkpoint_version" not in json.loads(file.read_text())


@pytest.mark.parametrize("name", ["crystalformer", "crystalframer", "crystalframer-exported"])
def test_an_old_encoder_computes_what_it_did(unpack, tmp_path, name):
    folder = unpack(name)
    assert '"attention_kernel": "fast"' in (folder / "config.json").read_text()
    model = hf_crystal.AutoModelForCrystalPropertyPrediction.from_pretrained(folder).double().eval()
    assert (model.config.attention_kernel, model.config.checkpoint_version) == ("eager", NEWEST)
    with torch.no_grad():
        logits = model(**hf_crystal.CrystalFeatureExtractor.from_pretrained(folder)(CRYSTALS)).logits
    assert_equal_to_rounding(logits, name)
    model.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (saved["attention_kernel"], saved["checkpoint_version"]) == ("eager", NEWEST)


LOAD_EXPORTED = """
import json, sys
import torch
from transformers import AutoFeatureExtractor, AutoModelForSequenceClassification, pipeline
folder, crystals = sys.argv[1], json.loads({crystals!r})
batch = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)(crystals)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).double().eval()
pipe = pipeline("crystal-property-prediction", model=folder, trust_remote_code=True)
with torch.no_grad():
    print(json.dumps([model(**batch).logits.tolist(), len(pipe(crystals)), type(model).__module__]))
"""


@pytest.mark.parametrize("with_package", [False, True], ids=["without the package", "with the package"])
def test_a_folder_exported_by_an_old_version_loads(unpack, tmp_path, with_package):
    folder, code = unpack("crystalframer-exported"), LOAD_EXPORTED.format(crystals=json.dumps(CRYSTALS))
    if with_package:
        program = [sys.executable, "-c", f"import hf_crystal\n{code}", str(folder)]
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    else:
        done = run_without_package(code, folder, tmp_path)
    assert done.returncode == 0, done.stderr
    logits, rows, module = json.loads(done.stdout.splitlines()[-1])
    assert_equal_to_rounding(torch.tensor(logits, dtype=torch.float64), "crystalframer-exported")
    assert rows == len(CRYSTALS)
    assert module.startswith("hf_crystal.encoders") == with_package


def test_an_old_generator_computes_what_it_did(unpack):
    folder = unpack("mat2seq")
    model = hf_crystal.AutoModelForCrystalGeneration.from_pretrained(folder).double().eval()
    tokenizer = hf_crystal.Mat2SeqTokenizer.from_pretrained(folder)
    ids = tokenizer(CRYSTALS)["input_ids"]
    assert ids == OUTPUTS["mat2seq"]["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids[0]])).logits[0, -1, :16]
    assert_equal_to_rounding(logits, "mat2seq")


@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_a_tokenizer_from_before_coordinate_steps_writes_every_step(unpack, tmp_path, trust_remote_code):
    folder = unpack("mat2seq-every-step")
    tokenizer = hf_crystal.Mat2SeqTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    assert tokenizer(CRYSTALS)["input_ids"] == OUTPUTS["mat2seq-every-step"]["input_ids"]
    tokenizer.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert (saved["coordinate_step"], saved["checkpoint_version"]) == (0.0, NEWEST)
    assert hf_crystal.Mat2SeqTokenizer().settings.coordinate_step == 0.01


@pytest.mark.parametrize(
    ("name", "file", "load"),
    [
        ("crystalformer", "config.json", hf_crystal.AutoModelForCrystalPropertyPrediction),
        ("crystalframer", "config.json", hf_crystal.AutoModelForCrystalPropertyPrediction),
        ("mat2seq", "tokenizer_config.json", hf_crystal.Mat2SeqTokenizer),
    ],
)
@pytest.mark.parametrize("version", [NEWEST + 1, 0, "2"])
def test_a_newer_version_is_refused(unpack, name, file, load, version):
    path = unpack(name) / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {"checkpoint_version": version}))
    reason = "is newer than this code, which reads 1 to 2" if version == NEWEST + 1 else "accepted are"
    with pytest.raises(ValueError, match=f"checkpoint_version={version!r} of a .*{reason}"):
        load.from_pretrained(path.parent)


def test_only_the_steps_that_a_version_lacks_are_made():
    def step(number):
        return lambda values: {**values, "made": [*values["made"], number]}

    def made(version):
        return update_checkpoint({"checkpoint_version": version, "made": []}, [step(1), step(2)], "it")["made"]

    assert [made(version) for version in (1, 2, 3)] == [[1, 2], [2], []]


def test_embedded_checkpoints_are_of_the_newest_version():
    folders = [checkpoint_folder(name) for name in embedded_checkpoints()]
    files = [folder / "config.json" for folder in folders]
    files += [checkpoint_folder(name) / "tokenizer_config.json" for name in embedded_generators()]
    assert {json.loads(file.read_text())["checkpoint_version"] for file in files} == {NEWEST}
