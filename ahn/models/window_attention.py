"""Window and sinks without a mask, for GPUs: flash attention on pieces, merged exactly.

A mask forces CUDA's attention into kernels that read it for every score and that know no grouped
heads.  While all rows have the same length none is needed: columns are in order of positions, so
queries before `S + W` see everything behind them (one causal piece), and later ones see the S
sinks (a piece without restriction) and the last W columns (a piece with flash attention's own
sliding window).  Each piece returns its log-sum-exp, with which two softmaxes over different
keys become the softmax over both (Milakov and Gimelshein, arXiv 1805.02867).

Shape letters as in `ahn.models.attention`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: `(q [B, H, T, d], k [B, K, N, d], v, scaling, causal, window)` to the output `[B, H, T, d]` and
#: the log-sum-exp of the scores `[B, H, T]` float32. The last query and the last key stand at the
#: same position; `window` counts the query's own position, None: no limit.
Piece = Callable[[Tensor, Tensor, Tensor, float, bool, int | None], tuple[Tensor, Tensor]]


def takes_flash(dtype: torch.dtype, head_dim: int, capability: tuple[int, int]) -> bool:
    """Whether torch's flash attention takes such heads on a GPU of this compute capability."""
    return dtype in (torch.float16, torch.bfloat16) and head_dim <= 256 and capability >= (8, 0)


def mask_free(q: Tensor) -> bool:
    """Whether these queries go through pieces of flash attention instead of a mask."""
    return (
        q.is_cuda
        and q.shape[-1] % 8 == 0
        and not (torch.is_grad_enabled() and q.requires_grad)
        and takes_flash(q.dtype, q.shape[-1], torch.cuda.get_device_capability(q.device))
    )


def flash_piece(
    q: Tensor, k: Tensor, v: Tensor, scaling: float, causal: bool, window: int | None
) -> tuple[Tensor, Tensor]:
    """A piece by the flash attention that is part of torch."""
    output, log_sum, *_ = torch.ops.aten._flash_attention_forward(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        None,
        None,
        q.shape[2],
        k.shape[2],
        0.0,
        causal and window is None,
        False,
        scale=scaling,
        window_size_left=None if window is None else window - 1,
        window_size_right=None if window is None else 0,
    )
    return output.transpose(1, 2), log_sum


def split_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: int,
    window: int | None,
    sinks: int,
    scaling: float,
    piece: Piece = flash_piece,
) -> Tensor:
    """Attention of a chunk's queries over sinks and window.

    Args:
        q: `[B, H, T, d]`, positions `seen ... seen + T - 1`.
        k: `[B, K, N, d]`: the sinks, what the window held, the chunk, in order of position.
        v: as `k`.
        seen: tokens before the chunk.
        window: W; None: full attention, one causal piece.
        sinks: S.
        scaling: factor of the scores.
        piece: how a piece is computed.

    Returns:
        `[B, H, T, d]`.
    """
    if window is None:
        return piece(q, k, v, scaling, True, None)[0]
    tokens, columns = q.shape[2], k.shape[2]
    cached = columns - tokens
    early = min(max(sinks + window - seen, 0), tokens)  # queries that see all before them
    outputs = []
    if early:
        reach = cached + early
        outputs.append(
            piece(q[:, :, :early], k[:, :, :reach], v[:, :, :reach], scaling, True, None)[0]
        )
    if early < tokens:
        late = q[:, :, early:]
        first = cached + early - window + 1  # the oldest column that the first of them sees
        output, log_sum = piece(late, k[:, :, first:], v[:, :, first:], scaling, True, window)
        if sinks:
            to_sinks = piece(late, k[:, :, :sinks], v[:, :, :sinks], scaling, False, None)
            output = merge(output, log_sum, *to_sinks)
        outputs.append(output)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)


def merge(first: Tensor, first_sum: Tensor, second: Tensor, second_sum: Tensor) -> Tensor:
    """Attention over two sets of keys from attention over each, and their log-sum-exps."""
    share = torch.sigmoid(second_sum - first_sum)[..., None]  # of the second
    return torch.lerp(first.float(), second.float(), share).to(first.dtype)
