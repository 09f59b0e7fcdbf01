"""What happens to the tokens that leave the window: `Eviction`, and memory cells as its main kind.

A memory cell gives each token gates when it enters, writes a token into its states when it leaves
the window, and is read by a query in the same step.  Parameter names are those of released
checkpoints (`model.layers.N.ahn.fn.*`).

Shape letters: B batch, T tokens, n tokens that leave (and queries that read), H query heads,
d head dimension, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from ahn.cells.declaration import CellDeclaration, KeptType
from ahn.cells.registry import CELLS
from ahn.ops.dispatch import recurrence
from ahn.ops.selector import asked, check
from common.errors import InputError

EPS = 1e-5

#: `[B, T, ...]` by name, as the cell declares them
Gates = dict[str, Tensor]
#: `[B, ...]` by name, as the cell declares them
States = dict[str, Tensor]


@dataclass(frozen=True)
class Evicted:
    """Tokens that leave the window, one before each of the n last queries of a pass.

    Attributes:
        keys: `[B, n, H, d]`, after RoPE, repeated for their groups of query heads.
        values: `[B, n, H, d]`.
        gates: `[B, n, ...]` by name, as they were computed when the tokens entered.
        written: `[1 or B, n]` bool, False where no token of the row leaves at that step; None: one
            leaves everywhere.
    """

    keys: Tensor
    values: Tensor
    gates: Gates
    written: Tensor | None = None


class Eviction(nn.Module):
    """What happens to tokens that leave the window. This is the protocol; `MemoryCell` implements
    most of it.

    Args:
        hidden_size: D.
        num_attention_heads: H.
        head_dim: d.

    Attributes:
        declaration: what the class keeps, stores and costs.
        keeps: False: tokens that leave are not looked at, and nothing but `keeps` is asked.
    """

    declaration: ClassVar[CellDeclaration]
    keeps: ClassVar[bool] = True

    def __init__(self, hidden_size: int, num_attention_heads: int, head_dim: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.head_dim = head_dim

    def gates(self, hidden: Tensor) -> Gates:
        """Gates of the tokens with layer-normed hidden states `[B, T, D]`: none."""
        return {}

    def new_states(self, rows: int, like: Tensor) -> States:
        """Empty states: zeros.

        Args:
            rows: B.
            like: a tensor of the model's dtype, on the device that is wanted.
        """
        sized = self.declaration.sized(self.hidden_size, self.num_attention_heads, self.head_dim)
        return {
            name: torch.zeros(
                rows,
                *sized.shape(state.dims),
                dtype=kept_dtype(state.dtype, like.dtype),
                device=like.device,
            )
            for name, state in self.declaration.states.items()
        }

    def forward(
        self, q: Tensor, evicted: Evicted, states: States, hidden: Tensor
    ) -> tuple[Tensor, States]:
        """Take what leaves into the states, and say what each query gets from them.

        Attention calls the module, so that forward hooks see each call.

        Args:
            q: the queries that read `[B, n, H, d]`. Query `i` sees tokens `0 ... i`.
            evicted: the tokens that leave. Where `written` is False the states must stay as
                they are.
            states: before; not to be changed in place.
            hidden: layer-normed hidden states of the reading tokens `[B, n, D]`.

        Returns:
            What is added to the attention output before the layer's `o_proj`, `[B, n, H, d]` in
            the dtype of `hidden`, and the states after the last token.
        """
        raise NotImplementedError

    def use_backend(self, name: str | None) -> None:
        """Take note of the form of `ahn.ops` that a configuration asks for: there is none here."""

    def reset_parameters(self, std: float = 0.02, decay_max: float = 16.0) -> None:
        """Initialise every parameter, so that a fresh memory adds nothing to the output.

        Args:
            std: of a fresh projection.
            decay_max: largest decay rate, for cells that decay.
        """


class MemoryCell(Eviction):
    """A recurrent memory: a write and a read for each token that leaves.

    A cell defines `gates`, `readout`, and the recurrence: `step` for one token, or `scan` for
    many where there is a faster form.
    """

    #: form of the recurrence that a configuration asks for, see `ahn.ops`; None: none
    backend: str | None

    def __init__(self, hidden_size: int, num_attention_heads: int, head_dim: int) -> None:
        super().__init__(hidden_size, num_attention_heads, head_dim)
        self.backend = None

    def use_backend(self, name: str | None) -> None:
        """Compute the recurrence this way, unless `AHN_BACKEND` says otherwise.

        Raises:
            InputError: the form that is now asked for is unknown or not installed.
        """
        check(asked(name))
        self.backend = name

    def step(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, states: States
    ) -> tuple[Tensor, States]:
        """Write one token, then read: the recurrence as its paper has it.

        Args:
            q: query `[B, H, d]`.
            k: key `[B, H, d]`.
            v: value `[B, H, d]`.
            gates: `[B, ...]` of the token.
            states: before.

        Returns:
            The read-out, any shape that `readout` understands behind `[B]`, and new states.
        """
        raise NotImplementedError

    def scan(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Gates,
        states: States,
        written: Tensor | None = None,
    ) -> tuple[Tensor, States]:
        """Write each `k, v [B, n, H, d]`, then read with `q` of the same index.

        This goes token by token through `step`. A faster form must leave the states as they are
        where `written [1 or B, n]` is False; gates are neutral there already.

        Returns:
            Read-outs `[B, n, ...]` and the states after the last token.
        """
        reads = []
        for t in range(q.shape[1]):
            now = {name: gate[:, t] for name, gate in gates.items()}
            read, after = self.step(q[:, t], k[:, t], v[:, t], now, states)
            if written is None:
                states = after
            else:
                states = {
                    name: torch.where(_spread(written[:, t], new), new, states[name])
                    for name, new in after.items()
                }
            reads.append(read)
        return torch.stack(reads, 1), states

    def readout(self, read: Tensor, hidden: Tensor) -> Tensor:
        """What the memory adds to the attention output, before the layer's `o_proj`.

        Args:
            read: from `scan`.
            hidden: layer-normed hidden states of the reading tokens `[B, n, D]`.

        Returns:
            `[B, n, H, d]` in the dtype of `hidden`.
        """
        raise NotImplementedError

    def forward(
        self, q: Tensor, evicted: Evicted, states: States, hidden: Tensor
    ) -> tuple[Tensor, States]:
        """`scan`, then `readout`; see `Eviction.forward`."""
        gates = self.neutral(evicted.gates, evicted.written)
        read, states = self.scan(q, evicted.keys, evicted.values, gates, states, evicted.written)
        return self.readout(read, hidden), states

    def neutral(self, gates: Gates, written: Tensor | None) -> Gates:
        """The gates `[B, n, ...]` with their neutral value where `written` is False."""
        if written is None:
            return gates
        return {
            name: gate.masked_fill(~_spread(written, gate, 2), self.declaration.gates[name].neutral)
            for name, gate in gates.items()
        }

    def recur(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        write: Tensor,
        log_decay: Tensor | None,
        state: Tensor,
        *,
        delta_rule: bool,
    ) -> tuple[Tensor, Tensor]:
        """`ahn.ops.recurrence` in the form that is asked for; for `scan`."""
        return recurrence(
            q, k, v, write, log_decay, state, delta_rule=delta_rule, backend=asked(self.backend)
        )

    def reset_parameters(self, std: float = 0.02, decay_max: float = 16.0) -> None:
        """A fresh memory: it writes, but its `o_proj` is zero and so is its effect.

        Sets the weights of `nn.Linear`, `Scale` and `HeadLinear`. A cell with other parameters
        extends this.
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


