"""Two memory cells of another package, and what they compute, written out position by position.

`WideKeys` has keys of another width than its values, and a gate for each key dimension.
`ShortConv` writes values that are convolved with the two values written before them, so that it
has a second state; it forgets at each write, whatever the gate says.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ahn.cells import CellDeclaration, Gate, Gates, MemoryCell, State, States
from ahn.cells.base import HeadLinear, wide

WIDE_KEYS = CellDeclaration(
    "WideKeys",
    "tests.ahn.cells.outside:WideKeys",
    gates={"write": Gate(), "forget": Gate(("H", "k"), "float32")},
    states={"state": State(("H", "k", "d"))},
    parameters={
        "b_proj.weight": ("H", "D"),
        "a_proj.weight": ("Hk", "D"),
        "f_proj.weight": ("H", "d", "k"),
        "o_proj.weight": ("H", "d", "d"),
    },
    products_per_token=(("D", "H"), ("D", "Hk")),
    products_per_read=(
        ("H", "d", "k"),
        ("H", "d", "k"),
        ("H", "k", "d"),
        ("H", "k", "d"),
        ("H", "d", "d"),
    ),
    sizes={"k": lambda s: s["d"] + 3, "Hk": lambda s: s["H"] * (s["d"] + 3)},
)

SHORT_CONV = CellDeclaration(
    "ShortConv",
    "tests.ahn.cells.outside:ShortConv",
    gates={"strength": Gate(dtype="float32")},
    states={"state": State(("H", "d", "d")), "carry": State(("H", 2, "d"), "model")},
    parameters={
        "b_proj.weight": ("H", "D"),
        "conv": ("H", 3),
        "rate": ("H",),
        "o_proj.weight": ("H", "d", "d"),
    },
    products_per_token=(("D", "H"),),
    products_per_read=(("H", 3, "d"), ("H", "d", "d"), ("H", "d", "d"), ("H", "d", "d")),
)


class WideKeys(MemoryCell):
    """`S <- diag(exp(g)) S + beta phi(k) v^T`, `o = phi(q) S`, `phi(x) = softplus(x F)`."""

    declaration = WIDE_KEYS

    def __init__(self, hidden_size: int, num_attention_heads: int, head_dim: int) -> None:
        super().__init__(hidden_size, num_attention_heads, head_dim)
        self.d_k = head_dim + 3
        self.b_proj = nn.Linear(hidden_size, num_attention_heads, bias=False)
        self.a_proj = nn.Linear(hidden_size, num_attention_heads * self.d_k, bias=False)
        self.f_proj = HeadLinear(num_attention_heads, head_dim, self.d_k)
        self.o_proj = HeadLinear(num_attention_heads, head_dim)

    def gates(self, hidden: Tensor) -> Gates:
        forget = F.logsigmoid(wide(self.a_proj(hidden))).unflatten(-1, (-1, self.d_k))
        return {"write": self.b_proj(hidden).sigmoid(), "forget": forget}

    def step(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, states: States
    ) -> tuple[Tensor, States]:
        weight = wide(self.f_proj.weight)
        q, k = (F.softplus(torch.einsum("bhd,hdk->bhk", wide(x), weight)) for x in (q, k))
        new = (wide(gates["write"])[..., None] * wide(v))[..., None, :]  # [B, H, 1, d]
        state = gates["forget"].exp()[..., None] * states["state"] + k[..., None] * new
        return torch.einsum("bhk,bhkd->bhd", q, state), {"state": state}

    def readout(self, read: Tensor, hidden: Tensor) -> Tensor:
        return self.o_proj(read.to(hidden.dtype))

    def reset_parameters(self, std: float = 0.02, decay_max: float = 16.0) -> None:
        super().reset_parameters(std, decay_max)
        nn.init.normal_(self.f_proj.weight, std=std)


class ShortConv(MemoryCell):
    """`S <- r S + s k u^T`, `u = c_0 v_{-2} + c_1 v_{-1} + c_2 v`, `o = q S`."""

    declaration = SHORT_CONV

    def __init__(self, hidden_size: int, num_attention_heads: int, head_dim: int) -> None:
        super().__init__(hidden_size, num_attention_heads, head_dim)
        self.b_proj = nn.Linear(hidden_size, num_attention_heads, bias=False)
        self.conv = nn.Parameter(torch.empty(num_attention_heads, 3))
        self.rate = nn.Parameter(torch.empty(num_attention_heads))
        self.o_proj = HeadLinear(num_attention_heads, head_dim)

    def gates(self, hidden: Tensor) -> Gates:
        return {"strength": F.softplus(wide(self.b_proj(hidden)))}

    def step(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, states: States
    ) -> tuple[Tensor, States]:
        q, k = (F.normalize(wide(x), dim=-1) for x in (q, k))
        written = torch.cat([states["carry"], v[:, :, None].to(states["carry"])], 2)  # [B, H, 3, d]
        u = torch.einsum("hj,bhjd->bhd", wide(self.conv), wide(written))
        new = gates["strength"][..., None, None] * k[..., None] * u[..., None, :]
        state = wide(self.rate).sigmoid()[:, None, None] * states["state"] + new
        return torch.einsum("bhk,bhkd->bhd", q, state), {"state": state, "carry": written[:, :, 1:]}

    def readout(self, read: Tensor, hidden: Tensor) -> Tensor:
        # an empty memory says something, too: a query reads from the first write on, not before
        return self.o_proj((read + 0.5).to(hidden.dtype))

    def reset_parameters(self, std: float = 0.02, decay_max: float = 16.0) -> None:
        super().reset_parameters(std, decay_max)
        nn.init.normal_(self.conv, mean=0.5, std=std)
        nn.init.uniform_(self.rate, 1.0, 2.0)


def read_memory(cell: Any, name: str, h: Tensor, q: Tensor, k: Tensor, v: Tensor, span: Any) -> Any:
    """What the memory adds for positions `span ...` `[n, H, d]`; see `tests.ahn.equations`."""
    heads, d = q.shape[1:]
    sinks, total = span
    out = []
    for n in range(heads):
        rows = []
        state = q.new_zeros(d + 3 if name == "WideKeys" else d, d)
        earlier = [q.new_zeros(d), q.new_zeros(d)]
        for p in range(total, len(q)):
            j = p - (total - sinks)
            if name == "WideKeys":
                features = cell.f_proj.weight[n]
                key, query = (torch.log1p(torch.exp(x @ features)) for x in (k[j, n], q[p, n]))
                projected = cell.a_proj(h[j]).view(heads, d + 3)[n]
                beta = torch.sigmoid(cell.b_proj(h[j])[n])
                state = torch.sigmoid(projected)[:, None] * state + beta * torch.outer(key, v[j, n])
                read = query @ state
            else:
                key, query = k[j, n] / k[j, n].norm(), q[p, n] / q[p, n].norm()
                first, second, third = cell.conv[n]
                u = first * earlier[-2] + second * earlier[-1] + third * v[j, n]
                earlier.append(v[j, n])
                strength = torch.log1p(torch.exp(cell.b_proj(h[j])[n]))
                state = torch.sigmoid(cell.rate[n]) * state + strength * torch.outer(key, u)
                read = query @ state + 0.5
            rows.append(read @ cell.o_proj.weight[n])
        out.append(torch.stack(rows) if rows else q.new_zeros(0, d))
    return torch.stack(out, 1)
