"""Score over window: what each way of keeping the past gains from a larger window.

A *family* is what differs in nothing but the window: the memories of one cell, the windows alone,
the caches that pool in one way. Its points are joined over a logarithmic axis; full attention,
which has no window, is a line across with its interval as a band. All of it is over the tasks and
examples that the page's columns share, as every average of the page is.

`over_window` finds the families of a page's columns; `draw` takes any that are prepared.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from reports import figures, formats
from reports.compare import SummaryRow
from reports.figure_registry import PageFigure
from reports.figure_tables import FigureTable
from reports.leaderboard import Column, model_names
from reports.stats import Interval

NO_BREAK = "\u00a0"

_LIKE = (
    "variant", "cell", "ahn", "sinks", "rate", "pooling", "slots", "full_attention_layers",
    "layers", "yarn_factor", "dtype",
)  # fmt: skip
"""What variants of one family have in common, as run.json describes them."""


@dataclass(frozen=True)
class Family:
    """Scores of one way of keeping the past by its window, in tokens, ascending."""

    name: str
    points: tuple[tuple[int, Interval], ...]


@dataclass(frozen=True)
class Level:
    """The score of what has no window: full attention."""

    name: str
    score: Interval


def over_window(rows: Sequence[SummaryRow]) -> PageFigure | None:
    """The figure of a page; None: no family has two windows, or its points have other tasks."""
    families = families_of(rows)
    if not families:
        return None
    return draw(families, levels_of(rows))


def families_of(rows: Sequence[SummaryRow]) -> list[Family]:
    """The families of two and more windows, in the order of their first column.

    Two runs with the same variant at the same window are two families, by run. A figure whose
    columns were asked different tasks would show their tasks: there is none.
    """
    having = [row for row in rows if row.score is not None and row.column.window is not None]
    if len({tuple(row.tasks) for row in having}) > 1:
        return []
    found: list[list[SummaryRow]] = []
    for group in _grouped(having, lambda row: _settings(row.column)):
        windows = [_window(row) for row in group]
        twice = len(set(windows)) < len(windows)
        found += _grouped(group, lambda row: row.column.run_name) if twice else [group]
    several = [group for group in found if len({_window(row) for row in group}) > 1]
    names = _names([[row.column for row in group] for group in several])
    return [
        Family(name, tuple(sorted(points.items())))
        for name, group in zip(names, several, strict=True)
        if (points := {_window(r): r.score for r in reversed(group) if r.score is not None})
    ]


def levels_of(rows: Sequence[SummaryRow]) -> list[Level]:
    """Full attention of the models that have a family on the page."""
    models = {row.column.model for row in rows if row.column.window is not None}
    return [
        Level(row.column.label, row.score)
        for row in rows
        if row.column.kind == "full" and row.column.model in models and row.score is not None
    ]


def draw(
    families: Sequence[Family],
    levels: Sequence[Level] = (),
    title: str = "Score over window",
    axis: str = "window, tokens (log scale)",
) -> PageFigure:
    """The picture of prepared families, with its numbers as a table.

    Args:
        families: each with at least one point; lines join those of a family.
        levels: lines across, with their interval as a band.
        title: what is shown, in words.
        axis: what stands along the horizontal axis.
    """
    picture = figures.score_over_window(
        [(family.name, family.points) for family in families],
        [(level.name, level.score) for level in levels],
        axis,
        title,
    )
    windows = sorted({window for family in families for window, _ in family.points})
    rows: list[tuple[str, tuple[str | None, ...]]] = []
    for window in windows:
        scores = [dict(family.points).get(window) for family in families]
        rows.append((f"{window:,}", tuple(map(_written, scores)) + (None,) * len(levels)))
    if levels:
        whole = tuple(_written(level.score) for level in levels)
        rows.append(("no window", (None,) * len(families) + whole))
    names = (*(family.name for family in families), *(level.name for level in levels))
    return PageFigure(picture, FigureTable(f"{title}: the numbers", names, tuple(rows)))


def _written(score: Interval | None) -> str | None:
    """Score and interval; a line may break between the two, and not within."""
    if score is None:
        return None
    return f"{formats.points(score.mean)} {formats.between(score).replace(' ', NO_BREAK)}"


def _window(row: SummaryRow) -> int:
    window = row.column.window
    assert window is not None, "asked only of columns with a window"
    return window[0]


def _grouped(
    rows: Sequence[SummaryRow], key: Callable[[SummaryRow], Any]
) -> list[list[SummaryRow]]:
    found: dict[Any, list[SummaryRow]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.values())


def _settings(column: Column) -> tuple[str, str]:
    said = column.run.info.models.get(column.variant, {})
    like = {name: said.get(name) for name in _LIKE} | {"variant": column.kind}
    return column.model, json.dumps(like, sort_keys=True, default=str)


def _names(groups: Sequence[Sequence[Column]]) -> list[str]:
    """A name for each family: what its variants are called without the size, or what they are."""
    models = model_names([group[0].model for group in groups])
    names = []
    for group in groups:
        stems = {c.variant.removesuffix(f"-{c.window[0]}") for c in group if c.window is not None}
        name = next(iter(stems)) if len(stems) == 1 else _kind(group[0])
        names.append(name if len(models) == 1 else f"{name} · {models[group[0].model]}")
    for told in (lambda group: group[0].run_name, lambda group: _own(group[0])):
        same = {name for name, times in Counter(names).items() if times > 1}
        names = [
            f"{name} · {told(group)}" if name in same else name
            for name, group in zip(names, groups, strict=True)
        ]
    return names


def _kind(column: Column) -> str:
    said = column.run.info.models.get(column.variant, {})
    return " ".join(
        part
        for part in (column.kind, said.get("cell"), said.get("pooling"))
        if isinstance(part, str)
    )


def _own(column: Column) -> str:
    said = column.run.info.models.get(column.variant, {})
    named = (
        f"{name} {said[name]}" for name in ("sinks", "slots", "ahn", "dtype") if said.get(name)
    )
    return ", ".join(named)
