"""What a token sees of a cache that a press has gone over: masks layer by layer, head by head.

transformers makes one mask for all layers, as long as the first layer's cache. After a press the
layers may hold different numbers of slots (PyramidKV), and single heads may be told not to look at
some of them (AdaKV), so each attention layer is given its own mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from evaluation.backends.presses.shims import text_model


class PressedCache(DynamicCache):
    """A cache that a press may have gone over.

    Attributes:
        pressed: whether one has.
        masked: by layer, bool `[key/value heads, slots]`: slots of the document that heads do not
            look at.
        next_position: of the token that follows the document, where it is not the number of its
            tokens: keys were rotated to stand side by side. None: it is.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.pressed = False
        self.masked: dict[int, Tensor] = {}
        self.next_position: int | None = None


def install_masks(model: Any) -> None:
    """Let each attention layer of a model make its own mask where the cache was pressed."""
    for layer in text_model(model).layers:
        layer.self_attn.register_forward_pre_hook(_with_own_mask, with_kwargs=True)


def _with_own_mask(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    cache = kwargs.get("past_key_values")
    if not isinstance(cache, PressedCache) or not cache.pressed:
        return None
    layer = cache.layers[module.layer_idx]
    if getattr(layer, "is_sliding", False):
        return None  # it was not pressed, and its mask is right: it counts tokens, not slots
    hidden = kwargs["hidden_states"]
    mask = chunk_mask(
        layer.get_seq_length(),
        hidden.shape[1],
        cache.masked.get(module.layer_idx),
        module.config.num_attention_heads,
        hidden.dtype,
        hidden.device,
    )
    return args, {**kwargs, "attention_mask": mask}


def chunk_mask(
    slots: int,
    new: int,
    masked: Tensor | None,
    heads: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """What is added to the attention scores of a chunk that follows the slots of a cache.

    Args:
        slots: that one layer holds.
        new: tokens of the chunk; they see all slots, and one another causally.
        masked: bool `[key/value heads, M]`, M at most `slots`: the first slots, true where not to
            be seen.
        heads: query heads; a whole number of them share a key/value head.
        dtype: of the scores.
        device: where they are.

    Returns:
        `[1, 1 or heads, new, slots + new]`; None where everything is seen.
    """
    if new == 1 and masked is None:
        return None
    least = torch.finfo(dtype).min
    mask = torch.zeros(1, 1 if masked is None else heads, new, slots + new, dtype=dtype)
    mask = mask.to(device)
    later = torch.ones(new, new, dtype=torch.bool, device=device).triu(1)
    mask[..., slots:].masked_fill_(later, least)
    if masked is not None:
        by_query = masked.to(device).repeat_interleave(heads // len(masked), 0)
        mask[..., : masked.shape[1]].masked_fill_(by_query[None, :, None], least)
    return mask
