"""Which file may import which; what travels to the Hub can travel.

The rules: `models/` is flat and its files import only siblings; `ops_*` below `configuration_*` below `modeling_*`;
`pipelines/` files import only siblings; the other packages import only what lies below them.
"""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hf_crystal"
MODELS = sorted(path for path in (PACKAGE / "models").glob("*.py") if path.name != "__init__.py")
PIPELINES = sorted(path for path in (PACKAGE / "pipelines").glob("*.py") if path.name != "__init__.py")
SOURCES = sorted(PACKAGE.rglob("*.py"))
TRAVELLING = MODELS + PIPELINES

# what a file may import of its siblings, by the prefix of its name
ALLOWED_SIBLINGS = {
    "ops": {"ops"},
    "configuration": {"configuration"},
    "kernels": {"ops", "kernels"},
    "geometry": {"ops", "kernels", "configuration", "geometry"},
    "modeling": {"ops", "kernels", "configuration", "geometry", "modeling"},
    "records": {"records"},
    "formats": {"records", "formats"},
    "structures": {"records", "formats", "structures"},
    "feature": {"records", "formats", "structures", "feature"},
    "elements": {"records"},
    "symmetry": {"symmetry"},
    "canonical": {"records", "elements", "symmetry", "structures", "canonical"},
    "feasibility": {"symmetry", "canonical"},
    "vocabulary": {"records", "elements", "symmetry", "canonical"},
    "grammar": {"records", "elements", "symmetry", "canonical", "feasibility", "vocabulary", "grammar"},
    "tokenization": {"structures", "canonical", "vocabulary"},
    "validity": {"validity"},
    "generation": {
        "records",
        "symmetry",
        "canonical",
        "feasibility",
        "grammar",
        "tokenization",
        "validity",
        "generation",
    },
}
# what a package may import of the others; `_` stands for the files directly in hf_crystal
ALLOWED_PACKAGES = {
    "models": set(),
    "pipelines": set(),
    "checkpoints": set(),
    "data": {"models"},
    "evaluation": {"data", "loading", "models"},
    "training": {"checkpoints", "data", "evaluation", "models"},
    "conversion": {"models"},
}
# installed packages that a travelling file may name outside `try`
REMOTE_PACKAGES = {"torch", "transformers", "safetensors", "numpy", "huggingface_hub"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported_packages(path: Path) -> set[str]:
    """Sub-packages of hf_crystal that a file imports, at any depth of the code."""
    package = path.relative_to(ROOT).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = node.module.split(".") if node.module else []
            names = [(*base, *module, *([] if module else [alias.name])) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [tuple(node.module.split("."))]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        found |= {parts[1] for parts in names if parts[0] == "hf_crystal" and len(parts) > 1}
    return found


@pytest.mark.parametrize("path", TRAVELLING, ids=name_of)
def test_travelling_file_imports_only_siblings_that_exist(path):
    for sibling in get_relative_imports(path):
        assert "." not in sibling, f"{sibling}: only `from .sibling import name` travels"
        assert (path.parent / f"{sibling}.py").is_file()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level <= 1, "no import from a folder above"
            assert not (node.level == 1 and node.module is None), "`from . import x` is not copied to the Hub"
    # transformers' scan and Python agree on what is imported, so a docstring cannot add a file
    parsed = {
        node.module
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        if node.level == 1
    }
    assert set(get_relative_imports(path)) == parsed


@pytest.mark.parametrize("path", TRAVELLING, ids=name_of)
def test_travelling_file_needs_only_the_packages_of_a_bare_environment(path):
    import sys

    assert set(get_imports(path)) - set(sys.stdlib_module_names) <= REMOTE_PACKAGES


@pytest.mark.parametrize("path", MODELS, ids=name_of)
def test_model_files_import_only_layers_below(path):
    prefix = path.stem.partition("_")[0]
    assert prefix in ALLOWED_SIBLINGS, "give the new layer a rule"
    assert {name.partition("_")[0] for name in get_relative_imports(path)} <= ALLOWED_SIBLINGS[prefix]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_packages_import_only_packages_below(path):
    package = path.relative_to(PACKAGE).parts[0]
    if package in ALLOWED_PACKAGES:
        assert imported_packages(path) - {package} <= ALLOWED_PACKAGES[package]
    elif package != "cli":
        assert "cli" not in imported_packages(path)


def test_travelling_files_have_unique_names():
    names = [path.name for path in TRAVELLING]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["modeling_crystalformer", "modeling_crystalframer", "feature_extraction_crystal"])
def test_everything_a_class_needs_is_found_by_the_scan(name):
    files = [Path(file) for file in get_relative_import_files(PACKAGE / "models" / f"{name}.py")]
    assert all(file.is_file() and file.parent == PACKAGE / "models" for file in files)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_stay_readable(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 600
    assert not re.search(r"(^|\s)#\s*(TODO|FIXME|XXX)\b", text)


def tracked_files() -> list[Path]:
    """Files under version control; all source files where there is no git."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        return SOURCES
    return [ROOT / name for name in done.stdout.splitlines()]


def test_no_path_of_one_machine():
    pattern = re.compile(r"(?<![\w.])/(work|home|root|Users)/\w|(?<![\w.])/tmp/\w")
    found = []
    for path in tracked_files():
        if path.suffix in {".py", ".sh", ".toml", ".yaml", ".yml", ".md", ".json", ".cff", ".txt"} and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            found += [f"{name_of(path)}:{number}" for number, line in enumerate(lines, 1) if pattern.search(line)]
    assert found == []


def test_embedded_checkpoints_hold_no_code():
    assert [name_of(path) for path in (PACKAGE / "checkpoints").glob("*/*.py")] == []


def test_no_setting_of_the_feature_extractor_is_an_argument_of_from_pretrained():
    """`pipeline()` hands dtype="auto" and the like on to the feature extractor, where they replace equal settings."""
    from hf_crystal import CrystalFeatureExtractor

    arguments = {
        "dtype",
        "torch_dtype",
        "device",
        "device_map",
        "revision",
        "token",
        "cache_dir",
        "config",
        "subfolder",
    }
    assert not set(CrystalFeatureExtractor().to_dict()) & arguments
