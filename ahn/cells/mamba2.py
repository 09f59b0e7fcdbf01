"""Mamba2: decayed sums of outer products; one step size both writes and forgets.

Dao and Gu, "Transformers are SSMs", arXiv 2405.21060; as a memory beside attention: AHN,
arXiv 2510.07318.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ahn.cells.base import (
    Gates,
    HeadLinear,
    MemoryCell,
    Scale,
    States,
    reset_decay,
    rms_norm,
    wide,
)
from ahn.cells.builtin import MAMBA2


class Mamba2(MemoryCell):
    """`S <- exp(-dt exp(A_log)) S + dt v k^T`, `o = S q`.

    The paper's state is `[B, H, d_v, d_k]`; here the key dimension comes first, as in the other
    cells.
    """

    declaration = MAMBA2

    def __init__(self, hidden_size: int, num_attention_heads: int, head_dim: int) -> None:
        super().__init__(hidden_size, num_attention_heads, head_dim)
        self.dt_proj = nn.Linear(hidden_size, num_attention_heads, bias=True)
        self.g_proj = nn.Linear(hidden_size, num_attention_heads, bias=True)
        self.A_log = nn.Parameter(torch.zeros(num_attention_heads))
        self.dt_bias = nn.Parameter(torch.zeros(num_attention_heads))
        self.norm = Scale(num_attention_heads * head_dim)
        self.o_proj = HeadLinear(num_attention_heads, head_dim)

    def gates(self, hidden: Tensor) -> Gates:
        """The step size as write strength, and its decay, both in float32.

        Only the projection is in the model's dtype: a sum with `dt_bias` rounded to bfloat16 moves
        the step by up to 3.5 %. The reference's kernel adds it in float32, too.
        """
        step = nn.functional.softplus(wide(self.dt_proj(hidden)) + wide(self.dt_bias))
        return {"write": step, "log_decay": -wide(self.A_log).exp() * step}

    def scan(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates,
        states: States,
        written: Tensor | None = None,
    ) -> tuple[Tensor, States]:
        """Decayed outer products of normalised keys; queries are normalised and not scaled."""
        q = nn.functional.normalize(wide(q), dim=-1, eps=1e-12)
        k = nn.functional.normalize(wide(k), dim=-1, eps=1e-12)
        write, decay = gates["write"], gates["log_decay"]
        read, state = self.recur(q, k, v, write, decay, states["state"], delta_rule=False)
        return read, {"state": state}

    def readout(self, read: Tensor, hidden: Tensor) -> Tensor:
        """Output gate per head, then RMSNorm across heads, then `o_proj`."""
        gate = nn.functional.silu(wide(self.g_proj(hidden)))[..., None]  # [B, T, H, 1]
        y = rms_norm((read * gate).flatten(-2), self.norm.weight).view_as(read)
        return self.o_proj(y.to(hidden.dtype))

    def reset_parameters(self, std: float = 0.02, decay_max: float = 16.0) -> None:
        """As the base class's, with fresh decays."""
        super().reset_parameters(std, decay_max)
        reset_decay(self, decay_max)
