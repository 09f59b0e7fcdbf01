"""Rows of a task: from a local folder, from the hub's files, or made here.

All give the same thing, `RowSource`. Rows are checked when they are read; one that cannot be
used is an error that names its file, line and field. None is skipped. Where a folder holds a task's
rows is said in `tasks.layouts`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import InputError, Problems, shown
from common.files import kind_of
from tasks.hub import from_hub
from tasks.jsonl import MOST_PROBLEMS, Bad, Line, Problem, located
from tasks.layouts import Part, find_parts, part_in
from tasks.lengths import parse_length
from tasks.making import Making
from tasks.registry import (
    SYNTHETIC,
    at_length,
    benchmark_definition,
    benchmark_folder,
    foreign_keys,
    is_generated,
    module_of,
    names_another_task,
)
from tasks.rows import Row
from tasks.schema import Example, Task, document_id_of

Watch = Callable[[int, int], None]
"""Is told how many rows are made, and of how many."""
MOST_ROWS = 100_000
"""Largest limit: no benchmark here has a hundredth of it, and generated rows have to be made."""


@dataclass(frozen=True)
class RowSource:
    """The rows of one task and the files that they came from."""

    examples: list[Example]
    files: list[dict[str, str | None]]
    """For each file: `path`; `sha256` of its bytes (of the member's, in a zip), null for
    generated rows; `revision`, the hub commit it belongs to, null for local files."""
    made_of: Mapping[str, Any] | None = None
    """What decided rows that were made for a tokenizer; None of all others."""


def load_examples(
    task: Task,
    data: str | None,
    limit: int | None,
    seed: int,
    length: int | str | None = None,
    watch: Watch | None = None,
    making: Making | None = None,
) -> RowSource:
    """The first `limit` rows of a task (all when None), in the order of the file.

    Args:
        task: whose rows.
        data: a folder, file or archive; `"synthetic"`, the generator of the task's benchmark; None,
            the hub, or where the benchmark is not there, its own folder. Of a benchmark all of
            whose rows are generated: None, `"synthetic"` or its name.
        limit: rows; all rows are checked, also those after it.
        seed: of generated rows.
        length: of generated rows, in tokens: a number or, as text, `128k`; None: the length
            published, or that of the task's name.
        making: for rows that are made for a tokenizer.
        watch: is told how many rows are generated, and of how many: long ones take seconds each.

    Raises:
        InputError: one message per problem.
    """
    if limit is not None:
        check_limit(limit)
    definition = benchmark_definition(task.benchmark)
    if definition.made_for_tokenizer:
        if length is not None:
            task = at_length(task, parse_length(length))
        if data not in (None, SYNTHETIC):
            return _of_length(task, str(data), limit)
        return _made(task, limit, seed, making, watch)
    if length is not None and data != SYNTHETIC:
        raise InputError(f"a length of {length} tokens can be asked of synthetic rows only")
    if definition.generated:
        if data not in (None, SYNTHETIC, task.benchmark):
            raise InputError(
                f"{task.name}: rows of {task.benchmark} tasks are generated here; "
                f"leave --data {shown(data)} out"
            )
        if length is not None and definition.lengths:
            task, length = at_length(task, parse_length(length)), None  # the rows of such a run
        return _synthetic(task, limit, seed, task.length if length is None else length, watch)
    if is_generated(data):
        raise InputError(f"task {task.name!r} has no {data} rows; give its rows with --data")
    if data == SYNTHETIC:
        return _synthetic(task, limit, seed, length, watch)
    if data is None and definition.hub is not None:
        path, revision = from_hub(task)
        return _read(task, [part_in(task, path)], revision, limit)
    if data is None:
        data = str(benchmark_folder(task.benchmark))
    if not data:
        raise InputError("--data: the name of a folder is empty")
    return _read(task, find_parts(task, Path(data)), None, limit)


def _of_length(task: Task, data: str, limit: int | None) -> RowSource:
    """Rows that were made before: `<task>.jsonl` in a folder, below that of a length."""
    place = Path(data)
    if task.length is not None:
        place /= str(task.length)
        if kind_of(place) != "a folder":
            raise InputError(
                f"--data: {shown(data)} has no folder {task.length}, in which rows of that length "
                "lie; without --lengths the rows in it are read, whatever length they have"
            )
    return _read(task, find_parts(replace(task, name=task.dataset), place), None, limit)


def check_limit(limit: Any) -> None:
    """InputError where `limit` is no number of rows."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise InputError(f"limit must be a number of rows, not {limit!r}")
    if limit < 1:
        raise InputError(f"limit must be at least 1, not {limit}")
    if limit > MOST_ROWS:
        raise InputError(
            f"limit must be at most {MOST_ROWS:,}, not {limit:,}; without one all rows are read"
        )


def _read(task: Task, parts: list[Part], revision: str | None, limit: int | None) -> RowSource:
    """The rows of the files; InputError with the problems of each."""
    reader = _Reader(task, limit)
    files: list[dict[str, str | None]] = []
    for part in parts:
        digest = hashlib.sha256()
        shared = part.path.name in task.adapter.shared_files(task)
        reader.read(part.rows(digest), part.name, shared)
        files.append({"path": part.name, "sha256": digest.hexdigest(), "revision": revision})
    return RowSource(reader.examples(parts[0].name), files)


class _Reader:
    """Checks the rows of a task's files, one after another, and keeps the first `limit`."""

    def __init__(self, task: Task, limit: int | None) -> None:
        self._task = task
        self._limit = limit
        self._examples: list[Example] = []
        self._problems = Problems()
        self._seen: dict[str, str] = {}  # the lines of all identifiers so far
        self._before = 0  # rows in earlier files, which identifiers made of lines count too
        self._others = 0  # rows of other tasks in shared files
        self._first: Row | None = None
        self._shared_gold: dict[str, list[Any]] = {}

    def examples(self, name: str) -> list[Example]:
        """The rows; InputError when there are none in all files, of which `name` is the first."""
        self._problems.check()
        if not self._examples:
            rows = f"it has no rows of {self._task.name}" if self._others else "there are no rows"
            raise InputError(f"{shown(name)}: {'' if self._others else 'is empty: '}{rows}")
        complete = self._task.adapter.with_shared_gold
        return [complete(example, self._shared_gold) for example in self._examples]

    def read(self, rows: Iterable[Line | Bad], name: str, shared: bool = False) -> None:
        """Check the rows of the file `name`, and keep them.

        Of a `shared` file only the rows of this task are kept.
        """
        problems: list[Problem] = []
        count = 0
        for line in rows:
            if isinstance(line, Line):
                count += 1
                wrong = self._add(line, name, shared)
            else:
                wrong = [line.problem]
            problems += [(line.number, problem) for problem in wrong]
            if len(problems) >= MOST_PROBLEMS:
                problems.append((line.number, "reading stops here: too much is wrong"))
                break
        if not count and len(problems) > 1:
            number, what = problems[0]
            problems = [(number, f"{what}; no line is a JSON object, as each should be")]
        self._before += count
        if problems:
            self._problems.add(*located(shown(name), problems).problems)

    def _add(self, line: Line, name: str, shared: bool) -> list[str]:
        """What is wrong with a row; when nothing is, it is kept."""
        row, task = line.value, self._task
        wrong = task.adapter.check(row, task)
        if not wrong and names_another_task(row, task):
            wrong = [f"'dataset' is {row['dataset']!r}: a row of another task than {task.name!r}"]
        if not wrong and not task.adapter.is_of(row, task):
            if not shared:
                return [f"is a row of another task than {task.name!r}"]
            self._others += 1
            return []
        if wrong:
            # A row of another benchmark lacks and has much: one message says it all.
            return foreign_keys(row, task, lambda adapter: adapter.own_columns) or wrong
        where = f"{name}:{line.number}"
        self._first = self._first or row
        for question in task.adapter.questions(row, task, self._first):
            example_id = task.adapter.example_id(question, task, self._before + line.number)
            if example_id in self._seen:
                earlier = self._seen[example_id].removeprefix(f"{name}:")
                return [f"id {example_id!r} is that of line {earlier} too"]
            self._seen[example_id] = where
            example = as_example(task, question, example_id, where)
            if entry := task.adapter.shared_gold(example, task):
                self._shared_gold.setdefault(entry[0], []).append(entry[1])
            if self._limit is None or len(self._examples) < self._limit:
                self._examples.append(example)
        return []


def as_example(task: Task, row: Row, example_id: str, where: str) -> Example:
    """A row that has been checked, as an example."""
    adapter = task.adapter
    return Example(
        example_id=example_id,
        row=row,
        answers=adapter.answers(row),
        document_id=document_id_of(adapter.context(row)),
        where=where,
        attributes=adapter.attributes(row, task),
        label=adapter.label(row, task),
    )


# -- made for a tokenizer -----------------------------------------------------------------------


def _made(
    task: Task, limit: int | None, seed: int, making: Making | None, watch: Watch | None
) -> RowSource:
    """Rows of the benchmark's construction, at the task's length, for a tokenizer."""
    benchmark = task.benchmark
    if making is None:
        raise InputError(
            f"rows of {benchmark} are made for a tokenizer, and none is known here: write them "
            f"(run_eval rows {benchmark} --tokenizer MODEL --length TOKENS -o FOLDER), and name "
            "them with --data FOLDER"
        )
    if task.length is None:
        raise InputError(
            f"--lengths: needed; rows of {benchmark} are made at the lengths asked for (4096, 128k)"
        )
    generator = module_of(benchmark, "synthetic")
    files = generator.files(task.dataset, making)
    total = generator.row_count(task.dataset, limit)
    rows = []
    for row in generator.generate(task.dataset, task.length, limit, seed, making):
        rows.append(row)
        if watch:
            watch(len(rows), total)
    made_of = {
        "length": task.length,
        "seed": seed,
        "tokenizer_sha256": making.tokenizer_sha256,
        "chat_template_tokens": making.reserved,
        "files": {name: file["sha256"] for name, file in files.items()},
    }
    what = f"{benchmark}/{task.dataset}?" + "&".join(
        f"{key}={value}" for key, value in made_of.items() if key != "files"
    )
    reader = _Reader(task, limit)
    reader.read((Line(number, row) for number, row in enumerate(rows, 1)), f"generated:{what}")
    examples = reader.examples(f"generated:{what}")
    return RowSource(examples, [_generated(what), *files.values()], made_of)


# -- made here ----------------------------------------------------------------------------------


def _generated(what: str) -> dict[str, str | None]:
    return {"path": f"generated:{what}", "sha256": None, "revision": None}


def _synthetic(
    task: Task, limit: int | None, seed: int, length: int | str | None, watch: Watch | None
) -> RowSource:
    """Rows by the benchmark's own construction, checked like those of a file."""
    definition = benchmark_definition(task.benchmark)
    known = definition.synthetic
    if task.name not in known and not definition.generated:
        can = f"only {', '.join(known)} can" if known else f"no task of {task.benchmark} can"
        raise InputError(f"task {task.name!r} cannot be generated ({can}); give its rows")
    generator = module_of(task.benchmark, "synthetic")
    if generator is None:
        raise InputError(f"benchmark {task.benchmark!r} has no module synthetic that makes rows")
    made = []
    total = generator.row_count(task.name, limit)
    for entry in generator.generate(task.name, length=length, limit=limit, seed=seed):
        made.append(entry)
        if watch:
            watch(len(made), total)
    what = f"{task.name}?seed={seed}"  # there are no other rows, and the name says how long
    if not definition.generated:
        what = f"{task.benchmark}/{task.name}?length={length or 'published'}&seed={seed}"
    reader = _Reader(task, limit)
    reader.read((Line(number, row) for number, (row, _) in enumerate(made, 1)), f"generated:{what}")
    examples = reader.examples(f"generated:{what}")
    known_of = (attributes for _, attributes in made)
    return RowSource(
        [replace(e, attributes=a) for e, a in zip(examples, known_of, strict=True)],
        [_generated(what)],
    )
