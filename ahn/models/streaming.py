"""One layer's attention over a streaming past: sinks and window, and the memory beside them.

The only place where attention and memory meet; `ahn.models.causal_lm` mixes it into the attention
of each family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from ahn.cells import Gates, MemoryCell
from ahn.config import LayerLayout
from ahn.models.attention import LayerPlan, take
from ahn.models.cache import AHNCache, LayerCache, named
from ahn.models.decode_step import TokenStep
from ahn.models.packing import PackedPlan

#: Called as `(attention, gates, state, added)` by every layer that has a memory, after each chunk:
#: the gates of the chunk's tokens, the state `[B, H, d, d]`, and what the memory adds to the
#: attention output of the last n queries `[B, n, H, d]` (None: no query read it).
Observer = Callable[["StreamingAttention", Gates, Tensor | None, Tensor | None], None]


@dataclass
class Leaving:
    """What leaves the window.

    Attributes:
        first_query: queries from here on read the memory, each after one write.
        columns: keys, values `[B, K, n, d]` and gates `[B, H, n]` of what they are preceded by.
    """

    first_query: int
    columns: dict[str, Tensor]

    def keep(self, leaves: Tensor | None) -> None:
        """Where `leaves [b, 1, n]` is False nothing is written, and nothing decays."""
        if leaves is None:
            return
        self.columns["write"] = self.columns["write"] * leaves
        if "log_decay" in self.columns:
            self.columns["log_decay"] = self.columns["log_decay"].masked_fill(~leaves, 0.0)


class StreamingAttention(nn.Module):
    """Attention over sinks and window, and the memory beside it; for a family's attention."""

    layer_idx: int
    head_dim: int
    scaling: float
    num_key_value_groups: int
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: AHNCache | None = None,
        *,
        plan: LayerPlan | TokenStep | PackedPlan,
        layout: LayerLayout,
        memory: MemoryCell | None = None,
        observer: Observer | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """One chunk: `hidden_states [B, T, D] -> [B, T, D]` (layer-normed input).

        Args:
            hidden_states: input of the layer after `input_layernorm`.
            position_embeddings: RoPE's cos and sin `[b, T, d]`.
            attention_mask: not used; padding is part of the plan.
            past_key_values: holds the layer's past and is updated; None: there is no past.
            plan: what is seen, stored and written; a `TokenStep` works in place on the cache, a
                `PackedPlan` keeps the documents of a batch apart.
            layout: what this layer sees.
            memory: the layer's cell, used when the layout names one.
            observer: is shown what the memory does.
            kwargs: what transformers passes around.
        """
        del attention_mask, kwargs
        q, k, v = self._project(hidden_states)  # [B, H, T, d], [B, K, T, d] twice
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        layer = LayerCache(layout)  # no past
        if past_key_values is not None:
            layer = past_key_values.layers[self.layer_idx]
            layer.follow(hidden_states.device)
        gates = None
        if layout.cell is not None:
            assert memory is not None
            gates = memory.gates(hidden_states)
            if not layout.write:
                gates = Gates(torch.zeros_like(gates.write), gates.log_decay)
            if layer.state is None:
                layer.state = _new_state(memory, hidden_states.shape[0], k)
        new = named(k, v, gates)
        if isinstance(plan, PackedPlan):
            output = self._documents(plan, layout, q, new, hidden_states, memory)
            return self.o_proj(output.flatten(2)), None
        output, added = self._attend(layer, plan, q, new, hidden_states, memory)
        if past_key_values is not None and isinstance(plan, LayerPlan):
            layer.store(new, plan)
        if observer is not None and gates is not None:
            observer(self, gates, layer.state, added)
        return self.o_proj(output.flatten(2)), None

    def _attend(
        self,
        layer: LayerCache,
        plan: LayerPlan | TokenStep,
        q: Tensor,
        new: dict[str, Tensor],
        hidden: Tensor,
        memory: MemoryCell | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention over sinks and window, and what the memory adds to it.

        Args:
            layer: the past; its state is replaced, and with a `TokenStep` the token is stored.
            plan: of the chunk.
            q: queries `[B, H, T, d]`.
            new: keys, values and gates of the chunk (see `named`).
            hidden: layer-normed hidden states `[B, T, D]`.
            memory: the layer's cell.

        Returns:
            The output `[B, T, H, d]`, and the memory's part of its last n queries
            `[B, n, H, d]`; None: no query read it.
        """
        leaving: Leaving | None = None
        remembers = "write" in new
        if isinstance(plan, TokenStep):
            if remembers and plan.reads:
                leaving = Leaving(0, {name: plan.at(getattr(layer, name)) for name in new})
                leaving.keep(plan.leaves)
            for name, tensor in new.items():
                plan.put(getattr(layer, name), tensor)
            assert layer.keys is not None and layer.values is not None
            output = plan.attend(q, layer.keys, layer.values, self.scaling)
        else:
            joined = {name: layer.joined(name, tensor, plan) for name, tensor in new.items()}
            step = plan.memory_step if remembers else None
            if step is not None:
                columns = {name: take(x, step.columns) for name, x in joined.items()}
                leaving = Leaving(step.first_query, columns)
                leaving.keep(None if step.writes is None else step.writes[:, None])
            output = plan.attend(q, joined["keys"], joined["values"], self.scaling)
        output = output.transpose(1, 2)  # [B, T, H, d]
        if leaving is not None:
            assert memory is not None
            first = leaving.first_query
            added = self._remember(layer, leaving, hidden[:, first:], q[:, :, first:], memory)
            return torch.cat([output[:, :first], output[:, first:] + added], 1), added
        if remembers and torch.is_grad_enabled():
            assert memory is not None
            output = torch.cat([output, self._idle(new, hidden, memory)], 1)
        return output, None

    def _documents(
        self,
        plan: PackedPlan,
        layout: LayerLayout,
        q: Tensor,
        new: dict[str, Tensor],
        hidden: Tensor,
        memory: MemoryCell | None,
    ) -> Tensor:
        """`_attend` for each document by itself, none of which has a past: `[B, T, H, d]`."""
        apart = {name: plan.apart(x.transpose(1, 2)) for name, x in new.items()}
        queries, states = plan.apart(q.transpose(1, 2)), plan.apart(hidden)
        outputs = {}
        for length, numbers in plan.alike.items():

            def alike(parts: Sequence[Tensor], numbers: list[int] = numbers) -> Tensor:
                return torch.stack([parts[number] for number in numbers])  # [n, length, ...]

            layer = LayerCache(layout)
            if memory is not None and "write" in new:
                layer.state = _new_state(memory, len(numbers), q)
            outputs[length], _ = self._attend(
                layer,
                plan.plans[length],
                alike(queries).transpose(1, 2),
                {name: alike(parts).transpose(1, 2) for name, parts in apart.items()},
                alike(states),
                memory,
            )
        return plan.together(outputs, q.transpose(1, 2))

    def _idle(self, new: dict[str, Tensor], hidden: Tensor, memory: MemoryCell) -> Tensor:
        """What a memory adds when nothing leaves the window: nothing, to no query `[B, 0, H, d]`.

        Its parameters get gradients of zero by it. DDP waits for a gradient of each, and
        batches of other processes may be longer.
        """
        rows, none = hidden.shape[0], hidden[:, :0]
        read = none.new_zeros(rows, 0, memory.num_attention_heads, memory.head_dim)
        added = memory.readout(read.to(torch.promote_types(read.dtype, torch.float32)), none)
        for name in ("write", "log_decay"):
            if name in new:
                added = added + new[name][:, :, :0].sum().to(added.dtype)
        return added

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (  # [B, T, heads, d]; also where T or B is 0
            x.unflatten(-1, (x.shape[-1] // self.head_dim, self.head_dim))
            for x in (self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden))
        )
        if hasattr(self, "q_norm"):  # `Family.qk_norm`
            q, k = self.q_norm(q), self.k_norm(k)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _remember(
        self, layer: LayerCache, leaving: Leaving, hidden: Tensor, q: Tensor, memory: MemoryCell
    ) -> Tensor:
        """Write what leaves the window into the layer's state and read it in the same step.

        Args:
            layer: its state is replaced, or overwritten where autograd does not follow it.
            leaving: what leaves before each of the n last queries.
            hidden: of the queries that read `[B, n, D]`.
            q: the queries that read `[B, H, n, d]`.
            memory: the layer's cell.

        Returns:
            What is added to their attention output `[B, n, H, d]`.
        """
        groups = self.num_key_value_groups
        held = leaving.columns
        decay = held.get("log_decay")
        assert layer.state is not None
        read, state = memory.scan(
            q.transpose(1, 2),
            repeat_kv(held["keys"], groups).transpose(1, 2),
            repeat_kv(held["values"], groups).transpose(1, 2),
            Gates(held["write"].transpose(1, 2), None if decay is None else decay.transpose(1, 2)),
            layer.state,
        )
        if torch.is_grad_enabled() or layer.state.requires_grad:
            layer.state = state
        else:
            layer.state.copy_(state)
        return memory.readout(read, hidden)


def _new_state(memory: MemoryCell, rows: int, like: Tensor) -> Tensor:
    """An empty memory for so many rows, where `like` is, in float32 (float64 stays)."""
    state = memory.new_state(rows, like.device)
    return state.to(torch.promote_types(like.dtype, state.dtype))
