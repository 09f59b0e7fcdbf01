"""The page's own charts of scores, costs and differences, as inline SVG (`common.charts`).

Every function takes plain numbers and labels and returns `Markup`. Colours are the classes
``c0 ... c7`` of the page's style sheet, one per column and the same in all charts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from common.charts import (
    COLOURS,
    LINE,
    WIDTH,
    chart,
    end_labels,
    marker,
    polyline,
    round_step,
    spread,
    stroke,
    text,
)
from reports import formats
from reports.bins import short_tokens
from reports.stats import Interval


@dataclass(frozen=True)
class Point:
    """One column in `score_against_cache`: its colour number, cache bytes and score.

    `score_rows` has room for a column whose bytes nobody knows: None.
    """

    label: str
    colour: int
    cache_bytes: float | None
    score: Interval


def score_against_cache(points: Sequence[Point]) -> Markup:
    """Score (points of 100, upright) against mean cache bytes (from 0), with intervals.

    Columns whose bytes are not known have no place in it.
    """
    height, left, right, top, bottom = 330, 46, 16, 14, 46
    known = [(p, p.cache_bytes) for p in points if p.cache_bytes is not None]
    points = [point for point, _ in known]
    most = max((size for _, size in known), default=0) or 1.0
    ticks, unit = _byte_ticks(most)
    end = max(ticks[-1], most * 1.04)

    def x(value: float) -> float:
        return left + (WIDTH - left - right) * value / end

    highest = _highest(p.score for p in points)

    def y(share: float) -> float:
        return top + (height - top - bottom) * (1 - share / highest)

    parts = [_score_axis(y, highest, left, WIDTH - right)]
    for tick in ticks:
        parts.append(text(x(tick), height - bottom + 18, f"{tick / unit[0]:g}", "tick", "middle"))
    parts.append(
        text(
            (left + WIDTH - right) / 2,
            height - 6,
            f"cache per example, {unit[1]}",
            "axis",
            "middle",
        )
    )
    # Labels stand beside their point, on the side with room; those of one side are spread out.
    sides: dict[bool, list[tuple[float, Point]]] = {True: [], False: []}
    at_x = {point.colour: x(size) for point, size in known}
    for point in points:
        sides[at_x[point.colour] < WIDTH * 0.62].append((y(point.score.mean), point))
    marks: list[Markup] = []
    for to_the_right, placed in sides.items():
        heights = spread([height_ for height_, _ in placed], top + 8, height - bottom - 6)
        for (_, point), at in zip(placed, heights, strict=True):
            px, py = at_x[point.colour], y(point.score.mean)
            away = 1 if to_the_right else -1
            marks.append(_whisker(px, y(point.score.low), y(point.score.high), point.colour))
            marks.append(marker(px, py, point.colour))
            if abs(at - py) > 3:
                marks.append(stroke(px + 7 * away, py, px + 15 * away, at, "leader"))
            marks.append(
                text(
                    px + 18 * away,
                    at + 4,
                    f"{point.label}  {formats.points(point.score.mean)}",
                    f"name t{point.colour % COLOURS}",
                    "start" if to_the_right else "end",
                )
            )
    return chart(height, _described(points), [*parts, *marks])


def score_rows(points: Sequence[Point]) -> Markup:
    """`score_against_cache` for many columns: a row for each, its cache bytes behind its score."""
    left = min(200, 22 + int(7.4 * max((len(p.label) for p in points), default=0)))
    right, top, step = 86, 30, 24
    foot = top + step * len(points)
    highest = _highest(p.score for p in points)

    def x(share: float) -> float:
        return left + (WIDTH - left - right) * share / highest

    parts = [
        text(left, 15, "score", "panel", "start"),
        text(WIDTH - 4, 15, "cache", "panel", "end"),
    ]
    for i in range(round(5 * highest) + 1):
        share = i / 5
        parts.append(stroke(x(share), top, x(share), foot, "zero" if i == 0 else "grid"))
        parts.append(text(x(share), foot + 16, f"{100 * share:.0f}", "tick", "middle"))
    for i, point in enumerate(points):
        at = top + step * (i + 0.5)
        parts.append(text(left - 12, at + 4, point.label, "tick", "end"))
        parts.append(
            Markup('<path class="whisker c{}" d="M{:.1f} {:.1f}H{:.1f}"/>').format(
                point.colour % COLOURS, x(point.score.low), at, x(point.score.high)
            )
        )
        parts.append(marker(x(point.score.mean), at, point.colour))
        parts.append(text(WIDTH - 4, at + 4, formats.size(point.cache_bytes), "value", "end"))
    return chart(foot + 24, _described(points), parts)


def _described(points: Sequence[Point]) -> str:
    each = "; ".join(
        f"{p.label}: score {formats.points(p.score.mean)} {formats.between(p.score)}, "
        f"cache {formats.size(p.cache_bytes)}"
        for p in points
    )
    return f"Score against cache size. {each}"


def score_lines(
    labels: Sequence[str],
    points: Sequence[tuple[str, Sequence[Interval | None]]],
    axis: str,
    title: str,
) -> Markup:
    """Score along a property, `axis`: one line per column, with intervals.

    `points` are (name of the point, one interval per column), at equal steps.
    """
    left, top, bottom = 46, 14, 46
    right = min(190, 30 + 7 * max((len(label) for label in labels), default=0))
    step = (WIDTH - left - right) / max(1, len(points))
    # Names that are too long to stand in one line stand in two by turns.
    second = LINE if step < 7 * max((len(name) for name, _ in points), default=0) else 0
    bottom += second
    height = max(330 - bottom, LINE * len(labels) + 2 * top) + bottom

    highest = _highest(i for _, cells in points for i in cells if i is not None)

    def y(share: float) -> float:
        return top + (height - top - bottom) * (1 - share / highest)

    parts = [_score_axis(y, highest, left, WIDTH - right)]
    for i, (name, _) in enumerate(points):
        at_y = height - bottom + 18 + second * (i % 2)
        parts.append(text(left + (i + 0.5) * step, at_y, name, "tick", "middle"))
    middle = left + (WIDTH - left - right) / 2
    parts.append(text(middle, height - 6, axis, "axis", "middle"))
    ends: list[tuple[float, float, str, int]] = []
    marks: list[Markup] = []
    for column in range(len(labels)):
        dodge = (column - (len(labels) - 1) / 2) * min(9.0, 0.5 * step / max(1, len(labels)))
        line: list[tuple[float, float]] = []
        for i, (_, cells) in enumerate(points):
            interval = cells[column]
            if interval is None:
                continue
            px = left + (i + 0.5) * step + dodge
            line.append((px, y(interval.mean)))
            marks.append(_whisker(px, y(interval.low), y(interval.high), column))
            marks.append(marker(px, y(interval.mean), column))
        if line:
            parts.append(polyline(line, column))
            ends.append((*line[-1], labels[column], column))
    parts += end_labels(ends, top, height - bottom, right)
    described = "; ".join(
        f"{name}: "
        + ", ".join(
            f"{label} {formats.points(interval.mean)}"
            for label, interval in zip(labels, cells, strict=True)
            if interval is not None
        )
        for name, cells in points
    )
    return chart(height, f"{title}. {described}", [*parts, *marks])


def score_over_window(
    series: Sequence[tuple[str, Sequence[tuple[int, Interval]]]],
    levels: Sequence[tuple[str, Interval]],
    axis: str,
    title: str,
) -> Markup:
    """Score over window, on a logarithmic axis: a line for each series, with intervals.

    Args:
        series: (name, its points (window in tokens, score), ascending).
        levels: (name, score) of what has no window: a dashed line across, its interval a band.
        axis: what stands along the horizontal axis.
        title: what is shown, for a screen reader.
    """
    names = [name for name, _ in (*series, *levels)]
    left, top, inner = 46, 14, 26
    right = min(190, 30 + 7 * max(map(len, names), default=0))
    foot = max(284, LINE * len(names) + 2 * top)
    windows = sorted({window for _, points in series for window, _ in points})
    least, most = (math.log(windows[0]), math.log(windows[-1])) if windows else (0.0, 1.0)
    room = WIDTH - left - right - 2 * inner

    def x(window: int) -> float:
        share = (math.log(window) - least) / (most - least) if most > least else 0.5
        return left + inner + room * share

    highest = _highest([i for _, points in series for _, i in points] + [i for _, i in levels])

    def y(share: float) -> float:
        return top + (foot - top) * (1 - share / highest)

    parts = [_score_axis(y, highest, left, WIDTH - right)]
    ends: list[tuple[float, float, str, int]] = []
    for colour, (name, score) in enumerate(levels, len(series)):
        parts.append(
            Markup(
                '<rect class="band t{}" x="{}" y="{:.1f}" width="{}" height="{:.1f}"/>'
                '<path class="line c{}" stroke-dasharray="7 4" d="M{} {:.1f}H{}"/>'
            ).format(
                colour % COLOURS, left, y(score.high), WIDTH - right - left,
                y(score.low) - y(score.high), colour % COLOURS, left, y(score.mean), WIDTH - right,
            )
        )  # fmt: skip
        ends.append((WIDTH - right - 7, y(score.mean), name, colour))
    ticks, height = _window_ticks([(x(window), window) for window in windows], foot)
    parts += ticks
    parts.append(text(left + (WIDTH - left - right) / 2, height - 6, axis, "axis", "middle"))
    gaps = [x(b) - x(a) for a, b in zip(windows, windows[1:], strict=False)]
    dodge = min([6.0, *(gap / (len(series) + 1) for gap in gaps)])
    marks: list[Markup] = []
    for colour, (name, points) in enumerate(series):
        aside = (colour - (len(series) - 1) / 2) * dodge
        line = [(x(window) + aside, y(score.mean)) for window, score in points]
        parts.append(polyline(line, colour))
        for (px, py), (_, score) in zip(line, points, strict=True):
            marks.append(_whisker(px, y(score.low), y(score.high), colour))
            marks.append(marker(px, py, colour))
        ends += [(*line[-1], name, colour)] if line else []
    parts += end_labels(ends, top, foot, right)
    described = "; ".join(
        [
            f"{name}: "
            + ", ".join(f"{formats.points(score.mean)} at {window:,}" for window, score in points)
            for name, points in series
        ]
        + [f"{name}: {formats.points(score.mean)}" for name, score in levels]
    )
    return chart(height, f"{title}. {described}", [*parts, *marks])


def _window_ticks(places: Sequence[tuple[float, int]], foot: float) -> tuple[list[Markup], float]:
    """A stroke at each window, and its size below as far as there is room in two lines.

    Returns:
        These, and where the chart ends below an axis with one line for its name.
    """
    ends, parts = [-math.inf, -math.inf], []
    for at, window in places:
        words = short_tokens(window) if window % 1024 == 0 else f"{window:,}"
        half = 3.5 * len(words)
        parts.append(stroke(at, foot, at, foot + 5, "zero"))
        line = next((i for i, end in enumerate(ends) if at - half > end + 5), None)
        if line is not None:
            ends[line] = at + half
            parts.append(text(at, foot + 18 + LINE * line, words, "tick", "middle"))
    return parts, foot + 46 + LINE * math.isfinite(ends[1])


def bars(
    title: str, rows: Sequence[tuple[str, int, float | None]], write: Callable[[float | None], str]
) -> Markup:
    """Horizontal bars from 0: `rows` are (label, colour number, value); `write` gives the text."""
    left = min(200, 16 + int(7.4 * max((len(label) for label, _, _ in rows), default=0)))
    room = WIDTH - left - 92
    most = max((value for _, _, value in rows if value is not None), default=0) or 1.0
    parts = [text(0, 15, title, "panel", "start")]
    for i, (label, colour, value) in enumerate(rows):
        at = 28 + 26 * i
        length = 0.0 if value is None else room * value / most
        parts.append(text(left - 8, at + 13, label, "tick", "end"))
        parts.append(
            Markup(
                '<rect class="bar c{}" x="{}" y="{}" width="{:.1f}" height="18" rx="2"/>'
            ).format(colour % COLOURS, left, at, length)
        )
        parts.append(text(left + length + 6, at + 13, write(value), "value", "start"))
    described = "; ".join(f"{label} {write(value)}" for label, _, value in rows)
    return chart(32 + 26 * len(rows), f"{title}. {described}", parts)


def differences(title: str, rows: Sequence[tuple[str, Interval]], colour: int) -> Markup:
    """Paired differences as dots with intervals around 0; the first row stands apart (average)."""
    left = min(210, 16 + int(7.2 * max((len(label) for label, _ in rows), default=0)))
    right, top = 26, 14
    height = top + 22 * len(rows) + 52
    least = min([0.0, *(i.low for _, i in rows)])
    most = max([0.0, *(i.high for _, i in rows)])
    ticks = [t for t in _score_ticks(least, most)]
    least, most = min(least, ticks[0]), max(most, ticks[-1])

    def x(value: float) -> float:
        return left + (WIDTH - left - right) * (value - least) / ((most - least) or 1)

    foot = height - 46
    parts = []
    for tick in ticks:
        parts.append(stroke(x(tick), top, x(tick), foot, "zero" if tick == 0 else "grid"))
        parts.append(
            text(
                x(tick), foot + 18, formats.signed_points(tick).removesuffix(".0"), "tick", "middle"
            )
        )
    parts.append(text((left + WIDTH - right) / 2, height - 6, title, "axis", "middle"))
    for i, (label, interval) in enumerate(rows):
        at = top + 11 + 22 * i + (6 if i else 0)
        parts.append(text(left - 10, at + 4, label, "tick strong" if i == 0 else "tick", "end"))
        parts.append(
            Markup('<path class="whisker c{}" d="M{:.1f} {}H{:.1f}"/>').format(
                colour % COLOURS, x(interval.low), at, x(interval.high)
            )
        )
        parts.append(marker(x(interval.mean), at, colour))
    described = "; ".join(
        f"{label} {formats.signed_points(i.mean)} {formats.between(i, signed=True)}"
        for label, i in rows
    )
    return chart(height, f"{title}. {described}", parts)


def swatch(colour: int) -> Markup:
    """The column's marker, for tables and legends."""
    return Markup(
        '<svg class="swatch" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true">{}</svg>'
    ).format(marker(8, 8, colour))


