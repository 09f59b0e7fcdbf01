"""The table of docs/methods.md, from run folders.

python -m tests.bench.methods_table runs/methods runs/methods-endpoint
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

import reports
from reports import formats
from reports.compare import SummaryRow, summary_rows
from reports.leaderboard import columns_of
from reports.run_folders import read_run
from reports.stats import Interval

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- table: python -m tests.bench.methods_table -->", "<!-- end of table -->"


def rows(folders: list[Path]) -> pd.DataFrame:
    """One row per variant, as it is printed."""
    columns = [column for folder in folders for column in columns_of([read_run(folder)])]
    return pd.DataFrame([_row(row) for row in summary_rows(columns)])


def _row(row: SummaryRow) -> dict[str, str]:
    amounts, kept = row.cost.amounts, row.cost.kept
    times = row.cost.times
    budget, held = amounts["budget_bytes"].mean, amounts["document_bytes"].mean
    return {
        "variant": row.column.label,
        "questions": str(sum(len(row.column.cells[task]) for task in row.tasks)),
        "score": _with_interval(row.score),
        "against the window": _with_interval(row.difference.interval, signed=True)
        if row.difference
        else "",
        "tokens kept": formats.whole(amounts["kept_tokens"].mean),
        "after the document": formats.size(held),
        "of the budget": formats.percent(held / budget) if held and budget else "",
        "at the end": formats.size(amounts["cache_bytes_measured"].mean),
        "peak": formats.size(kept.largest_peak),
        "FLOPs": formats.operations(amounts["flops"].mean),
        "prefill": formats.seconds(times["prefill_seconds"].median),
        "decode": formats.seconds(times["decode_seconds"].median),
    }


def _with_interval(interval: Interval | None, signed: bool = False) -> str:
    """Points of 100, and the interval behind them."""
    if interval is None:
        return ""
    mean = (formats.signed_points if signed else formats.points)(interval.mean)
    return f"{mean} {formats.between(interval, signed)}"


def main(folders: Annotated[list[Path], typer.Argument()]) -> None:
    """Write the table into docs/methods.md, and beside the page as docs/gallery/methods.csv."""
    table = rows(folders)
    gallery = ROOT / "docs" / "gallery"
    gallery.mkdir(exist_ok=True)
    reports.write_table(table, gallery / "methods.csv")
    markdown = reports.write_table(table, gallery / "methods.md").read_text("utf-8")
    (gallery / "methods.md").unlink()
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{markdown}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    typer.run(main)
