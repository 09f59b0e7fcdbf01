"""The paper's printed scores, and what its figures show: `configs/published/paper/scores.yaml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from pydantic import Field, model_validator

from evaluation.paper.costs import PrintedTable
from evaluation.paper.experiments import parts
from evaluation.paper.files import Strict, read
from tasks.published import Source


class CellOf(Strict):
    """What a column is the mean of; its data sets weigh equally."""

    benchmark: str
    datasets: tuple[str, ...] = Field(min_length=1)
    level: str = ""
    """As it ends a task's name; empty: the data set has no levels."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        end = f"_{self.level}" if self.level else ""
        return tuple(f"{dataset}{end}" for dataset in self.datasets)


class PrintedScores(PrintedTable):
    """A table of scores as the paper prints it; `settings` are length, window and sinks."""

    cells: dict[str, CellOf]
    """By column."""
    notes: tuple[str, ...] = ()
    """Slips found in it."""

    @model_validator(mode="after")
    def _every_column_is_of_something(self) -> PrintedScores:
        if tuple(self.cells) != self.columns:
            raise ValueError("cells: not one for each column, in their order")
        return self

    @property
    def window(self) -> int:
        """Tokens of the window, sinks not among them."""
        return self.settings["window"]

    @property
    def sinks(self) -> int:
        """Sinks."""
        return self.settings["sinks"]

    def printed(self, model: str, method: str, column: str) -> float | None:
        """A cell; None where the paper has none."""
        cells = self.rows.get(model, {}).get(method)
        return None if cells is None else cells[self.columns.index(column)]


class _Scores(Strict):
    source: Source
    tables: dict[str, PrintedScores]
    figures: dict[str, str]


@cache
def printed_scores() -> _Scores:
    """Everything of the file."""
    return read("scores.yaml", _Scores)


@dataclass(frozen=True)
class Expected:
    """How a benchmark is run for the paper.

    Attributes:
        part: of the experiments, its name.
        protocol: of prompts and scores.
        max_length: tokens that a prompt may have.
        examples: of all its tasks together.
        tasks: that the paper has.
    """

    part: str
    protocol: str
    max_length: int
    examples: int
    tasks: frozenset[str]


@cache
def expected() -> Mapping[str, Expected]:
    """By benchmark: what the experiments set for it."""
    cells = [cell for table in printed_scores().tables.values() for cell in table.cells.values()]
    found = {}
    for name, part in parts().items():
        benchmark = part.run["benchmark"]
        if part.stands_for:
            continue
        found[benchmark] = Expected(
            part=name,
            protocol=part.run["protocol"],
            max_length=part.run["max_length"],
            examples=part.examples,
            tasks=frozenset(t for cell in cells if cell.benchmark == benchmark for t in cell.tasks),
        )
    return found
