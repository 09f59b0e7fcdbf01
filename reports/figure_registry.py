"""Figures that others add to the page: each a picture with its table.

A figure is a function from the columns of a page (`reports.leaderboard.Column`: one variant of one
run with its records, task by task) to a `PageFigure`, or to None where the records have nothing for
it. A package adds one by an entry point in the group `ahn_bench.figures`, a program by
`register_figure`. It then stands on every page that is built.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from common.errors import InputError
from common.plugins import installed, load
from reports.figure_tables import FigureTable
from reports.leaderboard import Column

GROUP = "ahn_bench.figures"
"""The group of entry points; the name of an entry is that of the figure."""
_ELEMENTS = frozenset(
    [
        "svg",
        "g",
        "path",
        "polyline",
        "polygon",
        "line",
        "rect",
        "circle",
        "ellipse",
        "text",
        "tspan",
        "title",
        "desc",
    ]
)


@dataclass(frozen=True)
class PageFigure:
    """A picture and the numbers that it shows."""

    picture: Markup
    """An `<svg>` element, as `common.charts` draws it; its texts must be escaped, which
    `Markup.format` does."""
    table: FigureTable
    """Its title is the figure's."""


MakeFigure = Callable[[Sequence[Column]], PageFigure | None]
"""From the columns of a page to a figure; None: there is nothing to show."""

_registered: dict[str, MakeFigure] = {}


def register_figure(name: str, make: MakeFigure) -> None:
    """Add a figure to the pages that this process builds.

    Args:
        name: of the figure, for messages; the title stands in its table.
        make: the function that draws it.

    Raises:
        InputError: another function has the name.
    """
    if not callable(make):
        raise InputError(f"figure {name!r}: {make!r} is no function")
    if _registered.setdefault(name, make) is not make:
        raise InputError(f"figure {name!r} is there already; choose another name")


def figures_of(columns: Sequence[Column]) -> tuple[list[PageFigure], list[str]]:
    """The figures that were added, and a sentence on each that could not be drawn.

    A page is built after a run that may have taken days: a figure that fails is left out and said.
    """
    found: list[PageFigure] = []
    problems: list[str] = []
    for name in sorted({*_registered, *installed(GROUP)}):
        try:
            make = _registered.get(name) or load(installed(GROUP)[name], "figure")
            figure = make(columns)
            if figure is not None:
                _check(figure)
                found.append(figure)
        except Exception as error:  # other people's code may raise anything
            what = (
                str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            )
            problems.append(
                f"The figure {name!r} is left out, since it could not be drawn ({what})."
            )
    return found, problems


def _check(figure: PageFigure) -> None:
    """InputError for a picture that is no plain SVG, or a table that is no rectangle."""
    if not isinstance(figure, PageFigure):
        raise InputError(f"it gave {type(figure).__name__}, no reports.PageFigure")
    if not isinstance(figure.picture, Markup) or "<!" in figure.picture:
        raise InputError("its picture is no Markup, as common.charts gives it")
    try:
        elements = list(ET.fromstring(str(figure.picture)).iter())
    except ET.ParseError as error:
        raise InputError(f"its picture is no SVG: {error}") from None
    for element in elements:
        tag = str(element.tag).rpartition("}")[2]
        odd = [name for name in element.attrib if name.lower().startswith("on") or "href" in name]
        if tag not in _ELEMENTS or odd:
            raise InputError(
                f"its picture holds {', '.join([f'<{tag}>', *odd])}, which is not shown"
            )
    table = figure.table
    if any(len(cells) != len(table.columns) for _, cells in table.rows):
        raise InputError("its table has rows that are not as long as its columns")
