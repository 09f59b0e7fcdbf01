"""What training needs of a file system: why a write failed, locks, modes, folders left behind."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOTHING = 1 << 20  # bytes; a disk with less is full


def first_line(error: BaseException) -> str:
    """What an error of a library says, without its explanations."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def why_not_written(error: BaseException, folder: Path) -> str:
    """Why something could not be written to `folder`; says so where the disk is full.

    Libraries that write weights do not pass on the system's error number: then the room that is
    left decides. Call it before what was written in part is removed.
    """
    full = getattr(error, "errno", None) in _FULL or "No space left" in str(error)
    free = None
    there = next((path for path in (folder, *folder.parents) if path.is_dir()), None)
    with suppress(OSError):
        free = None if there is None else shutil.disk_usage(there).free
    if full or (free is not None and free < _NOTHING):
        left = "" if free is None else f"{free / 1e6:,.1f} MB free "
        return f"the disk is full ({left}at {there}): {first_line(error)}"
    return first_line(error)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds a lock file, waiting for as long as another process on this file system holds it.

    The lock ends with the process that holds it. Where a file system has no locks there is none:
    the caller's work must be right, if done twice, without it.

    Raises:
        OSError: the file cannot be made.
    """
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("waiting for another process, which holds %s", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning("%s: no locks on this file system (%s)", path, error.strerror)
        yield


def honour_umask(folder: Path) -> None:
    """Give the files in `folder` the mode that a plain `open` gives.

    safetensors makes its files readable by their owner alone, whatever the umask is.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~mask)


@contextmanager
def no_empty_folders(*folders: Path) -> Iterator[None]:
    """Where the block ends with an error, folders that it made and left empty are removed.

    Args:
        folders: the deepest; those above them that are made on the way are removed, too.
    """
    absent = [
        place
        for folder in folders
        for place in (folder.absolute(), *folder.absolute().parents)
        if not os.path.lexists(place)
    ]
    try:
        yield
    except BaseException:
        for place in sorted(set(absent), key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # not empty, or never made
                place.rmdir()
        raise
