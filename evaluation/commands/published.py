"""Published figures (`tasks.published`) as tables for a page. No torch.

They are data, with their source, protocol and what keeps them from being compared; nothing here
computes with them. A page shows those of the benchmarks and data sets it is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from reports.figure_tables import Figure, FigureTable
from reports.leaderboard import Column
from tasks.published import Below, Cell, PublishedTable
from tasks.published import published_tables as all_published
from tasks.registry import find_task, known_task, task_names


def published_tables(columns: Sequence[Column]) -> list[FigureTable]:
    """The published tables of the benchmarks and data sets that `columns` are of."""
    asked: dict[str, set[str]] = {}
    for column in columns:
        for key in column.cells:
            task = known_task(key.benchmark, key.task)
            if task is not None:
                asked.setdefault(key.benchmark, set()).update({task.name, task.dataset})
    found = [table for benchmark in asked for table in all_published(benchmark)]
    return [
        shown
        for _, tables in groupby(found, key=lambda table: table.file)
        for shown in _of_file(list(tables), asked)
    ]


def _of_file(tables: Sequence[PublishedTable], asked: dict[str, set[str]]) -> list[FigureTable]:
    """One file's tables that concern the tasks asked; its notes stand below the last of them."""
    shown = [
        (table, figures)
        for table in tables
        if (figures := _figures(table, asked[table.benchmark])) is not None
    ]
    made = []
    for number, (table, (headings, rows)) in enumerate(shown, 1):
        notes = table.notes if number < len(shown) else (*table.notes, *_notes_of_file(table))
        unit = "" if table.unit == "percent" else f", {table.unit}"
        source = table.source
        made.append(
            FigureTable(
                title=f"{table.title} (protocol {table.protocol}{unit})",
                columns=headings,
                rows=rows,
                notes=notes,
                source=f"{source.repository}, revision {source.revision}, {source.file}",
            )
        )
    return made


def _notes_of_file(table: PublishedTable) -> tuple[str, ...]:
    contexts = ", ".join(f"{name} {model.context}" for name, model in table.models.items())
    return (*table.file_notes, *([f"Contexts: {contexts}."] if contexts else []))


Rows = tuple[tuple[str, tuple[Figure, ...]], ...]


def _figures(table: PublishedTable, asked: set[str]) -> tuple[tuple[str, ...], Rows] | None:
    """Headings and rows of what concerns the tasks `asked`; None where nothing does.

    A table by task is turned, a row for each task that was asked.
    """
    known = [find_task(table.benchmark, name) for name in task_names(table.benchmark)]
    names = {name for task in known for name in (task.name, task.dataset)}
    of_one = names & {table.title.split(": ")[-1]}
    if of_one and not of_one & asked:
        return None
    digits = max(_digits(cell) for _, cells in table.rows for cell in cells)
    rows = tuple(
        (name, tuple(_figure(cell, digits) for cell in cells)) for name, cells in table.rows
    )
    if not set(table.columns) <= names:
        return table.columns, rows
    kept = [i for i, heading in enumerate(table.columns) if heading in asked]
    if not kept:
        return None
    turned = tuple((table.columns[i], tuple(figures[i] for _, figures in rows)) for i in kept)
    return tuple(name for name, _ in rows), turned


def _digits(cell: Cell) -> int:
    """Decimals that a figure was printed with, but for zeros at its end."""
    return len(str(cell).partition(".")[2]) if isinstance(cell, float) else 0


def _figure(cell: Cell, digits: int) -> Figure:
    """As printed: all of a table with the same number of decimals, no more than its source has."""
    return str(cell) if isinstance(cell, Below) else None if cell is None else f"{cell:.{digits}f}"
