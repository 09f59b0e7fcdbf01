"""DeltaNet: write what a key does not hold yet; nothing is forgotten.

Yang et al., "Parallelizing Linear Transformers with the Delta Rule", arXiv 2406.06484; as a
memory beside attention: AHN, arXiv 2510.07318.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ahn.cells.base import Gates, HeadLinear, MemoryCell, Scale, States, rms_norm, wide
from ahn.cells.builtin import DELTA_NET


class DeltaNet(MemoryCell):
    """`S <- S + k (beta (v - S^T k))^T`, `beta = sigmoid(b_proj h)`; state `[B, H, d_k, d_v]`."""

    declaration = DELTA_NET

    def __init__(self, hidden_size: int, num_attention_heads: int, head_dim: int) -> None:
        super().__init__(hidden_size, num_attention_heads, head_dim)
        self.b_proj = nn.Linear(hidden_size, num_attention_heads, bias=False)
        self.g_proj = nn.Linear(hidden_size, num_attention_heads, bias=False)
        self.o_norm = Scale(head_dim)
        self.o_proj = HeadLinear(num_attention_heads, head_dim)

    def gates(self, hidden: Tensor) -> Gates:
        """Write strength only."""
        return {"write": self.b_proj(hidden).sigmoid()}

    def scan(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates,
        states: States,
        written: Tensor | None = None,
    ) -> tuple[Tensor, States]:
        """The (gated) delta rule on normalised keys and queries."""
        q, k = wide(q), wide(k)
        q = q * torch.rsqrt(q.pow(2).sum(-1, keepdim=True) + 1e-6) * self.head_dim**-0.5
        k = k * torch.rsqrt(k.pow(2).sum(-1, keepdim=True) + 1e-6)
        write, decay = gates["write"], gates.get("log_decay")
        read, state = self.recur(q, k, v, write, decay, states["state"], delta_rule=True)
        return read, {"state": state}

    def readout(self, read: Tensor, hidden: Tensor) -> Tensor:
        """RMSNorm per head, then one output gate per head, then `o_proj`."""
        gate = nn.functional.silu(wide(self.g_proj(hidden)))[..., None]  # [B, T, H, 1]
        return self.o_proj((rms_norm(read, self.o_norm.weight) * gate).to(hidden.dtype))
