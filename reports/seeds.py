"""Columns that differ in the seed they were trained with, compared as one.

Of each example the mean of the columns' scores counts, so that a recipe with two seeds is set
beside another one example by example. The interval is that of the questions: trainings are not
drawn again, and two seeds say little of how far off a third one would be.
"""

from __future__ import annotations

from collections.abc import Sequence

from reports.leaderboard import Column, TaskKey
from reports.matched import ExampleKey, Matched, key_of
from reports.stats import Interval, Sample, average_of_tasks


def mean_score(
    columns: Sequence[Column], tasks: Sequence[TaskKey], shared: Matched
) -> Interval | None:
    """Mean over `tasks`, which weigh equally, of the columns' mean scores.

    None where they have no example in common.
    """
    found = (_scores(columns, task, shared) for task in tasks)
    samples = [_sample(scores) for scores in found if scores]
    return average_of_tasks(samples) if samples else None


def mean_difference(
    columns: Sequence[Column],
    others: Sequence[Column],
    tasks: Sequence[TaskKey],
    shared: Matched,
) -> Interval | None:
    """Likewise of the paired differences: mean of `columns` less mean of `others`."""
    samples = []
    for task in tasks:
        scores, against = _scores(columns, task, shared), _scores(others, task, shared)
        differences = {key: scores[key] - against[key] for key in scores if key in against}
        if differences:
            samples.append(_sample(differences))
    return average_of_tasks(samples, differences=True) if samples else None


def _scores(columns: Sequence[Column], task: TaskKey, shared: Matched) -> dict[ExampleKey, float]:
    """Mean score of each example that all of `columns` answered."""
    found: list[dict[ExampleKey, float]] = [
        {key_of(r): float(r.score) for r in shared.records(column, task) if r.score is not None}
        for column in columns
    ]
    first, *rest = found
    return {
        key: sum(scores[key] for scores in found) / len(found)
        for key in first
        if all(key in scores for scores in rest)
    }


def _sample(values: dict[ExampleKey, float]) -> Sample:
    return Sample(tuple(values.values()), tuple(document for document, _ in values))
