"""The page on run folders, with what the reports cannot know: the benchmarks' own averages and
published figures. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from common.errors import InputError
from evaluation.commands.data_folders import register_benchmark_of
from evaluation.commands.published import published_tables
from reports.figure_tables import FigureTable
from reports.leaderboard import Column
from reports.page import build_report
from reports.perplexity import is_perplexity_folder, read_perplexity
from reports.perplexity_page import build_perplexity_page
from reports.run_folders import read_run_info
from tasks.averages import benchmark_tables
from tasks.means import Scored, Table
from tasks.registry import known_task

_MOST_NAMED = 6


def write_report(runs: Sequence[str | Path], output: str | Path) -> Path:
    """Write the page on `runs` to `output`; see `reports.page.build_report`.

    A folder of `run_eval perplexity` has a page of another kind, and stands alone.
    """
    books = [run for run in runs if is_perplexity_folder(run)]
    if books:
        if len(runs) > 1:
            raise InputError(
                f"{books[0]}: is a folder of run_eval perplexity, whose page has no place for "
                "others; name it alone (run_eval paper report takes both kinds)"
            )
        return build_perplexity_page(read_perplexity(books[0]), output)
    for run in runs:
        with suppress(InputError):  # the page says what is wrong with a folder
            register_benchmark_of(read_run_info(run))
    return build_report(runs, output, tables_of, unknown_tasks)


def unknown_tasks(columns: Sequence[Column]) -> list[str]:
    """A sentence on the tasks that this version of ahn-bench does not have, if there are any."""
    names = {
        f"{key.benchmark}/{key.task}": None
        for column in columns
        for key in column.cells
        if known_task(key.benchmark, key.task) is None
    }
    if not names:
        return []
    listed = ", ".join(list(names)[:_MOST_NAMED])
    if len(names) > _MOST_NAMED:
        listed += f" and {len(names) - _MOST_NAMED} more"
    return [
        f"This version of ahn-bench does not know {listed}: their scores are shown as recorded, "
        "but enter no average of a benchmark's authors and stand beside no published figure."
    ]


def tables_of(columns: Sequence[Column]) -> list[FigureTable]:
    """What the page shows beside its own tables: measured averages first, then published ones."""
    return [*authors_tables(columns), *published_tables(columns)]


def authors_tables(columns: Sequence[Column]) -> list[FigureTable]:
    """The averages of each benchmark's authors, the variants' figures side by side."""
    made: dict[tuple[str, str], dict[str, list[Table]]] = {}
    for column in columns:
        scores: dict[tuple[str, str], dict[str, list[Scored]]] = {}
        for key in column.cells:
            if known_task(key.benchmark, key.task):
                found = [
                    Scored(record.score, record.length, record.attributes)
                    for record in column.scored(key)
                    if record.score is not None
                ]
                scores.setdefault((key.benchmark, key.protocol), {})[key.task] = found
        for of, by_task in scores.items():
            made.setdefault(of, {})[column.label] = benchmark_tables(of[0], by_task)
    return [
        table
        for (_, protocol), by_label in made.items()
        for table in _side_by_side(by_label, protocol)
        if any(figure is not None for _, figures in table.rows for figure in figures)
    ]


def _side_by_side(by_label: dict[str, list[Table]], protocol: str) -> list[FigureTable]:
    """Tables of one title over all variants: a variant is a column, a row, or a table."""
    titles = dict.fromkeys(table.title for tables in by_label.values() for table in tables)
    found = []
    for title in titles:
        of_title = {
            label: table for label, tables in by_label.items() for table in tables
            if table.title == title
        }  # fmt: skip
        found += _merged(f"{title} ({protocol})", of_title)
    return found


def _merged(title: str, by_label: dict[str, Table]) -> list[FigureTable]:
    tables = list(by_label.values())
    notes = tuple(
        dict.fromkeys(
            note if len({t.note for t in tables}) == 1 else f"{label}: {note}"
            for label, table in by_label.items()
            if (note := table.note)
        )
    )
    if all(len(table.columns) == 1 for table in tables):
        names = dict.fromkeys(name for table in tables for name, _ in table.rows)
        cells = {label: {name: row[0] for name, row in t.rows} for label, t in by_label.items()}
        rows = tuple((name, tuple(of.get(name) for of in cells.values())) for name in names)
        return [FigureTable(title, tuple(by_label), rows, notes)]
    single = {tuple(name for name, _ in table.rows) for table in tables}
    if len(single) == 1 and len(next(iter(single))) == 1 and len({t.columns for t in tables}) == 1:
        ((name,),) = single
        rows = tuple((label, table.rows[0][1]) for label, table in by_label.items())
        return [FigureTable(f"{title}, {name}", tables[0].columns, rows, notes)]
    return [
        FigureTable(
            f"{title}: {label}", table.columns, table.rows, (table.note,) if table.note else ()
        )
        for label, table in by_label.items()
    ]
