"""Charts as SVG, drawn by own small code: no script, no network, no image library.

Every function takes plain numbers and texts and returns `Markup`; texts are escaped on the way in
(`Markup.format`). Colours are the classes `c0 ... c7`, one for each series and the same in all
charts; shapes of marks repeat the distinction for those who cannot tell the colours apart. A chart
is 520 units wide, so that its letters stay readable on a phone. In a page the page's style sheet
gives the classes their look; `standalone` makes a file that has one of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

COLOURS = 8
WIDTH = 520
LINE = 17
"""Least distance between the baselines of two labels."""

_PALETTE = ["48566a", "c4591b", "1f5fc9", "98389f", "2f7d32", "97700a", "b3264c", "0b7484"]
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #222; }
.tick, .axis { fill: #5b6470; font-size: 12px; }
.panel, .name { font-weight: 600; }
.grid { stroke: #dde1e6; fill: none; } .zero { stroke: #5b6470; fill: none; }
.leader { stroke: #5b6470; stroke-width: .8; fill: none; }
.band { stroke: none; opacity: .16; }
.whisker { fill: none; stroke-width: 1.5; }
.line { fill: none; stroke-width: 1.6; } .mark { stroke-width: 1.4; } .mark.hollow { fill: #fff; }
""" + "\n".join(
    f".c{i} {{ stroke: #{c}; }} .mark.c{i}:not(.hollow), .bar.c{i}, .t{i} {{ fill: #{c}; }}"
    for i, c in enumerate(_PALETTE)
)
"""What a chart's classes look like on white."""

# XML has no place for control characters: Unicode has pictures of them.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"}


def chart(height: float, description: str, parts: Iterable[Markup]) -> Markup:
    """An `<svg>` element, `WIDTH` units wide, with what it shows in words for a screen reader."""
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, round(height), description.translate(_PICTURES), Markup("").join(parts))


def standalone(drawn: Markup) -> str:
    """The content of an SVG file that shows a chart on white."""
    attributes = f' xmlns="http://www.w3.org/2000/svg" width="{round(1.4 * WIDTH)}"'
    style = f'<style>{STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
    content = str(drawn).replace("<svg", f"<svg{attributes}", 1).replace(">", f">{style}", 1)
    return f"{content}\n"


def stacked(title: str, heading: str, charts: Sequence[Markup]) -> Markup:
    """Charts below one another, as one that shows them all.

    Args:
        title: what is shown, for a screen reader; those of the charts follow it.
        heading: a line above them; may be empty.
        charts: at least one.
    """
    top, parts, said = 0.0, [], [title]
    if heading:
        top, parts = 30.0, [text(4, 18, heading, "panel", "start")]
    for drawn in charts:
        head, _, inner = drawn.removesuffix("</svg>").partition(">")
        height, description = head.split('"')[3].split()[3], head.split('"')[7]
        parts.append(Markup('<g transform="translate(0 {:g})">{}</g>').format(top, Markup(inner)))
        said.append(Markup(description).unescape())
        top += float(height) + 14
    return chart(top, ". ".join(said), parts)


def text(x: float, y: float, words: str, style: str, anchor: str) -> Markup:
    """A text; `style` are classes, `anchor` is `start`, `middle` or `end`."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        style, x, y, anchor, words.translate(_PICTURES)
    )


def stroke(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """A straight line."""
    return Markup('<path class="{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(
        style, x1, y1, x2, y2
    )


def polyline(points: Sequence[tuple[float, float]], colour: int) -> Markup:
    """A line through points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<polyline class="line c{}" points="{}"/>').format(colour % COLOURS, path)


