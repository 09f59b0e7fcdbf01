"""Opening what a user names: regular files only, and never more of them than is allowed.

A named pipe blocks whoever opens it, a device never ends, and a small compressed file can unpack
to any size. So files that come from outside are opened here.
"""

from __future__ import annotations

import errno
import gzip
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Protocol, cast

from common.errors import InputError, shown

Path = str | os.PathLike[str]

_GZIP = b"\x1f\x8b"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Stream(Protocol):
    """What lines are read from: an open file, plain or unpacked on the way."""

    def readline(self, size: int, /) -> bytes:
        """At most `size` bytes of the next line, with its end; none at the end."""


class Digest(Protocol):
    """What hashes the bytes that are read, as of `hashlib`."""

    def update(self, data: bytes, /) -> None:
        """Add these bytes."""


def kind_of(path: Path) -> str | None:
    """What a path names: `"a file"`, `"a folder"`, `"a named pipe"` ...; None: nothing.

    Also where the path cannot exist, being too long or having a null byte in it. InputError where
    the system does not tell, as in a folder that is closed to us.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise InputError(f"{shown(path)}: cannot be read: {error.strerror}") from None
    return "a file" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Returns:
        The open file, buffered, in binary.

    Raises:
        InputError: there is none, it cannot be read, or it is a folder, pipe or device, which are
            told without waiting for them.
    """
    found = kind_of(path)
    if found is None:
        raise InputError(f"{shown(path)}: no such file")
    if found != "a file":
        raise InputError(f"{shown(path)}: is {found}, not a file{_remedy(found)}")
    try:
        # Not to wait should it have become a pipe in the meantime.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{shown(path)}: cannot be read: {error.strerror or error}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{shown(path)}: is no regular file")
    return os.fdopen(descriptor, "rb")


def _remedy(kind: str) -> str:
    return "" if kind == "a folder" else "; write what it gives to a file first"


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes; InputError as of `open_file`."""
    with open_file(path) as file:
        return read_stream(file, shown(path), most)


def read_stream(stream: BinaryIO, name: str, most: int) -> bytes:
    """All of a stream that has at most `most` bytes; InputError, which names it, otherwise."""
    try:
        content = stream.read(most + 1)
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}") from None
    if len(content) > most:
        raise InputError(f"{name}: is longer than the {size(most)} that are read")
    return content


def read_text(path: Path, most: int) -> str:
    """The content of a regular UTF-8 file of at most `most` bytes, without a byte order mark.

    Raises:
        InputError: as of `open_file`; or it is too long, or not UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{shown(path)}: is not UTF-8 (byte {error.start + 1})") from None


def open_unpacked(path: Path) -> BinaryIO:
    """Open a regular file, as `open_file`; gzip, which is told by its content, comes unpacked."""
    file = open_file(path)
    try:
        packed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
    except OSError as error:
        file.close()
        raise InputError(f"{shown(path)}: cannot be read: {error.strerror or error}") from None
    return cast(BinaryIO, _Gunzipped(file)) if packed else file


class _Gunzipped(gzip.GzipFile):
    """Closes the file below it, too."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._below = file

    def close(self) -> None:
        """Close both."""
        super().close()
        self._below.close()


def lines(
    stream: Stream, name: str, *, most_line: int, most: int, digest: Digest | None = None
) -> Iterator[bytes]:
    """The lines of a stream, each without its end, which is "\\n" only.

    Args:
        stream: read from where it stands; never held whole.
        name: for messages.
        most_line: longest line, in bytes.
        most: bytes of all lines together, counted as they come: what a header says of the size
            of packed content is not believed.
        digest: is told all bytes that are read.

    Raises:
        InputError: a line, or all together, is longer; or it cannot be read to its end.
    """
    number, total = 0, 0
    while True:
        number += 1
        with _readable(stream, name):
            line = stream.readline(most_line + 2)  # its end, and one more to tell by
        if not line:
            return
        total += len(line)
        content = line.removesuffix(b"\n")
        if len(content) > most_line:
            raise InputError(f"{name}:{number}: is longer than a line may be ({size(most_line)})")
        if total > most:
            raise InputError(f"{name}: holds more than the {size(most)} that are read of a file")
        if digest is not None:
            digest.update(line)
        yield content


def read_piece(stream: BinaryIO, name: str, most: int) -> bytes:
    """At most so many bytes of a stream, read from where it stands; none at its end.

    InputError, with the `name` of the file, where it cannot be read.
    """
    with _readable(stream, name):
        return stream.read(most)


@contextmanager
def _readable(stream: Stream, name: str) -> Iterator[None]:
    """InputError for what is raised where a stream cannot be read to its end."""
    try:
        yield
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{name}: cannot be read: {error.strerror}") from None
        packed = isinstance(stream, gzip.GzipFile)
        what = "is not a whole gzip file" if packed else "cannot be unpacked whole"
        raise InputError(f"{name}: {what}: {error}") from None


def size(count: int) -> str:
    """A number of bytes in words: `128 MiB`."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} bytes"
