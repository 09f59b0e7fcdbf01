"""Which tasks a run asks, under which protocol, and their rows."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from common.errors import Problems
from evaluation.plan.configuration import RunConfiguration
from tasks import pocket
from tasks.infinitebench.synthetic import parse_length
from tasks.registry import (
    benchmark_definition,
    benchmark_names,
    expand,
    is_pocket,
    protocol_name,
    task_names,
)
from tasks.schema import Task
from tasks.sources import RowSource, load_examples


@dataclass(frozen=True)
class AskedTasks:
    """The tasks that a configuration asks for, as far as its names could be resolved."""

    tasks: list[Task]
    """Each once; none where the protocol is unknown."""
    protocol: str
    """The protocol's own name."""
    problems: tuple[str, ...]
    """What is wrong; empty: nothing."""


@dataclass(frozen=True)
class LoadedRows:
    """The rows of tasks, as far as they could be had."""

    sources: dict[str, RowSource]
    """By task; one whose rows are missing or wrong is not there."""
    problems: tuple[str, ...]
    """What is wrong; empty: nothing."""


def collect(problems: list[str], step: Callable[[], Any]) -> Any:
    """The result of `step`; None, and its messages in `problems`, if the input was bad."""
    found = Problems(problems)
    result = None
    with found.collecting():
        result = step()
    problems[:] = found
    return result


def resolve_tasks(configuration: RunConfiguration) -> AskedTasks:
    """The tasks, lengths and protocol that `configuration` names, and all that is wrong."""
    problems: list[str] = []
    tasks, protocol = _resolve_tasks(configuration, problems)
    return AskedTasks(tasks, protocol, tuple(problems))


def load_rows(
    tasks: Sequence[Task],
    configuration: RunConfiguration,
    seed: int,
    watch: Watch | None = None,
    files_only: bool = False,
) -> LoadedRows:
    """The rows of each task, and all that is wrong with them; see `_load_rows`."""
    problems: list[str] = [""] if files_only else []
    sources = _load_rows(tasks, configuration, seed, problems, watch)
    found = {name: source for name, source in sources.items() if source is not None}
    return LoadedRows(found, tuple(problem for problem in problems if problem))


def benchmark_of(command: str) -> str:
    """The benchmark whose tasks a command runs; the pocket suite's are found under LongBench."""
    return command if command in benchmark_names() else "longbench"


def _resolve_tasks(configuration: RunConfiguration, problems: list[str]) -> tuple[list[Task], str]:
    """The tasks asked for, each once, and the protocol's own name.

    Names are looked up one by one, to report all unknown ones. Without the protocol there are no
    tasks, and the reason is in `problems`.
    """
    benchmark = benchmark_of(configuration.benchmark)
    data = configuration.data or ""
    names: Sequence[str] = configuration.tasks
    found: dict[str, Task] = {}
    if "" in names:
        problems.append("--tasks: no name is given")
    # Without names each task is looked up by its own, so that one broken file is one problem.
    if not names and data not in ("pocket", "synthetic"):
        names = task_names(benchmark)
    for group in [[name] for name in names if name] or ([] if names else [[]]):
        expanded = collect(problems, partial(expand, benchmark, group, data))
        found |= {task.name: task for task in expanded or []}
    tasks = list(found.values())
    if data == "synthetic":
        tasks = _that_can_be_generated(tasks, benchmark, problems)
    tasks = _of_lengths(tasks, configuration, problems)
    protocol = protocol_name(benchmark, configuration.protocol)
    return _under_protocol(tasks, protocol, problems), protocol


def _that_can_be_generated(tasks: list[Task], benchmark: str, problems: list[str]) -> list[Task]:
    """The tasks with a construction of their own; one message about those without."""
    known = benchmark_definition(benchmark).synthetic
    without = [task.name for task in tasks if task.name not in known and not is_pocket(task.name)]
    if without and known:
        problems.append(
            f"--data synthetic: {', '.join(without)} cannot be generated (only "
            f"{', '.join(known)} can); give their rows"
        )
    elif without:
        problems.append(f"--data synthetic: no task of {benchmark} can be generated; give the rows")
    return [task for task in tasks if task.name not in without]


