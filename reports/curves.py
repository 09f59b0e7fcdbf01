"""Scores along a property of the examples: stored facts, distance of the evidence, length.

A memory is known by where it fails: with how many facts, after how many tokens. A line over one
of these may join only points of like examples: where the long texts hold four facts and the short
ones one to sixteen, a line through the means would speak of the facts. So examples are sorted into
*cells* by all else that is known of them (task, protocol, metric, the other properties), a line
joins the points that its cells share, and a cell has the same weight at each of these points.
Cells that reach over other points have a panel of their own; what no other point has the like of
is left out, and counted.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from reports.leaderboard import Column, TaskKey, tasks_of
from reports.matched import ExampleKey, Matched, key_of, matched
from reports.properties import ATTRIBUTE, Property, drawn, family, plain, sort_attributes
from reports.records import ExampleRecord
from reports.stats import Interval, Sample, average_of_tasks

LEAST_SHARE = 0.1
"""A further panel holds at least this share of the property's examples."""

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
    words, numbers, unsorted = sort_attributes(record for _, _, record in rows)
    properties = [*drawn(record for _, _, record in rows), *map(plain, numbers)]
    examples = [
        _Example(
            task=task,
            key=key_of(record),
            kind=(
                task.benchmark,
                task.protocol,
                record.metric,
                family(task, column, record),
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


def _curve(
    along: Property,
    properties: Sequence[Property],
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
                not_held.append(other.name.removeprefix(ATTRIBUTE))
    placed: _Placed = {}
    for e in having:
        cell = _Cell(e.kind, tuple(e.properties[p.name] for p in held), e.columns)
        placed.setdefault(cell, {}).setdefault(e.properties[along.name], []).append(e)
    constant = [
        p
        for p in properties
        if p is not along and p not in held and p.name.removeprefix(ATTRIBUTE) not in not_held
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
    along: Property,
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
    held: Sequence[Property],
    constant: Sequence[Property],
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
