"""A benchmark's figures as its authors form them, from the scores of single examples.

Every benchmark's package may have a module `averages` with `tables(scores)`, made of `tasks.means`.
"""

from __future__ import annotations

from tasks.means import Figure, Scored, Scores, Table, mean, percent
from tasks.registry import benchmark_definition, find_task, module_of

__all__ = ["Figure", "Scored", "Scores", "Table", "benchmark_tables", "mean", "percent"]


def benchmark_tables(benchmark: str, scores: Scores) -> list[Table]:
    """The authors' tables for the tasks in `scores`; none where there is nothing to average.

    Tasks may be named as `tasks.registry.find_task` allows; those that are always generated are
    left out. A benchmark without averages of its own gives the mean of each task.
    """
    known: dict[str, list[Scored]] = {}
    for name, found in scores.items():
        task = find_task(benchmark, name)
        if found and not benchmark_definition(task.benchmark).generated:
            known[task.name] = list(found)
    if not known:
        return []
    module = module_of(benchmark, "averages")
    if module is None:
        return [task_means(benchmark, known)]
    tables: list[Table] = module.tables(known)
    return tables


def task_means(benchmark: str, scores: Scores) -> Table:
    """One mean per task."""
    rows = tuple((name, (percent(found),)) for name, found in scores.items())
    return Table(f"{benchmark_definition(benchmark).title}: score per task", ("score",), rows)
