"""GatedDeltaNet: the delta rule with a decay that depends on the token.

Yang et al., "Gated Delta Networks", arXiv 2412.06464; as a memory beside attention: AHN,
arXiv 2510.07318.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ahn.cells.base import Gates, reset_decay, wide
from ahn.cells.builtin import GATED_DELTA_NET
from ahn.cells.delta_net import DeltaNet


class GatedDeltaNet(DeltaNet):
    """DeltaNet with `S <- exp(g) S` before each write, `g = -exp(A_log) softplus(a + dt_bias)`.

    `D` is in every released checkpoint and enters nothing. It is a buffer: loaded and saved under
    its name, and never trained. A parameter that gets no gradient makes DDP wait for one.
    """

    declaration = GATED_DELTA_NET

    def __init__(self, hidden_size: int, num_attention_heads: int, head_dim: int) -> None:
        super().__init__(hidden_size, num_attention_heads, head_dim)
        self.a_proj = nn.Linear(hidden_size, num_attention_heads, bias=False)
        self.A_log = nn.Parameter(torch.zeros(num_attention_heads))
        self.dt_bias = nn.Parameter(torch.zeros(num_attention_heads))
        self.register_buffer("D", torch.ones(num_attention_heads))

    def gates(self, hidden: Tensor) -> Gates:
        """Write strength, and log decay in float32."""
        step = nn.functional.softplus(wide(self.a_proj(hidden)) + wide(self.dt_bias))
        return {
            "write": self.b_proj(hidden).sigmoid(),
            "log_decay": -wide(self.A_log).exp() * step,
        }

    def reset_parameters(self, std: float = 0.02, decay_max: float = 16.0) -> None:
        """As the base class's, with fresh decays; `D` is one."""
        super().reset_parameters(std, decay_max)
        reset_decay(self, decay_max)
        init.ones_(self.D)
