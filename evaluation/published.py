"""Published figures (`configs/published/*.yaml`) as tables for a page. No torch.

They are data, with their source, protocol and what keeps them from being compared; nothing here
computes with them. A page shows those of the benchmarks it is about.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from evaluation.problems import InputError
from reports.figure_tables import Figure, FigureTable
from reports.leaderboard import Column
from tasks.registry import benchmark_names, find_task, is_pocket, task_names


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Strict):
    """Where figures stand."""

    repository: str
    revision: str
    file: str


class Below(_Strict):
    """A figure of which only a bound was published."""

    below: float


class Model(_Strict):
    """What is known of a model that figures are of."""

    context: str
    checkpoint: str


class PublishedTable(_Strict):
    """One table of a source."""

    title: str
    source: Source
    unit: str
    columns: list[str]
    rows: dict[str, list[float | Below | None]]
    notes: list[str] = []

    @model_validator(mode="after")
    def _rows_are_full(self) -> PublishedTable:
        odd = [name for name, row in self.rows.items() if len(row) != len(self.columns)]
        if odd:
            raise ValueError(f"rows {odd}: not one figure for each of {len(self.columns)} columns")
        return self


class PublishedFile(_Strict):
    """One file of `configs/published`."""

    benchmark: str
    protocol: str
    sources: list[Source] = Field(min_length=1)
    models: dict[str, Model] = {}
    notes: list[str] = []
    tables: list[PublishedTable]


@cache
def published_files() -> list[PublishedFile]:
    """All files, by name; `InputError` naming the file where one is not of this form."""
    folder = resources.files("configs").joinpath("published")
    found = []
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if not file.name.endswith(".yaml"):
            continue
        try:
            found.append(PublishedFile.model_validate(yaml.safe_load(file.read_text("utf-8"))))
        except (ValidationError, yaml.YAMLError) as error:
            raise InputError(f"configs/published/{file.name}: {error}") from error
    return found


def published_tables(columns: Sequence[Column]) -> list[FigureTable]:
    """The published tables of the benchmarks and data sets that `columns` are of."""
    asked: dict[str, set[str]] = {}
    for column in columns:
        for key in column.cells:
            if key.benchmark in benchmark_names() and not is_pocket(key.task):
                task = find_task(key.benchmark, key.task)
                asked.setdefault(key.benchmark, set()).update({task.name, task.dataset})
    return [
        table
        for file in published_files()
        if file.benchmark in asked
        for table in _of_file(file, asked[file.benchmark])
    ]


def _of_file(file: PublishedFile, asked: set[str]) -> list[FigureTable]:
    """The file's tables that concern the tasks in `asked`; its notes stand below the last."""
    known = [find_task(file.benchmark, name) for name in task_names(file.benchmark)]
    names = {name for task in known for name in (task.name, task.dataset)}
    made = []
    for table in file.tables:
        of_one = names & {table.title.split(": ")[-1]}
        if of_one and not of_one & asked:
            continue
        headings, rows = list(table.columns), [(n, _figures(r)) for n, r in table.rows.items()]
        if set(headings) <= names:  # by task: of those that were asked, a row each
            kept = [i for i, heading in enumerate(headings) if heading in asked]
            if not kept:
                continue
            headings, rows = (
                [name for name, _ in rows],
                [(table.columns[i], tuple(row[i] for _, row in rows)) for i in kept],
            )
        unit = "" if table.unit == "percent" else f", {table.unit}"
        source = table.source
        made.append(
            FigureTable(
                title=f"{table.title} (protocol {file.protocol}{unit})",
                columns=tuple(headings),
                rows=tuple(rows),
                notes=tuple(table.notes),
                source=f"{source.repository}, revision {source.revision}, {source.file}",
            )
        )
    if not made:
        return []
    last = made[-1]
    contexts = ", ".join(f"{name} {model.context}" for name, model in file.models.items())
    notes = [*last.notes, *file.notes, *([f"Contexts: {contexts}."] if contexts else [])]
    return [*made[:-1], FigureTable(last.title, last.columns, last.rows, tuple(notes), last.source)]


def _figures(row: Sequence[Any]) -> tuple[Figure, ...]:
    return tuple(f"< {cell.below:g}" if isinstance(cell, Below) else cell for cell in row)
