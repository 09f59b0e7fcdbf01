"""Artificial Hippocampus Networks: models whose past is a window, sinks and a memory.

    import ahn
    model = ahn.load_model("Qwen/Qwen2.5-3B-Instruct", variant="ahn",
                           ahn="ByteDance-Seed/AHN-GDN-for-Qwen-2.5-Instruct-3B")

Paper: arXiv 2510.07318.  Importing this makes our model types (`qwen2_ahn` ...) known to
transformers' auto classes and pipelines, which then load a merged folder; it changes nothing for
the base models' types.  torch is imported on first use of a name that needs it, so that `ahn.cost`
and checks of configurations stay light.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ahn.cells.declaration import CellDeclaration, Gate, State
from ahn.cells.registry import CELLS, register_cell
from ahn.checkpoints.load import (
    check_model,
    describe_model,
    load_model,
    load_resolved,
    weight_files,
)
from ahn.checkpoints.merge import merge_checkpoint, split_checkpoint
from ahn.checkpoints.resolve import ResolvedCheckpoint, resolve_checkpoint
from ahn.checkpoints.tokenizer import load_tokenizer
from ahn.config import VARIANTS, AHNConfig, LayerLayout
from ahn.families import Family, register_family
from ahn.models.registration import register_with_transformers
from common.errors import InputError

if TYPE_CHECKING:
    from ahn.cells.base import Evicted, Eviction, MemoryCell
    from ahn.models.cache import AHNCache
    from ahn.models.compiled import compile_decode
    from ahn.models.hooks import MemoryHook

__version__ = "0.1.0"

#: The pocket model: a tiny Qwen2 with its tokenizer; `gdn/` holds its GatedDeltaNet memory.
POCKET_PATH = Path(__file__).parent / "assets" / "pocket"

__all__ = [
    "CELLS",
    "POCKET_PATH",
    "VARIANTS",
    "AHNCache",
    "AHNConfig",
    "CellDeclaration",
    "Evicted",
    "Eviction",
    "Family",
    "Gate",
    "InputError",
    "LayerLayout",
    "ResolvedCheckpoint",
    "MemoryCell",
    "MemoryHook",
    "State",
    "check_model",
    "compile_decode",
    "describe_model",
    "load_model",
    "load_resolved",
    "load_tokenizer",
    "merge_checkpoint",
    "register",
    "register_cell",
    "register_family",
    "resolve_checkpoint",
    "split_checkpoint",
    "weight_files",
]


def register() -> None:
    """Make the classes of all families now, and register them with transformers.

    `import ahn` is enough for the auto classes, which make a family's classes when they meet one of
    its folders. This is for what looks a class up in `transformers` by its name alone, and for
    families that were registered (`register_family`) after transformers was imported. It imports
    torch and transformers, and changes nothing for the base models' own types.

    Raises:
        InputError: a family names classes that are not there.
    """
    from ahn.models.causal_lm import register as register_families

    register_families()


register_with_transformers()

#: names that need torch, and the modules that have them
_ON_FIRST_USE = {
    "AHNCache": "ahn.models.cache",
    "Evicted": "ahn.cells.base",
    "Eviction": "ahn.cells.base",
    "MemoryCell": "ahn.cells.base",
    "MemoryHook": "ahn.models.hooks",
    "compile_decode": "ahn.models.compiled",
}


def __getattr__(name: str) -> Any:
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module 'ahn' has no attribute {name!r}")
    return getattr(importlib.import_module(_ON_FIRST_USE[name]), name)