def _highest(intervals: Iterable[Interval]) -> float:
    """Where a score axis ends: a fifth (20, 40 ... 100 points) at or above every interval."""
    return max(1, math.ceil(5 * max((i.high for i in intervals), default=1.0) - 1e-9)) / 5


def _score_axis(y: Callable[[float], float], highest: float, left: float, right: float) -> Markup:
    """Grid lines and numbers from 0 to `highest`, in steps of 20 points, or finer when low."""
    step = 0.2 if highest > 0.4 else 0.1 if highest > 0.2 else 0.05
    parts = []
    for i in range(round(highest / step) + 1):
        share = i * step
        parts.append(stroke(left, y(share), right, y(share), "zero" if i == 0 else "grid"))
        parts.append(text(left - 8, y(share) + 4, f"{100 * share:.0f}", "tick", "end"))
    return Markup("").join(parts)


def _whisker(x: float, low: float, high: float, colour: int) -> Markup:
    return Markup(
        '<path class="whisker c{}" d="M{:.1f} {:.1f}V{:.1f}M{:.1f} {:.1f}h8M{:.1f} {:.1f}h8"/>'
    ).format(colour % COLOURS, x, low, high, x - 4, low, x - 4, high)


def _byte_ticks(most: float) -> tuple[list[float], tuple[float, str]]:
    """Round tick values from 0 to about `most` bytes, and the unit to write them in."""
    unit = (1.0, "bytes")
    for factor, name in ((2.0**10, "KiB"), (2.0**20, "MiB"), (2.0**30, "GiB")):
        if most >= factor:
            unit = (factor, name)
    step = round_step(most / unit[0] / 5)
    count = math.floor(most / unit[0] / step + 1e-9)
    return [i * step * unit[0] for i in range(count + 1)] or [0.0], unit


def _score_ticks(least: float, most: float) -> list[float]:
    """Round ticks around [least, most], 0 among them, at most about eight."""
    step = max(0.01, round_step((most - least) / 7))
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]
