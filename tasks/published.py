"""Figures that others published: `configs/published/*.yaml`, for reports to show beside ours.

Data, each table with its source and what must be known to compare. `published_tables(benchmark)`
gives plain values: whoever shows them needs nothing from here but this call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from pydantic import BaseModel, ConfigDict, Field, model_validator

from common import yaml
from common.errors import InputError, Problems
from common.validation import validated


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Below(_Strict):
    """A figure of which only an upper bound is printed: "< 5 %"."""

    below: float

    def __str__(self) -> str:
        return f"< {self.below:g}"


Cell = float | Below | None
"""A figure as printed; None where the source has none."""


class Source(_Strict):
    """Where figures stand."""

    repository: str
    """As on GitHub, or `arXiv`."""
    revision: str = Field(min_length=1)
    """The commit, or the paper's number."""
    file: str

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision[:10]} {self.file}"


class Checkpoint(_Strict):
    """A model of the tables."""

    context: str
    """Its context in tokens, as the source writes it."""
    checkpoint: str
    """On the hub, or the name of a service's model."""


class _Table(_Strict):
    title: str
    source: Source
    unit: str
    columns: tuple[str, ...] = Field(min_length=1)
    rows: dict[str, tuple[Cell, ...]] = Field(min_length=1)
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _is_a_rectangle(self) -> _Table:
        wrong = [name for name, cells in self.rows.items() if len(cells) != len(self.columns)]
        if wrong:
            raise ValueError(f"{len(self.columns)} columns, but not as many cells in {wrong}")
        if len(set(self.columns)) < len(self.columns):
            raise ValueError("a column is there twice")
        return self


class _File(_Strict):
    benchmark: str
    protocol: str
    sources: tuple[Source, ...] = Field(min_length=1)
    models: dict[str, Checkpoint] = {}
    notes: tuple[str, ...] = ()
    tables: tuple[_Table, ...] = Field(min_length=1)


@dataclass(frozen=True)
class PublishedTable:
    """One table of published figures."""

    file: str
    """The file's name without ending: `longbench`, `lveval`, `infinitebench`, `ahn`."""
    benchmark: str
    protocol: str
    """Under which the figures were made."""
    title: str
    source: Source
    unit: str
    """`percent`, mostly."""
    columns: tuple[str, ...]
    """Headings of the figures; the first column, the rows' names, is not among them."""
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    """By model."""
    notes: tuple[str, ...]
    """What must be known to read this table."""
    file_notes: tuple[str, ...]
    """What must be known to compare with any of the file's tables."""
    models: Mapping[str, Checkpoint]
    """What the source says of the models; empty: nothing."""


def published_tables(benchmark: str | None = None) -> tuple[PublishedTable, ...]:
    """The published tables of a benchmark; None: of all.

    InputError, with one message for each problem, when a file cannot be used.
    """
    return tuple(table for table in _all() if benchmark in (None, table.benchmark))


@cache
def _all() -> tuple[PublishedTable, ...]:
    folder = resources.files("configs") / "published"
    files = [file for file in folder.iterdir() if file.name.endswith(".yaml")]
    return read_published(sorted(files, key=lambda file: file.name))


def read_published(files: Sequence[Traversable]) -> tuple[PublishedTable, ...]:
    """The tables of YAML files, in order; InputError as of `published_tables`."""
    tables: list[PublishedTable] = []
    problems = Problems()
    for file in files:
        with problems.collecting():
            tables += _tables(file.name.removesuffix(".yaml"), _parse(file))
    titles = [table.title for table in tables]
    problems.add(
        *(f"table {title!r} is there twice" for title in set(titles) if titles.count(title) > 1)
    )
    problems.check()
    return tuple(tables)


def _parse(file: Traversable) -> _File:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8 (byte {error.start + 1})") from None
    return validated(_File, yaml.parse(text, str(file)), str(file))


def _tables(name: str, file: _File) -> list[PublishedTable]:
    return [
        PublishedTable(
            file=name,
            benchmark=file.benchmark,
            protocol=file.protocol,
            title=table.title,
            source=table.source,
            unit=table.unit,
            columns=table.columns,
            rows=tuple(table.rows.items()),
            notes=table.notes,
            file_notes=file.notes,
            models=file.models,
        )
        for table in file.tables
    ]
