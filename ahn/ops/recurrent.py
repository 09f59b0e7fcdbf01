"""The recurrences as they are written in the papers, one token at a time: the oracle.

Gated delta rule: Yang et al., "Gated Delta Networks", arXiv 2412.06464, eq. 10; delta rule:
arXiv 2406.06484; decayed outer products: Mamba2, arXiv 2405.21060.
"""

from __future__ import annotations

import torch
from torch import Tensor


def recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    write: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    delta_rule: bool,
) -> tuple[Tensor, Tensor]:
    """See `ahn.ops.recurrence`."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k, v, write, state = (x.to(dtype) for x in (q, k, v, write, state))
    outputs = []
    for t in range(q.shape[1]):
        k_t, v_t = k[:, t], v[:, t]  # [B, H, d]
        if log_decay is not None:
            state = state * log_decay[:, t].to(dtype).exp()[..., None, None]
        held = torch.einsum("bhkv,bhk->bhv", state, k_t) if delta_rule else 0.0
        new = write[:, t, :, None] * (v_t - held)
        state = state + k_t[..., :, None] * new[..., None, :]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, 1) if outputs else torch.zeros_like(q), state
