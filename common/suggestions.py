"""Did you mean ...? The known names that are nearest to one that is not known."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], most: int = 3, cutoff: float = 0.6) -> list[str]:
    """Up to `most` known names, the nearest first. Case, `-`, `_` and `@` do not count.

    Args:
        name: what was given.
        known: what there is.
        most: how many are named at most.
        cutoff: least similarity, from 0 to 1 (`difflib`).
    """
    import difflib  # here, since only an error needs it

    by_plain = {_plain(candidate): candidate for candidate in known}
    found = difflib.get_close_matches(_plain(name), list(by_plain), n=most, cutoff=cutoff)
    return [by_plain[plain] for plain in found]


def did_you_mean(name: str, known: Iterable[str], most: int = 3, cutoff: float = 0.6) -> str:
    """`; did you mean 'x' or 'y'?` to be put behind a message; empty where no name is near."""
    found = nearest(name, known, most, cutoff)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace("@", "_")
