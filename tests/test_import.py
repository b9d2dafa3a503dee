"""Importing the package is quick, has no side effect but registration, and works in any order."""

import subprocess
import sys

import pytest

import hf_crystal

REPORT = """
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING
from transformers.pipelines import PIPELINE_REGISTRY
mappings = CONFIG_MAPPING, MODEL_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, FEATURE_EXTRACTOR_MAPPING
mappings += (MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,)
print(*[cls.__name__ for mapping in mappings for cls in mapping._extra_content.values()])
print("crystal-property-prediction" in PIPELINE_REGISTRY.supported_tasks)
"""
REGISTERED = (
    "CrystalformerConfig CrystalFramerConfig CrystalPotentialConfig CrystalformerModel CrystalFramerModel "
    "CrystalformerForPropertyPrediction CrystalFramerForPropertyPrediction CrystalFramerForAtomVectors "
    "CrystalformerForPotentialEnergy CrystalformerForPotentialEnergy "
    "CrystalFeatureExtractor CrystalFeatureExtractor CrystalFeatureExtractor"
)


def run_python(code: str) -> str:
    """Standard output of `code` in a fresh process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "first",
    [
        "import hf_crystal",
        "import transformers.pipelines, hf_crystal",
        "from hf_crystal import AutoModelForCrystalPropertyPrediction",
        "import hf_crystal.encoders.modeling_crystalframer",
        "import hf_crystal.pipelines.pipeline_crystal_property",
        "from hf_crystal import *",
        # modules of transformers that import the Auto classes half way, and that a modeling file needs
        "import hf_crystal\nfrom transformers.modeling_layers import GradientCheckpointingLayer",
        "import hf_crystal\nimport transformers.modeling_utils",
    ],
)
def test_classes_are_registered_whatever_is_imported_first(first):
    names, task = run_python(f"{first}\n{REPORT}").splitlines()
    assert (sorted(names.split()), task) == (sorted(REGISTERED.split()), "True")


def test_import_does_not_load_torch_nor_third_party_readers():
    heavy = "torch", "pymatgen", "ase", "moyopy", "datasets", "pandas"
    code = f"import sys, hf_crystal; print(sorted(set(sys.modules) & {set(heavy)!r}))"
    assert run_python(code).strip() == "[]"


def test_import_adds_nothing_heavy_to_transformers():
    """What it costs is measured by scripts/bench_start.py; here: nothing but its own few modules is loaded."""
    code = (
        "import sys, transformers; before = set(sys.modules); import hf_crystal; "
        "print(*sorted(set(sys.modules) - before - sys.stdlib_module_names))"
    )
    added = run_python(code).split()
    assert {name.partition(".")[0] for name in added} <= {"hf_crystal", "transformers", *sys.stdlib_module_names}
    assert len(added) < 20


def test_every_public_name_exists():
    for name in hf_crystal.__all__:
        assert getattr(hf_crystal, name) is not None
    assert set(hf_crystal.__all__) <= set(dir(hf_crystal))


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'CrystalMaker'"):
        hf_crystal.CrystalMaker  # noqa: B018


def test_loader_of_a_followed_module_is_its_own():
    code = "import hf_crystal, transformers.pipelines as p; print(type(p.__loader__), type(p.__spec__.loader))"
    assert run_python(code).count("SourceFileLoader") == 2


def test_former_names_still_work():
    from hf_crystal.crystals import reading
    from hf_crystal.models.structures_crystal import as_structure, structure_to_record

    assert as_structure is reading.as_record
    assert structure_to_record is reading.as_columns
