"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from evaluation.problems import InputError


def write_atomically(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old content or the new, never a part.

    Raises `InputError` when the place cannot be written to; nothing is left behind then.
    """
    if path.is_dir() or not path.name:
        raise InputError(f"{path}: cannot be written (it is a folder)")
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with beside.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
