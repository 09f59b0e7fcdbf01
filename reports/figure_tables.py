"""Tables of figures that others define: a benchmark's own averages, and published results.

The page's own tables (means with intervals over tasks) are made here from records. These are not:
how a benchmark's authors average is the benchmark's matter, and what was published is data. Whoever
builds a page hands them in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reports.leaderboard import Column

Figure = float | str | None
"""In the table's own unit, mostly percent; in words where only a bound is known; None where there
is none."""


@dataclass(frozen=True)
class FigureTable:
    """Figures in rows and columns, to be shown as they are."""

    title: str
    columns: tuple[str, ...]
    """Headings of the figures; the first column, the rows' names, is not among them."""
    rows: tuple[tuple[str, tuple[Figure, ...]], ...]
    notes: tuple[str, ...] = ()
    source: str | None = None
    """Where published figures stand; None: measured, by the runs of the page."""

    @property
    def published(self) -> bool:
        """Whether the figures are others'."""
        return self.source is not None


MakeTables = Callable[[Sequence[Column]], Sequence[FigureTable]]
"""From the columns of a page, the tables to show on it."""

MakeRemarks = Callable[[Sequence[Column]], Sequence[str]]
"""From the columns of a page, what a reader must know of these tables."""
