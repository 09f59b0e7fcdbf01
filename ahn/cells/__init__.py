"""The memory cells, one file each; `CELL_CLASSES` is the registry."""

from __future__ import annotations

from ahn.cells.base import Gates, MemoryCell
from ahn.cells.delta_net import DeltaNet
from ahn.cells.gated_delta_net import GatedDeltaNet
from ahn.cells.mamba2 import Mamba2

CELL_CLASSES: dict[str, type[MemoryCell]] = {
    "GatedDeltaNet": GatedDeltaNet,
    "DeltaNet": DeltaNet,
    "Mamba2": Mamba2,
}

__all__ = ["CELL_CLASSES", "DeltaNet", "GatedDeltaNet", "Gates", "Mamba2", "MemoryCell"]
