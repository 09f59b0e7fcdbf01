"""Makes transformers know `qwen2_ahn` and `qwen3_ahn`, without importing torch before it is used.

`import ahn` stays light: the model classes are registered at once when transformers' table of
configurations is loaded already, and else as soon as somebody loads it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_TABLE = "transformers.models.auto.configuration_auto"


class _AfterTable(MetaPathFinder):
    """Finds only transformers' table, once, and lets the registration follow its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TABLE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader)
        return spec


class _Then(Loader):
    """The table's own loader, and then the registration."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        importlib.import_module("ahn.modeling")


def register_when_needed() -> None:
    """Register the model types now, or when transformers' auto classes are first used."""
    if _TABLE in sys.modules:
        importlib.import_module("ahn.modeling")
    elif not any(isinstance(finder, _AfterTable) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTable())
