"""What a section of the page is made of, as plain data: tables, figures, what was not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from markupsafe import Markup

from reports.compare import Difference
from reports.stats import Interval


@dataclass(frozen=True)
class ScoreCell:
    """A score: printed, measured, or both."""

    published: float | None
    """In points of 100."""
    ours: Interval | None = None
    """As shares of 1."""
    difference: float | None = None
    """Ours less the published, in points."""
    settings: str = ""
    """Letter of what differs in setting."""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoreTable:
    """Scores by method and column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[ScoreCell, ...]], ...]
    protocol: str
    """What all cells have in common."""
    settings: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Per letter, in what the runs differ from the paper's setting."""
    decimals: int = 2
    kind: str = "scores"

    @property
    def run(self) -> bool:
        """Whether any cell was measured."""
        return any(cell.ours is not None for _, cells in self.rows for cell in cells)


@dataclass(frozen=True)
class DifferenceTable:
    """Paired differences of methods, in points, beside the published ones."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[float | None, Difference | None], ...]], ...]
    """Per name, (published, ours) of each column."""
    kind: str = "differences"


@dataclass(frozen=True)
class CostTable:
    """Costs: printed, computed, difference."""

    title: str
    columns: tuple[str, ...]
    decimals: tuple[int, ...]
    """As printed; none: nothing is, and ours have four digits."""
    rows: tuple[tuple[str, tuple[tuple[float | None, float], ...]], ...]
    kind: str = "costs"


@dataclass(frozen=True)
class Picture:
    """A chart, and its numbers as a table."""

    title: str
    chart: Markup | None
    """None: a table that goes with another picture."""
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    kind: str = "picture"


@dataclass(frozen=True)
class Tokens:
    """A text with a colour for each token, and its table."""

    title: str
    drawn: Markup
    table: Markup
    kind: str = "tokens"


@dataclass(frozen=True)
class Words:
    """A sentence in the place of something."""

    text: str
    kind: str = "words"


@dataclass(frozen=True)
class NotRun:
    """What would have to be run, and what that takes."""

    command: str
    takes: str
    kind: str = "not run"


Block = ScoreTable | DifferenceTable | CostTable | Picture | Tokens | Words | NotRun


@dataclass(frozen=True)
class Section:
    """A table or figure of the paper."""

    name: str
    title: str
    shows: str
    """What the paper shows there, in words."""
    blocks: tuple[Block, ...]
    miniature: tuple[Block, ...] = ()
    """The same with the pocket model."""
    notes: tuple[str, ...] = field(default=())


def plain(value: Any) -> Any:
    """As data for JSON; charts are left out, the numbers beside them have what they show."""
    if isinstance(value, Markup):
        return None
    if isinstance(value, Interval):
        return {
            "mean": value.mean,
            "low": value.low,
            "high": value.high,
            "n": value.n,
            "documents": value.clusters,
            "method": value.method,
            **({} if value.p is None else {"p": value.p}),
        }
    if is_dataclass(value):
        return {
            f.name: plain(getattr(value, f.name))
            for f in fields(value)
            if not isinstance(getattr(value, f.name), Markup)
        }
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value
