"""Calling a recurrence: shapes are checked, then the form that fits computes it."""

from __future__ import annotations

import torch
from torch import Tensor

from ahn.ops.selector import BACKENDS, asked, pick


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
        q: queries `[B, T, H, d]`, any float dtype; computed in float32 (float64 stays), also
            under autocast. Kernels multiply in the dtype of `v`, bfloat16 if that is wider.
        k: keys `[B, T, H, d]`.
        v: values `[B, T, H, d]`.
        write: write strength `[B, T, H]`.
        log_decay: `g [B, T, H]`, zero or negative, -inf allowed; None: no decay.
        state: `[B, H, d, d]` float32, key dimension first.
        delta_rule: whether a write first takes out what the key already holds.
        backend: one of `ahn.ops.names.BACKENDS`; None: what `AHN_BACKEND` says, else the fastest
            that fits (`ahn.ops.selector.pick`).

    Returns:
        Outputs `[B, T, H, d]` and the state after the last token, both float32 (float64).

    Raises:
        InputError: a backend that is unknown, not installed, or cannot do this.
        ValueError: shapes that do not fit; the message holds them.
    """
    batch, tokens, heads, d = q.shape
    gates = (batch, tokens, heads)
    if k.shape != q.shape or v.shape != q.shape or write.shape != gates:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} must be equal "
            f"[B, T, H, d], and write {tuple(write.shape)} [B, T, H]"
        )
    if log_decay is not None and log_decay.shape != gates:
        raise ValueError(f"log_decay {tuple(log_decay.shape)} must be [B, T, H] = {gates}")
    if state.shape != (batch, heads, d, d):
        raise ValueError(
            f"state {tuple(state.shape)} must be [B, H, d, d] = {(batch, heads, d, d)}"
        )
    tensors = (q, k, v, write, state) if log_decay is None else (q, k, v, write, state, log_decay)
    gradients = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    device = q.device.type
    name = pick(backend or asked(), device, v.dtype, d, tokens == 1, delta_rule, gradients)
    form = BACKENDS[name]
    if not torch.amp.is_autocast_available(device):  # the meta device
        return form(q, k, v, write, log_decay, state, delta_rule)
    # autocast would round what is multiplied with the state, and mix dtypes
    with torch.autocast(device, enabled=False):
        return form(q, k, v, write, log_decay, state, delta_rule)
