"""What every exported folder holds besides the model: code that travels, licence, recipe; and how it is tried out."""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

# what an exported folder may need; transformers refuses a file from the Hub that imports another missing package,
# inside a function too, unless the import stands in `try`
_REMOTE_PACKAGES = {"torch", "transformers", "safetensors", "numpy", "huggingface_hub"}


def code_files(*classes: type) -> list[Path]:
    """Files that define the classes and everything they import beside them; all must load in a bare environment."""
    from transformers.dynamic_module_utils import get_imports, get_relative_import_files

    files: dict[str, Path] = {}
    for cls in classes:
        main_file = Path(str(sys.modules[cls.__module__].__file__))
        for file in [main_file, *map(Path, get_relative_import_files(main_file))]:
            if files.setdefault(file.name, file) != file:
                raise ValueError(f"two code files are named {file.name}: {files[file.name]} and {file}")
            foreign = sorted(set(get_imports(file)) - _REMOTE_PACKAGES - sys.stdlib_module_names)
            if foreign:
                raise ValueError(f"{file.name} imports {foreign} outside `try`; it would not load from the Hub")
    return sorted(files.values())


def reference(cls: type) -> str:
    """How `auto_map` names a class: `file.Class`."""
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


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
