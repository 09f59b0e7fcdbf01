"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from common.files import kind_of, shown
from evaluation.problems import InputError


def check_writable(path: Path) -> None:
    """`InputError` where `path` is a folder, or its folder is absent or closed to us."""
    folder = path.absolute().parent
    try:
        is_folder = path.is_dir() or not path.name
    except OSError as error:  # a name that is too long
        raise InputError(f"{shown(path)}: cannot be written ({error.strerror or error})") from error
    if is_folder:
        raise InputError(f"{shown(path)}: cannot be written (it is a folder)")
    if not folder.is_dir():
        raise InputError(f"{shown(path)}: cannot be written (there is no folder {shown(folder)})")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{shown(path)}: cannot be written (no permission in {shown(folder)})")
    if (kind := kind_of(path)) not in (None, "a file"):  # replacing it would destroy it
        raise InputError(f"{shown(path)}: cannot be written (it is {kind}, not a file)")


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` so that a reader sees the old content or the new, never a part.

    Raises `InputError` when the place cannot be written to; nothing is left behind then.
    """
    check_writable(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with beside.open("wb") as file:
                file.write(
                    content
                    if isinstance(content, bytes)
                    else content.encode("utf-8", "backslashreplace")
                )
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{shown(path)}: cannot be written ({error.strerror or error})") from error
