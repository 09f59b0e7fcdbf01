"""Where a local folder or file has a task's rows, in the layouts that people have.

An adapter (`tasks.schema.RowAdapter`) says in which folders and archives a benchmark's authors put
them; here are the file types: JSON lines (plain or gzip), a JSON list, Parquet whole or in parts,
folders that `datasets` saved, and zip archives.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from common import json as strict
from common.errors import InputError, shown
from common.files import Digest, kind_of, open_file, open_unpacked, read_text
from tasks.archives import find_member, open_member
from tasks.jsonl import Bad, Line, stream_array, stream_objects
from tasks.schema import Task
from tasks.tables import arrow_rows, parquet_rows

_JSONL = (".jsonl", ".jsonl.gz")
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
_MOST_STATE_BYTES = 2**20
_SHARD = re.compile(r"(.*?)-?([0-9]+)-of-([0-9]+)(?:-[0-9a-f]{16})?")


@dataclass(frozen=True)
class Part:
    """One file with rows of a task."""

    path: Path
    member: str | None = None
    """Of a zip archive, with its folders; None: it is none."""

    @property
    def name(self) -> str:
        """The path, with the member of an archive behind it."""
        return str(self.path) if self.member is None else f"{self.path}/{self.member}"

    def rows(self, digest: Digest) -> Iterator[Line | Bad]:
        """The rows, one at a time; InputError when the file cannot be read.

        `digest` has been told all of the content, unpacked, when all rows have been read.
        """
        if self.path.suffix in _TABLES:
            yield from _TABLES[self.path.suffix](self.path)
            with open_file(self.path) as file:
                _add(file, digest)
        else:
            read = stream_array if self.path.suffix == ".json" else stream_objects
            with self._open() as content:
                yield from read(content, shown(self.name), digest)

    def _open(self) -> AbstractContextManager[BinaryIO]:
        if self.member is None:
            return open_unpacked(self.path)
        return open_member(self.path, self.member)

    def sha256(self) -> str:
        """SHA-256 (hex) of the content, unpacked."""
        digest = hashlib.sha256()
        if self.path.suffix in _TABLES:
            with open_file(self.path) as file:
                _add(file, digest)
        else:
            deque(self.rows(digest), maxlen=0)
        return digest.hexdigest()


_TABLES = {".parquet": parquet_rows, ".arrow": arrow_rows}


def _add(file: BinaryIO, digest: Digest) -> None:
    while block := file.read(1 << 20):
        digest.update(block)


def find_parts(task: Task, data: Path) -> list[Part]:
    """The files with the rows of `task` in `data`, in the order of their rows.

    `data` is a folder, or the file or archive itself. Rows lie in it as its benchmark's authors or
    the hub lay them out, or do so in one folder below.

    Raises:
        InputError: there are none, they lie in several places that are not the same, or not all
            parts are there.
    """
    found = kind_of(data)
    if found is None:
        raise InputError(f"data folder {shown(data)} does not exist")
    if found == "a file":
        places = _in_file(task, data)
        if not places:
            raise InputError(
                f"task {task.name!r}: {shown(data)} is not named as its rows are, which is "
                f"{', '.join(_names(task))}"
            )
    elif found == "a folder":
        places = _in_folder(task, data) or [
            place for folder in _folders_below(task, data) for place in _in_folder(task, folder)
        ]
        if not places:
            for archive in _archives(task, data):
                part_in(task, archive)  # tells what it lacks
            raise InputError(
                f"task {task.name!r}: no rows in {shown(data)}; looked for "
                f"{', '.join(_names(task))}, there and one folder below"
            )
    else:
        raise InputError(f"data folder {shown(data)} is {found}, not a folder or file")
    return _the_one(task, places)


def part_in(task: Task, path: Path) -> Part:
    """The rows in a file that is known to be the task's, whatever its name."""
    if path.suffix != ".zip":
        return Part(path)
    wanted = task.adapter.member(task)
    member = find_member(path, wanted)
    if member is None:
        raise InputError(f"{shown(path)}: has no member named {wanted}")
    return Part(path, member)


