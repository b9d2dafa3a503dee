"""Public names of a package that are loaded when first used (PEP 562)."""

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path


def lazy_names(package: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package whose stub imports each public name from its home.

    The stub `__init__.pyi` is the one list of names: type checkers and editors read it as it is.

    Args:
        package: full name of the package that is being imported.
    """
    module = sys.modules[package]
    stub = Path(str(module.__file__)).with_suffix(".pyi").read_text(encoding="utf-8")
    # from . import b: the sub-package itself; from .a import b: b of a
    homes = {
        alias.name: f"{package}.{node.module or alias.name}"
        for node in ast.parse(stub).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def load(name: str) -> object:
        """A public name, loaded on first use."""
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = importlib.import_module(homes[name])
        value = home if home.__name__ == f"{package}.{name}" else getattr(home, name)
        setattr(module, name, value)
        return value

    return load, lambda: sorted({*vars(module), *homes}), sorted(homes)
