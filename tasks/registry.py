"""Find tasks by name. A benchmark is a folder with a `_benchmark.yaml`; a task, a file in it.

Benchmarks are found in three places: the folders beside this file; packages that other
distributions name in the group of entry points `ahn_bench.benchmarks`; and folders that
`register_benchmark` was given, as `--data FOLDER` does. Code (the modules `adapter`, `synthetic`
and `averages`) is run of the first two only: a folder of data is never executed.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.errors import InputError, Problems, shown
from common.files import kind_of
from common.plugins import installed
from common.suggestions import did_you_mean
from tasks.definitions import (
    LM_EVAL_PREFIX,
    Benchmark,
    BenchmarkDefinition,
    read_benchmark,
)
from tasks.lengths import parse_length
from tasks.rows import Row
from tasks.schema import RowAdapter, Task

SYNTHETIC = "synthetic"
"""As `data`: rows of a benchmark's own construction, made here at any length."""
GROUP = "ahn_bench.benchmarks"
"""The group of entry points: name of a benchmark = package that is its folder."""
DEFINITION = "_benchmark.yaml"
_MODULES = ("adapter", "synthetic", "averages")
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class _Place:
    """Where a benchmark is defined."""

    folder: Path
    package: str | None
    """The folder as a package, whose modules are run; None: a folder of data."""


_registered: dict[str, _Place] = {}


@lru_cache(maxsize=1)
def _own() -> dict[str, _Place]:
    """The benchmarks of this package."""
    folders = sorted(path.parent for path in _HERE.glob(f"*/{DEFINITION}"))
    return {folder.name: _Place(folder, f"{__package__}.{folder.name}") for folder in folders}


def benchmark_names() -> tuple[str, ...]:
    """The benchmarks that there are: of this package, of other packages, and registered ones.

    InputError where another package names its benchmark as one of this package.
    """
    others = installed(GROUP)
    if taken := sorted(_own().keys() & others.keys()):
        raise InputError(
            f"entry point {taken[0]!r} of {GROUP}: {others[taken[0]].value} has the name of a "
            "benchmark of ahn-bench and is never read; rename it, or uninstall the package"
        )
    return tuple(sorted({*_own(), *others, *_registered}))


def _place(benchmark: str) -> _Place:
    place = _own().get(benchmark) or _registered.get(benchmark)
    if place is not None:
        return place
    entry = installed(GROUP).get(benchmark)
    if entry is not None:
        return _Place(_folder_of(benchmark, entry.module), entry.module)
    known = benchmark_names()
    raise InputError(
        f"unknown benchmark {shown(repr(benchmark))}{did_you_mean(benchmark, known, cutoff=0.5)} "
        f"(known: {', '.join(known)})"
    )


def _folder_of(benchmark: str, package: str) -> Path:
    """The folder of a package that an entry point names."""
    try:
        spec = importlib.util.find_spec(package)
    except Exception as error:  # the package above it is imported, and may raise anything
        raise InputError(f"benchmark {benchmark!r}: {package}: {error}") from error
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    for folder in map(Path, folders):
        if (folder / DEFINITION).is_file():
            return folder
    raise InputError(f"benchmark {benchmark!r}: {package} is no package with a {DEFINITION}")


def register_benchmark(folder: Path) -> str:
    """Make the benchmark in `folder` known to this process; returns its name.

    Its files are read, none is executed: its rows are read by `RowAdapter`. The folder of a
    benchmark that is known already may be given again.

    Raises:
        InputError: its files are wrong, it holds modules that would have to be run, or there is
            another benchmark of its name.
    """
    folder = folder.resolve()
    name = read_benchmark(folder).definition.benchmark
    other = _own().get(name) or _registered.get(name)
    if other is None and name in installed(GROUP):
        other = _place(name)
    if other is not None:
        if other.folder.resolve() == folder:
            return name
        raise InputError(
            f"{shown(folder)}: there is another benchmark {name!r}, in {other.folder}; choose "
            f"another name in {DEFINITION}"
        )
    code = [f"{module}.py" for module in _MODULES if (folder / f"{module}.py").exists()]
    if code:
        raise InputError(
            f"{shown(folder)}: {', '.join(code)} would not be run, since code is run of installed "
            f"packages only: install it with an entry point in the group {GROUP}"
        )
    _registered[name] = _Place(folder, None)
    return name


def is_own(benchmark: str) -> bool:
    """Whether a benchmark is one of this package's."""
    return benchmark in _own()


def benchmark_tasks(benchmark: str) -> list[Task]:
    """All tasks of a benchmark that have a file."""
    return list(_read(benchmark).tasks.values())


def is_benchmark_folder(data: str | None) -> bool:
    """Whether `--data` names a folder that defines a benchmark."""
    return bool(data) and kind_of(Path(str(data)) / DEFINITION) == "a file"


def module_of(benchmark: str, name: str) -> Any:
    """The module `name` in a benchmark's folder; None: it has none.

    Raises:
        InputError: it cannot be imported.
    """
    package = _place(benchmark).package
    if package is None or importlib.util.find_spec(f"{package}.{name}") is None:
        return None
    try:
        return importlib.import_module(f"{package}.{name}")
    except ImportError as error:
        raise InputError(f"benchmark {benchmark!r}: {package}.{name}: {error}") from error


