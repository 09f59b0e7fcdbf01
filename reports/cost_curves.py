"""FLOPs and cache bytes over the length of a text, drawn: two panels, from plain numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from common.charts import Scale, line_chart, round_ticks, stacked, standalone, token_scale
from reports import formats

TITLE = "Cost over length"
"""What the description of every such figure begins with."""
_LENGTH = "length, tokens (k = 1,024, M = 1,048,576)"


@dataclass(frozen=True)
class CostCurve:
    """What one variant costs at several lengths.

    Attributes:
        name: of the variant.
        points: (tokens, FLOPs, cache bytes), by tokens.
    """

    name: str
    points: Sequence[tuple[int, int, int]]


def flops_figure(curves: Sequence[CostCurve], about: str = "") -> Markup:
    """FLOPs over length.

    Args:
        curves: the lines, all over the same lengths.
        about: model and settings in words, for a screen reader.
    """
    series = [(c.name, [(float(n), float(flops)) for n, flops, _ in c.points]) for c in curves]
    return _figure(series, "FLOPs", f"{TITLE}: FLOPs. {about}".strip(), _operations)


def cache_figure(curves: Sequence[CostCurve], about: str = "") -> Markup:
    """Cache bytes over length; see `flops_figure`."""
    series = [(c.name, [(float(n), float(held)) for n, _, held in c.points]) for c in curves]
    return _figure(series, "cache", f"{TITLE}: cache bytes. {about}".strip(), formats.size)


def cost_figure(curves: Sequence[CostCurve], about: str = "") -> Markup:
    """Both panels as one picture, with `about` above them; see `flops_figure`."""
    panels = [flops_figure(curves), cache_figure(curves)]
    return stacked(f"{TITLE}. {about}".strip(), formats.clipped(about, 72), panels)


def svg_file(curves: Sequence[CostCurve], about: str) -> str:
    """The content of an SVG file with both panels; `about` stands in its description."""
    return standalone(cost_figure(curves, about))


def html_file(title: str, notes: Sequence[str], curves: Sequence[CostCurve], about: str) -> str:
    """The content of a page with both panels and their numbers as tables. It loads nothing.

    Args:
        title: of the page.
        notes: sentences below it: settings, what is counted.
        curves: the lines, all over the same lengths.
        about: see `flops_figure`.
    """
    tables = [
        _table("FLOPs", curves, 1, formats.operations),
        _table("Cache", curves, 2, formats.size),
    ]
    return Markup(
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<title>AHN-Bench cost: {}</title>\n<style>{}</style>\n</head>\n<body>\n"
        "<h1>{}</h1>\n{}\n{}\n{}\n</body>\n</html>\n"
    ).format(
        title,
        Markup(_STYLE),
        title,
        Markup("\n").join(Markup("<p>{}</p>").format(note) for note in notes),
        Markup(svg_file(curves, about)),
        Markup("\n").join(tables),
    )


_STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; color: #222; max-width: 760px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.4em; } svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1em 0; font-size: 14px; }
caption { text-align: left; font-weight: 600; } div { overflow-x: auto; }
th, td { text-align: right; padding: 2px 10px; border-bottom: 1px solid #dde1e6; }
"""


def _table(
    caption: str, curves: Sequence[CostCurve], field: int, write: Callable[[float | None], str]
) -> Markup:
    """A table of one amount: lengths down, variants across."""
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(c.name) for c in curves)
    rows = [
        Markup('<tr><th scope="row">{:,}</th>{}</tr>\n').format(
            points[0][0],
            Markup("").join(Markup("<td>{}</td>").format(write(point[field])) for point in points),
        )
        for points in zip(*(curve.points for curve in curves), strict=True)
    ]
    return Markup(
        '<div><table>\n<caption>{}</caption>\n<tr><th scope="col">tokens</th>{}</tr>\n{}</table>'
        "</div>"
    ).format(caption, head, Markup("").join(rows))


def grows_by_factors(lengths: Sequence[int]) -> bool:
    """Whether lengths are better seen on logarithmic axes: their steps grow more than eightfold."""
    steps = [b - a for a, b in zip(lengths, lengths[1:], strict=False)]
    return bool(steps) and steps[-1] > 8 * steps[0]


def _figure(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    what: str,
    title: str,
    write: Callable[[float | None], str],
) -> Markup:
    """A panel. Both axes are logarithmic, or both begin at 0."""
    lengths = sorted({int(n) for _, points in series for n, _ in points})
    values = [value for _, points in series for _, value in points]
    log = grows_by_factors(lengths) and min(values, default=0) > 0
    base = 1024 if write is formats.size else 1000
    scale = _amounts(min(values, default=0), max(values, default=1), log, base, write)
    label = f"{what}{' (both axes logarithmic)' if log else ''}"
    if base == 1000:
        label += "; G 10^9, T 10^12, P 10^15, E 10^18"
    return line_chart(
        title,
        series,
        _LENGTH,
        label,
        x_scale=token_scale(lengths[0], lengths[-1], log),
        y_scale=scale,
    )


def _amounts(
    least: float, most: float, log: bool, base: int, write: Callable[[float | None], str]
) -> Scale:
    """Ticks at round numbers of the unit that fits: powers of ten, or of two for bytes."""
    written = lambda value: _short(write(value), value)  # noqa: E731
    if log:
        of = 10.0 if base == 1000 else 4.0
        first = _floor_log(least, of)
        ticks = [of**first]
        while ticks[-1] < most * (1 - 1e-9) or len(ticks) < 2:
            ticks.append(ticks[-1] * of)
        step = -(-len(ticks) // 9)
        kept = ticks[::step]
        return Scale(kept if kept[-1] >= most else [*kept, kept[-1] * of**step], True, written)
    unit = 1.0
    while most >= unit * base:
        unit *= base
    return Scale([tick * unit for tick in round_ticks(0, max(most, 1) / unit)], False, written)


def _floor_log(value: float, base: float) -> int:
    """The largest power of `base` that is not above `value`."""
    power = 0
    while base ** (power + 1) <= value:
        power += 1
    return power


def _short(words: str, value: float) -> str:
    """`2.50 G` as `2.5 G`: a tick needs no zeros at its end."""
    if not value:
        return "0"
    number, _, unit = words.partition(" ")
    return f"{float(number.replace(',', '')):g} {unit}".rstrip()


def _operations(count: float | None) -> str:
    return formats.operations(count).removesuffix("FLOP")
