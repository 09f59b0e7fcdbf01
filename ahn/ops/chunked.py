"""The recurrences with matrix products over chunks: about linear in T, differentiable.

Within a chunk the delta rule's writes depend on each other through a unit lower triangular
system, `(I + tril(diag(write) D * (K K^T), -1)) U = diag(write) (V - exp(G) K S)`, solved once;
across chunks only the state is carried (Yang et al., arXiv 2406.06484, section 3; with decay
arXiv 2412.06464, section 3.3).  `D_ij = exp(g_{j+1} + ... + g_i)` is summed directly, never as a
difference of running sums, so that a decay of zero (g = -inf) is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ahn.ops.recurrent import recurrent

CHUNK = 64
#: Tokens whose chunks are computed together: enough to fill matrix products, few enough to stay
#: in a CPU's caches (from 4,096 tokens on 1.2-1.5 times as fast as all together) and to bound
#: what is held at a time.
SEGMENT = 512


def _decays(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """`D [..., C, C]`, the decay from after token j to token i, and from the start `[..., C]`."""
    size = log_decay.shape[-1]
    below = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).tril(-1)
    # column j holds g_i for i > j, else 0; its running sum over i is the wanted exponent
    columns = log_decay[..., :, None].expand(*log_decay.shape, size).masked_fill(~below, 0.0)
    between = columns.cumsum(-2).exp().tril()
    return between, log_decay.cumsum(-1).exp()


def chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    write: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    delta_rule: bool,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """See `ahn.ops.recurrence`."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    batch, tokens, heads, d = q.shape
    if tokens <= 1:  # nothing to chunk
        return recurrent(q, k, v, write, log_decay, state, delta_rule)
    if tokens > SEGMENT:
        count = -(-tokens // SEGMENT)
        segments = (
            [None] * count if x is None else x.split(SEGMENT, 1)
            for x in (q, k, v, write, log_decay)
        )
        reads = []
        for q_s, k_s, v_s, write_s, decay_s in zip(*segments, strict=True):
            read, state = chunked(q_s, k_s, v_s, write_s, decay_s, state, delta_rule, chunk)
            reads.append(read)
        return torch.cat(reads, 1), state
    chunk = min(chunk, tokens)
    padding = -tokens % chunk  # padded tokens write nothing and do not decay

    def split(x: Tensor) -> Tensor:  # [B, T, H, d] -> [N, B, H, C, d]
        x = F.pad(x.to(dtype), (0, 0, 0, 0, 0, padding))
        return x.unflatten(1, (-1, chunk)).permute(1, 0, 3, 2, 4)

    q, k, v = split(q), split(k), split(v)
    write = split(write[..., None])  # [N, B, H, C, 1]
    if log_decay is None:
        between = torch.ones(chunk, chunk, dtype=dtype, device=q.device).tril()
        from_start = to_end = torch.ones(chunk, 1, dtype=dtype, device=q.device)
    else:
        between, start = _decays(split(log_decay[..., None])[..., 0])
        from_start = start[..., None]  # [N, B, H, C, 1]
        to_end = between[..., -1, :, None]
    scores = (q @ k.transpose(-1, -2)) * between
    values, keys = write * v, None
    if delta_rule:
        system = (write * (k @ k.transpose(-1, -2)) * between).tril(-1)
        system = system + torch.eye(chunk, dtype=dtype, device=q.device)
        solved = torch.linalg.solve_triangular(
            system, torch.cat([values, write * k * from_start], -1), upper=False, unitriangular=True
        )
        values, keys = solved.split(d, -1)
    decay = None if log_decay is None else from_start[..., -1:, :]  # of a whole chunk
    # taken apart once: the gradient of x[n] is as large as x, which would make a backward pass
    # quadratic in T
    parts = (q * from_start, scores, values, keys, k * to_end, decay)
    pieces = ([None] * q.shape[0] if x is None else x.unbind() for x in parts)
    state = state.to(dtype)
    outputs = []
    for q_n, scores_n, new, keys_n, k_n, decay_n in zip(*pieces, strict=True):
        if keys_n is not None:
            new = new - keys_n @ state
        outputs.append(q_n @ state + scores_n @ new)
        kept = state if decay_n is None else state * decay_n
        state = kept + k_n.transpose(-1, -2) @ new
    # [N, B, H, C, d] -> [B, T, H, d]
    output = torch.stack(outputs).permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :tokens]
    return output, state
