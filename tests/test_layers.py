"""Which file may import which; what travels to the Hub can travel.

The rooms `crystals/`, `encoders/`, `mat2seq/` and `pipelines/` travel to the Hub: their files import siblings, or from
`crystals/` as `from ..crystals.x import name`. Encoders and mat2seq never import each other. The other packages import
only what lies below them, and no import of the package, deferred ones included, goes round in a circle.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hf_crystal"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ROOMS = ("crystals", "encoders", "mat2seq", "pipelines")
TRAVELING = [path for path in SOURCES if path.parent.name in ROOMS and path.name != "__init__.py"]

# files of a room from the bottom up: each imports only what stands before it
CRYSTALS = [
    "elements",
    "record",
    "doubts",
    "formats",
    "occupancy",
    "documents",
    "cif_symmetry",
    "cif",
    "reading",
]
MAT2SEQ = [
    "space_group_tables",
    "space_groups",
    "canonical_crystal",
    "canonical_lattice",
    "canonical_start",
    "canonical_symmetry",
    "canonical_setting_reference",
    "canonical_setting",
    "sequence_text",
    "canonicalize",
    "vocabulary",
    "tokenization_mat2seq",
    "grammar_feasibility",
    "grammar_constraint",
    "grammar",
    "grammar_masks",
    "logits_processor",
    "prompts",
    "guidance",
    "sampler",
    "validity",
    "selection",
    "modeling_mat2seq",
]
# the same for encoders, by the prefix of the name
ENCODERS = ["ops", "configuration", "geometry", "heads", "modeling", "feature"]
# what a package may import of the others; the ones above all of these are free
ALLOWED_PACKAGES = {
    "crystals": set(),
    "encoders": {"crystals", "kernels"},  # kernels where they are asked for, in `try`
    "mat2seq": {"crystals"},
    "pipelines": {"crystals"},
    "kernels": {"encoders"},
    "checkpoints": set(),
    "data": {"crystals", "encoders", "_lazy_names", "typing"},
    "evaluation": {"crystals", "encoders", "mat2seq", "data", "loading", "_lazy_names", "typing"},
    "prototypes": {"crystals", "evaluation", "mat2seq"},
    "training": {"crystals", "data", "encoders", "evaluation", "loading", "mat2seq", "_lazy_names", "typing"},
    "conversion": {"encoders", "typing"},
    "models": {"crystals", "mat2seq"},
    "typing": {"crystals", "encoders", "mat2seq", "pipelines"},
}
# installed packages that a traveling file may name outside `try`
REMOTE_PACKAGES = {"torch", "transformers", "safetensors", "numpy", "huggingface_hub"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


MODULES = {name_of(path)[:-3].replace("/", ".").removesuffix(".__init__"): path for path in SOURCES}


def imported_modules(module: str) -> set[str]:
    """Modules of this package that a module imports, at any depth of its code; not for type checkers only."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_checkers = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_checkers:
            continue
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= (names & set(MODULES)) or {source}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in MODULES and name != module}


def room_of(module: str) -> str:
    """Sub-package of a module, or its own name directly in hf_crystal."""
    return module.split(".")[1] if "." in module else module


@pytest.mark.parametrize("path", TRAVELING, ids=name_of)
def test_traveling_file_imports_by_the_form_that_the_exporter_rewrites(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.module is not None, "`from . import x` is not exported"
            folder = path.parent if node.level == 1 else PACKAGE
            assert node.level <= 2
            assert (folder / f"{node.module.replace('.', '/')}.py").is_file()


@pytest.mark.parametrize("path", TRAVELING, ids=name_of)
def test_traveling_file_needs_only_the_packages_of_a_bare_environment(path):
    assert set(get_imports(path)) - set(sys.stdlib_module_names) <= REMOTE_PACKAGES


def rank(module: str) -> int:
    """Height of a file in its room."""
    _, room, name = module.split(".")
    if room == "encoders":
        return ENCODERS.index(name.partition("_")[0])
    return {"crystals": CRYSTALS, "mat2seq": MAT2SEQ}[room].index(name)


@pytest.mark.parametrize("module", [name for name in MODULES if room_of(name) in ROOMS[:3] and name.count(".") == 2])
def test_file_of_a_room_imports_only_files_below(module):
    siblings = [name for name in imported_modules(module) if room_of(name) == room_of(module)]
    same_height_is_fine = room_of(module) == "encoders"  # a prefix stands for several files
    assert all(rank(name) < rank(module) + same_height_is_fine for name in siblings)


@pytest.mark.parametrize("module", MODULES)
def test_packages_import_only_packages_below(module):
    room = room_of(module)
    others = {room_of(name) for name in imported_modules(module)} - {room}
    if room in ALLOWED_PACKAGES:
        assert others <= ALLOWED_PACKAGES[room]
    assert room == "cli" or "cli" not in others  # the command line uses everything, and nothing uses it


def test_no_import_goes_round_in_a_circle():
    waiting = {module: imported_modules(module) for module in MODULES}
    while free := [module for module, needed in waiting.items() if not needed & set(waiting)]:
        for module in free:
            del waiting[module]
    assert waiting == {}


def test_exported_names_are_unique():
    from hf_crystal.hub.files import _flat_name

    names = [_flat_name(f"hf_crystal.{path.parent.name}.{path.stem}") for path in TRAVELING]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_stay_readable(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 600 or path.name.startswith("modeling_")
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
