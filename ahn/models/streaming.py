"""One layer's attention over a streaming past: sinks and window, and what happens beyond them.

The only place where attention and memory meet; `ahn.models.causal_lm` mixes it into the attention
of each family.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from ahn.cells.base import Evicted, Eviction, Gates, check_gates
from ahn.config import LayerLayout
from ahn.models.cache import AHNCache, LayerCache
from ahn.models.eviction import Unwritten, eviction_of
from ahn.models.hooks import MemoryHook
from ahn.models.plan import Leaving, Plan, Tokens

_KEYS_VALUES = ("keys", "values")


class StreamingAttention(nn.Module):
    """Attention over sinks and window, and what happens beyond them; for a family's attention."""

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
        plan: Plan,
        layout: LayerLayout,
        memory: Eviction | None = None,
        memory_hook: MemoryHook | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """One pass: `hidden_states [B, T, D] -> [B, T, D]` (layer-normed input).

        Args:
            hidden_states: input of the layer after `input_layernorm`.
            position_embeddings: RoPE's cos and sin `[b, T, d]`.
            attention_mask: not used; padding is part of the plan.
            past_key_values: holds the layer's past and is updated; None: there is no past.
            plan: what is seen, stored and evicted.
            layout: what this layer sees.
            memory: the layer's cell, used when the layout names one.
            memory_hook: sees and may change what the memory does.
            kwargs: what transformers passes around.
        """
        del attention_mask, kwargs
        q, k, v = self._project(hidden_states)  # [B, H, T, d], [B, K, T, d] twice
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        eviction = eviction_of(layout, memory)
        new = {"keys": k, "values": v}
        if eviction.keeps:
            gates = self._gates(eviction, hidden_states, memory_hook)
            new |= {name: gate.transpose(1, 2) for name, gate in gates.items()}
        tokens = Tokens(q, new, hidden_states)
        work = partial(self._attend, eviction=eviction, memory_hook=memory_hook)
        if past_key_values is None:
            output = plan.over(LayerCache(layout), tokens, work)
        else:
            past = past_key_values.layers[self.layer_idx]
            past.follow(hidden_states.device)
            output = plan.over(past, tokens, work)
            plan.keep(past, new)
        return self.o_proj(output.flatten(2)), None

    def _gates(
        self, eviction: Eviction | Unwritten, hidden: Tensor, memory_hook: MemoryHook | None
    ) -> Gates:
        """Gates `[B, T, ...]` of the tokens that enter, as they will be kept."""
        gates = eviction.gates(hidden)
        if memory_hook is not None:
            gates = memory_hook.gates(self.layer_idx, gates, hidden)
        if memory_hook is not None or hidden.shape[1] != 1:  # a step's are those of the prompt
            check_gates(eviction.declaration, gates, hidden.shape[:2])
        return gates

    def _attend(
        self,
        plan: Plan,
        past: LayerCache,
        tokens: Tokens,
        *,
        eviction: Eviction | Unwritten,
        memory_hook: MemoryHook | None,
    ) -> Tensor:
        """Attention over sinks and window, and what is added for tokens that left: `[B, T, H, d]`.

        Args:
            plan: of the tokens.
            past: its states are updated; a plan that works in place stores the token.
            tokens: of the pass.
            eviction: what happens to tokens that leave the window.
            memory_hook: sees and may change what is written and read.
        """
        if not past.states:
            past.states = eviction.new_states(tokens.q.shape[0], tokens.q)
        keys, values, leaving = plan.look(past, tokens.new, eviction.keeps)
        output = plan.attend(tokens.q, keys, values, self.scaling).transpose(1, 2)
        if leaving is not None:
            first = leaving.first_query
            added = self._evict(past, leaving, tokens, eviction, memory_hook)
            if first == 0:
                return output + added
            return torch.cat([output[:, :first], output[:, first:] + added], 1)
        if eviction.keeps and torch.is_grad_enabled():
            return torch.cat([output, _untouched(eviction, tokens)], 1)
        return output

    def _evict(
        self,
        past: LayerCache,
        leaving: Leaving,
        tokens: Tokens,
        eviction: Eviction | Unwritten,
        memory_hook: MemoryHook | None,
    ) -> Tensor:
        """Hand over what leaves the window, and get what the last n queries are given for it.

        Returns:
            What is added to their attention output `[B, n, H, d]`.
        """
        q = tokens.q[:, :, leaving.first_query :].transpose(1, 2)
        keys, values = (
            repeat_kv(leaving.columns[name], self.num_key_value_groups).transpose(1, 2)
            for name in _KEYS_VALUES
        )
        gates = {
            name: gate.transpose(1, 2)
            for name, gate in leaving.columns.items()
            if name not in _KEYS_VALUES
        }
        evicted = Evicted(keys, values, gates, leaving.active)
        if memory_hook is not None:
            evicted = _same_shapes(evicted, memory_hook.write(self.layer_idx, evicted))
        hidden = tokens.hidden[:, leaving.first_query :]
        added, states = eviction(q, evicted, past.states, hidden)
        if added.shape != q.shape:
            raise ValueError(
                f"memory cell {eviction.declaration.name!r} must return [B, n, H, d] = "
                f"{list(q.shape)}, not {list(added.shape)}"
            )
        if leaving.active is not None:
            added = added.masked_fill(~leaving.active[..., None, None], 0.0)
        past.update(states)
        if memory_hook is not None:
            changed = memory_hook.read(self.layer_idx, added, past.states)
            if not isinstance(changed, Tensor) or changed.shape != added.shape:
                raise ValueError(
                    f"MemoryHook.read must return a tensor {list(added.shape)}, not "
                    f"{list(changed.shape) if isinstance(changed, Tensor) else repr(changed)}"
                )
            added = changed
        return added

    def _project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (  # [B, T, heads, d]; also where T or B is 0
            x.unflatten(-1, (x.shape[-1] // self.head_dim, self.head_dim))
            for x in (self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden))
        )
        if hasattr(self, "q_norm"):  # `Family.qk_norm`
            q, k = self.q_norm(q), self.k_norm(k)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def _same_shapes(before: Evicted, after: Any) -> Evicted:
    """What a hook returned, held against what it was given.

    Raises:
        ValueError: something else, or other names or shapes.
    """
    if not isinstance(after, Evicted):
        raise ValueError(f"MemoryHook.write must return an Evicted, not {after!r}")
    if after is not before:
        mine, theirs = (
            {"keys": one.keys.shape, "values": one.values.shape}
            | {name: gate.shape for name, gate in one.gates.items()}
            for one in (before, after)
        )
        if mine != theirs:
            raise ValueError(
                f"MemoryHook.write must return tensors of the shapes it was given, {mine}, not "
                f"{theirs}"
            )
    return after


def _untouched(eviction: Eviction | Unwritten, tokens: Tokens) -> Tensor:
    """What is added where nothing leaves the window: nothing, to no query `[B, 0, H, d]`.

    All parameters of the cell get gradients of zero by it. DDP waits for a gradient of each, and
    batches of other processes may be longer.
    """
    none = tokens.q.transpose(1, 2)[:, :0]
    for parameter in eviction.parameters():
        if parameter.requires_grad:
            none = none + parameter.flatten()[:0].sum().to(none)
    return none
