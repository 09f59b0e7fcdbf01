"""Variants beside tasks: which columns a page has, and the figures of every cell.

A *column* is one variant of one run. Its label is the variant's name, followed by the model's
name where the page has several models, and by the run's where that does not tell it apart. A
*task* is named by benchmark, task and protocol together: a score under another protocol is
another figure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from reports.costs import AMOUNTS, TIMES, cost_of
from reports.records import ExampleRecord
from reports.run_folders import Run
from reports.stats import Sample, mean_interval


class TaskKey(NamedTuple):
    """One task under one protocol."""

    benchmark: str
    task: str
    protocol: str


@dataclass(frozen=True)
class Column:
    """One variant of one run and its records, task by task."""

    label: str
    variant: str
    run_name: str
    run: Run
    cells: dict[TaskKey, list[ExampleRecord]]

    @property
    def kind(self) -> str:
        """How the past is seen, whatever the variant is called: 'full', 'window', 'ahn' ..."""
        kind = self.run.info.models.get(self.variant, {}).get("variant")
        if isinstance(kind, str) and kind:
            return kind
        return self.variant.split("-")[0] if self.variant.startswith("ahn-") else self.variant

    @property
    def window(self) -> tuple[int, int] | None:
        """Its window and sinks, in tokens; None: it has none, or one for each document."""
        said = self.run.info.models.get(self.variant, {})
        window, sinks = said.get("window"), said.get("sinks")
        return None if type(window) is not int else (window, sinks if type(sinks) is int else 0)

    @property
    def model(self) -> str:
        """The base model as it was asked for: a hub id, a folder, 'pocket'; '' if unknown."""
        return _model(self.run, self.variant)

    @property
    def records(self) -> list[ExampleRecord]:
        """All records of the column, failed ones among them."""
        return [record for records in self.cells.values() for record in records]

    @property
    def errors(self) -> int:
        """How many examples failed."""
        return sum(record.error is not None for record in self.records)

    def scored(self, task: TaskKey) -> list[ExampleRecord]:
        """The task's records that have a score; failed examples have none and are left out."""
        return [record for record in self.cells.get(task, ()) if record.score is not None]

    def sample(self, task: TaskKey) -> Sample:
        """The task's scores with the documents they belong to."""
        records = self.scored(task)
        return Sample(
            values=tuple(float(r.score) for r in records if r.score is not None),
            clusters=tuple(r.document_id for r in records),
        )

    def planned(self, task: str) -> int | None:
        """How many examples of the task named `task` the run planned, if ``run.json`` says."""
        count = self.run.info.tasks.get(task, {}).get("examples")
        return count if isinstance(count, int) and not isinstance(count, bool) else None


def columns_of(runs: Sequence[Run]) -> list[Column]:
    """The columns of a page: per run its variants in the order of ``run.json``."""
    names = run_names([run.path for run in runs])
    found: list[tuple[str, str, Run, dict[TaskKey, list[ExampleRecord]]]] = []
    for name, run in zip(names, runs, strict=True):
        cells: dict[str, dict[TaskKey, list[ExampleRecord]]] = {}
        for record in run.records:
            task = TaskKey(record.benchmark, record.task, record.protocol)
            cells.setdefault(record.variant, {}).setdefault(task, []).append(record)
        found += [(name, variant, run, tasks) for variant, tasks in cells.items()]
    labels = _labels([(variant, _model(run, variant), name) for name, variant, run, _ in found])
    return [
        Column(label=label, variant=variant, run_name=name, run=run, cells=tasks)
        for label, (name, variant, run, tasks) in zip(labels, found, strict=True)
    ]


def _model(run: Run, variant: str) -> str:
    asked = run.info.configuration.get("model")
    path = run.info.models.get(variant, {}).get("path")
    return next((m for m in (asked, path) if isinstance(m, str) and m), "")


def _labels(columns: Sequence[tuple[str, str, str]]) -> list[str]:
    """Labels of columns given as (variant, model, run)."""
    names = model_names([model for _, model, _ in columns])
    wanted = [
        variant if len(set(names.values())) == 1 else f"{variant} · {names[model]}"
        for variant, model, _ in columns
    ]
    times = Counter(wanted)
    return [
        label if times[label] == 1 else f"{variant} · {run}"
        for label, (variant, _, run) in zip(wanted, columns, strict=True)
    ]


def model_names(models: Iterable[str]) -> dict[str, str]:
    """A short name for each model: the last part of its path, or as much as tells it apart."""
    different = list(dict.fromkeys(models))
    parts = {model: [p for p in model.split("/") if p] or ["unnamed"] for model in different}
    for length in range(1, max(map(len, parts.values()), default=1) + 1):
        names = {model: "/".join(p[-length:]) for model, p in parts.items()}
        if len(set(names.values())) == len(names):
            return names
    return {model: model or "unnamed" for model in different}


def run_names(paths: Sequence[Path]) -> list[str]:
    """A short name per run folder: as many trailing path parts as it takes to tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(p[-1:])} #{i}" for i, p in enumerate(parts, start=1)]


def tasks_of(columns: Iterable[Column]) -> list[TaskKey]:
    """Every task that any column has, in order of first appearance."""
    return list(dict.fromkeys(task for column in columns for task in column.cells))


def compared_tasks(columns: Sequence[Column]) -> list[TaskKey]:
    """The tasks in which every column has a score: only over these are averages comparable."""
    return [t for t in tasks_of(columns) if all(column.scored(t) for column in columns)]


def leaderboard_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The long table: one row per column and task, each over the column's own examples.

    Scores and interval ends are shares in [0, 1]; `n` counts the scored examples, `errors` the
    failed ones, `planned` what the run meant to do; FLOPs, bytes and tokens are means over the
    examples that did not fail. Seconds are medians; those of prefills cover the `whole_prefills`
    alone, and `reused_share` is the share of the prompts' tokens that was not prefilled.
    `budget_deviation` is the share by which bytes after the document are off the budget, in the
    example furthest from it; `peaks` counts the examples whose peak was measured.
    """
    rows: list[dict[str, Any]] = []
    for column in columns_of(runs):
        for task, records in column.cells.items():
            sample = column.sample(task)
            interval = mean_interval(sample.values, sample.clusters) if sample.values else None
            cost = cost_of([(r, None) for r in records if r.error is None])
            rows.append(
                {
                    "run": column.run_name,
                    "column": column.label,
                    "variant": column.variant,
                    "model": column.model,
                    **task._asdict(),
                    "metric": records[0].metric,
                    "mean": interval and interval.mean,
                    "low": interval and interval.low,
                    "high": interval and interval.high,
                    "method": interval and interval.method,
                    "n": len(sample.values),
                    "documents": len(set(sample.clusters)),
                    "errors": sum(r.error is not None for r in records),
                    "planned": column.planned(task.task),
                    "truncated": sum(r.truncated for r in records),
                    **{name: cost.amounts[name].mean for name in AMOUNTS},
                    **{name: cost.times[name].median for name in TIMES},
                    "whole_prefills": cost.reuse.whole,
                    "reused_share": cost.reuse.share,
                    "budget_deviation": cost.kept.deviation,
                    "peak_bytes_largest": cost.kept.largest_peak,
                    "peaks": cost.kept.peaks,
                }
            )
    return rows
