"""RULER's averages: a length over the tasks, and over the lengths.

Source: NVIDIA/RULER c3f5e3b, `scripts/eval/evaluate.py` (each task's mean in percent, to two
decimals), README.md: a model's figure at a length is the mean of its 13 tasks; `Avg.` is the mean
of the six lengths, `wAvg. (inc)` and `(dec)` weigh them 1 to 6 and 6 to 1 (its rows come out this
way, to 0.1).
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.means import Figure, Scores, Table, mean, percent
from tasks.registry import expand, find_task, task_names

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
"""The authors'."""
OF_FILE = "rows given"
"""The column of rows that were read without a length."""
GROUPS = {"mean of the 8 NIAH": "ruler_niah", "mean of all 13": "ruler"}


def tables(scores: Scores) -> list[Table]:
    """Tasks by lengths with their means; and the authors' means over lengths, if all six are here.

    A mean that lacks one of its tasks is None.
    """
    cells: dict[tuple[str, int | None], Figure] = {}
    for name, found in scores.items():
        task = find_task("ruler", name)
        cells[task.dataset, task.length] = percent(found)
    lengths = sorted({length for _, length in cells}, key=lambda length: length or 0)
    six = all(length in lengths for length in LENGTHS)

    def row(figures: dict[int | None, Figure]) -> tuple[Figure, ...]:
        shown = tuple(figures.get(length) for length in lengths)
        over = [figures.get(length) for length in LENGTHS]
        return (*shown, *_over_lengths(over)) if six else shown

    rows = []
    for name in task_names("ruler"):
        of_task = {length: cells.get((name, length)) for length in lengths}
        if any(figure is not None for figure in of_task.values()):
            rows.append((name, row(of_task)))
    for title, group in GROUPS.items():
        members = [task.name for task in expand("ruler", [group], None)]
        means = {
            length: mean([cells.get((name, length)) for name in members], 2) for length in lengths
        }
        rows.append((title, row(means)))
    missing = [
        name if length is None else f"{name}_{length}"
        for length in lengths
        for name in task_names("ruler")
        if cells.get((name, length)) is None
    ]
    columns = tuple(OF_FILE if length is None else str(length) for length in lengths)
    return [
        Table(
            "RULER: tasks by lengths",
            (*columns, "Avg.", "wAvg. (inc)", "wAvg. (dec)") if six else columns,
            tuple(rows),
            f"not here: {', '.join(missing)}" if missing else "",
        )
    ]


def _over_lengths(figures: Sequence[Figure]) -> tuple[Figure, Figure, Figure]:
    """The mean over the lengths, and those weighted 1, 2, ... from the short and the long end."""
    if any(figure is None for figure in figures):
        return None, None, None
    given = [figure for figure in figures if figure is not None]
    weights = range(1, len(given) + 1)

    def weighted(values: Sequence[float]) -> float:
        return round(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights), 2)

    return mean(given, 2), weighted(given), weighted(given[::-1])
