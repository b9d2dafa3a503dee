"""Run functions as soon as the modules that they wait for have been imported.

transformers has no entry points, so a package must register its classes itself. Doing that eagerly would import torch
and `transformers.pipelines` (three seconds) for a user who only wants `hf_crystal.__version__` or a `--help`. The Auto
classes cannot be reached without importing the module that defines them, so registration waits for that moment.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class _Waiting:
    """`action` waits for `trigger`; it uses the modules `needed`."""

    trigger: str
    needed: tuple[str, ...]
    action: Callable[[], None]


class _FollowedLoader(importlib.abc.Loader):
    """Loads a module with its own loader, then lets the finder run what has waited for it."""

    def __init__(self, loader: importlib.abc.Loader, finder: "_FollowingFinder"):
        self.loader = loader
        self.finder = finder

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """As the module's own loader."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module with its own loader visible to it."""
        # importlib.resources and inspect look at the loader: nothing of this class may remain
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.finder.loading.append(module.__name__)
        try:
            self.loader.exec_module(module)
        finally:
            self.finder.loading.remove(module.__name__)
        self.finder.settle()


class _FollowingFinder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: asks the other finders, and wraps the loader of the modules that matter."""

    def __init__(self) -> None:
        self.waiting: list[_Waiting] = []
        self.loading: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec that the other finders give, with a loader that reports the import."""
        if not self._matters(fullname):
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _FollowedLoader(spec.loader, self)
                return spec
        return None

    def _matters(self, fullname: str) -> bool:
        """Whether actions have to wait for the end of this import.

        Besides triggers and needed modules that is the module of transformers that the user imports: any of them may
        import a trigger half way, and a needed module may need that very one.
        """
        if any(fullname == item.trigger or fullname in item.needed for item in self.waiting):
            return True
        return bool(self.waiting) and not self.loading and fullname.split(".")[0] == "transformers"

    def settle(self) -> None:
        """Run every action whose trigger is there, once no module that matters is half imported.

        A needed module can be the one that makes Python import the trigger: a modeling file imports transformers,
        which imports its Auto classes. It has to be complete before its classes can be taken from it.
        """
        while not self.loading:
            ready = next((item for item in self.waiting if item.trigger in sys.modules), None)
            if ready is None:
                return
            self.waiting.remove(ready)
            for name in ready.needed:
                importlib.import_module(name)
            ready.action()


_FINDER = _FollowingFinder()


def when_imported(trigger: str, needed: Sequence[str], action: Callable[[], None]) -> None:
    """Call `action` once, after `trigger` has been imported; the modules that it needs are imported before.

    Args:
        trigger: full name of the module to wait for; if it is imported already, the call happens now.
        needed: full names of the modules that `action` uses.
        action: called without arguments; an exception reaches the user's import statement.
    """
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _FINDER.waiting.append(_Waiting(trigger, tuple(needed), action))
    _FINDER.settle()
