"""What other installed packages add: objects that they name in a group of entry points."""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from common.errors import InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def installed(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group, by name. Nothing of these packages is imported.

    Raises:
        InputError: two packages use the same name for different things.
    """
    return _installed(group, tuple(sys.path))


@lru_cache(maxsize=32)
def _installed(group: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """As `installed`, remembered for a search path: reading all packages takes milliseconds."""
    from importlib.metadata import entry_points  # takes a tenth of a second

    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise InputError(
                f"entry point {entry.name!r} of {group}: is both {other.value} and {entry.value}; "
                "uninstall one of the two packages"
            )
    return found


def load(entry: EntryPoint, what: str) -> Any:
    """The object that an entry point names.

    Args:
        entry: of `installed`.
        what: it is, for messages: `metric`.

    Raises:
        InputError: it cannot be imported.
    """
    try:
        return entry.load()
    except Exception as error:  # whatever the other package's code raises
        raise InputError(
            f"{where(entry, what)} cannot be imported: {error} ({type(error).__name__})"
        ) from error


def where(entry: EntryPoint, what: str) -> str:
    """An entry point in a message: `metric 'mine': entry point pkg:mine (ahn_bench.metrics)`."""
    return f"{what} {entry.name!r}: entry point {entry.value} ({entry.group})"