@lru_cache(maxsize=64)
def _adapter(benchmark: str) -> RowAdapter:
    module = module_of(benchmark, "adapter")
    adapter = RowAdapter() if module is None else getattr(module, "ADAPTER", None)
    if not isinstance(adapter, RowAdapter):
        raise InputError(f"{module.__name__}: has no ADAPTER, a tasks.schema.RowAdapter")
    return adapter


def _read(benchmark: str) -> Benchmark:
    folder = _place(benchmark).folder
    read = read_benchmark(folder, _adapter(benchmark))
    if read.definition.benchmark != benchmark:
        raise InputError(
            f"{folder / DEFINITION}: benchmark: is {read.definition.benchmark!r}, but its entry "
            f"point, or its folder, is named {benchmark!r}"
        )
    return read


def benchmark_folder(benchmark: str) -> Path:
    """The folder of a benchmark's files."""
    return _place(benchmark).folder


def benchmark_definition(benchmark: str) -> BenchmarkDefinition:
    """What the tasks of a benchmark share: protocols, levels, place on the hub."""
    return _read(benchmark).definition


def task_names(benchmark: str) -> list[str]:
    """The names of a benchmark's tasks: those that it stands for when none are named.

    Alphabetical, short levels first, unless a group of its name lists a part of them.
    """
    return list(_groups(benchmark)[benchmark])


def is_generated(data: str | None) -> bool:
    """Whether `data` names a benchmark of this package all of whose rows are generated."""
    return data in _own() and benchmark_definition(str(data)).generated


def group_names(benchmark: str) -> list[str]:
    """Names that stand for several tasks of a benchmark; the first, its own, is all of them.

    Groups of one level come last, short levels first.
    """
    read = _read(benchmark)
    ranks = {level: rank for rank, level in enumerate(read.definition.levels)}

    def length(name: str) -> int:
        return ranks.get(name.rpartition("_")[2], -1)

    return sorted(_groups(benchmark), key=length)  # stable: the rest stays in its order


def _groups(benchmark: str) -> dict[str, Sequence[str]]:
    """Task names by group: the benchmark itself, its groups, its data sets of several levels."""
    read = _read(benchmark)
    groups: dict[str, Sequence[str]] = {benchmark: [], **read.groups}
    if len(groups[benchmark]) in (0, len(read.tasks)):
        groups[benchmark] = list(read.tasks)  # in our order
    if read.definition.levels:
        for task in read.tasks.values():
            groups.setdefault(task.dataset, [t.name for t in _of_dataset(read, task.dataset)])
    return groups


def _of_dataset(read: Benchmark, dataset: str) -> list[Task]:
    return [task for task in read.tasks.values() if task.dataset == dataset]


def find_task(benchmark: str, name: str) -> Task:
    """The task of this name; InputError with the nearest names when there is none.

    `hotpotqa` may also be given as `longbench/hotpotqa`, as `longbench_hotpotqa` and by its name
    in lm-evaluation-harness; LongBench-E's tasks with or without `_e`; a level of LV-Eval after
    `_` or `@`. A data set with levels, given without one, is a task that can be scored (the
    constants are the same at each level) but has no rows: its `level` is None.
    """
    task = _find(benchmark, name)
    if task is not None:
        return task
    for related in benchmark_definition(benchmark).related:
        task = _find(related, name)
        if task is not None:
            return task
    raise InputError(_unknown(benchmark, name))


def known_task(benchmark: str, name: str) -> Task | None:
    """The task of this name; None where there is no such task or benchmark."""
    try:
        return find_task(benchmark, name)
    except InputError:
        return None


def _find(benchmark: str, name: str) -> Task | None:
    read = _read(benchmark)
    for plain in _spellings(benchmark, name):
        if plain in read.tasks:
            return read.tasks[plain]
        same = _of_dataset(read, plain)
        if same and read.definition.levels:
            return dataclasses.replace(same[0], name=plain, level=None, lm_eval_name=None)
        if same:
            return same[0]
        for task in read.tasks.values():
            if task.lm_eval_name == plain:
                return task
        base, _, tokens = plain.rpartition("_")
        if base in read.tasks and tokens in map(str, read.definition.lengths):
            return at_length(read.tasks[base], int(tokens), plain)
        if base in read.tasks and read.definition.made_for_tokenizer:
            with suppress(InputError):  # it is no length
                return at_length(read.tasks[base], parse_length(tokens))
    return None


