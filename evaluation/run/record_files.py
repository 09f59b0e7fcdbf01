"""Record files, mended: what is no record is moved beside the file, never deleted."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import InputError
from common.writing import write_whole
from reports.run_folders import RecordLine


def rejected_path(path: Path) -> Path:
    """Where lines go that are no records of the file: ``<task>.jsonl.rejected``."""
    return path.with_name(f"{path.name}.rejected")


def write_lines(path: Path, lines: Iterable[RecordLine]) -> None:
    """Replace the file's content by `lines`, byte for byte; line ends are made newlines."""
    kept = (line.raw.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r") for line in lines)
    write_whole(path, b"".join(line + b"\n" for line in kept))


def set_aside(path: Path, lines: Sequence[RecordLine], rejected: Sequence[RecordLine]) -> None:
    """Move the lines `rejected` of `lines`, all of a file, to `rejected_path`.

    A crash in between leaves a line in both places, none in neither.
    """
    try:
        with rejected_path(path).open("ab") as file:
            file.write(b"".join(line.raw + b"\n" for line in rejected))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(
            f"{rejected_path(path)}: cannot be written ({error.strerror or error})"
        ) from error
    numbers = {line.number for line in rejected}
    write_lines(path, [line for line in lines if line.number not in numbers])
