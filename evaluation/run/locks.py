"""One process writes into a run folder: it holds ``<run>/.lock``, which dies with it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from common.errors import InputError

LOCK_FILE = ".lock"
_TRIES, _PAUSE = 5, 0.05  # whoever only looks holds the lock for some microseconds


class FolderLock:
    """The lock of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. `InputError` where another process has it, OSError where none can be."""
        lock = os.open(self._folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            for attempt in range(_TRIES):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if attempt == _TRIES - 1:
                        who = _process(lock)
                        raise InputError(
                            f"--output: {self._folder} is being written by another process{who}"
                        ) from None
                    time.sleep(_PAUSE)
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
        except BaseException:
            os.close(lock)
            raise
        self._descriptor = lock

    def claim(self, description: str, begin: Callable[[], None]) -> None:
        """Make the folder where it is not there, take the lock, and begin to use it.

        Where that fails the lock is let go, and a folder that was made for it is gone again.

        Args:
            description: the file that says what the folder holds: with it, it stays.
            begin: looks at what is there, and writes what comes first.

        Raises:
            InputError: the folder cannot be written, or another process has it; and whatever
                `begin` raises.
        """
        created = not self._folder.exists()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self.acquire()
        except OSError as error:
            raise InputError(
                f"--output: {self._folder} cannot be written ({error.strerror or error})"
            ) from error
        try:
            begin()
        except BaseException:
            self.release()
            if created and not (self._folder / description).exists():
                (self._folder / LOCK_FILE).unlink(missing_ok=True)
                self._folder.rmdir()
            raise

    def release(self) -> None:
        """Let go of it; the kernel does that too when the process is killed."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(folder: Path) -> str | None:
    """Whether a process writes into `folder`: `" (its number)"` or `""`; None: nobody does."""
    try:
        lock = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _process(lock)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(lock)
    return None


def _process(lock: int) -> str:
    holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
    return f" ({holder})" if holder else ""