def _names(task: Task) -> list[str]:
    """What is looked for, in words."""
    name = task.name
    places = [f"{folder}/" for folder in _folders(task) if folder]
    return [
        f"{name}.jsonl",
        f"{name}.jsonl.gz",
        f"{name}.parquet",
        f"{name}-*.parquet",
        *(f"{name}/{split}.jsonl" for split in task.adapter.splits if split != "test"),
        f"{name}/test*.parquet",
        f"{name}/*.parquet",
        f"{name}/{_SAVED} (saved by datasets)",
        f"the same in {' or '.join(places)}",
        *task.adapter.shared_files(task),
        *task.adapter.archives(task),
    ]


def _folders(task: Task) -> list[str]:
    """Folders that hold files named after tasks; the hub's copies in Parquet are in `default`."""
    return list(dict.fromkeys(["", *task.adapter.folders(task), "default"]))


def _the_one(task: Task, places: list[list[Part]]) -> list[Part]:
    """The one place, or the first of several with the same content."""
    first, *others = places
    if others:
        contents = {tuple(part.sha256() for part in parts) for parts in places}
        if len(contents) > 1:
            names = ", ".join(shown(parts[0].name) for parts in places)
            raise InputError(
                f"task {task.name!r}: there are rows in {len(places)} places, and not the same: "
                f"{names}; give the one that is meant as --data"
            )
    return first


def _is_file(path: Path) -> bool:
    """Also for a pipe: opening it says what it is."""
    return kind_of(path) not in (None, "a folder")


def _is_folder(path: Path) -> bool:
    return kind_of(path) == "a folder"


def _folders_below(task: Task, data: Path) -> list[Path]:
    known = set(_folders(task))
    names = sorted(entry.name for entry in _entries(data) if entry.is_dir())
    return [
        data / name
        for name in names
        if name not in known and not name.startswith(".") and name != "__MACOSX"
    ]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"{shown(folder)}: cannot be read: {error.strerror or error}") from None


def _in_folder(task: Task, data: Path) -> list[list[Part]]:
    """All places in a folder that have rows of the task."""
    name = task.name
    places: list[list[Part]] = []
    for folder in (data / part for part in _folders(task)):
        if not _is_folder(folder):
            continue
        places += [[Part(p)] for p in (folder / f"{name}{end}" for end in _JSONL) if _is_file(p)]
        if _is_file(folder / f"{name}.parquet"):
            places.append([Part(folder / f"{name}.parquet")])
        places += [[Part(p)] for p in _shared(task, folder) if _is_file(p)]
        if shards := _tables(folder, f"{name}-"):
            places.append(shards)
        if _is_folder(folder / name):
            places += _in_task_folder(folder / name, task)
    if data.name == name or data.absolute().name == name:
        places += _in_task_folder(data, task)
    for archive in _archives(task, data):
        member = find_member(archive, task.adapter.member(task))
        places += [[Part(archive, member)]] if member else []
    return places


def _shared(task: Task, folder: Path) -> list[Path]:
    """Where files that hold the rows of several tasks would lie in a folder."""
    return [folder / name for name in task.adapter.shared_files(task)]


def _archives(task: Task, data: Path) -> list[Path]:
    """The archives of a folder that may have rows of the task."""
    names = task.adapter.archives(task)
    paths = [data / part / name for name in names for part in ("", "data")]
    return [path for path in paths if _is_file(path)]


def _in_file(task: Task, path: Path) -> list[list[Part]]:
    """The rows in a file that was named itself."""
    name = task.name
    if path.suffix == ".zip":
        return [[part_in(task, path)]]
    if path.name in task.adapter.shared_files(task):
        return [[Part(path)]]
    whole = {f"{name}{end}" for end in (*_JSONL, ".parquet")}
    if path.name in whole or path.absolute().parent.name == name:
        if path.suffix == ".parquet":
            return [_whole_set([path])]
        return [[Part(path)]] if path.name.endswith(_JSONL) else []
    if path.suffix == ".parquet" and path.name.startswith(f"{name}-"):
        return [_whole_set([path])]
    return []


def _in_task_folder(folder: Path, task: Task) -> list[list[Part]]:
    """The rows in a folder that is named as the task."""
    places = [_saved(folder)] if _is_file(folder / _SAVED) else []
    if _is_file(folder / _SAVED_SPLITS):
        places.append(_saved(folder / _split_of(folder / _SAVED_SPLITS)))
        return places
    files = [folder / f"{split}{end}" for split in task.adapter.splits for end in _JSONL]
    places += [[Part(path)] for path in files if _is_file(path)]
    if tables := _tables(folder):
        places.append(tables)
    below = folder / "test"
    if _is_folder(below):
        if _is_file(below / _SAVED):
            places.append(_saved(below))
        elif tables := _tables(below):
            places.append(tables)
    return places