def at_length(task: Task, tokens: int, name: str | None = None) -> Task:
    """A task of generated texts with texts of another length, whatever length its own name says.

    Args:
        task: of a benchmark whose definition has `lengths`, or `made_for_tokenizer`.
        tokens: length of each text with its answer; any, where rows are made for a tokenizer.
        name: what it is called; None: as such tasks are, `<task>_<tokens>`.

    Raises:
        InputError: there are no texts of that length.
    """
    read = _read(task.benchmark)
    lengths = read.definition.lengths
    if read.definition.made_for_tokenizer:
        parse_length(tokens)
    elif tokens not in lengths:
        known = ", ".join(map(str, lengths))
        raise InputError(f"no {task.benchmark} tasks of {tokens} tokens (known: {known})")
    base = read.tasks.get(task.name.removesuffix(f"_{task.length}"), task)
    if name is None and lengths and tokens == lengths[0]:
        return base
    protocols = {
        protocol: dataclasses.replace(
            rules, default_max_length=max(rules.default_max_length or 0, tokens)
        )
        for protocol, rules in base.protocols.items()
    }
    return dataclasses.replace(
        base,
        name=name or f"{base.name}_{tokens}",
        length=tokens,
        protocols=protocols,
        lm_eval_name=None,
    )


def _spellings(benchmark: str, name: str) -> list[str]:
    """What a name may mean, the nearest first."""
    exact = name.strip().removeprefix(f"{benchmark}/")
    plain = exact.replace("@", "_")
    short = plain.removeprefix(LM_EVAL_PREFIX).removeprefix(f"{benchmark}_")
    return list(dict.fromkeys([exact, plain, short]))


def names_another_task(row: Row, task: Task) -> bool:
    """Whether a row's `dataset` is another data set of the task's benchmark, or another level."""
    name = row.get("dataset")
    if not isinstance(name, str) or name in (task.name, task.dataset):
        return False
    meant = _find(task.benchmark, name.replace("-", "_")) or _find(task.benchmark, name)
    if meant is None:
        return not task.adapter.allows_unknown_dataset(row)
    return meant.dataset != task.dataset or meant.level not in (None, task.level)


def foreign_keys(row: Row, task: Task, of: Callable[[RowAdapter], frozenset[str]]) -> list[str]:
    """A message if `row` has keys that only another benchmark's rows (or predictions) have."""
    for benchmark in _own():
        found = sorted((of(_adapter(benchmark)) - of(task.adapter)) & row.keys())
        if found and benchmark != task.benchmark:
            return [f"{found[0]!r} is a key of {benchmark}, but {task.benchmark} is being read"]
    return []


def protocol_name(benchmark: str, name: str) -> str:
    """The protocol that a user's name means: LongBench-E's `official` is also `official_e`."""
    definition = benchmark_definition(benchmark)
    return definition.protocol_aliases.get(name, name)


def expand(benchmark: str, names: Sequence[str], data: str | None) -> list[Task]:
    """The tasks that a user's list of names stands for, each once, in the order given.

    A name is a task, a group (`longbench_paper`, `lveval_16k`), a data set of LV-Eval (its
    levels), a benchmark (all of its tasks), or several of these joined by commas. No names: all
    tasks that can be generated when `data` is `"synthetic"`, all tasks of the benchmark that `data`
    names where its rows are generated, else all tasks of the benchmark.

    Raises:
        InputError: one message for each unknown name, and for a name that has no rows in `data`.
    """
    definition = benchmark_definition(benchmark)
    groups: Mapping[str, Sequence[str]] = _groups(benchmark)
    wanted = [part.strip() for name in names for part in name.split(",") if part.strip()]
    generated = data if is_generated(data) else None
    if not wanted:
        wanted = [generated or benchmark]
        if data == SYNTHETIC and definition.synthetic:
            wanted = definition.synthetic

    found: dict[tuple[str, str], Task] = {}
    problems = Problems()
    for name in wanted:
        for owner, member in _members(name, groups, definition.related, benchmark):
            with problems.collecting():
                task = find_task(owner, member)
                if generated is not None and task.benchmark != generated:
                    raise InputError(
                        f"task {task.name!r} has no {generated} rows: give its rows with --data, "
                        f"or choose tasks of {generated} "
                        f"(known: {', '.join(task_names(generated))})"
                    )
                found[task.benchmark, task.name] = task
    problems.check()
    return list(found.values())


def _members(
    name: str, groups: Mapping[str, Sequence[str]], related: Iterable[str], benchmark: str
) -> list[tuple[str, str]]:
    """The tasks, each with its benchmark, that a group or any other name stands for."""
    plain = name.removeprefix(LM_EVAL_PREFIX)
    if plain in groups:
        return [(benchmark, member) for member in groups[plain]]
    for other in related:
        if plain in _groups(other):
            return [(other, member) for member in _groups(other)[plain]]
        if plain.startswith(f"{other}_") and plain != name:
            return [(other, name)]
    return [(benchmark, name)]


def _unknown(benchmark: str, name: str) -> str:
    if name in (groups := _groups(benchmark)):
        of = ", ".join(groups[name])
        return f"{name!r} is a group of {benchmark}, not a task: name one of {of}"
    known = [*_read(benchmark).tasks, *group_names(benchmark)]
    also = [
        f"{task}_{tokens}" if place else task
        for other in (benchmark, *benchmark_definition(benchmark).related)
        for task in _read(other).tasks
        for place, tokens in enumerate(benchmark_definition(other).lengths or [0])
    ]
    hint = did_you_mean(name, [*known, *also], cutoff=0.5) or f" (known: {', '.join(known)})"
    return f"unknown task {shown(repr(name))} of {benchmark}{hint}"
