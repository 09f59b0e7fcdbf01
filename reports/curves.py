"""Scores along a property of the examples: stored facts, distance of the evidence, length.

A memory is known by where it fails: with how many facts, after how many tokens. Every curve has
one line a column; at each of its points tasks weigh equally.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from reports.leaderboard import Column, TaskKey
from reports.records import ExampleRecord
from reports.stats import Interval, Sample, average_of_tasks

_MOST_EQUAL_BINS = 6
_OCTAVES_FROM = 6  # a range of distances this many times its least is divided into octaves

Cells = list[Interval | None]
"""One interval per column; None where it has no score there."""


@dataclass(frozen=True)
class Curve:
    """Scores of all columns at the points of one property, in order."""

    name: str  # short, for links
    title: str
    axis: str
    note: str
    points: list[tuple[str, Cells]]


def curves(columns: Sequence[Column]) -> list[Curve]:
    """The curves that the records allow: those with more than one point."""
    found = [
        Curve(
            "facts",
            "Score by number of stored facts",
            "facts stored in the text",
            "How much a memory holds: the same kinds of question with more facts in the text.",
            [(str(count), cells) for count, cells in by_facts(columns).items()],
        ),
        Curve(
            "distance",
            "Score by distance of the evidence",
            "tokens from the evidence to the end of the prompt",
            "How fast a memory forgets: the further back the evidence, the longer it had to keep "
            "it.",
            by_distance(columns),
        ),
        Curve(
            "length",
            "Score by length",
            "length of the text",
            "The same kinds of task in longer texts.",
            by_level(columns),
        ),
    ]
    return [curve for curve in found if len(curve.points) > 1]


def by_facts(columns: Sequence[Column]) -> dict[int, Cells]:
    """Score by the number of facts stored in the text.

    The number is the records' attribute ``facts`` (a count, or the list of facts). Empty when
    no record has it.
    """
    return _grouped(columns, lambda _, record: _count(record.attributes.get("facts")))


def by_distance(columns: Sequence[Column]) -> list[tuple[str, Cells]]:
    """Score by the records' attribute ``evidence_distance``, in bins of tokens."""
    distances = [
        distance
        for column in columns
        for record in column.records
        if (distance := _distance(record)) is not None
    ]
    if not distances:
        return []
    edges = _edges(min(distances), max(distances))

    def bin_of(_: Column, record: ExampleRecord) -> int | None:
        distance = _distance(record)
        return None if distance is None else bisect_right(edges, distance) - 1

    return [
        (f"{_short(edges[i])}–{_short(edges[i + 1])}", cells)
        for i, cells in _grouped(columns, bin_of).items()
    ]


def by_level(columns: Sequence[Column]) -> list[tuple[str, Cells]]:
    """Score by the length that ``run.json`` gives as each task's ``level``, or else by the records'
    attribute ``length`` (tokens of generated texts)."""

    def level_of(column: Column, record: ExampleRecord) -> tuple[float, str] | None:
        level = column.run.info.tasks.get(record.task, {}).get("level")
        if level is None:
            length = record.attributes.get("length")
            level = _short(length) if isinstance(length, int) else None
        return None if level is None else (_tokens(str(level)), str(level))

    return [(level, cells) for (_, level), cells in _grouped(columns, level_of).items()]


def _grouped(
    columns: Sequence[Column], key: Callable[[Column, ExampleRecord], Any]
) -> dict[Any, Cells]:
    """Average over tasks of the records with the same key, per column, in the order of keys."""
    found: dict[Any, list[dict[TaskKey, tuple[list[float], list[str]]]]] = {}
    for index, column in enumerate(columns):
        for task in column.cells:
            for record in column.scored(task):
                group = key(column, record)
                if group is None or record.score is None:
                    continue
                cell = found.setdefault(group, [{} for _ in columns])[index]
                values, documents = cell.setdefault(task, ([], []))
                values.append(record.score)
                documents.append(record.document_id)
    return {
        group: [
            average_of_tasks([Sample(tuple(v), tuple(d)) for v, d in cell.values()])
            if cell
            else None
            for cell in found[group]
        ]
        for group in sorted(found)
    }


def _count(value: object) -> int | None:
    if isinstance(value, list):
        return len(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _distance(record: ExampleRecord) -> int | None:
    value = record.attributes.get("evidence_distance")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value >= 0 else None


def _edges(least: int, most: int) -> list[int]:
    """Round edges of bins over [least, most]: octaves for a wide range, else equal steps."""
    if most >= _OCTAVES_FROM * max(least, 1):
        first = math.floor(math.log2(max(least, 1)))
        edges = [2**power for power in range(first, math.floor(math.log2(most)) + 2)]
        return [0, *edges] if least < edges[0] else edges
    step = 1
    while (most - least) / step > _MOST_EQUAL_BINS:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    first = least // step * step
    return [first + i * step for i in range((most - first) // step + 2)]


def _short(tokens: int) -> str:
    """1536 as it is, 2048 as 2k."""
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)


def _tokens(level: str) -> float:
    """A level's length, to sort by: 16k before 128k; what is no number comes last."""
    digits = level.lower().removesuffix("k")
    if not digits.isdigit():
        return math.inf
    return int(digits) * (1024 if level.lower().endswith("k") else 1)
