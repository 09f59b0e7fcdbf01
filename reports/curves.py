"""Scores along a property of the examples: stored facts, distance of the evidence, length.

A memory is known by where it fails: with how many facts, after how many tokens. A line over one
of these may join only points of like examples: where the long texts hold four facts and the short
ones one to sixteen, a line through the means would speak of the facts. So examples are sorted into
*cells* by all else that is known of them (task, protocol, metric, the other properties), a line
joins the points that its cells share, and at each of its points the cells have the same weights.
Cells that reach over other points have a panel of their own; what no other point has the like of
is left out, and counted.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from reports.bins import edges_of, short_tokens, tokens_of
from reports.leaderboard import Column, TaskKey, tasks_of
from reports.matched import ExampleKey, Matched, key_of, matched
from reports.records import ExampleRecord
from reports.stats import Interval, Sample, average_of_tasks

LEAST_SHARE = 0.1
"""A further panel holds at least this share of the property's examples."""

_MOST_VALUES = 8  # a number with more values than this is nothing to sort examples by
_MOST_POINT_SETS = 64

Cells = list[Interval | None]
"""One interval per column; None where it has no score there."""


@dataclass(frozen=True)
class Panel:
    """Points of like examples, which lines may join."""

    held: str
    """In words, what is the same at every point."""
    points: list[tuple[str, Cells]]
    examples: int
    """Examples at all points together."""


@dataclass(frozen=True)
class Curve:
    """Scores of all columns at the points of one property, in order."""

    name: str  # short, for links
    title: str
    axis: str
    note: str
    panels: list[Panel]
    examples: int
    """Examples that have the property."""
    left_out: int
    """Those of them that have no like at another point, or too few to be shown."""
    not_held: tuple[str, ...]
    """What is known of the examples, and differs between the points of a line all the same."""


@dataclass(frozen=True)
class _Property:
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


@dataclass(frozen=True)
class _Example:
    """An example that all columns with its task answered, and what is known of it."""

    task: TaskKey
    key: ExampleKey
    kind: tuple[Hashable, ...]
    """What it is, apart from the properties: task, protocol, metric, attributes in words."""
    properties: Mapping[str, Any]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class _Cell:
    """What examples have in common, apart from the property of the curve."""

    kind: tuple[Hashable, ...]
    held: tuple[Any, ...]
    columns: tuple[int, ...]


_Placed = dict[_Cell, dict[Any, list[_Example]]]
"""Per cell the examples at each point."""


def curves(columns: Sequence[Column]) -> list[Curve]:
    """The curves that the records allow: those with a line over more than one point."""
    shared = matched(columns)
    rows = _rows(columns, shared)
    words, numbers, unsorted = _attributes(record for _, _, record in rows)
    properties = [*_drawn(record for _, _, record in rows), *map(_plain, numbers)]
    examples = [
        _Example(
            task=task,
            key=key_of(record),
            kind=(
                task.benchmark,
                task.protocol,
                record.metric,
                _family(task, column, record),
                *(str(record.attributes.get(name)) for name in words),
            ),
            properties={p.name: p.value(task, column, record) for p in properties},
            columns=shared.having[task],
        )
        for task, column, record in rows
    ]
    scores = [
        {
            (task, key_of(r)): (float(r.score), r.document_id)
            for task in column.cells
            for r in column.scored(task)
            if r.score is not None
        }
        for column in columns
    ]
    found = [_curve(p, properties, examples, scores, unsorted) for p in properties if p.title]
    return [curve for curve in found if curve.panels]


def curve(columns: Sequence[Column], name: str) -> Curve | None:
    """The curve called `name` ('facts', 'distance' or 'length'); None where there is none."""
    return next((c for c in curves(columns) if c.name == name), None)


def _rows(
    columns: Sequence[Column], shared: Matched
) -> list[tuple[TaskKey, Column, ExampleRecord]]:
    """Each common example once, as the first column with its task has it."""
    rows = []
    for task in tasks_of(columns):
        if shared.common[task]:
            column = columns[shared.having[task][0]]
            rows += [(task, column, record) for record in shared.records(column, task)]
    return rows


