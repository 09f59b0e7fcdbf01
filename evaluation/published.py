"""Published figures (`configs/published/*.yaml`) as tables for a page."""

from __future__ import annotations

from collections.abc import Sequence

from reports.figure_tables import FigureTable
from reports.leaderboard import Column


def published_tables(columns: Sequence[Column]) -> list[FigureTable]:
    """The published tables of the benchmarks that `columns` are of."""
    return []
