"""The largest window, or most pooled slots, that a number of bytes allows. Arithmetic, no torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from ahn.config import MOST_TOKENS, LayerLayout
from ahn.cost.accounting import CacheBytes, layout_bytes
from ahn.cost.shapes import ModelShape
from common.errors import InputError

Size = Literal["window", "slots"]
SIZES: tuple[str, ...] = get_args(Size)

#: after so many tokens every layer holds all that it will ever hold
_FOR_EVER = 10**30


def fit_layouts(
    shape: ModelShape,
    layouts: Sequence[LayerLayout],
    budget: int,
    size: str = "window",
    *,
    tokens: int | None = None,
    dtype_bytes: int = 2,
    batch_size: int = 1,
) -> tuple[LayerLayout, ...]:
    """The same layouts, as large as they can be with caches of at most so many bytes.

    All layers with a window get the same one (`size="window"`), or all layers with pooled slots
    the same number of slots (`size="slots"`); everything else stays. Bytes are those of the "exact"
    accounting. A slot of keys and values takes `t = 2 K d e` bytes in a layer, so a layer with
    `budget / layers = n t` holds a window of `n - S` tokens, or with pooled slots at rate c
    `S + W + c - 1 + M = n`.

    Args:
        shape: the base model.
        layouts: one for each layer.
        budget: bytes of the caches of all layers.
        size: what is chosen: `window` or `slots`.
        tokens: of the text that is read. Slots are allocated in blocks, so that short texts may
            hold more of themselves: the bytes keep within the budget after these tokens, later
            ones may exceed it. At most as large as the text needs. None: after any number of
            tokens the bytes keep within the budget, which layers with full attention cannot do.
        dtype_bytes: bytes of one element of the model's type (2: bfloat16).
        batch_size: sequences.

    Raises:
        InputError: no layer has such a size, or the smallest one takes more than the budget.
    """
    if size not in SIZES:
        raise InputError(f"size {size!r} is unknown; one of {', '.join(SIZES)}")
    if not any(_has(layout, size) for layout in layouts):
        what = "pooled slots" if size == "slots" else "a window"
        raise InputError(f"no layer has {what}, so there is nothing to choose the size of")
    if tokens is None and any(layout.window is None for layout in layouts):
        raise InputError(
            "layers with full attention grow with the text: say after how many tokens the bytes "
            "count (tokens)"
        )
    length = _FOR_EVER if tokens is None else tokens

    def sized(number: int) -> tuple[LayerLayout, ...]:
        return _with(layouts, size, number)

    def held(number: int) -> CacheBytes:
        return layout_bytes(
            shape, sized(number), length, dtype_bytes=dtype_bytes, batch_size=batch_size
        )

    def within(most: int, apart: int) -> int:
        """The largest size up to `most` whose bytes, but for those `apart`, leave room for them."""

        def needed(number: int) -> int:
            found = held(number)
            return found.total - (found.pooled if size == "window" else 0) + apart

        return bisect_right(range(1, most + 1), budget, key=needed)

    most = MOST_TOKENS
    if tokens is not None:
        longest = max(layout.groups(tokens) for layout in layouts) if size == "slots" else tokens
        most = min(most, max(longest, 1))
    while most:
        # a longer window leaves fewer groups to pool: bytes of both are not monotonic together
        found = within(most, held(most).pooled if size == "window" else 0)
        if found == most:
            return sized(most)
        most = found
    least = held(1).total
    raise InputError(
        f"{budget:,} bytes hold no {'pooled slot' if size == 'slots' else 'window'}: one of 1 "
        f"takes {least:,} with the rest of the layout"
    )


def smallest(layouts: Sequence[LayerLayout], size: str) -> tuple[LayerLayout, ...]:
    """The same layouts with the smallest window or number of slots, see `fit_layouts`."""
    return _with(layouts, size, 1)


def _has(layout: LayerLayout, size: str) -> bool:
    return bool(layout.slots if size == "slots" else layout.window)


def _with(layouts: Sequence[LayerLayout], size: str, number: int) -> tuple[LayerLayout, ...]:
    return tuple(
        replace(layout, **{size: number}) if _has(layout, size) else layout  # type: ignore[arg-type]
        for layout in layouts
    )
