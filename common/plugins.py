"""What other installed packages add: objects that they name in a group of entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from common.errors import InputError


def installed(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group, by name. Nothing is imported.

    Raises:
        InputError: two packages use the same name for different things.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            raise InputError(
                f"entry point {entry.name!r} of {group}: is both {other.value} and {entry.value}; "
                "uninstall one of the two packages"
            )
    return found


def load(entry: EntryPoint) -> Any:
    """The object that an entry point names.

    Raises:
        InputError: it cannot be imported.
    """
    try:
        return entry.load()
    except Exception as error:  # whatever the other package's code raises
        raise InputError(
            f"entry point {entry.name!r} of {entry.group}: {entry.value} cannot be loaded "
            f"({type(error).__name__}: {error})"
        ) from error
