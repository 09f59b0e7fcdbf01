"""Reading the memory: what each layer stores, how strongly, and what it says to the model.

    for layer in model.memory_readout(ids, positions=[-1]):
        print(layer.layer, layer.norms, layer.contribution.norm())

A `MemoryHook` that changes nothing collects it during one ordinary pass, in chunks as always.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ahn.cells.base import Gates
from ahn.models.hooks import MemoryHook
from common.errors import InputError

if TYPE_CHECKING:
    from ahn.models.cache import AHNCache


@dataclass(frozen=True)
class LayerReadout:
    """The memory of one layer after reading B rows of T tokens. All tensors are on the CPU.

    Attributes:
        layer: its number.
        cell: name of its memory cell.
        states: by the names that the cell declares, after the last token. The three cells of the
            paper have one, `state [B, H, d, d]` float32, key dimension first.
        norms: of each state, the Frobenius norm over all but its first two dimensions (`[B, H]`
            for a state of each head).
        gates: by the names that the cell declares, `[B, T, ...]` float32. A gate is computed when
            its token enters: the last `sinks + window` tokens have one and are not written yet.
            `write [B, T, H]` is the strength of the write (`beta`; Mamba2: `dt`), `log_decay`
            the logarithm of what the state is multiplied with before it.
        positions: `[n]` columns of the input at which `contribution` was taken.
        contribution: `[B, n, D]` float32, what the memory adds to the residual stream there,
            after the layer's `o_proj`; zero where nothing had left the window.
    """

    layer: int
    cell: str
    states: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]
    gates: Mapping[str, Tensor]
    positions: Tensor
    contribution: Tensor


class _Recorder(MemoryHook):
    """Collects what the layers compute, chunk by chunk, and changes nothing.

    Args:
        projections: weight of each layer's `o_proj [D, H * d]`.
        positions: columns at which the contribution is wanted.
    """

    def __init__(self, projections: Sequence[Tensor], positions: Tensor) -> None:
        self.projections, self.positions = projections, positions
        self.read_so_far: dict[int, int] = {}  # columns, by layer
        self.computed: dict[int, list[Gates]] = {}
        self.rows = 0
        #: of each layer, `[B, D]` at some of the positions
        self.contributions: dict[int, dict[int, Tensor]] = {}

    def gates(self, layer: int, gates: Gates, hidden: Tensor) -> Gates:
        """Keep the gates of the chunk."""
        self.rows = hidden.shape[0]
        self.read_so_far[layer] = self.read_so_far.get(layer, 0) + hidden.shape[1]
        kept = {name: gate.float().cpu() for name, gate in gates.items()}
        self.computed.setdefault(layer, []).append(kept)
        return gates

    def read(self, layer: int, added: Tensor, states: Mapping[str, Tensor]) -> Tensor:
        """Keep what is added at the positions among the last queries."""
        first = self.read_so_far[layer] - added.shape[1]
        weight = self.projections[layer]
        found = self.contributions.setdefault(layer, {})
        for column in self.positions.tolist():
            if first <= column < self.read_so_far[layer]:
                picked = added[:, column - first].flatten(1).float()
                found[column] = F.linear(picked, weight.float()).cpu()
        return added

    def gates_of(self, layer: int) -> dict[str, Tensor]:
        """`[B, T, ...]` by name."""
        chunks = self.computed[layer]
        return {name: torch.cat([chunk[name] for chunk in chunks], 1) for name in chunks[0]}

    def contribution_of(self, layer: int) -> Tensor:
        """`[B, n, D]`; zero where nobody read."""
        found, size = self.contributions.get(layer, {}), self.projections[layer].shape[0]
        nothing = torch.zeros(self.rows, size)
        columns = [found.get(column, nothing) for column in self.positions.tolist()]
        return torch.stack(columns, 1) if columns else torch.zeros(self.rows, 0, size)


@torch.no_grad()
def memory_readout(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    positions: Sequence[int] = (-1,),
    past_key_values: AHNCache | None = None,
) -> list[LayerReadout]:
    """Let the model read, and tell what its memories hold and say.

    Args:
        model: of `ahn.load_model`, with a memory.
        input_ids: `[B, T]`.
        attention_mask: `[B, >= T]`, 1 for tokens and 0 for padding.
        positions: columns of the input at which the contribution is wanted; negative ones count
            from the end.
        past_key_values: what was read before; it is updated. Default: nothing.

    Returns:
        A readout for each layer that has a memory.

    Raises:
        InputError: the model has no memory, or has no such position.
    """
    if not any(layout.cell is not None for layout in model.layout):
        raise InputError(
            "no layer of this model has a memory:\n"
            f"{model.layout_table()}\nload it with variant='ahn' (or 'no-write')"
        )
    tokens = input_ids.shape[1]
    wrong = [p for p in positions if not -tokens <= p < tokens]
    if wrong:
        raise InputError(f"positions {wrong}: the input has {tokens} tokens")
    columns = torch.tensor(sorted({p % tokens for p in positions}), dtype=torch.long)
    projections = [layer.self_attn.o_proj.weight for layer in model.model.layers]
    recorder = _Recorder(projections, columns)
    cache = model.new_cache() if past_key_values is None else past_key_values
    model(
        input_ids,
        attention_mask=attention_mask,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        memory_hook=recorder,
    )
    found = []
    for layer, layout in enumerate(model.layout):
        if layout.cell is None:
            continue
        states = {name: x.cpu().clone() for name, x in cache.layers[layer].states.items()}
        found.append(
            LayerReadout(
                layer=layer,
                cell=layout.cell,
                states=states,
                norms={name: _norm(state) for name, state in states.items()},
                gates=recorder.gates_of(layer),
                positions=columns,
                contribution=recorder.contribution_of(layer),
            )
        )
    return found


def _norm(state: Tensor) -> Tensor:
    """The norm over all but the first two dimensions."""
    return torch.linalg.vector_norm(
        state.flatten(2) if state.dim() > 2 else state[..., None], dim=-1
    )
