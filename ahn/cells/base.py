"""What every memory cell is: gates of a token, a recurrence over tokens, a read-out.

Parameter names are those of released checkpoints (`model.layers.N.ahn.fn.*`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ahn.ops import asked, check, recurrence

EPS = 1e-5


@dataclass(frozen=True)
class Gates:
    """Gates of tokens, computed when they enter and kept until they leave the window.

    Attributes:
        write: write strength `[B, T, H]`: `beta` in the model's dtype, Mamba2's `dt` in float32.
        log_decay: `g [B, T, H]` float32, zero or negative; None for a cell without decay.
    """

    write: Tensor
    log_decay: Tensor | None


class MemoryCell(nn.Module):
    """A recurrent memory with one `[d, d]` state per query head.

    Args:
        hidden_size: D.
        num_attention_heads: H.
        head_dim: d.
    """

    #: whether the cell has a decay gate
    decays: bool = False
    #: log of the decay rate and bias of the step `[H]`, where the cell decays
    A_log: nn.Parameter
    dt_bias: nn.Parameter
    #: form of the recurrence that a configuration asks for, see `ahn.ops`; None: none
    backend: str | None

    def __init__(self, hidden_size: int, num_attention_heads: int, head_dim: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.head_dim = head_dim
        self.backend = None

    def use_backend(self, name: str | None) -> None:
        """Compute the recurrence this way, unless `AHN_BACKEND` says otherwise.

        Raises:
            InputError: the form that is now asked for is unknown or not installed.
        """
        check(asked(name))
        self.backend = name

    def gates(self, hidden: Tensor) -> Gates:
        """Gates of the tokens with layer-normed hidden states `[B, T, D]`."""
        raise NotImplementedError

    def scan(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write each `k, v [B, T, H, d]`, then read it with `q` of the same index.

        Returns:
            Read-outs `[B, T, H, d]` float32, and the state `[B, H, d, d]` float32.
        """
        raise NotImplementedError

    def recur(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: Tensor, *, delta_rule: bool
    ) -> tuple[Tensor, Tensor]:
        """`ahn.ops.recurrence` in the form that is asked for; for `scan`."""
        return recurrence(
            q,
            k,
            v,
            gates.write,
            gates.log_decay,
            state,
            delta_rule=delta_rule,
            backend=asked(self.backend),
        )

    def readout(self, read: Tensor, hidden: Tensor) -> Tensor:
        """What the memory adds to the attention output, before the layer's `o_proj`.

        Args:
            read: `[B, T, H, d]` float32, from `scan`.
            hidden: layer-normed hidden states of the reading tokens `[B, T, D]`.

        Returns:
            `[B, T, H, d]` in the dtype of `hidden`.
        """
        raise NotImplementedError

    def new_state(self, batch_size: int, device: torch.device | str) -> Tensor:
        """An empty memory: zeros `[B, H, d, d]` float32."""
        return torch.zeros(
            batch_size, self.num_attention_heads, self.head_dim, self.head_dim, device=device
        )

    def reset_parameters(self, std: float = 0.02, decay_max: float = 16.0) -> None:
        """A fresh memory: it writes and decays, but its `o_proj` is zero and so is its effect.

        `exp(A_log)` is uniform in `[min(1, max/2), max]`, and `dt_bias` such that the step is
        log-uniform in [0.001, 0.1], as in Mamba2; see `flash-linear-attention`.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.normal_(module.weight, std=std)
                if module.bias is not None:
                    init.zeros_(module.bias)
            elif isinstance(module, Scale):
                init.ones_(module.weight)
            elif isinstance(module, HeadLinear):
                init.zeros_(module.weight)
        if self.decays:
            low = min(1.0, decay_max / 2)
            rate = torch.empty(self.num_attention_heads).uniform_(low, decay_max)
            init.copy_(self.A_log, rate.log().to(self.A_log))
            step = torch.exp(
                torch.rand(self.num_attention_heads) * (math.log(0.1) - math.log(0.001))
                + math.log(0.001)
            )
            inverse_softplus = step + torch.log(-torch.expm1(-step))
            init.copy_(self.dt_bias, inverse_softplus.to(self.dt_bias))
            if hasattr(self, "D"):
                init.ones_(self.D)


class Scale(nn.Module):
    """The weight of an RMSNorm, which the cells apply in float32 themselves."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class HeadLinear(nn.Module):
    """One `[d_in, d_out]` matrix per head, zero at the start."""

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, head_dim, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, H, d] -> [B, T, H, d]`."""
        return torch.einsum("bthd,hde->bthe", x, self.weight.to(x.dtype))


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm over the last dimension in float32 (float64 stays), epsilon 1e-5."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight.to(x.dtype)


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or float64 where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
