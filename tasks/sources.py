"""Rows of a task: from a local folder, from the hub's file, or from a generator.

All three give the same thing, `RowSource`. Rows are checked when they are read; one that
cannot be used is an error that names its file, line and field. None is skipped.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.jsonl import Line, Problem, located, parse_objects
from tasks.registry import POCKET, benchmark_definition, is_pocket
from tasks.rows import check_row
from tasks.schema import Example, InputError, Task, document_id_of


@dataclass(frozen=True)
class RowSource:
    """The rows of one task and the files that they came from."""

    examples: list[Example]
    files: list[dict[str, str | None]]
    """For each file: `path`; `sha256` of its bytes (of the member's, in a zip), null for
    generated rows; `revision`, the hub commit it belongs to, null for local files."""


def load_examples(task: Task, data: str | None, limit: int | None, seed: int) -> RowSource:
    """The first `limit` rows of a task (all when None), in the order of the file.

    `data`: a folder; `"pocket"`, the generator, which alone uses `seed`; None, the hub. Pocket
    tasks are generated whatever `data` says. All rows are checked, also those after `limit`.
    InputError with one message per problem.
    """
    if limit is not None and limit <= 0:
        raise InputError(f"limit must be at least 1, not {limit}")
    if is_pocket(task.name):
        from tasks import pocket

        name = f"generated:{task.name}?seed={seed}"
        return RowSource(
            pocket.load_examples(task, limit, seed),
            [{"path": name, "sha256": None, "revision": None}],
        )
    if data == POCKET:
        raise InputError(f"task {task.name!r} has no pocket rows; give its rows with --data")
    found = _from_hub(task) if data is None else _from_folder(task, Path(data))
    examples = _examples(task, found)
    file = {"path": found.name, "sha256": found.sha256, "revision": found.revision}
    return RowSource(examples[:limit], [file])


@dataclass(frozen=True)
class _Found:
    """A file with the rows of one task, read."""

    name: str
    sha256: str
    revision: str | None
    rows: list[Line]
    problems: list[Problem]


def _examples(task: Task, found: _Found) -> list[Example]:
    problems = list(found.problems)
    examples = []
    seen: dict[str, int] = {}
    for line in found.rows:
        wrong = check_row(line.value, task)
        if wrong:
            problems += [(line.number, problem) for problem in wrong]
            continue
        row = line.value
        example_id = str(row.get("_id") or f"{task.name}:{line.number}")
        if example_id in seen:
            earlier = seen[example_id]
            problems.append((line.number, f"'_id' {example_id!r} is that of line {earlier} too"))
            continue
        seen[example_id] = line.number
        examples.append(
            Example(
                example_id=example_id,
                row=row,
                answers=list(row["answers"]),
                document_id=document_id_of(row["context"]),
                where=f"{found.name}:{line.number}",
            )
        )
    if problems:
        raise located(found.name, problems)
    if not examples:
        raise InputError(f"{found.name}: is empty: there are no rows")
    return examples


# -- local folder -------------------------------------------------------------------------------


def _candidates(task: Task) -> list[str]:
    name = task.name
    return [
        f"{name}.jsonl",
        f"data/{name}.jsonl",
        f"{name}.parquet",
        f"data/{name}.parquet",
        f"{name}/test*.parquet",
        benchmark_definition(task.benchmark).hub.file,
    ]


def _from_folder(task: Task, folder: Path) -> _Found:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"data folder {folder} {what}")
    for pattern in _candidates(task):
        paths = sorted(folder.glob(pattern))
        if len(paths) > 1:
            raise InputError(
                f"task {task.name!r}: {len(paths)} files match {folder / pattern}; one is expected"
            )
        if paths:
            return _read(task, paths[0], None)
    looked_for = ", ".join(_candidates(task))
    raise InputError(f"task {task.name!r}: no rows in {folder}; looked for {looked_for}")


def _read(task: Task, path: Path, revision: str | None) -> _Found:
    readers: dict[str, Callable[[Task, Path, str | None], _Found]] = {
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
        ".zip": _read_zip,
    }
    try:
        return readers[path.suffix](task, path, revision)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _from_jsonl(name: str, content: bytes, revision: str | None) -> _Found:
    rows, problems = parse_objects(content)
    return _Found(name, hashlib.sha256(content).hexdigest(), revision, rows, problems)


def _read_jsonl(task: Task, path: Path, revision: str | None) -> _Found:
    return _from_jsonl(str(path), path.read_bytes(), revision)


def _read_zip(task: Task, path: Path, revision: str | None) -> _Found:
    wanted = f"{task.name}.jsonl"
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.split("/")[-1] == wanted]
            if len(members) != 1:
                raise InputError(f"{path}: has {len(members)} members named {wanted}, not one")
            return _from_jsonl(f"{path}/{members[0]}", archive.read(members[0]), revision)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: is not a whole zip file: {error}") from None


def _read_parquet(task: Task, path: Path, revision: str | None) -> _Found:
    from pyarrow import ArrowInvalid, parquet

    content = path.read_bytes()
    try:
        table = parquet.read_table(path)
    except ArrowInvalid as error:
        raise InputError(f"{path}: is not a Parquet file: {error}") from None
    rows = [Line(number, row) for number, row in enumerate(_parquet_rows(table), 1)]
    return _Found(str(path), hashlib.sha256(content).hexdigest(), revision, rows, [])


def _parquet_rows(table: Any) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches():
        yield from batch.to_pylist()


# -- the hub ------------------------------------------------------------------------------------

REVISION_VARIABLE = "AHN_BENCH_DATA_REVISION"
"""Environment variable that pins the hub's files to a commit."""


def _from_hub(task: Task) -> _Found:
    """The rows from the benchmark's file on the hub, downloaded once and kept in its cache.

    The revision is `AHN_BENCH_DATA_REVISION`, else the one named in `_benchmark.yaml`. What is
    recorded is the commit that it stood for, which the hub's cache keeps in the file's path.
    """
    hub = benchmark_definition(task.benchmark).hub
    revision = os.environ.get(REVISION_VARIABLE) or hub.revision
    path = _download(hub.repository, hub.file, revision)
    if isinstance(path, str):
        raise InputError(
            f"{path} Remedy: on a machine with network, fetch "
            f"https://huggingface.co/datasets/{hub.repository}/resolve/{revision}/{hub.file}, "
            f"place it here as FOLDER/{hub.file} (or unpack it to FOLDER/data/<task>.jsonl), "
            f"and give --data FOLDER."
        )
    return _read(task, path, _commit_of(path, revision))


@lru_cache(maxsize=8)
def _download(repository: str, file: str, revision: str) -> Path | str:
    """The path of a data set's file in the hub's cache, or why it could not be had.

    Remembered either way, so that the 21 tasks in one file do not wait 21 times for a hub that
    cannot be reached.
    """
    from huggingface_hub import constants, hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision))
    except (OSError, ValueError) as error:  # huggingface_hub's own errors are kinds of these
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        why = "HF_HUB_OFFLINE is set and it is not in the local cache"
        return (
            f"{file} of the data set {repository} (revision {revision}) could not be had from "
            f"the hub: {why if constants.HF_HUB_OFFLINE else reason}."
        )


def _commit_of(path: Path, revision: str) -> str:
    """The commit in a path of the hub's cache, `.../snapshots/<commit>/<file>`."""
    parts = path.parts
    if "snapshots" in parts:
        return parts[parts.index("snapshots") + 1]
    return revision
