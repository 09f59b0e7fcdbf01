"""JSON as it is meant: each key once, and numbers that are numbers.

`json.loads` keeps the last of two equal keys, reads NaN and Infinity, which JSON has not, and
makes infinity of 1e999, all without a word.
"""

from __future__ import annotations

import json
import math
from typing import Any


def loads(text: str) -> Any:
    """The value that `text` is.

    Raises:
        json.JSONDecodeError: it is not JSON.
        ValueError: it is, but a key is given twice, or a number cannot be read as it stands; the
            text says which.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)


def raw_decode(text: str, at: int) -> tuple[Any, int]:
    """The value that stands in `text` from `at` on, and where it ends; raises as `loads`."""
    return _DECODER.raw_decode(text, at)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} is given twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        shown = text if len(text) < 40 else f"{text[:20]}..."
        raise ValueError(f"{shown} is out of range")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
