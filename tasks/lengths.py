"""Lengths of generated texts as people write them: 131072, 128k, 1m."""

from __future__ import annotations

import re

from common.errors import InputError
from common.quantities import token_count

MAX_LENGTH = 16 * 1024**2
"""Tokens: beyond it a slip of the pen is likelier than a wish."""
_PLAIN = re.compile(r"\s*[0-9]{1,12}\s*")


def parse_length(length: str | int) -> int:
    """A length in tokens: 131072, "131072", "128k" (128 * 1024) or "1m" (1024 * 1024).

    Raises:
        InputError: anything else, and lengths beyond `MAX_LENGTH`.
    """
    tokens = token_count(str(length))
    if isinstance(tokens, str) and _PLAIN.fullmatch(tokens):
        tokens = int(tokens)
    if not isinstance(tokens, int):
        raise InputError(
            f"--length: {length!r} should be a number of tokens, as 131072, 128k or 1m"
        )
    if not 0 < tokens <= MAX_LENGTH:
        raise InputError(f"--length: {length!r} should be between 1 and {MAX_LENGTH} tokens")
    return tokens
