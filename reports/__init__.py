"""What a run leaves behind and how it is read: record schema, statistics, tables, figures, pages.

This package reads run folders only. It needs no model and no torch, so a report can be built on a
laptop from a folder that was copied there.

    import reports
    records = reports.frame(["runs/demo"])  # a pandas frame, one row for each record
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reports.figure_registry import PageFigure, register_figure
    from reports.figure_tables import FigureTable
    from reports.frames import frame, write_table

_PLACES = {
    "FigureTable": "figure_tables",
    "PageFigure": "figure_registry",
    "frame": "frames",
    "register_figure": "figure_registry",
    "write_table": "frames",
}
__all__ = [
    "FigureTable",
    "PageFigure",
    "frame",
    "register_figure",
    "write_table",
]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are asked for: pandas alone takes half a second."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
