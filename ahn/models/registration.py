"""`import ahn` makes our model types known to transformers' auto classes, and imports neither.

`AutoConfig` is told of one class for each family (`AutoConfig.register`): at once where
transformers has been imported, else as soon as it is. That class stands in for the family's
configuration class, which is made, with torch and the models, when somebody uses it. So any order
of imports works, and who never loads one of our folders through transformers pays nothing.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from ahn.families import Family, families

_AUTO = "transformers.models.auto.configuration_auto"
"""The module that defines `AutoConfig`."""


class _StandIn(type):
    """A class that hands every use of it on to the configuration class of a family."""

    family: Family

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls._made()(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(cls._made(), name)

    def _made(cls) -> Any:
        from ahn.models.causal_lm import family_classes  # takes this class's place in AutoConfig

        return family_classes(cls.family).config


def register_all(auto: ModuleType) -> None:
    """Tell `AutoConfig` of every family that it does not know.

    Args:
        auto: transformers' module that has it.
    """
    for family in families():
        if family.ahn_model_type not in auto.CONFIG_MAPPING:
            content = {"family": family, "model_type": family.ahn_model_type}
            auto.AutoConfig.register(
                family.ahn_model_type, _StandIn(f"{family.prefix}AHNConfig", (), content)
            )


def register_with_transformers() -> None:
    """Call `register_all` now, or when transformers' auto classes are imported."""
    if (auto := sys.modules.get(_AUTO)) is not None and hasattr(auto, "AutoConfig"):
        register_all(auto)
    elif not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _WhenImported())


class _WhenImported(MetaPathFinder):
    """Finds one module, once, and calls `register_all` after it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader)
        return spec


class _Then(Loader):
    """The module's own loader, and then `register_all`."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        register_all(module)
