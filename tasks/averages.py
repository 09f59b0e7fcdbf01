"""A benchmark's figures as its authors form them, from the scores of single examples.

Every benchmark folder may have a module `averages` with `tables(scores)`; what is common to them
is here. A mean over fewer tasks than the authors take it over is no figure of theirs: such a cell
is None, and the table's note says what is missing.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tasks.registry import benchmark_definition, find_task

Figure = float | None
"""In percent; None where it cannot be formed."""


@dataclass(frozen=True)
class Scored:
    """One example's score and what the averages ask of its row."""

    score: float
    """0 to 1."""
    length: int | None = None
    """The row's own `length`: words, or Chinese characters."""
    attributes: Mapping[str, Any] = field(default_factory=dict)


Scores = Mapping[str, Sequence[Scored]]
"""The examples of each task of one benchmark, by the task's name."""


@dataclass(frozen=True)
class Table:
    """Figures in percent, one row a line."""

    title: str
    columns: tuple[str, ...]
    """Headings of the figures; the first column, the rows' names, is not among them."""
    rows: tuple[tuple[str, tuple[Figure, ...]], ...]
    note: str = ""
    """What is missing or particular; empty: nothing."""


def benchmark_tables(benchmark: str, scores: Scores) -> list[Table]:
    """The authors' tables for the tasks in `scores`; none where there is nothing to average.

    Tasks may be named as `tasks.registry.find_task` allows; generated ones are left out. A
    benchmark without averages of its own gives the mean of each task.
    """
    known = {find_task(benchmark, name).name: list(found) for name, found in scores.items()}
    known = {name: found for name, found in known.items() if found and _published(benchmark, name)}
    if not known:
        return []
    module = f"tasks.{benchmark}.averages"
    if importlib.util.find_spec(module) is None:
        return [task_means(benchmark, known)]
    tables: list[Table] = importlib.import_module(module).tables(known)
    return tables


def _published(benchmark: str, name: str) -> bool:
    return bool(find_task(benchmark, name).dataset)


def task_means(benchmark: str, scores: Scores) -> Table:
    """One mean per task."""
    rows = tuple((name, (percent(found),)) for name, found in scores.items())
    return Table(f"{benchmark_definition(benchmark).title}: score per task", ("score",), rows)


def percent(examples: Iterable[Scored]) -> Figure:
    """100 times the mean, to two decimals, as the authors' scripts print it; None of nothing."""
    scores = [example.score for example in examples]
    return round(100 * sum(scores) / len(scores), 2) if scores else None


def mean(figures: Sequence[Figure], digits: int) -> Figure:
    """The mean of figures, rounded; None if there are none or one is missing."""
    given = [figure for figure in figures if figure is not None]
    if not given or len(given) < len(figures):
        return None
    return round(math.fsum(given) / len(given), digits)
