"""Find tasks by name. A benchmark is a folder with a `_benchmark.yaml`; a task, a file in it.

Adding either is adding a file: nothing here, and nothing that uses this, changes.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from common.errors import InputError, shown
from tasks.definitions import (
    LM_EVAL_PREFIX,
    Benchmark,
    BenchmarkDefinition,
    read_benchmark,
)
from tasks.schema import Task

POCKET = "pocket"
"""As `data`: generated rows. As a task name: all pocket tasks."""
SYNTHETIC = "synthetic"
"""As `data`: rows of a benchmark's own construction, made here at any length."""
_POCKET_PREFIX = "pocket_"
_HERE = Path(__file__).parent


@lru_cache(maxsize=1)
def benchmark_names() -> tuple[str, ...]:
    """The benchmarks that there are."""
    return tuple(sorted(path.parent.name for path in _HERE.glob("*/_benchmark.yaml")))


def _read(benchmark: str) -> Benchmark:
    if benchmark not in benchmark_names():
        known = benchmark_names()
        raise InputError(
            f"unknown benchmark {shown(repr(benchmark))}{nearest_names(benchmark, known)} "
            f"(known: {', '.join(known)})"
        )
    return read_benchmark(_HERE / benchmark)


def benchmark_definition(benchmark: str) -> BenchmarkDefinition:
    """What the tasks of a benchmark share: protocols, levels, place on the hub."""
    return _read(benchmark).definition


def task_names(benchmark: str) -> list[str]:
    """The names of a benchmark's tasks with published rows: alphabetical, short levels first."""
    return list(_read(benchmark).tasks)


def group_names(benchmark: str) -> list[str]:
    """Names that stand for several tasks of a benchmark; the first, its own, is all of them.

    Groups of one level come last, short levels first.
    """
    read = _read(benchmark)
    ranks = {level: rank for rank, level in enumerate(read.definition.levels)}

    def length(name: str) -> int:
        return ranks.get(name.rpartition("_")[2], -1)

    return sorted(_groups(benchmark), key=length)  # stable: the rest stays in its order


def is_pocket(name: str) -> bool:
    """Whether a task name is one of the generated, small tasks."""
    return name.startswith(_POCKET_PREFIX)


def _groups(benchmark: str) -> dict[str, Sequence[str]]:
    """Task names by group: the benchmark itself, its groups, its data sets of several levels."""
    read = _read(benchmark)
    groups: dict[str, Sequence[str]] = {benchmark: [], **read.groups}
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
    if benchmark not in benchmark_names():
        return None
    try:
        return find_task(benchmark, name)
    except InputError:
        return None


def _find(benchmark: str, name: str) -> Task | None:
    read = _read(benchmark)
    for plain in _spellings(benchmark, name):
        if is_pocket(plain):
            from tasks import pocket

            return pocket.find_task(plain)
        if plain in read.tasks:
            return read.tasks[plain]
        same = _of_dataset(read, plain)
        if same and read.definition.levels:
            return dataclasses.replace(same[0], name=plain, level=None, lm_eval_name=None)
        if same:
            return same[0]
    return None


def _spellings(benchmark: str, name: str) -> list[str]:
    """What a name may mean, the nearest first."""
    plain = name.strip().removeprefix(f"{benchmark}/")
    if not is_pocket(plain):
        plain = plain.replace("@", "_")
    short = plain.removeprefix(LM_EVAL_PREFIX).removeprefix(f"{benchmark}_")
    return [plain, short]


def protocol_name(benchmark: str, name: str) -> str:
    """The protocol that a user's name means: LongBench-E's `official` is also `official_e`."""
    definition = benchmark_definition(benchmark)
    return definition.protocol_aliases.get(name, name)


def expand(benchmark: str, names: Sequence[str], data: str | None) -> list[Task]:
    """The tasks that a user's list of names stands for, each once, in the order given.

    A name is a task, a group (`longbench_paper`, `lveval_16k`), a data set of LV-Eval (its
    levels), the benchmark itself (all of its tasks), `pocket` (all pocket tasks), or several of
    these joined by commas. No names: all pocket tasks when `data` is `"pocket"`, all tasks that
    can be generated when it is `"synthetic"`, else all tasks of the benchmark. InputError with
    one message for each unknown name, and for a name that has no rows in `data`.
    """
    definition = benchmark_definition(benchmark)
    groups: Mapping[str, Sequence[str]] = _groups(benchmark)
    wanted = [part.strip() for name in names for part in name.split(",") if part.strip()]
    if not wanted:
        wanted = [POCKET] if data == POCKET else [benchmark]
        if data == SYNTHETIC and definition.synthetic:
            wanted = definition.synthetic

    found: dict[tuple[str, str], Task] = {}
    problems: list[str] = []
    for name in wanted:
        for owner, member in _members(name, groups, definition.related, benchmark):
            try:
                task = find_task(owner, member)
            except InputError as error:
                problems += error.problems
                continue
            if data == POCKET and not is_pocket(task.name):
                problems.append(
                    f"task {task.name!r} has no pocket rows: give its rows with --data, "
                    f"or choose pocket tasks (known: {', '.join(_pocket_names())})"
                )
                continue
            found[task.benchmark, task.name] = task
    if problems:
        raise InputError(*dict.fromkeys(problems))
    return list(found.values())


def _members(
    name: str, groups: Mapping[str, Sequence[str]], related: Iterable[str], benchmark: str
) -> list[tuple[str, str]]:
    """The tasks, each with its benchmark, that a group or any other name stands for."""
    plain = name.removeprefix(LM_EVAL_PREFIX)
    if plain == POCKET:
        return [(benchmark, member) for member in _pocket_names()]
    if plain in groups:
        return [(benchmark, member) for member in groups[plain]]
    for other in related:
        if plain in _groups(other):
            return [(other, member) for member in _groups(other)[plain]]
        if plain.startswith(f"{other}_") and plain != name:
            return [(other, name)]
    return [(benchmark, name)]


def _pocket_names() -> list[str]:
    from tasks import pocket

    return pocket.task_names()


def nearest_names(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` with the nearest names, or nothing where none is near.

    Neither case nor the kind of dash counts.
    """
    by_plain = {_plain(candidate): candidate for candidate in known}
    nearest = difflib.get_close_matches(_plain(name), list(by_plain), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(by_plain[n]) for n in nearest)}?" if nearest else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace("@", "_")


def _unknown(benchmark: str, name: str) -> str:
    if name in (groups := _groups(benchmark)):
        of = ", ".join(groups[name])
        return f"{name!r} is a group of {benchmark}, not a task: name one of {of}"
    known = [*task_names(benchmark), *group_names(benchmark)]
    hint = nearest_names(name, known) or f" (known: {', '.join(known)})"
    return f"unknown task {shown(repr(name))} of {benchmark}{hint}"
