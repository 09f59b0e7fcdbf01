"""Which tasks a run asks, under which protocol, and their rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.errors import InputError, Problems
from common.suggestions import did_you_mean
from evaluation.plan.configuration import MADE_OF, RunConfiguration
from tasks.lengths import parse_length
from tasks.making import Making
from tasks.registry import (
    SYNTHETIC,
    at_length,
    benchmark_definition,
    expand,
    is_benchmark_folder,
    is_generated,
    module_of,
    protocol_name,
    register_benchmark,
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


def resolve_tasks(configuration: RunConfiguration) -> AskedTasks:
    """The tasks, lengths and protocol that `configuration` names, and all that is wrong with them.

    A folder of data that defines a benchmark is made known first. InputError where that fails, or
    the benchmark is not known.
    """
    benchmark, data = configuration.benchmark, configuration.data or ""
    if is_benchmark_folder(data):
        there = register_benchmark(Path(data))
        if there != benchmark:
            raise InputError(f"--data: {data} is the benchmark {there!r}, not {benchmark!r}")
    names: Sequence[str] = configuration.tasks
    found: dict[str, Task] = {}
    problems = Problems()
    if "" in names:
        problems.add("--tasks: no name is given")
    # Without names each task is looked up by its own, so that one broken file is one problem.
    if not names and data != SYNTHETIC and not is_generated(data):
        names = task_names(benchmark)
    for group in [[name] for name in names if name] or ([] if names else [[]]):
        with problems.collecting():
            found |= {task.name: task for task in expand(benchmark, group, data)}
    tasks = list(found.values())
    if data == SYNTHETIC:
        with problems.collecting():
            _check_can_be_generated(tasks, benchmark)
        tasks = [task for task in tasks if _can_be_generated(task)]
    wanted = [length.lower() for length in configuration.lengths]
    if "" in wanted:
        problems.add("--lengths: none is given")
    of_lengths: list[Task] = []
    for length in [length for length in wanted if length] or ([] if wanted else [""]):
        with problems.collecting():
            of_lengths += _of_length(tasks, length)
    chosen = {task.name: task for task in of_lengths}
    if data in ("", SYNTHETIC) and (
        without := [name for name, task in chosen.items() if _is_made(task) and not task.length]
    ):
        problems.add(
            f"--lengths: needed for {', '.join(without)}: {benchmark}'s rows are made at any "
            "length, as --lengths 4096,8k,128k"
        )
    levels_of = chosen.keys() <= found.keys()  # else they are made, in the order of the lengths
    tasks = [found[name] for name in found if name in chosen] if levels_of else [*chosen.values()]
    protocol = protocol_name(benchmark, configuration.protocol)
    with problems.collecting():
        _check_protocol(tasks, protocol)
    return AskedTasks(
        [task for task in tasks if protocol in task.protocols], protocol, tuple(problems)
    )


def _can_be_generated(task: Task) -> bool:
    definition = benchmark_definition(task.benchmark)
    return definition.generated or _is_made(task) or task.name in definition.synthetic


def _is_made(task: Task) -> bool:
    """Whether rows of a task are made for the tokenizer of a run, unless a folder has them."""
    return benchmark_definition(task.benchmark).made_for_tokenizer


def _check_can_be_generated(tasks: Sequence[Task], benchmark: str) -> None:
    """InputError, with one message about all of them, for tasks without a construction."""
    without = [task.name for task in tasks if not _can_be_generated(task)]
    known = benchmark_definition(benchmark).synthetic
    if without and known:
        raise InputError(
            f"--data synthetic: {', '.join(without)} cannot be generated (only "
            f"{', '.join(known)} can); give their rows"
        )
    if without:
        raise InputError(
            f"--data synthetic: no task of {benchmark} can be generated; give the rows"
        )


def _of_length(tasks: Sequence[Task], length: str) -> list[Task]:
    """The tasks at one of the lengths asked for; all where none was, or they have no lengths.

    LV-Eval has levels, a suite that is generated has texts of so many tokens.
    """
    levels = list(dict.fromkeys(task.level for task in tasks if task.level is not None))
    if length and tasks and all(task.length is not None or _is_made(task) for task in tasks):
        try:
            return [at_length(task, parse_length(length)) for task in tasks]
        except InputError as error:
            told = str(error)
            raise InputError(told if told.startswith("--") else f"--lengths: {told}") from None
    if not length or not levels:
        return list(tasks)
    if length not in levels:
        raise InputError(
            f"--lengths: unknown length {length!r} (known: {', '.join(levels)})"
            f"{did_you_mean(length, levels, most=1)}"
        )
    return [task for task in tasks if task.level == length]


def _check_protocol(tasks: Sequence[Task], protocol: str) -> None:
    """InputError, with one message about all of them, for tasks that do not have `protocol`."""
    without = [task for task in tasks if protocol not in task.protocols]
    if not without:
        return
    known = list(dict.fromkeys(name for task in tasks for name in task.protocols))
    if not any(protocol in task.unavailable for task in without) and protocol not in known:
        raise InputError(
            f"--protocol: unknown protocol {protocol!r} (known: {', '.join(known)})"
            f"{did_you_mean(protocol, known, most=1)}"
        )
    why: dict[str, list[str]] = {}
    for task in without:
        reason = task.unavailable.get(protocol, "not defined for it")
        why.setdefault(reason, []).append(task.name)
    reasons = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in why.items())
    rest = ",".join(task.name for task in tasks if task not in without)
    others = ", ".join(name for name in known if name != protocol)
    remedy = f"choose --tasks {rest}, or " if rest else "choose "
    raise InputError(f"--protocol: {protocol} is no protocol of {reasons}; {remedy}one of {others}")


Watch = Callable[[int, int, str], None]
"""Is told how many are done, of how many, and what is being done."""


def load_rows(
    tasks: Sequence[Task],
    configuration: RunConfiguration,
    seed: int,
    watch: Watch | None = None,
    files_only: bool = False,
    making: Making | None = None,
) -> LoadedRows:
    """The rows of each task, and all that is wrong with them.

    Args:
        tasks: whose rows.
        configuration: says where they are, how many are wanted and how long generated ones are.
        seed: of generated rows.
        watch: is told of rows that are generated.
        files_only: whether only local files are read: for a run that cannot start anyway, asking
            the hub or generating rows would only delay the message.
        making: what rows are made with that belong to a tokenizer; None: it is not known.
    """
    data = configuration.data
    problems = Problems()
    length = None
    with problems.collecting():
        length = _generated_length(tasks, configuration)
    problems.add(*_making_problems(tasks, configuration, making))
    if (files_only or problems) and (data in (None, SYNTHETIC) or is_generated(data)):
        tasks = []
    wrong: dict[str, tuple[str, ...]] = {}
    sources: dict[str, RowSource] = {}
    for task in tasks:
        told = partial(_tell, watch, f"generating {task.name}")
        own = Problems()
        with own.collecting():
            sources[task.name] = load_examples(
                task, data, configuration.limit, seed, length=length, watch=told, making=making
            )
        wrong[task.name] = tuple(own)
    problems.add(*_row_problems(wrong, data))
    return LoadedRows(sources, tuple(problems))


def _tell(watch: Watch | None, what: str, done: int, total: int) -> None:
    if watch:
        watch(done, total, what)


def _making_problems(
    tasks: Sequence[Task], configuration: RunConfiguration, making: Making | None
) -> Sequence[str]:
    """What is wrong with the files and the tokenizer that rows are to be made of."""
    made = [task for task in tasks if _is_made(task)]
    if not made or configuration.data not in (None, SYNTHETIC):
        given = [name for name in MADE_OF if getattr(configuration, name) is not None]
        why = "rows of --data are not made here" if made else "only rows of ruler are made of it"
        return [f"--{name}: {why}" for name in given]
    if making is None:
        return []
    generator = module_of(made[0].benchmark, "synthetic")
    found: Sequence[str] = generator.problems([task.dataset for task in made], making)
    return found


def _generated_length(tasks: Sequence[Task], configuration: RunConfiguration) -> int | None:
    """Tokens of generated rows; None where the rows, or their levels, have lengths of their own."""
    lengths = [length for length in configuration.lengths if length]
    if not lengths or all(task.level or task.length for task in tasks):
        return None
    if configuration.data != SYNTHETIC:
        raise InputError("--length: only generated rows have a length to choose: --data synthetic")
    problems = Problems()
    if len(lengths) > 1:
        problems.add("--length: one at a time; records of two lengths do not share a folder")
    tokens = None
    with problems.collecting():
        tokens = parse_length(lengths[0])
    problems.check()
    return tokens


def _row_problems(wrong: Mapping[str, Sequence[str]], data: str | None) -> Iterable[str]:
    """The tasks' problems; those that have no file in a folder of some share one message."""
    absent = [
        name
        for name, messages in wrong.items()
        if len(messages) == 1 and ": no rows in " in messages[0]
    ]
    if data is not None and len(absent) > 1 and os.path.isdir(data):
        there = [name for name in wrong if name not in absent]
        remedy = f"give --tasks {','.join(there)}" if there else "see --data in --help"
        yield f"--data: {data} has no rows of {', '.join(absent)}; {remedy}"
    else:
        absent = []
    for name, messages in wrong.items():
        if name not in absent:
            yield from messages
