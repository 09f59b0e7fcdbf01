"""How much a press drops of a document, so that what is left fits.

kvpress takes a share, and each press makes numbers of tokens of it in its own way; floating point
and rounding decide the last token. So the share is searched: the smallest with which what is kept,
counted by the press' own arithmetic, is not more than what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from common.errors import InputError
from evaluation.backends.presses.library import PressSpec

_STEPS = 60
_MOST = 1 - 2**-40
"""Presses refuse a share of 1."""


@dataclass(frozen=True)
class Room:
    """What is counted: slots of single key/value heads.

    Attributes:
        tokens: of the document.
        numbers: of the layers that are pressed.
        of: layers of the model.
        heads: key/value heads of a layer.
    """

    tokens: int
    numbers: tuple[int, ...]
    of: int
    heads: int

    @property
    def layers(self) -> int:
        """Layers that are pressed."""
        return len(self.numbers)

    @property
    def per_token(self) -> int:
        """Slots of one token in all layers."""
        return self.layers * self.heads


def share_to_drop(spec: PressSpec, press: Any, room: Room, slots: int) -> float:
    """The share that a press must drop so that at most so many slots are kept.

    Args:
        spec: the press.
        press: made of it; for some, prepared for the model. Its share is left as it was.
        room: the document.
        slots: of all layers and key/value heads; fewer than the document has.

    Raises:
        InputError: the press always keeps more.
    """
    sized = sized_press(spec, press)
    before = sized.compression_ratio

    def kept(share: float) -> int:
        sized.compression_ratio = share
        return count_kept(spec, press, room)

    try:
        if kept(_MOST) > slots:
            raise InputError(
                f"{spec.name}: keeps at least {kept(_MOST) / room.per_token:g} tokens a layer of "
                f"{room.tokens}, more than {slots / room.per_token:g}"
            )
        low, high = 0.0, _MOST
        for _ in range(_STEPS):
            middle = (low + high) / 2
            if kept(middle) > slots:
                low = middle
            else:
                high = middle
        if kept(high) > slots - room.per_token:
            return high
        # PyramidKV's layers are rounded one by one, and its fallback jumps: more need not be less.
        near = (high + step / _STEPS / room.tokens for step in range(-3 * _STEPS, 3 * _STEPS))
        fitting = [share for share in near if 0 < share < _MOST and kept(share) <= slots]
        return max(fitting, key=kept, default=high)
    finally:
        sized.compression_ratio = before


def sized_press(spec: PressSpec, press: Any) -> Any:
    """The press object whose share is chosen: itself, or the one of several that drops tokens."""
    if spec.name != "ComposedPress":
        return press
    pairs = zip(spec.inner, press.presses, strict=True)
    return next(made for inner, made in pairs if inner.sized is not None)


def count_kept(spec: PressSpec, press: Any, room: Room) -> int:
    """Slots that a press keeps with the share that it has, or a few more than it does.

    Only ChunkKV (of its last, shorter chunk) and KVCompose (of layers that would keep nothing) may
    keep fewer than this.
    """
    if spec.name == "ComposedPress":
        inner = next(part for part in spec.inner if part.sized is not None)
        return count_kept(inner, sized_press(spec, press), room)
    return _COUNTS.get(spec.name, _of_all_alike)(press, room)


def _kept(tokens: int, share: float) -> int:
    """`kvpress.utils.compute_n_kept`, which nearly all presses use."""
    return max(1, int(tokens * (1 - share)))


def _of_all_alike(press: Any, room: Room) -> int:
    return room.per_token * _kept(room.tokens, press.compression_ratio)


def _of_pyramid(press: Any, room: Room) -> int:
    config = SimpleNamespace(num_hidden_layers=room.of)
    modules = (SimpleNamespace(config=config, layer_idx=number) for number in room.numbers)
    return room.heads * sum(press.get_layer_budget(module, room.tokens) for module in modules)


def _of_chunks(press: Any, room: Room) -> int:
    starts = range(0, room.tokens, press.chunk_length)
    lengths = (min(press.chunk_length, room.tokens - start) for start in starts)
    return room.per_token * sum(_kept(length, press.compression_ratio) for length in lengths)


def _of_whole_chunks(press: Any, room: Room) -> int:
    if room.tokens < press.chunk_length:
        return _of_all_alike(press, room)
    chunks = _kept(-(-room.tokens // press.chunk_length), press.compression_ratio)
    return room.per_token * min(room.tokens, chunks * press.chunk_length)


def _of_all_layers(press: Any, room: Room) -> int:
    if press.layerwise:
        slots = room.heads * room.tokens
        return room.layers * (slots - int(slots * press.compression_ratio))
    slots = room.per_token * room.tokens
    return slots - int(slots * press.compression_ratio)


def _of_compose(press: Any, room: Room) -> int:
    share, least = press.compression_ratio, press.keep_token_lower_bound
    if not press.structured:
        return _kept(room.per_token * room.tokens, share)
    # Layers that would keep fewer than the least keep that; one at least keeps more than its part.
    spare = (room.layers - 1) * max(1, least)
    return room.heads * (_kept(room.layers * room.tokens, share) + spare)


def _of_curves(press: Any, room: Room) -> int:
    """As LUKVPress.compress: shares by layer and head come from a curve in steps of 1 %."""
    if press.compression_ratio <= 0:
        return room.per_token * room.tokens
    step = max(0, min(98, int(round(press.compression_ratio * 100)) - 1))
    kept = 0
    for layer in range(room.layers):
        pruned = torch.as_tensor(press._budget_curves[step, layer], dtype=torch.float32)
        ideal = (1.0 - pruned).clamp(min=0.0, max=1.0) * room.tokens
        total = int(torch.round(ideal.sum()).item())
        total = max(room.heads, min(room.heads * room.tokens, total))
        counts = torch.floor(ideal).long()
        rest = total - int(counts.sum().item())
        if rest > 0:
            largest = torch.topk(ideal - counts, k=min(rest, room.heads)).indices
            counts[largest] += 1
        kept += int(counts.clamp_(min=1, max=room.tokens).sum().item())
    return kept


def _of_shares(press: Any, room: Room) -> int:
    kept = 0
    for number in room.numbers:
        share = press.compression_ratios[number]
        kept += _kept(room.tokens, share) if share else room.tokens
    return room.heads * kept


_COUNTS: dict[str, Callable[[Any, Room], int]] = {
    "ChunkKVPress": _of_whole_chunks,
    "ChunkPress": _of_chunks,
    "FastKVzipPress": _of_all_layers,
    "KVComposePress": _of_compose,
    "KVgradPress": _of_all_layers,
    "KVzipPress": _of_all_layers,
    "LUKVPress": _of_curves,
    "PerLayerCompressionPress": _of_shares,
    "PyramidKVPress": _of_pyramid,
}