def build_cell(name: str, hidden_size: int, num_attention_heads: int, head_dim: int) -> Eviction:
    """A cell by its name, held against its declaration.

    Raises:
        InputError: no such cell, or its class stores other tensors than the declaration says.
    """
    declaration = CELLS.find(name)
    cell = CELLS.implementation(name)(hidden_size, num_attention_heads, head_dim)
    if getattr(cell, "declaration", None) != declaration:
        raise InputError(
            f"memory cell {name!r}: {type(cell).__name__}.declaration is not the declaration that "
            "is registered under this name"
        )
    wanted = declaration.sized(hidden_size, num_attention_heads, head_dim).parameters
    stored = {key: tuple(tensor.shape) for key, tensor in cell.state_dict().items()}
    differ = sorted(
        key for key in wanted.keys() | stored.keys() if wanted.get(key) != stored.get(key)
    )
    if differ:
        raise InputError(
            *(
                f"memory cell {name!r}: parameter {key} is declared as "
                f"{_shown(wanted.get(key))}, {type(cell).__name__} has {_shown(stored.get(key))}"
                for key in differ
            )
        )
    return cell


def _shown(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(list(shape))


def check_gates(declaration: CellDeclaration, gates: Mapping[str, Any], tokens: torch.Size) -> None:
    """Hold what a cell computed as gates against its declaration.

    Args:
        declaration: of the cell.
        gates: by name.
        tokens: `[B, T]`.

    Raises:
        ValueError: other names, or not a number of dimensions that can be kept.
    """
    if gates.keys() != declaration.gates.keys():
        raise ValueError(
            f"memory cell {declaration.name!r} declares gates {sorted(declaration.gates)} and "
            f"computes {sorted(gates)}"
        )
    for name, gate in gates.items():
        if gate.shape[:2] != tokens or gate.dim() != 2 + len(declaration.gates[name].dims):
            raise ValueError(
                f"memory cell {declaration.name!r}: gate {name!r} must be [B, T, "
                f"{', '.join(map(str, declaration.gates[name].dims))}], not {list(gate.shape)}"
            )


def kept_dtype(kind: KeptType, model: torch.dtype) -> torch.dtype:
    """The torch dtype in which a tensor is kept for a model of this dtype."""
    return model if kind == "model" else torch.promote_types(model, torch.float32)


def _spread(mask: Tensor, like: Tensor, dims: int = 1) -> Tensor:
    """A mask of `like`'s first `dims` dimensions, with as many dimensions as `like`."""
    return mask.reshape(*mask.shape, *([1] * (like.dim() - dims)))


def reset_decay(cell: Any, decay_max: float) -> None:
    """Fresh `A_log` and `dt_bias [H]` of a cell that decays.

    `exp(A_log)` is uniform in `[min(1, max/2), max]`, and `dt_bias` such that the step is
    log-uniform in [0.001, 0.1], as in Mamba2; see `flash-linear-attention`.
    """
    heads = cell.num_attention_heads
    rate = torch.empty(heads).uniform_(min(1.0, decay_max / 2), decay_max)
    init.copy_(cell.A_log, rate.log().to(cell.A_log))
    step = torch.exp(torch.rand(heads) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
    inverse_softplus = step + torch.log(-torch.expm1(-step))
    init.copy_(cell.dt_bias, inverse_softplus.to(cell.dt_bias))


class Scale(nn.Module):
    """The weight of an RMSNorm, which the cells apply in float32 themselves."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class HeadLinear(nn.Module):
    """One `[d_in, d_out]` matrix per head, zero at the start.

    Args:
        num_heads: H.
        d_in: width of a head before.
        d_out: width of a head after; default: `d_in`.
    """

    def __init__(self, num_heads: int, d_in: int, d_out: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_heads, d_in, d_in if d_out is None else d_out))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, H, d_in] -> [B, T, H, d_out]`."""
        return torch.einsum("bthd,hde->bthe", x, self.weight.to(x.dtype))


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm over the last dimension in float32 (float64 stays), epsilon 1e-5."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight.to(x.dtype)


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or float64 where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
