"""One member of a zip archive, whatever folder it lies in there."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from common.errors import InputError, shown
from common.files import open_file

# Their unpacking can be stopped at any byte; that of the others comes in blocks of any size.
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}


def find_member(path: Path, wanted: str) -> str | None:
    """The member of the archive `path` whose file name is `wanted`, with its folders.

    Members that packing on a Mac adds (`__MACOSX/`, `._name`) are no rows. None when there is none;
    InputError when there are several, or the archive is damaged or cut off.
    """
    with _open(path) as archive:
        members = [name for name in archive.namelist() if _is_named(name, wanted)]
    if len(members) > 1:
        raise InputError(f"{shown(path)}: has {len(members)} members named {wanted}, not one")
    return members[0] if members else None


def _is_named(member: str, wanted: str) -> bool:
    *folders, name = member.split("/")
    return name == wanted and "__MACOSX" not in folders[:1]


@contextmanager
def open_member(path: Path, member: str) -> Iterator[BinaryIO]:
    """The content of a member of the archive `path`, by its whole name.

    InputError when the archive is damaged or locked by a password. How long the content is, is
    known when it has been read: the archive itself may say anything.
    """
    with _open(path) as archive:
        try:
            if archive.getinfo(member).compress_type not in _METHODS:
                raise NotImplementedError("it is compressed by an uncommon method")
            content = archive.open(member)
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise InputError(f"{shown(path)}: is not a whole zip file: {error}") from None
        except (NotImplementedError, RuntimeError) as error:  # the latter: a password
            raise InputError(f"{shown(path)}: cannot be unpacked: {error}") from None
        with content:
            # zipfile's own lines are put together from small pieces.
            yield cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, content), 1 << 20))


@contextmanager
def _open(path: Path) -> Iterator[zipfile.ZipFile]:
    with open_file(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
            raise InputError(f"{shown(path)}: is not a whole zip file: {error}") from None
        with archive:
            yield archive
