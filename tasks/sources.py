"""Rows of a task: from a local folder, from the hub's files, or made here.

All give the same thing, `RowSource`. Rows are checked when they are read; one that cannot be
used is an error that names its file, line and field. None is skipped. Which file holds a task's
rows is said by the benchmark's form (`tasks.rows.RowForm`); what the files are, here.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.archives import read_member
from tasks.hub import from_hub
from tasks.jsonl import Line, Problem, located, parse_objects
from tasks.registry import (
    POCKET,
    SYNTHETIC,
    benchmark_definition,
    benchmark_names,
    is_pocket,
)
from tasks.rows import foreign_keys, form_of
from tasks.schema import Example, InputError, Task, document_id_of

Watch = Callable[[int, int], None]
"""Is told how many rows are made, and of how many."""


@dataclass(frozen=True)
class RowSource:
    """The rows of one task and the files that they came from."""

    examples: list[Example]
    files: list[dict[str, str | None]]
    """For each file: `path`; `sha256` of its bytes (of the member's, in a zip), null for
    generated rows; `revision`, the hub commit it belongs to, null for local files."""


def load_examples(
    task: Task,
    data: str | None,
    limit: int | None,
    seed: int,
    length: int | str | None = None,
    watch: Watch | None = None,
) -> RowSource:
    """The first `limit` rows of a task (all when None), in the order of the file.

    `data`: a folder; `"pocket"` and `"synthetic"`, the generators, which alone use `seed`, and
    the latter of which makes documents of about `length` tokens (a number or, as text, `128k`;
    None: the length published); None, the hub. Pocket tasks are always generated.
    All rows are checked, also those after `limit`. InputError with one message per problem.
    `watch` is told how many synthetic rows are made, and of how many: long ones take seconds each.
    """
    if limit is not None and limit <= 0:
        raise InputError(f"limit must be at least 1, not {limit}")
    if length is not None and data != SYNTHETIC:
        raise InputError(f"a length of {length} tokens can be asked of synthetic rows only")
    if is_pocket(task.name):
        from tasks import pocket

        if data not in (None, POCKET):
            raise InputError(
                f"{task.name}: rows of pocket tasks are generated here; leave --data {data} out"
            )
        examples = pocket.load_examples(task, limit, seed)
        return RowSource(examples, [_generated(f"{task.name}?seed={seed}")])
    if data == POCKET:
        raise InputError(f"task {task.name!r} has no pocket rows; give its rows with --data")
    if data == SYNTHETIC:
        return _synthetic(task, limit, seed, length, watch)
    parts = [_from_hub(task)] if data is None else _from_folder(task, Path(data))
    examples = _examples(task, parts)
    files = [{"path": p.name, "sha256": p.sha256, "revision": p.revision} for p in parts]
    return RowSource(examples[:limit], files)


@dataclass(frozen=True)
class _Found:
    """A file with rows of one task, read."""

    name: str
    sha256: str
    revision: str | None
    rows: list[Line]
    problems: list[Problem]
    first: int = 0
    """Rows in the parts before this one, which identifiers made of lines count too."""


def _examples(task: Task, parts: list[_Found]) -> list[Example]:
    """The rows of all parts; InputError with the problems of each."""
    examples: list[Example] = []
    problems: list[str] = []
    seen: dict[str, str] = {}
    for part in parts:
        try:
            examples += _examples_of(task, part, seen)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(*problems)
    if not examples:
        raise InputError(f"{parts[0].name}: is empty: there are no rows")
    return examples


def _examples_of(task: Task, found: _Found, seen: dict[str, str]) -> list[Example]:
    """One part's rows; `seen` are the lines of all identifiers so far."""
    form = form_of(task.benchmark)
    others = [name for name in benchmark_names() if name != task.benchmark]
    problems = list(found.problems)
    examples = []
    for line in found.rows:
        row = line.value
        wrong = form.check(row, task)
        if wrong:
            # A row of another benchmark lacks and has much: one message says it all.
            wrong = foreign_keys(row, task, others, lambda f: f.own_columns) or wrong
            problems += [(line.number, problem) for problem in wrong]
            continue
        example_id = form.example_id(row, task, found.first + line.number)
        where = f"{found.name}:{line.number}"
        if example_id in seen:
            earlier = seen[example_id].removeprefix(f"{found.name}:")
            problems.append((line.number, f"id {example_id!r} is that of line {earlier} too"))
            continue
        seen[example_id] = where
        examples.append(as_example(task, row, example_id, where))
    if problems:
        raise located(found.name, problems)
    return examples


def as_example(task: Task, row: dict[str, Any], example_id: str, where: str) -> Example:
    """A row that has been checked, as an example."""
    form = form_of(task.benchmark)
    return Example(
        example_id=example_id,
        row=row,
        answers=form.answers(row),
        document_id=document_id_of(form.context(row)),
        where=where,
        label=form.label(row, task),
    )


# -- made here ----------------------------------------------------------------------------------


def _generated(what: str) -> dict[str, str | None]:
    return {"path": f"generated:{what}", "sha256": None, "revision": None}


def _synthetic(
    task: Task, limit: int | None, seed: int, length: int | str | None, watch: Watch | None
) -> RowSource:
    """Rows by the benchmark's own construction, checked like those of a file."""
    known = benchmark_definition(task.benchmark).synthetic
    if task.name not in known:
        can = f"only {', '.join(known)} can" if known else f"no task of {task.benchmark} can"
        raise InputError(f"task {task.name!r} cannot be generated ({can}); give its rows")
    generator = importlib.import_module(f"tasks.{task.benchmark}.synthetic")
    made = []
    total = generator.row_count(task.name, limit)
    for entry in generator.generate(task.name, length=length, limit=limit, seed=seed):
        made.append(entry)
        if watch:
            watch(len(made), total)
    what = f"{task.benchmark}/{task.name}?length={length or 'published'}&seed={seed}"
    lines = [Line(number, row) for number, (row, _) in enumerate(made, 1)]
    examples = _examples(task, [_Found(f"generated:{what}", "", None, lines, [])])
    known_of = (attributes for _, attributes in made)
    return RowSource(
        [replace(e, attributes=a) for e, a in zip(examples, known_of, strict=True)],
        [_generated(what)],
    )


# -- local folder -------------------------------------------------------------------------------


def _from_folder(task: Task, folder: Path) -> list[_Found]:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"data folder {folder} {what}")
    candidates = form_of(task.benchmark).files(task)
    for pattern in candidates:
        paths = sorted(folder.glob(pattern))
        parts: list[_Found] = []
        for path in paths:
            before = sum(len(part.rows) for part in parts)
            parts.append(replace(_read(task, path, None), first=before))
        if parts:
            return parts
    looked_for = ", ".join(candidates)
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
    member, content = read_member(path, form_of(task.benchmark).member(task))
    return _from_jsonl(f"{path}/{member}", content, revision)


def _read_parquet(task: Task, path: Path, revision: str | None) -> _Found:
    from pyarrow import ArrowException, BufferReader, parquet

    content = path.read_bytes()
    try:
        table = parquet.read_table(BufferReader(content))
        rows = [Line(number, row) for number, row in enumerate(_parquet_rows(table), 1)]
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: is not a whole Parquet file: {reason}") from None
    return _Found(str(path), hashlib.sha256(content).hexdigest(), revision, rows, [])


def _parquet_rows(table: Any) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches():
        yield from batch.to_pylist()


# -- the hub ------------------------------------------------------------------------------------


def _from_hub(task: Task) -> _Found:
    path, commit = from_hub(task)
    return _read(task, path, commit)
