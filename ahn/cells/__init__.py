"""The memory cells, one file each, and the registry through which they are found by name.

Importing this imports no torch: the classes come when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ahn.cells.declaration import CellDeclaration, Gate, State
from ahn.cells.registry import CELLS, register_cell

if TYPE_CHECKING:
    from ahn.cells.base import Evicted, Eviction, Gates, MemoryCell, States, build_cell
    from ahn.cells.delta_net import DeltaNet
    from ahn.cells.gated_delta_net import GatedDeltaNet
    from ahn.cells.mamba2 import Mamba2

__all__ = [
    "CELLS",
    "CellDeclaration",
    "DeltaNet",
    "Evicted",
    "Eviction",
    "Gate",
    "GatedDeltaNet",
    "Gates",
    "Mamba2",
    "MemoryCell",
    "State",
    "States",
    "build_cell",
    "register_cell",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ahn.cells' has no attribute {name!r}")
    if name in CELLS.builtin:
        return CELLS.implementation(name)
    from ahn.cells import base

    return getattr(base, name)
