"""One layer's attention over a streaming past: sinks and window, and the memory beside them.

The only place where attention and memory meet; `ahn.modeling` puts it into Qwen's layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2Attention,
    apply_rotary_pos_emb,
    repeat_kv,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from ahn.attention import Chunk, LayerPlan, take
from ahn.cache import AHNCache, LayerCache
from ahn.cells import Gates, MemoryCell
from ahn.config import LayerLayout


class StreamingAttention(nn.Module):
    """Attention over sinks and window, and the memory beside it; mixed into Qwen's attention."""

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
        chunk: Chunk,
        layout: LayerLayout,
        memory: MemoryCell | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """One chunk: `hidden_states [B, T, D] -> [B, T, D]` (layer-normed input).

        Args:
            hidden_states: input of the layer after `input_layernorm`.
            position_embeddings: RoPE's cos and sin `[b, T, d]`.
            attention_mask: not used; padding is part of `chunk`.
            past_key_values: holds the layer's past and is updated; None: there is no past.
            chunk: positions of this pass.
            layout: what this layer sees.
            memory: the layer's cell, used when the layout names one.
            kwargs: what transformers passes around.
        """
        del attention_mask, kwargs
        q, k, v = self._project(hidden_states)  # [B, H, T, d], [B, K, T, d] twice
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        plan = chunk.plan(layout)
        layer = LayerCache(layout)  # no past
        if past_key_values is not None:
            layer = past_key_values.layers[self.layer_idx]
        gates = None
        if layout.cell is not None:
            assert memory is not None
            gates = memory.gates(hidden_states)
            if not layout.write:
                gates = Gates(torch.zeros_like(gates.write), gates.log_decay)
        stored = past_key_values is not None
        if stored and plan.in_place:
            read = self._remember(layer, plan, hidden_states, q, k, v, gates, memory)
            layer.store(k, v, gates, plan)
            assert layer.keys is not None and layer.values is not None
            output = plan.attend(
                q, layer.keys[:, :, : plan.kept], layer.values[:, :, : plan.kept], self.scaling
            )
        else:
            keys, values = layer.joined("keys", k, plan), layer.joined("values", v, plan)
            read = self._remember(layer, plan, hidden_states, q, keys, values, gates, memory)
            output = plan.attend(q, keys, values, self.scaling)
            if stored:
                layer.store(k, v, gates, plan)
        output = output.transpose(1, 2)  # [B, T, H, d]
        if read is not None:
            first, readout = read
            output = torch.cat([output[:, :first], output[:, first:] + readout], 1)
        return self.o_proj(output.flatten(2)), None

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = (*hidden.shape[:-1], -1, self.head_dim)
        q, k = self.q_proj(hidden).view(shape), self.k_proj(hidden).view(shape)
        if hasattr(self, "q_norm"):  # Qwen3
            q, k = self.q_norm(q), self.k_norm(k)
        v = self.v_proj(hidden).view(shape)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _remember(
        self,
        layer: LayerCache,
        plan: LayerPlan,
        hidden: Tensor,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        gates: Gates | None,
        memory: MemoryCell | None,
    ) -> tuple[int, Tensor] | None:
        """Write what leaves the window, read it in the same step.

        `keys` and `values` are cached slots and chunk `[B, K, N, d]` (when the plan is
        `in_place` they are not looked at: what leaves lies in the cache).

        Returns:
            First reading query and the read-outs `[B, n, H, d]`; None when nothing leaves.
        """
        if gates is None or memory is None:
            return None
        batch = hidden.shape[0]
        if layer.state is None:
            layer.state = memory.new_state(batch, hidden.device)
        step = plan.memory_step()
        if step is None:
            return None
        write, decay = gates.write.transpose(1, 2), gates.log_decay  # [B, H, T]
        decay = None if decay is None else decay.transpose(1, 2)
        if plan.in_place:
            keys, values, write, decay = layer.keys, layer.values, layer.write, layer.log_decay  # type: ignore[assignment]
        else:
            write = layer.joined("write", write, plan)
            decay = None if decay is None else layer.joined("log_decay", decay, plan)

        def leaving(x: Tensor) -> Tensor:  # [B, heads, N, ...] -> [B, n, heads, ...]
            return take(x, step.columns).transpose(1, 2)

        write = leaving(write)
        decay = None if decay is None else leaving(decay)
        if step.writes is not None:
            write = write * step.writes[..., None]
            decay = None if decay is None else decay.masked_fill(~step.writes[..., None], 0.0)
        groups = self.num_key_value_groups
        read, layer.state = memory.scan(
            q[:, :, step.first_query :].transpose(1, 2),
            repeat_kv(take(keys, step.columns), groups).transpose(1, 2),
            repeat_kv(take(values, step.columns), groups).transpose(1, 2),
            Gates(write, decay),
            layer.state,
        )
        return step.first_query, memory.readout(read, hidden[:, step.first_query :])


class StreamingQwen2Attention(StreamingAttention, Qwen2Attention):
    """Qwen2's projections, our attention."""


class StreamingQwen3Attention(StreamingAttention, Qwen3Attention):
    """Qwen3's projections with q/k norms, our attention."""