def _drawn(records: Iterable[ExampleRecord]) -> list[_Property]:
    """The properties that curves are drawn along."""
    distances = [d for record in records if (d := _distance(record)) is not None]
    edges = edges_of(min(distances), max(distances)) if distances else []

    def bin_of(task: TaskKey, column: Column, record: ExampleRecord) -> int | None:
        distance = _distance(record)
        return None if distance is None else bisect_right(edges, distance) - 1

    return [
        _Property(
            name="facts",
            value=lambda task, column, record: _count(record.attributes.get("facts")),
            write=str,
            held=lambda values: f"{values} stored fact{'' if values == '1' else 's'}",
            title="Score by number of stored facts",
            axis="facts stored in the text",
            note="How much a memory holds: the same kinds of question with more facts in the text.",
        ),
        _Property(
            name="distance",
            value=bin_of,
            write=lambda i: f"{short_tokens(edges[i])}–{short_tokens(edges[i + 1])}",
            held=lambda values: f"evidence {values} tokens back",
            title="Score by distance of the evidence",
            axis="tokens from the evidence to the end of the prompt",
            note="How fast a memory forgets: the further back the evidence, the longer it had to "
            "keep it.",
        ),
        _Property(
            name="length",
            value=_length,
            write=lambda length: str(length[1]),
            held=lambda values: f"texts of {values} tokens",
            title="Score by length",
            axis="length of the text",
            note="The same kinds of task in longer texts.",
        ),
    ]


def _plain(name: str) -> _Property:
    """A number among the attributes that no curve runs along."""
    return _Property(
        name=f"attribute {name}",
        value=lambda task, column, record: record.attributes.get(name),
        write=str,
        held=lambda values: f"{name} {values}",
    )


def _attributes(records: Iterable[ExampleRecord]) -> tuple[list[str], list[str], list[str]]:
    """Names of attributes besides the drawn ones: words, few numbers, and what sorts nothing.

    An attribute that never varies is in none of the three.
    """
    found: dict[str, list[Any]] = {}
    records = list(records)
    for record in records:
        for name in record.attributes:
            if name not in ("facts", "evidence_distance", "length"):
                found.setdefault(name, [])
    words, numbers, unsorted = [], [], []
    for name in found:
        values = [record.attributes.get(name) for record in records]
        distinct = {repr(value) for value in values}
        if len(distinct) == 1:
            continue
        if all(value is None or isinstance(value, str | bool) for value in values):
            words.append(name)
        elif len(distinct) <= _MOST_VALUES and all(_is_number(value) for value in values):
            numbers.append(name)
        else:
            unsorted.append(name)
    return words, numbers, unsorted


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _family(task: TaskKey, column: Column, record: ExampleRecord) -> str:
    """The task's name without facts and length, which are properties: 'pocket_qa@4_1024' and
    'pocket_qa@1' are one family, so are the levels of one data set."""
    described = column.run.info.tasks.get(task.task, {})
    name = str(described.get("dataset") or task.task).split("@")[0]
    length = _length(task, column, record)
    return name if length is None else name.removesuffix(f"_{length[1]}")


def _curve(
    along: _Property,
    properties: Sequence[_Property],
    examples: Sequence[_Example],
    scores: Sequence[Mapping[tuple[TaskKey, ExampleKey], tuple[float, str]]],
    unsorted: Sequence[str],
) -> Curve:
    """The panels of one property."""
    having = [e for e in examples if e.properties[along.name] is not None]
    held, not_held = [], list(unsorted)
    for other in properties:
        if other is not along and len({e.properties[other.name] for e in having}) > 1:
            if _separable(having, along.name, other.name):
                held.append(other)
            else:
                not_held.append(other.name.removeprefix("attribute "))
    placed: _Placed = {}
    for e in having:
        cell = _Cell(e.kind, tuple(e.properties[p.name] for p in held), e.columns)
        placed.setdefault(cell, {}).setdefault(e.properties[along.name], []).append(e)
    constant = [
        p
        for p in properties
        if p is not along and p not in held and p.name.removeprefix("attribute ") not in not_held
    ]
    panels = []
    for points, cells in _like_cells(placed, len(having)):
        words = _held(cells, held, constant, having)
        panels.append(_panel(along, points, cells, placed, scores, words))
    return Curve(
        name=along.name,
        title=along.title,
        axis=along.axis,
        note=along.note,
        panels=panels,
        examples=len(having),
        left_out=len(having) - sum(panel.examples for panel in panels),
        not_held=tuple(not_held),
    )


def _separable(examples: Sequence[_Example], along: str, other: str) -> bool:
    """Whether `other` can be held fixed: some value of it occurs at two points of one kind."""
    seen: dict[Hashable, set[Any]] = {}
    for e in examples:
        key = (e.kind, e.properties[other])
        seen.setdefault(key, set()).add(e.properties[along])
    return any(len(points) > 1 for points in seen.values())


