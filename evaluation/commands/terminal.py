"""The terminal that tables and bars are written to."""

from __future__ import annotations

from rich.console import Console

_WIDTH_WITHOUT_TERMINAL = 140


def console(stderr: bool = False) -> Console:
    """A console that is wide enough for the tables also where the output is no terminal."""
    found = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not found.is_terminal:
        found = Console(stderr=stderr, highlight=False, width=_WIDTH_WITHOUT_TERMINAL)
    return found
