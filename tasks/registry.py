"""Find tasks by name. A benchmark is a folder with a `_benchmark.yaml`; a task, a file in it.

Adding either is adding a file: nothing here, and nothing that uses this, changes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from tasks.definitions import BenchmarkDefinition, read_benchmark
from tasks.schema import InputError, Task

POCKET = "pocket"
"""As `data`: generated rows. As a task name: all pocket tasks."""
_POCKET_PREFIX = "pocket_"
_HERE = Path(__file__).parent


@lru_cache(maxsize=1)
def benchmark_names() -> tuple[str, ...]:
    """The benchmarks that there are."""
    return tuple(sorted(path.parent.name for path in _HERE.glob("*/_benchmark.yaml")))


def _read(benchmark: str) -> tuple[BenchmarkDefinition, dict[str, Task]]:
    if benchmark not in benchmark_names():
        raise InputError(
            f"unknown benchmark {benchmark!r}{_hint(benchmark, benchmark_names())} "
            f"(known: {', '.join(benchmark_names())})"
        )
    return read_benchmark(_HERE / benchmark)


def benchmark_definition(benchmark: str) -> BenchmarkDefinition:
    """What the tasks of a benchmark share: protocols, groups, place on the hub."""
    return _read(benchmark)[0]


def task_names(benchmark: str) -> list[str]:
    """The names of a benchmark's tasks with published rows, in alphabetical order."""
    return list(_read(benchmark)[1])


def group_names(benchmark: str) -> list[str]:
    """Names that stand for several tasks of a benchmark; the benchmark's own name is all."""
    return [benchmark, *benchmark_definition(benchmark).groups]


def is_pocket(name: str) -> bool:
    """Whether a task name is one of the generated, small tasks."""
    return name.startswith(_POCKET_PREFIX)


def find_task(benchmark: str, name: str) -> Task:
    """The task of this name, with or without `<benchmark>/` before it.

    InputError with the nearest names when there is none.
    """
    tasks = _read(benchmark)[1]
    name = name.removeprefix(f"{benchmark}/")
    if is_pocket(name):
        from tasks import pocket

        return pocket.find_task(name)
    if name not in tasks:
        raise InputError(_unknown(benchmark, name, [*tasks, *group_names(benchmark)]))
    return tasks[name]


def expand(benchmark: str, names: Sequence[str], data: str | None) -> list[Task]:
    """The tasks that a user's list of names stands for, each once, in the order given.

    A name is a task, a group (`longbench_paper`), the benchmark itself (all of its tasks),
    `pocket` (all pocket tasks), or several of these joined by commas. No names: all pocket
    tasks when `data` is `"pocket"`, else all tasks of the benchmark. InputError with one
    message for each unknown name, and for a name that has no rows in `data`.
    """
    benchmark_tasks = _read(benchmark)[1]
    groups = {**benchmark_definition(benchmark).groups, benchmark: list(benchmark_tasks)}
    wanted = [part.strip() for name in names for part in name.split(",") if part.strip()]
    if not wanted:
        wanted = [POCKET if data == POCKET else benchmark]

    found: dict[str, Task] = {}
    problems: list[str] = []
    for name in wanted:
        for member in _members(name, groups):
            try:
                task = find_task(benchmark, member)
            except InputError as error:
                problems += error.problems
                continue
            if data == POCKET and not is_pocket(task.name):
                problems.append(
                    f"task {task.name!r} has no pocket rows: give its rows with --data, "
                    f"or choose pocket tasks (known: {', '.join(_pocket_names())})"
                )
                continue
            found[task.name] = task
    if problems:
        raise InputError(*dict.fromkeys(problems))
    return list(found.values())


def _members(name: str, groups: dict[str, list[str]]) -> list[str]:
    if name == POCKET:
        return _pocket_names()
    return groups.get(name, [name])


def _pocket_names() -> list[str]:
    from tasks import pocket

    return pocket.task_names()


def _hint(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""


def _unknown(benchmark: str, name: str, known: list[str]) -> str:
    hint = _hint(name, known) or f" (known: {', '.join(known)})"
    return f"unknown task {name!r} of {benchmark}{hint}"