def _of_lengths(
    tasks: list[Task], configuration: RunConfiguration, problems: list[str]
) -> list[Task]:
    """The tasks at the lengths asked for: LV-Eval's levels, pocket tasks of so many tokens."""
    wanted = [length.lower() for length in configuration.lengths]
    if "" in wanted:
        problems.append("--lengths: none is given")
    levels = list(dict.fromkeys(task.level for task in tasks if task.level is not None))
    if wanted and tasks and all(is_pocket(task.name) for task in tasks):
        return _pocket_tasks(tasks, [length for length in wanted if length], problems)
    if not wanted or not levels:
        return tasks
    for length in wanted:
        if length and length not in levels:
            close = difflib.get_close_matches(length, levels, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            problems.append(
                f"--lengths: unknown length {length!r} (known: {', '.join(levels)}){hint}"
            )
    return [task for task in tasks if task.level in wanted]


def _pocket_tasks(tasks: Sequence[Task], lengths: Sequence[str], problems: list[str]) -> list[Task]:
    """The same pocket tasks, whatever length their names give, at each of `lengths`."""
    plain = dict.fromkeys(re.sub(r"(@[0-9]+)_[0-9]+$", r"\1", task.name) for task in tasks)
    found = []
    for length in lengths:
        tokens = collect(problems, partial(parse_length, length))
        if tokens is None:
            continue
        if tokens not in pocket.LENGTHS:
            known = ", ".join(map(str, pocket.LENGTHS))
            problems.append(f"--lengths: no pocket tasks of {tokens} tokens (known: {known})")
            continue
        suffix = "" if tokens == pocket.LENGTH else f"_{tokens}"
        found += [pocket.find_task(name + suffix) for name in plain]
    return found


def _under_protocol(tasks: list[Task], protocol: str, problems: list[str]) -> list[Task]:
    """The tasks that have `protocol`; one message about those that do not."""
    without = [task for task in tasks if protocol not in task.protocols]
    if without:
        known = list(dict.fromkeys(name for task in tasks for name in task.protocols))
        if not any(protocol in task.unavailable for task in without) and protocol not in known:
            close = difflib.get_close_matches(protocol, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            problems.append(
                f"--protocol: unknown protocol {protocol!r} (known: {', '.join(known)}){hint}"
            )
        else:
            why: dict[str, list[str]] = {}
            for task in without:
                reason = task.unavailable.get(protocol, "not defined for it")
                why.setdefault(reason, []).append(task.name)
            reasons = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in why.items())
            rest = ",".join(task.name for task in tasks if task not in without)
            others = ", ".join(name for name in known if name != protocol)
            remedy = f"choose --tasks {rest}, or " if rest else "choose "
            problems.append(
                f"--protocol: {protocol} is no protocol of {reasons}; {remedy}one of {others}"
            )
    return [task for task in tasks if protocol in task.protocols]


Watch = Callable[[int, int, str], None]
"""Is told how many are done, of how many, and what is being done."""


def _load_rows(
    tasks: Sequence[Task],
    configuration: RunConfiguration,
    seed: int,
    problems: list[str],
    watch: Watch | None = None,
) -> dict[str, RowSource | None]:
    """Rows by task; None, with the reason in `problems`, where there are none.

    For a run that cannot start anyway the hub is not asked and nothing is generated: either would
    only delay the message. `watch` is told of rows that are generated.
    """
    data = configuration.data
    length = _generated_length(tasks, configuration, problems)
    if data in (None, "synthetic", "pocket") and problems:
        tasks = []
    own: dict[str, list[str]] = {}
    rows: dict[str, RowSource | None] = {}
    for task in tasks:
        own[task.name] = []
        told = partial(_tell, watch, f"generating {task.name}")
        rows[task.name] = collect(
            own[task.name],
            partial(
                load_examples, task, data, configuration.limit, seed, length=length, watch=told
            ),
        )
    problems += _row_problems(own, rows, data)
    return rows


def _tell(watch: Watch | None, what: str, done: int, total: int) -> None:
    if watch:
        watch(done, total, what)


def _generated_length(
    tasks: Sequence[Task], configuration: RunConfiguration, problems: list[str]
) -> int | None:
    """Tokens of generated rows; None where the rows, or their levels, have lengths of their own."""
    lengths = [length for length in configuration.lengths if length]
    if not lengths or all(task.level is not None or is_pocket(task.name) for task in tasks):
        return None
    if configuration.data != "synthetic":
        problems.append("--length: only generated rows have a length to choose: --data synthetic")
        return None
    if len(lengths) > 1:
        problems.append("--length: one at a time; records of two lengths do not share a folder")
    tokens: int | None = collect(problems, partial(parse_length, lengths[0]))
    return tokens


def _row_problems(
    own: dict[str, list[str]], rows: dict[str, RowSource | None], data: str | None
) -> list[str]:
    """The tasks' problems; those that have no file in a folder of some share one message."""
    absent = [
        name
        for name, messages in own.items()
        if len(messages) == 1 and ": no rows in " in messages[0]
    ]
    missing: list[str] = []
    if data is not None and len(absent) > 1 and os.path.isdir(data):
        there = [name for name in own if name not in absent]
        remedy = f"give --tasks {','.join(there)}" if there else "see --data in --help"
        missing = [f"--data: {data} has no rows of {', '.join(absent)}; {remedy}"]
    else:
        absent = []
    found = list(missing)
    for name, messages in own.items():
        if name not in absent:
            found += [message for message in messages if message not in found]
    return found
