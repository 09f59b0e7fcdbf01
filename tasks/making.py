"""What rows are made with that belong to one tokenizer (`made_for_tokenizer` of a benchmark)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Making:
    """A tokenizer as a generator of rows needs it, and the user's files.

    Attributes:
        count: tokens of a text, special ones not added.
        read_back: a text after it was made tokens and these text again; a tokenizer that cannot
            write all of it gives less.
        tokenizer_sha256: digest (hex) of the tokenizer.
        reserved: tokens of a length that are left to the chat template.
        files: texts of the user's, by the names that the generator gives them.
    """

    count: Callable[[str], int]
    read_back: Callable[[str], str]
    tokenizer_sha256: str
    reserved: int = 0
    files: Mapping[str, Path] = field(default_factory=dict)