def area(edge: Sequence[tuple[float, float]], colour: int) -> Markup:
    """What lies within an edge, lightly filled."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in edge)
    return Markup('<polygon class="band t{}" points="{}"/>').format(colour % COLOURS, path)


def marker(x: float, y: float, colour: int) -> Markup:
    """Circle, square, diamond, triangle, and these four hollow, by colour number.

    In the second round of colours what was filled is hollow; further rounds go on with the next
    shape, so that 64 can be told apart.
    """
    shapes = (
        "M{x} {y}m-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
        "M{x} {y}m-4.5 -4.5h9v9h-9Z",
        "M{x} {y}m0 -6.2l6.2 6.2l-6.2 6.2l-6.2 -6.2Z",
        "M{x} {y}m0 -5.8l5.8 10.2h-11.6Z",
    )
    shape = shapes[(colour + colour // (2 * COLOURS)) % len(shapes)]
    path = shape.format(x=f"{x:.1f}", y=f"{y:.1f}")
    hollow = " hollow" if (colour // len(shapes) + colour // COLOURS) % 2 else ""
    return Markup('<path class="mark{} c{}" d="{}"/>').format(hollow, colour % COLOURS, path)


def end_labels(
    ends: Sequence[tuple[float, float, str, int]],
    top: float,
    bottom: float,
    right: float,
    marks: bool = False,
) -> list[Markup]:
    """Names of lines behind their last points, spread out where these are close.

    `ends` are (x, y, name, colour); `right` is the width that the names have. With `marks` each
    name has its line's mark before it, for lines that end at one point.
    """
    parts = []
    heights = spread([y for _, y, _, _ in ends], top + 8, bottom - 6)
    for (x, y, name, colour), at in zip(ends, heights, strict=True):
        parts.append(stroke(x + 7, y, WIDTH - right + 4, at, "leader"))
        if marks:
            parts.append(marker(WIDTH - right + 16, at, colour))
        start = WIDTH - right + (26 if marks else 8)
        parts.append(text(start, at + 4, name, f"name t{colour % COLOURS}", "start"))
    return parts


def spread(heights: Sequence[float], least: float, most: float) -> list[float]:
    """Move labels apart to `LINE` units, in their order, within [least, most] where they fit."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [0.0] * len(heights)
    floor = least
    for i in order:
        placed[i] = max(heights[i], floor)
        floor = placed[i] + LINE
    ceiling = most
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - LINE
    return placed


def round_step(raw: float) -> float:
    """The next of 1, 2, 5 times a power of ten that is not below `raw`."""
    if raw <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))


def round_ticks(least: float, most: float, count: int = 6) -> list[float]:
    """Round numbers around [least, most], about `count` of them, evenly spaced."""
    step = round_step((most - least) / count)
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _log_ticks(least: float, most: float) -> list[float]:
    """1, 2 and 5 times powers of ten around [least, most]; powers alone where these are many."""
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    factors = (1, 2, 5) if len(decades) < 5 else (1,)
    ticks = [factor * 10.0**power for power in decades for factor in factors]
    first = max((i for i, tick in enumerate(ticks) if tick <= least * (1 + 1e-9)), default=0)
    last = min((i for i, t in enumerate(ticks) if t >= most * (1 - 1e-9)), default=len(ticks) - 1)
    return ticks[first : max(last, first + 1) + 1]


