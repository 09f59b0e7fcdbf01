"""Reading the memory: what each layer stores, how strongly, and what it says to the model.

    for layer in model.memory_readout(ids, positions=[-1]):
        print(layer.layer, layer.state_norm, layer.contribution.norm())

Nothing is patched: the layers show their memory to an observer during one ordinary pass
(`ahn.models.streaming.Observer`), which streams the prompt in chunks as always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ahn.cells import Gates
from common.errors import InputError

if TYPE_CHECKING:
    from ahn.models.cache import AHNCache


@dataclass(frozen=True)
class LayerReadout:
    """The memory of one layer after reading B rows of T tokens. All tensors are on the CPU.

    Attributes:
        layer: its number.
        cell: its recurrence.
        state: `[B, H, d, d]` float32, key dimension first, after the last token.
        state_norm: `[B, H]`, Frobenius norm of each head's state.
        write: `[B, T, H]` float32, with what strength each token is written when it leaves the
            window (`beta`; Mamba2: `dt`). A gate is computed when its token enters: the last
            `sinks + window` tokens have one and are not written yet.
        decay: `[B, T, H]` float32, what the state is multiplied with before that write, 0 to 1;
            None: the cell forgets nothing.
        positions: `[n]` columns of the input at which `contribution` was taken.
        contribution: `[B, n, D]` float32, what the memory adds to the residual stream there,
            after the layer's `o_proj`; zero where nothing had left the window.
    """

    layer: int
    cell: str
    state: Tensor
    state_norm: Tensor
    write: Tensor
    decay: Tensor | None
    positions: Tensor
    contribution: Tensor


class _Recorder:
    """Collects what the layers show, chunk by chunk."""

    def __init__(self, positions: Tensor) -> None:
        self.positions = positions
        self.read: dict[int, int] = {}  # columns so far, by layer
        self.writes: dict[int, list[Tensor]] = {}
        self.decays: dict[int, list[Tensor]] = {}
        self.contributions: dict[int, list[Tensor]] = {}
        self.states: dict[int, Tensor] = {}

    def __call__(
        self, attention: Any, gates: Gates, state: Tensor | None, added: Tensor | None
    ) -> None:
        layer = attention.layer_idx
        start, tokens = self.read.get(layer, 0), gates.write.shape[1]
        self.read[layer] = start + tokens
        self.writes.setdefault(layer, []).append(gates.write.float().cpu())
        if gates.log_decay is not None:
            self.decays.setdefault(layer, []).append(gates.log_decay.float().exp().cpu())
        if state is not None:
            self.states[layer] = state
        weight = attention.o_proj.weight
        inside = (self.positions >= start) & (self.positions < start + tokens)
        columns = self.positions[inside] - start
        contribution = torch.zeros(gates.write.shape[0], len(columns), weight.shape[0])
        if added is not None:
            reading = columns - (tokens - added.shape[1])  # the last queries read
            picked = added[:, reading.clamp(min=0).to(added.device)].flatten(2)
            spoken = F.linear(picked.float(), weight.float()).cpu()
            contribution = torch.where((reading >= 0)[:, None], spoken, contribution)
        self.contributions.setdefault(layer, []).append(contribution)


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
    recorder = _Recorder(columns)
    model(
        input_ids,
        attention_mask=attention_mask,
        past_key_values=model.new_cache() if past_key_values is None else past_key_values,
        use_cache=True,
        logits_to_keep=1,
        observer=recorder,
    )
    found = []
    for layer, layout in enumerate(model.layout):
        if layout.cell is None:
            continue
        state = recorder.states[layer].cpu().clone()
        decays = recorder.decays.get(layer)
        found.append(
            LayerReadout(
                layer=layer,
                cell=layout.cell,
                state=state,
                state_norm=torch.linalg.matrix_norm(state),
                write=torch.cat(recorder.writes[layer], 1),
                decay=None if decays is None else torch.cat(decays, 1),
                positions=columns,
                contribution=torch.cat(recorder.contributions[layer], 1),
            )
        )
    return found
