"""Files and folders that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import InputError, shown
from common.files import kind_of


def check_writable(path: Path) -> None:
    """Refuse a place where no file can be written.

    Raises:
        InputError: `path` is a folder, pipe or device, or its folder is absent or closed to us.
    """
    folder = path.absolute().parent
    try:
        is_folder = path.is_dir() or not path.name
    except (OSError, ValueError) as error:  # a name that is too long, or has a null byte
        raise _unwritable(path, error) from error
    if is_folder:
        raise InputError(f"{shown(path)}: cannot be written (it is a folder)")
    if not folder.is_dir():
        raise InputError(f"{shown(path)}: cannot be written (there is no folder {shown(folder)})")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{shown(path)}: cannot be written (no permission in {shown(folder)})")
    if (kind := kind_of(path)) not in (None, "a file"):  # replacing it would destroy it
        raise InputError(f"{shown(path)}: cannot be written (it is {kind}, not a file)")


def check_folder_writable(folder: Path) -> None:
    """Refuse a folder that can be neither made nor written to. Makes none.

    Raises:
        InputError: `folder`, or the nearest folder above it that there is, is a file or closed.
    """
    place = folder.absolute()
    there = next(path for path in (place, *place.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise InputError(f"{shown(there if there != place else folder)} is a file, not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{shown(folder)} cannot be written (no permission in {shown(there)})")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a new file beside `path`, which replaces it when the block ends without error.

    A reader sees the old content or the new, never a part; after an error, or a kill, the old one
    is there. What was written is on the disk (fsync) before it is renamed.

    Raises:
        InputError: `path` cannot be written to.
    """
    check_writable(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            yield beside
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) to `path`, as `replacing` does.

    Raises:
        InputError: the place cannot be written to; nothing is left behind then.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    with replacing(path) as beside:
        beside.write_bytes(data)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, which becomes it when the block ends without error.

    What `folder` held before is deleted then; whether it may be is for the caller to check.

    Raises:
        InputError: it cannot be written; nothing is left there, and the old content stays.
    """
    made: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        yield made
        made.chmod(0o777 & ~_umask())
        if folder.exists() and any(folder.iterdir()):
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            os.replace(folder, old)
            os.replace(made, folder)
            shutil.rmtree(old)
        else:
            os.replace(made, folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"{shown(folder)}: could not be written ({reason}); nothing was left there"
        ) from error
    finally:
        if made is not None and made.exists():
            shutil.rmtree(made, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _unwritable(path: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{shown(path)}: cannot be written ({reason})")
