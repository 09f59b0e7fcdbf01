"""What is known of an example beside its score: what curves run along, or hold fixed.

Stored facts, distance of the evidence and length are drawn; other attributes are only held fixed:
words and yes or no as part of the kind of task, numbers of which there are few as they are.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from reports.bins import edges_of, short_tokens, tokens_of
from reports.leaderboard import Column, TaskKey
from reports.records import ExampleRecord

ATTRIBUTE = "attribute "
"""Begins the names of properties that are plain attributes."""

_MOST_VALUES = 8  # a number with more values than this is nothing to sort examples by,
_MOST_WORDS = 40  # and so are words with more than this: they name examples, not kinds


@dataclass(frozen=True)
class Property:
    """Something known of examples: curves run along it, or hold it fixed."""

    name: str
    value: Callable[[TaskKey, Column, ExampleRecord], Any]
    """Sortable, or None for an example without it."""
    write: Callable[[Any], str]
    held: Callable[[str], str]
    """Its written values in words, as what is held fixed."""
    title: str = ""
    """Empty: no curve is drawn along it."""
    axis: str = ""
    note: str = ""


def drawn(records: Iterable[ExampleRecord]) -> list[Property]:
    """The properties that curves are drawn along."""
    distances = [d for record in records if (d := _distance(record)) is not None]
    edges = edges_of(min(distances), max(distances)) if distances else []

    def bin_of(task: TaskKey, column: Column, record: ExampleRecord) -> int | None:
        distance = _distance(record)
        return None if distance is None else bisect_right(edges, distance) - 1

    return [
        Property(
            name="facts",
            value=lambda task, column, record: _count(record.attributes.get("facts")),
            write=str,
            held=lambda values: f"{values} stored fact{'' if values == '1' else 's'}",
            title="Score by number of stored facts",
            axis="facts stored in the text",
            note="How much a memory holds: the same kinds of question with more facts in the text.",
        ),
        Property(
            name="distance",
            value=bin_of,
            write=lambda i: f"{short_tokens(edges[i])}–{short_tokens(edges[i + 1])}",
            held=lambda values: f"evidence {values} tokens back",
            title="Score by distance of the evidence",
            axis="tokens from the evidence to the end of the prompt",
            note="How fast a memory forgets: the further back the evidence, the longer it had to "
            "keep it.",
        ),
        Property(
            name="length",
            value=_length,
            write=lambda length: str(length[1]),
            held=lambda values: f"texts of {values} tokens",
            title="Score by length",
            axis="length of the text",
            note="The same kinds of task in longer texts.",
        ),
    ]


def plain(name: str) -> Property:
    """A number among the attributes that no curve runs along."""
    return Property(
        name=f"{ATTRIBUTE}{name}",
        value=lambda task, column, record: record.attributes.get(name),
        write=str,
        held=lambda values: f"{name} {values}",
    )


def sort_attributes(records: Iterable[ExampleRecord]) -> tuple[list[str], list[str], list[str]]:
    """Names of attributes besides the drawn ones: words, few numbers, and what sorts nothing.

    An attribute that never varies is in none of the three.
    """
    found: dict[str, list[Any]] = {}
    records = list(records)
    for record in records:
        for name in record.attributes:
            if name not in ("facts", "evidence_distance", "length"):
                found.setdefault(name, [])
    words: list[str] = []
    numbers: list[str] = []
    unsorted: list[str] = []
    for name in found:
        values = [record.attributes.get(name) for record in records]
        distinct = {repr(value) for value in values}
        if len(distinct) == 1:
            continue
        if all(value is None or isinstance(value, str | bool) for value in values):
            (words if len(distinct) <= _MOST_WORDS else unsorted).append(name)
        elif len(distinct) <= _MOST_VALUES and all(_is_number(value) for value in values):
            numbers.append(name)
        else:
            unsorted.append(name)
    return words, numbers, unsorted


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def family(task: TaskKey, column: Column, record: ExampleRecord) -> str:
    """The task's name without facts and length, which are properties: 'pocket_qa@4_1024' and
    'pocket_qa@1' are one family, so are the levels of one data set."""
    described = column.run.info.tasks.get(task.task, {})
    name = str(described.get("dataset") or task.task).split("@")[0]
    length = _length(task, column, record)
    return name if length is None else name.removesuffix(f"_{length[1]}")


def _length(task: TaskKey, column: Column, record: ExampleRecord) -> tuple[float, str] | None:
    """The length that ``run.json`` gives as the task's ``level``, or else the record's attribute
    ``length`` (tokens of generated texts)."""
    level = column.run.info.tasks.get(task.task, {}).get("level")
    if level is None:
        length = record.attributes.get("length")
        if isinstance(length, int) and not isinstance(length, bool):
            level = short_tokens(length)
    return None if level is None else (tokens_of(str(level)), str(level))


def _count(value: object) -> int | None:
    if isinstance(value, list):
        return len(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _distance(record: ExampleRecord) -> int | None:
    value = record.attributes.get("evidence_distance")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value >= 0 else None
