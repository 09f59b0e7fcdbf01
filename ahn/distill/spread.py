"""How alike the keys of an attention head are, and a loss that keeps them apart.

A softmax over many keys finds the right one even where all of them share most of their
direction; a linear memory of `d x d` numbers cannot: what it reads is a sum in which every stored
value has the weight of its key's cosine with the query.  A base model that shall carry a memory
is therefore trained with `key_spread`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F


@contextmanager
def collected_keys(model: Any, keys: list[torch.Tensor]) -> Iterator[None]:
    """Puts the key projections `[B, L, K * d]` of each layer but the first into `keys`.

    The first layer's keys may be alike: what it looks for is an offset, not a content.
    """
    handles = [
        layer.self_attn.k_proj.register_forward_hook(
            lambda module, args, output: keys.append(output)
        )
        for layer in model.model.layers[1:]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def key_overlap(
    keys: Sequence[torch.Tensor], head_dim: int, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Mean squared cosine between the keys of a head within a row; 1 where all are parallel.

    Args:
        keys: one `[B, L, K * d]` a layer.
        head_dim: d; `1 / d` is the least possible value for L >= d.
        attention_mask: `[B, L]`, 0 for padding.

    Returns:
        A float32 scalar, mean over layers, rows and heads.
    """
    count = attention_mask.sum(1)[:, None, None, None]
    overlaps = []
    for key in keys:
        unit = F.normalize(key.float().unflatten(-1, (-1, head_dim)), dim=-1)
        unit = (unit * attention_mask[..., None, None]).transpose(1, 2)  # [B, K, L, d]
        # sum of squared cosines of all pairs = squared norm of the d x d second moment
        overlaps.append((unit.transpose(-1, -2) @ unit / count).pow(2).sum((-1, -2)).mean())
    return torch.stack(overlaps).mean()
