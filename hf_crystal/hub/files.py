"""What every exported folder holds besides the model: code that travels, license, recipe; and how it is tried out."""

import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

# what an exported folder may need; transformers refuses a file from the Hub that imports another missing package,
# inside a function too, unless the import stands in `try`
_REMOTE_PACKAGES = {"torch", "transformers", "safetensors", "numpy", "huggingface_hub"}
_RELATIVE_IMPORT = re.compile(r"^(?P<indent>[ \t]*)from (?P<module>\.+[\w.]+) import", re.MULTILINE)
_TRANSFORMERS_PREFIXES = ("modeling_", "configuration_", "feature_extraction_", "tokenization_", "pipeline_")


def code_files(*classes: type) -> dict[str, str]:
    """Code of the classes and of everything of this package that they import, as files of one flat folder.

    transformers loads remote code from a single folder: `encoders/geometry.py` becomes `encoders_geometry.py`, and
    `from ..crystals.record import name` becomes `from .crystals_record import name`. Each file must load in a bare
    environment.

    Args:
        *classes: Classes that the exported folder names.

    Returns:
        File name → text, sorted by name.

    Raises:
        ValueError: a file imports a package that may be missing, outside `try`.
    """
    from transformers.dynamic_module_utils import get_imports

    waiting, texts = [cls.__module__ for cls in classes], {}
    while waiting:
        module = waiting.pop()
        name = _flat_name(module)
        if name in texts:
            continue
        path = _source_of(module)
        foreign = sorted(set(get_imports(path)) - _REMOTE_PACKAGES - sys.stdlib_module_names)
        if foreign:
            raise ValueError(f"{path.name} imports {foreign} outside `try`; it would not load from the Hub")

        package = module.rpartition(".")[0]
        text = path.read_text(encoding="utf-8")
        waiting += [importlib.util.resolve_name(match["module"], package) for match in _RELATIVE_IMPORT.finditer(text)]
        texts[name] = _RELATIVE_IMPORT.sub(functools.partial(_flat_import, package), text)
    return {f"{name}.py": texts[name] for name in sorted(texts)}


def _source_of(module: str) -> Path:
    """File of a module, which need not have been imported."""
    if module in sys.modules:
        return Path(str(sys.modules[module].__file__))
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"module {module} has no source file")
    return Path(spec.origin)


def _flat_import(package: str, match: re.Match[str]) -> str:
    source = importlib.util.resolve_name(match["module"], package)
    return f"{match['indent']}from .{_flat_name(source)} import"


def _flat_name(module: str) -> str:
    """`hf_crystal.encoders.geometry` → `encoders_geometry`; names of transformers' pattern stay as they are."""
    from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

    package, _, name = module.rpartition(".")
    exported_before = package.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME)  # remote code: flat already
    keep = exported_before or name.startswith(_TRANSFORMERS_PREFIXES)
    return name if keep else f"{package.rpartition('.')[2]}_{name}"


def reference(cls: type) -> str:
    """How `auto_map` names a class: `file.Class`."""
    return f"{_flat_name(cls.__module__)}.{cls.__name__}"


def edit_json(path: Path, changes: Mapping[str, Any]) -> None:
    """Set fields of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content.update(changes)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def license_text(name: str) -> str:
    """Text of `LICENSE` or `NOTICE`, from the installed package or the checkout."""
    checkout = Path(__file__).parents[2] / name
    if checkout.is_file():
        return checkout.read_text(encoding="utf-8")
    files = importlib.metadata.files("hf_crystal") or []
    return next(file for file in files if file.name == name).read_text(encoding="utf-8")


def recipe_text(metrics: Mapping[str, Any] | None) -> str | None:
    """The recipe of the training as YAML, with the commit it ran at; None where the evaluation file has none."""
    if metrics is None or not isinstance(metrics.get("recipe"), Mapping):
        return None
    commit = metrics.get("git_commit") or "not recorded"
    head = f"# Recipe of the training that made these weights; commit of hf_crystal: {commit}\n"
    return head + yaml.safe_dump(metrics["recipe"], sort_keys=False, allow_unicode=True)


def run_check(kind: str, folder: str | Path, inputs: Path, outputs: Path) -> None:
    """Load an exported folder in a process without this package and let it write what it computes.

    Args:
        kind: "property" or "generator".
        folder: exported folder.
        inputs: JSON file that the check reads.
        outputs: file that it writes.

    Raises:
        RuntimeError: the folder does not load; the message has the reason.
    """
    import torch

    program = Path(__file__).with_name("export_check.py")
    # a module cache of its own, so that no earlier copy of the code is used
    environment = {**os.environ, "HF_MODULES_CACHE": str(outputs.parent / "modules"), "HF_HUB_OFFLINE": "1"}
    arguments = [kind, str(Path(folder).resolve()), str(inputs), str(outputs), str(torch.get_num_threads())]
    run = subprocess.run(
        [sys.executable, "-P", str(program), *arguments],
        cwd=outputs.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the exported folder does not load without hf_crystal: {reason}\n{run.stderr}")
