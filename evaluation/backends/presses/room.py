"""What a press may keep of a document, and what it then holds: arithmetic on a model's config."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from common.errors import InputError
from evaluation.backends.presses.library import PressSpec, Size
from evaluation.backends.presses.sizes import Room, count_kept, share_to_drop, sized_press

FAMILIES = ("llama", "mistral", "phi3", "qwen2", "qwen3", "gemma3")
"""Values of `model_type` that kvpress has been made for."""
_COUNTER = 8
"""Bytes of the number in which a sliding layer of transformers keeps its width."""
_FOUND_WHEN_READ = {"ChunkKVPress", "KVComposePress", "LUKVPress"}
"""Presses that may keep fewer than they may, which depends on the document or on a download."""


@dataclass(frozen=True)
class Layers:
    """The caches of a model's layers.

    Attributes:
        windows: of each layer: tokens that a sliding layer keeps; None: all.
        heads: key/value heads.
        slot: bytes of key and value of one head at one position.
    """

    windows: tuple[int | None, ...]
    heads: int
    slot: int

    @classmethod
    def of(cls, config: Any, dtype_bytes: int) -> Layers:
        """Those of a model, from its configuration."""
        from transformers import DynamicCache

        text = config.get_text_config(decoder=True)
        queries = text.num_attention_heads
        heads = getattr(text, "num_key_value_heads", None) or queries
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // queries
        made = DynamicCache(config=config).layers
        windows = tuple(
            layer.sliding_window - 1 if getattr(layer, "is_sliding", False) else None
            for layer in made
        )
        return cls(windows, heads, 2 * head_dim * dtype_bytes)

    @property
    def pressed(self) -> int:
        """Layers that are pressed: those that would keep all tokens."""
        return self.windows.count(None)

    def sliding_tokens(self, tokens: int) -> int:
        """Tokens that the sliding layers hold together after so many."""
        return sum(min(tokens, window) for window in self.windows if window is not None)

    def sliding_bytes(self, tokens: int) -> int:
        """Bytes that the sliding layers hold after so many tokens."""
        number = len(self.windows) - self.pressed
        return self.sliding_tokens(tokens) * self.heads * self.slot + number * _COUNTER

    def room(self, tokens: int) -> Room:
        """The slots of a document in the layers that are pressed."""
        numbers = tuple(n for n, window in enumerate(self.windows) if window is None)
        return Room(tokens, numbers, len(self.windows), self.heads)


@dataclass(frozen=True)
class Target:
    """What may be kept of one document.

    Attributes:
        whole: it is kept whole: it is no longer than what may be kept.
        slots: of all pressed layers and their key/value heads; None: the press' own settings say.
    """

    whole: bool
    slots: int | None


def target_of(
    spec: PressSpec, size: Size, layers: Layers, tokens: int, budget: int | None
) -> Target:
    """What may be kept of a document.

    Args:
        spec: the press.
        size: what the variant was asked for.
        layers: of the model.
        tokens: of the document.
        budget: bytes; None: `size`, or the press' own settings.

    Raises:
        InputError: nothing says how much, or the budget holds less than a token, or than what the
            press always keeps.
    """
    room = layers.room(tokens)
    all_slots = tokens * room.per_token
    kept = size.tokens(tokens)
    if kept is not None:
        slots = kept * room.per_token
    elif budget is not None and spec.sized is not None:
        # Where tokens are masked they stay: the budget then counts what is still looked at.
        slots = (budget - layers.sliding_bytes(tokens)) // layers.slot
        if slots < room.per_token:
            raise InputError(
                f"{spec.name}: a budget of {budget:,} bytes holds no token of this model: a token "
                f"takes {room.per_token * layers.slot:,} bytes, and sliding layers "
                f"{layers.sliding_bytes(tokens):,}"
            )
    elif spec.sized is not None:
        raise InputError(f"{spec.name}: how much may be kept of a document is not said")
    else:
        return Target(False, None)
    if slots >= all_slots:
        return Target(True, all_slots)
    if slots // room.per_token < spec.least:
        raise InputError(
            f"{spec.name}: {slots // room.per_token} tokens a layer may be kept, fewer than the "
            f"{spec.least} that it always keeps: choose a smaller window_size or n_sink"
        )
    return Target(False, slots)


@dataclass(frozen=True)
class Kept:
    """What is left of a document in the layers that are pressed, before it was read.

    Attributes:
        visible: slots of all layers and key/value heads that are looked at.
        stored: those that are held.
        mask: bytes of the masks.
    """

    visible: int
    stored: int
    mask: int = 0


def kept_of(
    spec: PressSpec, size: Size, layers: Layers, tokens: int, budget: int | None
) -> Kept | None:
    """What is left of a document by arithmetic; None: it depends on the document.

    Raises:
        InputError: as `target_of`.
    """
    target, room = target_of(spec, size, layers, tokens, budget), layers.room(tokens)
    everything = tokens * room.per_token
    if target.whole or spec.name == "ThinKPress":
        return Kept(everything, everything)
    press = spec.make()
    if target.slots is not None and not {part.name for part in spec.all} & _FOUND_WHEN_READ:
        share = share_to_drop(spec, press, room, target.slots)
        sized_press(spec, press).compression_ratio = share
    elif spec.name != "PerLayerCompressionPress":
        return None
    slots = count_kept(spec, press, room)
    if masks_heads(spec):
        return Kept(slots, everything, everything)
    return Kept(slots, slots)


def bytes_held(kept: Kept, layers: Layers, document: int, after: int = 0) -> int:
    """Bytes of the cache with so many tokens after the document."""
    grown = kept.stored + layers.room(document).per_token * after
    return grown * layers.slot + kept.mask + layers.sliding_bytes(document + after)


def masks_heads(spec: PressSpec) -> bool:
    """Whether tokens are masked head by head."""
    return "masked" in spec.masks


def tokens_a_layer(slots: int, layers: Layers) -> float:
    """Slots of all layers and heads as tokens, mean over the layers."""
    return float(Fraction(slots, len(layers.windows) * layers.heads))
