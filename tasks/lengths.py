"""Lengths of generated texts as people write them: 131072, 128k, 1m."""

from __future__ import annotations

import re

from common.errors import InputError

MAX_LENGTH = 16 * 1024**2
"""Tokens: beyond it a slip of the pen is likelier than a wish."""
_LENGTH = re.compile(r"\s*([0-9]{1,12})\s*([km]?)\s*", re.IGNORECASE)


def parse_length(length: str | int) -> int:
    """A length in tokens: 131072, "131072", "128k" (128 * 1024) or "1m" (1024 * 1024).

    InputError for anything else, and beyond `MAX_LENGTH`.
    """
    match = _LENGTH.fullmatch(str(length))
    if match is None:
        raise InputError(
            f"--length: {length!r} should be a number of tokens, as 131072, 128k or 1m"
        )
    tokens = int(match[1]) * {"": 1, "k": 1024, "m": 1024**2}[match[2].lower()]
    if not 0 < tokens <= MAX_LENGTH:
        raise InputError(f"--length: {length!r} should be between 1 and {MAX_LENGTH} tokens")
    return tokens
