"""What happens to tokens that leave a layer's window: dropped, written to a memory, or else.

One object decides, an `ahn.cells.base.Eviction`.  Memory cells are such objects; a class that is
registered under a cell's name can be any other (see `docs/recipes/layout.md`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from ahn.cells.base import Evicted, Eviction, Gates, States
from ahn.cells.declaration import CellDeclaration
from ahn.config import LayerLayout


class Drop(Eviction):
    """What leaves is forgotten."""

    keeps = False

    def __init__(self) -> None:
        super().__init__(0, 0, 0)

    def new_states(self, rows: int, like: Tensor) -> States:
        """None."""
        return {}


class Unwritten:
    """A memory that is read and never written to (`no-write`): its states stay empty.

    Args:
        memory: whose gates, states and parameters it has.
    """

    keeps = True

    def __init__(self, memory: Eviction) -> None:
        self.memory = memory

    def gates(self, hidden: Tensor) -> Gates:
        """The memory's gates, neutral everywhere."""
        declared = self.memory.declaration.gates
        return {
            name: torch.full_like(gate, declared[name].neutral)
            for name, gate in self.memory.gates(hidden).items()
        }

    def new_states(self, rows: int, like: Tensor) -> States:
        """The memory's."""
        return self.memory.new_states(rows, like)

    def __call__(
        self, q: Tensor, evicted: Evicted, states: States, hidden: Tensor
    ) -> tuple[Tensor, States]:
        """What the memory says when it holds nothing; the states stay as they are."""
        nothing = torch.zeros(1, q.shape[1], dtype=torch.bool, device=q.device)
        added, _ = self.memory(q, replace(evicted, written=nothing), states, hidden)
        return added, states

    @property
    def declaration(self) -> CellDeclaration:
        """The memory's."""
        return self.memory.declaration

    def parameters(self) -> Iterator[nn.Parameter]:
        """The memory's."""
        return self.memory.parameters()


#: forgets; shared, since it has no state
DROP = Drop()


def eviction_of(layout: LayerLayout, memory: Eviction | None) -> Eviction | Unwritten:
    """What happens to tokens that leave the window of a layer.

    Args:
        layout: of the layer in this pass.
        memory: the layer's cell; None: it has none.

    Raises:
        ValueError: the layout names a cell that the layer does not have.
    """
    if layout.cell is None:
        return DROP
    if memory is None or memory.declaration.name != layout.cell:
        own = "no memory" if memory is None else f"a {memory.declaration.name}"
        raise ValueError(f"the layout names a memory {layout.cell}, and the layer has {own}")
    return memory if layout.write else Unwritten(memory)
