"""LV-Eval's averages: a level over the data sets, a data set over the levels.

Source: infinigence/LVEval 63e7ae9, evaluation.py (each file's mean in percent to two decimals;
`result.json` and a CSV of data sets by levels), README.md (a level's score is the mean of its 11
data sets, a data set's that of its 5 levels: its tables come out this way, to 0.005 and 0.014). The
AHN evaluation's "128k average" is taken to be the level's score.
"""

from __future__ import annotations

from collections.abc import Mapping

from tasks.means import Figure, Scores, Table, mean, percent
from tasks.registry import benchmark_definition, expand, find_task

AVERAGE = "average"


def tables(scores: Scores) -> list[Table]:
    """Data sets by levels, with the mean of each; what was scored without a level, alone."""
    figures = {name: percent(found) for name, found in scores.items()}
    leveled = {name: figure for name, figure in figures.items() if _level(name) is not None}
    found = [by_level(leveled)] if leveled else []
    rest = tuple((name, (figures[name],)) for name in figures if name not in leveled)
    if rest:
        found.append(Table("LV-Eval: score per data set, of no level", ("score",), rest))
    return found


def by_level(figures: Mapping[str, Figure]) -> Table:
    """The authors' CSV and the two means, from the figure of each task, in percent.

    Rows are the data sets that have a figure, and the average over all of them; columns the
    levels that have one, and the average over all levels. A mean that lacks one of its parts is
    None.
    """
    levels = benchmark_definition("lveval").levels
    members = {level: expand("lveval", [f"lveval_{level}"], None) for level in levels}
    datasets = [task.dataset for task in members[levels[0]]]
    cells = {
        (task.dataset, task.level): figures.get(task.name) for task in sum(members.values(), [])
    }
    shown = [level for level in levels if any(cells[name, level] is not None for name in datasets)]
    rows = []
    for name in datasets:
        of_level = tuple(cells[name, level] for level in shown)
        if any(figure is not None for figure in of_level):
            over_levels = mean([cells[name, level] for level in levels], 2)
            rows.append((name, (*of_level, over_levels)))
    over_datasets = [mean([cells[name, level] for name in datasets], 2) for level in levels]
    shown_means = tuple(over_datasets[levels.index(level)] for level in shown)
    rows.append((AVERAGE, (*shown_means, mean(over_datasets, 2))))
    missing = [
        f"{name}_{level}" for level in shown for name in datasets if cells[name, level] is None
    ]
    return Table(
        "LV-Eval: data sets by levels",
        (*shown, AVERAGE),
        tuple(rows),
        f"not here: {', '.join(missing)}" if missing else "",
    )


def _level(name: str) -> str | None:
    return find_task("lveval", name).level
