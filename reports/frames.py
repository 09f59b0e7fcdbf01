"""Records and figures as pandas frames, and tables of them in files.

import reports
records = reports.frame(["runs/demo"])                  # one row for each record
records.groupby(["variant", "task"])["score"].mean()
reports.write_table(leaderboard(["runs/demo"]), "demo.tex")
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from common.errors import InputError
from common.writing import write_whole
from reports.leaderboard import columns_of, leaderboard_rows
from reports.run_folders import Run, read_run

_INDEX = ["benchmark", "task", "protocol"]


def _read(runs: Iterable[Run | str | Path]) -> list[Run]:
    return [run if isinstance(run, Run) else read_run(run) for run in runs]


def frame(runs: Sequence[Run | str | Path]) -> pd.DataFrame:
    """All records of some runs, one row each.

    Args:
        runs: run folders, or runs that were read.

    Returns:
        The fields of `reports.records.ExampleRecord` as columns, before them `run` (a short name of
        the folder), `column` (the variant, with the model's or run's name where several runs have
        it), and behind them what is known of generated examples, as `attributes.facts`.

    Raises:
        InputError: a folder is no readable run.
    """
    rows = []
    for column in columns_of(_read(runs)):
        for record in column.records:
            fields = record.model_dump()
            known = fields.pop("attributes", None) or {}
            fields |= {f"attributes.{name}": value for name, value in known.items()}
            rows.append({"run": column.run_name, "column": column.label, **fields})
    return pd.DataFrame(rows)


def leaderboard(runs: Sequence[Run | str | Path]) -> pd.DataFrame:
    """The long table: one row for each column and task; see `leaderboard_rows`."""
    return pd.DataFrame(leaderboard_rows(_read(runs)))


def wide(table: pd.DataFrame, value: str = "mean") -> pd.DataFrame:
    """`leaderboard`'s table with tasks as rows and columns as columns, in their first order."""
    pivoted = table.pivot(index=_INDEX, columns="column", values=value)
    rows = pd.MultiIndex.from_frame(table[_INDEX].drop_duplicates())
    return pivoted.reindex(index=rows, columns=list(dict.fromkeys(table["column"])))


def write_table(table: pd.DataFrame, path: str | Path) -> Path:
    """Write a frame as a table; the ending of the file says how.

    Args:
        table: whose named index, if it has one, becomes its first columns.
        path: `.csv`, `.json` (a list of objects), `.md` (Markdown) or `.tex` (LaTeX, `tabular`).

    Raises:
        InputError: another ending, or the file cannot be written.
    """
    path = Path(path)
    writers = {".csv": _csv, ".json": _json, ".md": _markdown, ".tex": _latex}
    if path.suffix not in writers:
        raise InputError(f"{path}: ends in {path.suffix!r}; known: {', '.join(writers)}")
    flat = table.reset_index() if any(name is not None for name in table.index.names) else table
    write_whole(path, writers[path.suffix](flat))
    return path


def _csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False, lineterminator="\n"))


def _json(table: pd.DataFrame) -> str:
    text = table.to_json(orient="records", force_ascii=False, indent=1, double_precision=15)
    return f"{text}\n"


def _cells(table: pd.DataFrame) -> list[list[str]]:
    return [[_cell(value) for value in row] for row in table.itertuples(index=False, name=None)]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _markdown(table: pd.DataFrame) -> str:
    def line(cells: Iterable[str]) -> str:
        escaped = (
            " ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|") for cell in cells
        )
        return f"| {' | '.join(escaped)} |\n"

    head = line(map(str, table.columns)) + "|" + "---|" * len(table.columns) + "\n"
    return head + "".join(line(row) for row in _cells(table))


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def _latex(table: pd.DataFrame) -> str:
    def line(cells: Iterable[str]) -> str:
        escaped = ("".join(_LATEX.get(c, c) for c in " ".join(cell.split())) for cell in cells)
        return f"{' & '.join(escaped)} \\\\\n"

    kinds = "".join("r" if pd.api.types.is_numeric_dtype(kind) else "l" for kind in table.dtypes)
    body = "".join(line(row) for row in _cells(table))
    head = line(map(str, table.columns))
    return f"\\begin{{tabular}}{{{kinds}}}\n{head}\\hline\n{body}\\end{{tabular}}\n"
