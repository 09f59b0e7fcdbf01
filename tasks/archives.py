"""One member of a zip archive, whatever folder it lies in there."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

from tasks.schema import InputError


def read_member(path: Path, wanted: str) -> tuple[str, bytes]:
    """Name and content of the member of the archive `path` whose file name is `wanted`.

    Members that packing on a Mac adds (`__MACOSX/`, `._name`) are no rows. InputError when the
    archive is damaged or cut off, is locked by a password, or does not have exactly one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
            members = [name for name in names if name.split("/")[-1] == wanted]
            if len(members) != 1:
                raise InputError(f"{path}: has {len(members)} members named {wanted}, not one")
            return members[0], archive.read(members[0])
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: is not a whole zip file: {error}") from None
    except (NotImplementedError, RuntimeError) as error:  # an unknown compression; a password
        raise InputError(f"{path}: cannot be unpacked: {error}") from None
