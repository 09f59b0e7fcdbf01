"""Makes transformers know `qwen2_ahn` and `qwen3_ahn`, without importing torch before it is used.

`import ahn` stays light.  Transformers' table of configurations gets a place for the two model
types, and the first question for one of them imports the classes.  Nothing is imported while
transformers is itself being imported, so any order of imports works.

`ahn.models.causal_lm` then registers its classes with the auto classes, and by their names: who
reads `architectures` in a `config.json` (`transformers serve`, pipelines) looks in `transformers`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_TABLE = "transformers.models.auto.configuration_auto"
_MODEL_TYPES = frozenset({"qwen2_ahn", "qwen3_ahn"})


class _OnDemand(dict[str, Any]):
    """The registered configurations; ours are imported when one of them is asked for."""

    def __missing__(self, key: str) -> Any:
        if key not in _MODEL_TYPES:
            raise KeyError(key)
        importlib.import_module("ahn.models.causal_lm")  # registers both
        return dict.__getitem__(self, key)

    def __contains__(self, key: object) -> bool:
        return key in _MODEL_TYPES or super().__contains__(key)


class _AfterTable(MetaPathFinder):
    """Finds only transformers' table, once, and lets our places in it follow its import."""

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
    """The table's own loader, and then our places in the table."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _extend(module)


def _extend(table: ModuleType) -> None:
    mapping = table.CONFIG_MAPPING
    mapping._extra_content = _OnDemand(mapping._extra_content)


def register_when_needed() -> None:
    """Give the two model types their places now, or as soon as transformers' table is loaded."""
    if _TABLE in sys.modules:
        _extend(sys.modules[_TABLE])
    elif not any(isinstance(finder, _AfterTable) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTable())


def register_names(*classes: type) -> None:
    """Make classes attributes of `transformers`, for those who look them up there by name.

    Its `__init__` may run twice in a process (`transformers.processing_utils` runs it anew), and
    modules that were imported in between hold the first module object. So the names become
    attributes of the class that both are instances of.
    """
    transformers = importlib.import_module("transformers")
    kind = type(transformers)
    for one in classes:
        setattr(transformers if kind is ModuleType else kind, one.__name__, one)
