"""The recurrences of the memory cells: one mathematics, several speeds.

`recurrent.py` is the readable form and the oracle of every test; `chunked.py` computes the same
with matrix products over chunks.  Callers use `recurrence`, which picks.

Shapes, everywhere: `q, k, v [B, T, H, d]`, gates `[B, T, H]`, state `[B, H, d, d]` float32 with
the key dimension first.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ahn.ops.chunked import chunked
from ahn.ops.recurrent import recurrent

BACKENDS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "recurrent": recurrent,
    "chunked": chunked,
}


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    write: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    *,
    delta_rule: bool,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Decay, write and read, token by token: `S <- exp(g) S`, then a write, then `o = S^T q`.

    With `delta_rule` the write is `k (write * (v - S^T k))^T` (DeltaNet, GatedDeltaNet), without
    it `write * k v^T` (Mamba2).

    Args:
        q: queries `[B, T, H, d]`, any float dtype; computed in float32 (float64 stays).
        k: keys `[B, T, H, d]`.
        v: values `[B, T, H, d]`.
        write: write strength `[B, T, H]`.
        log_decay: `g [B, T, H]`, zero or negative, -inf allowed; None: no decay.
        state: `[B, H, d, d]`, key dimension first.
        delta_rule: whether a write first takes out what the key already holds.
        backend: key of `BACKENDS`; None: `recurrent` for one token, else `chunked`.

    Returns:
        Outputs `[B, T, H, d]` and the state after the last token, both float32 (float64).

    Raises:
        ValueError: unknown backend, or shapes that do not fit; the message holds them.
    """
    if k.shape != q.shape or v.shape != q.shape or write.shape != q.shape[:3]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} must be equal "
            f"[B, T, H, d], and write {tuple(write.shape)} [B, T, H]"
        )
    if backend is None:
        backend = "recurrent" if q.shape[1] == 1 else "chunked"
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; one of {', '.join(BACKENDS)}")
    return BACKENDS[backend](q, k, v, write, log_decay, state, delta_rule)
