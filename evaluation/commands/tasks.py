"""`run_eval tasks`: what can be asked for by name, and where its rows are. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from common.errors import InputError, shown
from common.files import kind_of
from evaluation.commands.data_folders import register_benchmark_in
from tasks.layouts import find_parts
from tasks.registry import (
    benchmark_definition,
    benchmark_folder,
    benchmark_names,
    expand,
    find_task,
    group_names,
    module_of,
    task_names,
)
from tasks.schema import Task

WIDE = 110
"""Columns of a terminal that take the whole table."""
_ONLY_WIDE = ["answer up to", "protocols"]
_SHORT = {"language": "lang", "rows here": "here"}


def describe_tasks(benchmark: str | None, data: str | None = None) -> list[dict[str, Any]]:
    """Benchmarks (all of them, or one) with their groups and tasks, as plain data.

    Of each task: ``name``, ``dataset``, ``level``, ``language``, ``category``, ``citation``,
    per protocol ``metric`` and ``max_new_tokens``, and its rows: ``from`` where, in which
    ``file``, whether they are ``here``, on this machine, and whether ``synthetic`` ones can be
    made. Nothing is downloaded.
    """
    if data is not None and kind_of(data) not in ("a folder", "a file"):
        raise InputError(f"--data: {shown(data)} is no folder or file")
    register_benchmark_in(data)
    names = benchmark_names() if benchmark is None else [benchmark]
    return [_benchmark(name, data) for name in names]


def _benchmark(name: str, data: str | None) -> dict[str, Any]:
    return {
        "benchmark": name,
        "groups": {
            group: [task.name for task in expand(name, [group], None)]
            for group in group_names(name)
        },
        "tasks": [_task(find_task(name, task), data) for task in task_names(name)],
        "lengths": benchmark_definition(name).lengths,
        "any_length": benchmark_definition(name).made_for_tokenizer,
    }


def _task(task: Task, data: str | None) -> dict[str, Any]:
    return {
        "name": task.name,
        "dataset": task.dataset or task.name,
        "level": task.level,
        "language": task.language,
        "category": task.category,
        "citation": task.citation,
        "protocols": {
            name: {"metric": rules.metric, "max_new_tokens": rules.max_new_tokens}
            for name, rules in task.protocols.items()
        },
        "rows": rows_of(task, data),
    }


def rows_of(task: Task, data: str | None) -> dict[str, Any]:
    """Where a task's rows come from, in which file, and whether they are on this machine."""
    definition = benchmark_definition(task.benchmark)
    if definition.generated:
        return {"from": "generated here", "file": None, "here": True, "synthetic": False}
    synthetic = task.name in definition.synthetic
    if definition.made_for_tokenizer and data is None:
        place, here = module_of(task.benchmark, "synthetic").source(task.dataset)
        return {"from": place, "file": None, "here": here, "synthetic": False}
    if data is None and definition.hub is None:
        data = str(benchmark_folder(task.benchmark))
    if data is not None:
        found = _file_in(task, Path(data))
        file = found or f"{task.name}.jsonl"
        return {"from": data, "file": file, "here": found is not None, "synthetic": synthetic}
    from huggingface_hub import try_to_load_from_cache

    hub = definition.hub
    assert hub is not None
    file = task.adapter.hub_file(task)
    cached = try_to_load_from_cache(
        hub.repository, file, repo_type="dataset", revision=hub.revision
    )
    return {
        "from": f"{hub.repository} on the hub",
        "file": file,
        "here": isinstance(cached, str),
        "synthetic": synthetic,
    }


def _file_in(task: Task, data: Path) -> str | None:
    """The first file with the task's rows; None where there is none that could be read."""
    try:
        path = find_parts(task, data)[0].path
    except InputError:
        return None
    return path.name if path == data else path.relative_to(data).as_posix()


def task_tables(described: list[dict[str, Any]], width: int) -> Group:
    """`describe_tasks` to read: one row per data set, its lengths together.

    In less than `WIDE` of the terminal's columns the last constants are left out, and said to be.
    """
    tables = [_table(benchmark, width >= WIDE) for benchmark in described]
    return Group(*(part for table in tables for part in (table, Text(""))))


def _table(benchmark: dict[str, Any], wide: bool) -> Table:
    name = benchmark["benchmark"]
    table = Table(title=f"Tasks of {name}", title_justify="left", caption_justify="left")
    if not wide:
        table.box, table.show_edge, table.collapse_padding = SIMPLE_HEAD, False, True
    by_dataset: dict[str, list[dict[str, Any]]] = {}
    for task in benchmark["tasks"]:
        key = task["dataset"] if task["level"] else task["name"]
        by_dataset.setdefault(key, []).append(task)
    columns = ["task", "language", "category", "metric", "rows here"]
    if wide:
        columns[4:4] = _ONLY_WIDE
    for column in columns:  # half a name is none that could be asked for
        whole = column in ("task", "language", "metric", "protocols")
        words = [word for task in benchmark["tasks"] for word in str(task.get(column)).split()]
        least = max(map(len, words)) if column == "category" else None
        heading = column if wide else _SHORT.get(column, column)
        table.add_column(heading, no_wrap=whole, overflow="fold", min_width=least)
    for dataset, tasks in by_dataset.items():
        first = tasks[0]
        cells = [dataset, first["language"], first["category"], _differing(first, "metric", "\n")]
        if wide:
            between = ", " if len(first["protocols"]) < 3 else ",\n"
            cells += [_differing(first, "max_new_tokens"), between.join(first["protocols"])]
        table.add_row(*cells, _where(tasks))
    groups = [group for group in benchmark["groups"] if group not in by_dataset]
    places = dict.fromkeys(task["rows"]["from"] for task in benchmark["tasks"])
    levels = dict.fromkeys(str(t["level"]) for t in benchmark["tasks"] if t["level"])
    notes = [f"rows: {', '.join(places)}", f"groups: {', '.join(groups)}"]
    lengths = [str(length) for length in benchmark["lengths"]]
    if benchmark["any_length"]:
        lengths = ["any (--lengths 4096,8k,128k)"]
    if levels or lengths:
        notes.insert(0, f"lengths of each: {', '.join([*levels, *lengths])}")
    if any(task["rows"]["synthetic"] for task in benchmark["tasks"]):
        notes.append("*: also made here, with --data synthetic")
    if not wide:
        notes.append(f"{' and '.join(_ONLY_WIDE)}: in a wider terminal, or with --json")
    table.caption = "\n".join(notes)
    return table


def _differing(task: dict[str, Any], key: str, space: str = " ") -> str:
    """A constant of the first protocol, and other values with the protocols that have them."""
    by_value: dict[Any, list[str]] = {}
    for name, rules in task["protocols"].items():
        by_value.setdefault(rules[key], []).append(name)
    (first, _), *others = by_value.items()
    several = [name for names in by_value.values() for name in names][1:]
    parts = [
        f"{'others' if names == several and len(names) > 1 else ', '.join(names)}{space}{value}"
        for value, names in others
    ]
    return f" /{space}".join([str(first), *parts])


def _where(tasks: list[dict[str, Any]]) -> str:
    here = [task for task in tasks if task["rows"]["here"]]
    state = "yes" if len(here) == len(tasks) else "no"
    if here and len(here) < len(tasks):
        state = ", ".join(str(task["level"]) for task in here)
    return f"{state} *" if tasks[0]["rows"]["synthetic"] else state
