"""Numbers of tokens and names of number types, as people write them: `128k`, `bf16`."""

from __future__ import annotations

import re
from typing import Any

_TOKENS = re.compile(r"\s*([0-9]{1,12})\s*([km])\s*", re.IGNORECASE)
_FACTORS = {"k": 1024, "m": 1024**2}
_DTYPES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "fp32": "float32",
    "f32": "float32",
    "fp64": "float64",
    "f64": "float64",
}


def token_count(value: Any) -> Any:
    """`128k` as 128 x 1024 and `1m` as 1024 x 1024 tokens; any other value as it is.

    This is the one place that gives the letters a meaning: benchmarks name their lengths in powers
    of two (`128k` is 131072).
    """
    match = _TOKENS.fullmatch(value) if isinstance(value, str) else None
    return int(match[1]) * _FACTORS[match[2].lower()] if match else value


def dtype_name(value: Any) -> Any:
    """The full name of a number type, `bfloat16` for `bf16`; any other value as it is."""
    return _DTYPES.get(value.strip().lower(), value) if isinstance(value, str) else value