def _like_cells(placed: _Placed, examples: int) -> list[tuple[list[Any], list[_Cell]]]:
    """Points and cells of each panel: every cell has examples at every point of its panel.

    Cells whose kinds together reach over the same points share a panel; of these points as many
    are kept as let it hold the most examples.
    """
    reach: dict[tuple[tuple[Any, ...], tuple[int, ...]], set[Any]] = {}
    for cell, at in placed.items():
        reach.setdefault((cell.held, cell.columns), set()).update(at)
    groups: dict[tuple[frozenset[Any], tuple[int, ...]], list[_Cell]] = {}
    for cell in placed:
        points = frozenset(reach[cell.held, cell.columns])
        groups.setdefault((points, cell.columns), []).append(cell)
    found: list[tuple[int, list[Any], list[_Cell]]] = []
    for group in groups.values():
        best = _best(placed, group)
        while best[2]:
            found.append(best)
            group = [cell for cell in group if cell not in best[2]]
            best = _best(placed, group)
    found.sort(key=lambda panel: -panel[0])
    return [
        (points, cells)
        for i, (covered, points, cells) in enumerate(found)
        if i == 0 or covered >= LEAST_SHARE * examples
    ]


def _best(placed: _Placed, cells: Sequence[_Cell]) -> tuple[int, list[Any], list[_Cell]]:
    """Of the sets of two or more points that cells share, the one that covers most examples."""
    sets = list(dict.fromkeys(frozenset(placed[cell]) for cell in cells if len(placed[cell]) > 1))
    for a, b in combinations(sets[:_MOST_POINT_SETS], 2):
        if len(a & b) > 1 and a & b not in sets:
            sets.append(a & b)
    best: tuple[int, list[Any], list[_Cell]] = (0, [], [])
    for chosen in sets:
        members = [cell for cell in cells if chosen <= placed[cell].keys()]
        covered = sum(len(placed[cell][point]) for cell in members for point in chosen)
        if (covered, len(chosen)) > (best[0], len(best[1])):
            best = covered, sorted(chosen), members
    return best


def _panel(
    along: _Property,
    points: Sequence[Any],
    cells: Sequence[_Cell],
    placed: _Placed,
    scores: Sequence[Mapping[tuple[TaskKey, ExampleKey], tuple[float, str]]],
    words: str,
) -> Panel:
    """Kinds of task weigh equally; within a kind, a cell weighs as much as its harmonic mean of
    examples at a point, which is little where one point has few (as Mantel and Haenszel weigh)."""
    sizes = [1 / sum(1 / len(placed[cell][point]) for point in points) for cell in cells]
    of_kind: dict[Hashable, float] = {}
    for cell, size in zip(cells, sizes, strict=True):
        of_kind[cell.kind] = of_kind.get(cell.kind, 0) + size
    weights = [size / of_kind[cell.kind] for cell, size in zip(cells, sizes, strict=True)]

    def at(point: Any, column: int) -> Interval | None:
        if column not in cells[0].columns:
            return None
        samples = []
        for cell in cells:
            found = [scores[column][e.task, e.key] for e in placed[cell][point]]
            samples.append(Sample(tuple(s for s, _ in found), tuple(d for _, d in found)))
        return average_of_tasks(samples, weights=weights)

    return Panel(
        held=words,
        points=[(along.write(p), [at(p, i) for i in range(len(scores))]) for p in points],
        examples=sum(len(placed[cell][point]) for cell in cells for point in points),
    )


def _held(
    cells: Sequence[_Cell],
    held: Sequence[_Property],
    constant: Sequence[_Property],
    examples: Sequence[_Example],
) -> str:
    """What is the same at every point of a panel, in words."""
    kinds = {cell.kind for cell in cells}
    parts = [f"{len(kinds)} kinds of task" if len(kinds) > 1 else f"task {cells[0].kind[3]}"]
    mixed = False
    for number, prop in enumerate(held):
        values = {cell.held[number] for cell in cells}
        written = [prop.write(v) for v in sorted(v for v in values if v is not None)]
        mixed |= len(values) > 1
        if written:
            parts.append(prop.held(_listed(written)))
    for prop in constant:
        value = next((e.properties[prop.name] for e in examples), None)
        if value is not None:
            parts.append(prop.held(prop.write(value)))
    text = ", ".join(parts)
    return f"{text}; mixed alike at every point" if mixed or len(kinds) > 1 else text


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


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
