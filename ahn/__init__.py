"""Artificial Hippocampus Networks: models whose past is a window, sinks and a memory.

    import ahn
    model = ahn.load_model("Qwen/Qwen2.5-3B-Instruct", variant="ahn",
                           ahn="ByteDance-Seed/AHN-GDN-for-Qwen-2.5-Instruct-3B")

Paper: arXiv 2510.07318.  Importing this registers the model types `qwen2_ahn` and `qwen3_ahn`
with transformers (as soon as its auto classes are used) and changes nothing for `qwen2` and
`qwen3`.  torch is imported on first use of a name that needs it, so that `ahn.cost` and checks of
configurations stay light.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from ahn.config import CELLS, VARIANTS, AHNConfig, LayerLayout
from ahn.registration import register_when_needed
from common.errors import InputError

if TYPE_CHECKING:
    from ahn.models.cache import AHNCache
    from ahn.models.compiled import compile_decode

__version__ = "0.1.0"

#: The pocket model: a tiny Qwen2 with its tokenizer; `gdn/` holds its GatedDeltaNet memory.
POCKET_PATH = Path(__file__).parent / "assets" / "pocket"

__all__ = [
    "CELLS",
    "POCKET_PATH",
    "VARIANTS",
    "AHNCache",
    "AHNConfig",
    "InputError",
    "LayerLayout",
    "ResolvedCheckpoint",
    "check_model",
    "compile_decode",
    "describe_model",
    "load_model",
    "load_resolved",
    "load_tokenizer",
    "merge_checkpoint",
    "resolve_checkpoint",
    "split_checkpoint",
    "weight_files",
]

register_when_needed()


def __getattr__(name: str) -> Any:
    if name == "AHNCache":
        from ahn.models.cache import AHNCache

        return AHNCache
    if name == "compile_decode":
        from ahn.models.compiled import compile_decode

        return compile_decode
    raise AttributeError(f"module 'ahn' has no attribute {name!r}")
