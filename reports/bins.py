"""Bins of token counts: round edges, and how they are written."""

from __future__ import annotations

import math

_MOST_EQUAL_BINS = 6
_OCTAVES_FROM = 6  # a range of counts this many times its least is divided into octaves


def edges_of(least: int, most: int) -> list[int]:
    """Round edges of bins over [least, most]: octaves for a wide range, else equal steps."""
    if most >= _OCTAVES_FROM * max(least, 1):
        first = math.floor(math.log2(max(least, 1)))
        edges = [2**power for power in range(first, math.floor(math.log2(most)) + 2)]
        return [0, *edges] if least < edges[0] else edges
    step = 1
    while (most - least) / step > _MOST_EQUAL_BINS:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    first = least // step * step
    return [first + i * step for i in range((most - first) // step + 2)]


def short_tokens(tokens: int) -> str:
    """1536 as it is, 2048 as 2k."""
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)


def tokens_of(level: str) -> float:
    """The tokens that a level as '16k' or '1m' names, to sort by; infinite for no number."""
    units = {"k": 2**10, "m": 2**20}
    unit = units.get(level[-1:].lower())
    digits = level if unit is None else level[:-1]
    return int(digits) * (unit or 1) if digits.isascii() and digits.isdigit() else math.inf
