"""Means of scores, and the tables they stand in: what all benchmarks' averages are made of.

A mean over fewer tasks than the authors take it over is no figure of theirs: such a cell is None,
and the table's note says what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