@dataclass(frozen=True)
class Scale:
    """An axis: from its first tick to its last.

    Attributes:
        ticks: at least two, ascending.
        log: whether it is logarithmic; all ticks are above 0 then.
        write: what stands at a tick.
    """

    ticks: Sequence[float]
    log: bool = False
    write: Callable[[float], str] = "{:g}".format

    def share(self, value: float) -> float:
        """Where a value lies, 0 at the first tick and 1 at the last."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low)


def token_scale(least: float, most: float, log: bool = False, count: int = 6) -> Scale:
    """A scale of numbers of tokens around [least, most], in powers of two: `128k`, `1M`.

    Args:
        least: above 0 where the scale is logarithmic.
        most: at least as much.
        log: whether it is logarithmic; else it begins at 0.
        count: most steps, about.
    """
    if log:
        first, last = math.floor(math.log2(least)), math.ceil(math.log2(most))
        step = -(-max(last - first, 1) // count)
        ticks = [2.0**power for power in range(first, last + step, step)]
        return Scale(ticks if len(ticks) > 1 else [ticks[0], 2 * ticks[0]], True, short_tokens)
    size = 2.0 ** math.ceil(math.log2(max(most, 1) / count))
    return Scale([i * size for i in range(math.ceil(most / size) + 1)], False, short_tokens)


def short_tokens(tokens: float) -> str:
    """A number of tokens for a tick: 131072 is `128k`, 1048576 is `1M`; others as they are."""
    for unit, letter in ((2**20, "M"), (2**10, "k")):
        if tokens >= unit and tokens % (unit // 64) == 0:
            return f"{tokens / unit:g}{letter}"
    return f"{tokens:g}"


def line_chart(
    title: str,
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    x_label: str,
    y_label: str,
    log: bool = False,
    *,
    bands: Sequence[Sequence[tuple[float, float, float]]] = (),
    verticals: Sequence[tuple[float, str]] = (),
    x_scale: Scale | None = None,
    y_scale: Scale | None = None,
) -> Markup:
    """Lines over a number.

    Args:
        title: what is shown, for a screen reader.
        series: (name, its points (x, y)) for each line. Points that are not finite are left out,
            and with `log` those that are not above 0.
        x_label: what stands along the horizontal axis, with its unit.
        y_label: likewise, the vertical one.
        log: whether the vertical axis is logarithmic.
        bands: (x, low, high) along each line, in the order of `series`; not with `log`.
        verticals: (x, name) of places that are marked.
        x_scale: the horizontal axis; it holds all points. Default: round numbers around them.
        y_scale: likewise, the vertical one, in place of `log`.
    """
    log = log if y_scale is None else y_scale.log
    height, left, top, bottom = 300, 56, 26, 46
    drawn = [
        (name, [p for p in points if all(map(math.isfinite, p)) and (p[1] > 0 or not log)])
        for name, points in series
    ]
    every = [point for _, points in drawn for point in points] or [(0.0, 1.0), (1.0, 1.0)]
    right = 30 + 8 * max((len(name) for name, _ in drawn), default=0)
    right = min(190, right) if len(drawn) > 1 else 20
    if x_scale is not None and len(drawn) > 1:
        drawn = [(name if len(name) <= 30 else f"{name[:29]}…", points) for name, points in drawn]
        right = 46 + round(7.6 * max(len(name) for name, _ in drawn))
    least, most = min(y for _, y in every), max(y for _, y in every)
    for band in bands:
        least = min([least, *(low for _, low, _ in band)])
        most = max([most, *(high for _, _, high in band)])
    along = x_scale or Scale(round_ticks(min(x for x, _ in every), max(x for x, _ in every)))
    up = y_scale or Scale(_log_ticks(least, most) if log else round_ticks(least, most), log)
    if y_scale is not None:
        left = max(left, 16 + 7 * max(len(up.write(tick)) for tick in up.ticks))

    def x(value: float) -> float:
        return left + (WIDTH - left - right) * along.share(value)

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - up.share(value))

    parts = []
    for tick in up.ticks:
        parts.append(stroke(left, y(tick), WIDTH - right, y(tick), "grid"))
        parts.append(text(left - 8, y(tick) + 4, up.write(tick), "tick", "end"))
    for tick in along.ticks:
        parts.append(text(x(tick), height - bottom + 18, along.write(tick), "tick", "middle"))
    parts.append(text(left + (WIDTH - left - right) / 2, height - 8, x_label, "axis", "middle"))
    parts.append(text(4, 14, y_label, "axis", "start"))
    for place, name in verticals:
        if along.ticks[0] < place < along.ticks[-1]:
            parts.append(stroke(x(place), top, x(place), height - bottom, "zero"))
            parts.append(text(x(place) + 4, top + 10, name, "tick", "start"))
    for colour, band in enumerate(bands):
        edge = [(x(a), y(high)) for a, _, high in band] + [
            (x(a), y(low)) for a, low, _ in reversed(band)
        ]
        parts.append(area(edge, colour))
    ends = []
    for colour, (name, points) in enumerate(drawn):
        places = [(x(a), y(b)) for a, b in points]
        parts.append(polyline(places, colour))
        if len(places) < 20:
            parts += [marker(*place, colour) for place in places]
        elif x_scale is not None:  # a few, at other places in each line: told apart without colour
            start, step = colour % 6 * len(places) // 36, len(places) // 6
            parts += [marker(*place, colour) for place in places[start::step]]
        if places and len(drawn) > 1:
            ends.append((*places[-1], name, colour))
    parts += end_labels(ends, top, height - bottom, right, marks=x_scale is not None)
    described = "; ".join(
        f"{name}: {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in drawn if points
    )
    return chart(height, f"{title}. {described}", parts)