def _tables(folder: Path, prefix: str = "") -> list[Part]:
    """The Parquet files of a folder whose names begin so.

    Those of the split `test`, or all if they belong together.
    """
    sets: dict[str, list[Path]] = {}
    for name in sorted(entry.name for entry in _entries(folder)):
        if name.startswith(prefix) and name.endswith(".parquet"):
            sets.setdefault(_set_of(name.removeprefix(prefix)), []).append(folder / name)
    if len(sets) > 1 and "test" not in sets:
        several = ", ".join(path.name for paths in sets.values() for path in paths[:3])
        raise InputError(
            f"{shown(folder)}: holds Parquet files of several sets ({several}); keep those that "
            "are meant"
        )
    if not sets:
        return []
    return _whole_set(sets["test"] if "test" in sets else next(iter(sets.values())))


def _set_of(name: str) -> str:
    """What the files of one set have in common: their name without the number of the part."""
    stem = name.removesuffix(".parquet")
    shard = _SHARD.fullmatch(stem)
    return shard[1] if shard else re.sub(r"[-_.]?[0-9]+", "", stem)


def _whole_set(paths: list[Path]) -> list[Part]:
    """The parts of one set in order; InputError when one is missing, or of another set."""
    ordered = sorted(paths)
    shards = [_SHARD.fullmatch(path.stem) for path in ordered]
    if any(shards):
        totals = {int(shard[3]) if shard else None for shard in shards}
        total = next(iter(totals)) or 0
        numbers = [int(shard[2]) if shard else -1 for shard in shards]
    elif all(path.stem.isascii() and path.stem.isdigit() for path in ordered):  # as the hub does
        numbers = [int(path.stem) for path in ordered]
        totals, total = {None}, max(numbers) + 1
    else:
        return [Part(path) for path in ordered]
    where, names = shown(ordered[0].parent), ", ".join(path.name for path in ordered[:4])
    missing = next((number for number in range(total) if number not in numbers), None)
    if missing is not None:
        raise InputError(f"{where}: part {missing} is missing beside {names}")
    if len(totals) > 1 or len(numbers) != total:
        raise InputError(f"{where}: holds parts of several sets ({names})")
    return [Part(path) for _, path in sorted(zip(numbers, ordered, strict=True))]


# -- folders of datasets.save_to_disk -----------------------------------------------------------


def _saved(folder: Path) -> list[Part]:
    """The files of a folder that `datasets.Dataset.save_to_disk` wrote."""
    state = _json(folder / _SAVED)
    given = state.get("_data_files")
    files: list[Any] = given if isinstance(given, list) else []
    names = [
        str(entry["filename"])
        for entry in files
        if isinstance(entry, dict) and isinstance(entry.get("filename"), str)
    ]
    if not names or len(names) < len(files) or any(name != Path(name).name for name in names):
        raise InputError(f"{shown(folder / _SAVED)}: names no files with rows")
    if state.get("_indices_data_files"):
        raise InputError(
            f"{shown(folder)}: chooses rows by an index of an old version of datasets; load it "
            "there, and save it anew"
        )
    return [Part(folder / name) for name in names]


def _split_of(path: Path) -> str:
    """The split with the rows: `test`, or the only one."""
    splits = _json(path).get("splits")
    if not isinstance(splits, list) or not all(
        isinstance(split, str) and split == Path(split).name for split in splits
    ):
        raise InputError(f"{shown(path)}: names no splits")
    if "test" in splits or len(splits) == 1:
        return "test" if "test" in splits else splits[0]
    raise InputError(
        f"{shown(path.parent)}: has the splits {', '.join(splits)}, and none of them is 'test'; "
        "give the one that is meant as --data, in a folder named as the task"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = strict.loads(read_text(path, _MOST_STATE_BYTES))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{shown(path)}: is not JSON: {error}") from None
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{shown(path)}: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{shown(path)}: is not a JSON object")
    return value
