"""LongBench-E: every task's score in three buckets of length.

Source: THUDM/LongBench 2e00731, LongBench/eval.py, `scorer_e`: buckets by the row's `length` in
words, each the mean in percent to two decimals. The curve of the authors' README is the mean of a
category's tasks in each bucket; it has no script.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tasks.longbench.averages import CATEGORIES
from tasks.means import Figure, Scored, Scores, Table, mean
from tasks.registry import find_task, task_names

BUCKETS = ("0-4k", "4-8k", "8k+")


def bucket_of(length: int) -> str:
    """The bucket of a row of so many words: below 4000, below 8000, and the rest."""
    return BUCKETS[0] if length < 4000 else BUCKETS[1] if length < 8000 else BUCKETS[2]


def bucket_scores(examples: Sequence[Scored]) -> dict[str, Figure]:
    """The mean of each bucket, in percent; None for an empty one (NaN in the authors' script)."""
    scores: dict[str, list[float]] = {bucket: [] for bucket in BUCKETS}
    for example in examples:
        if example.length is not None:
            scores[bucket_of(example.length)].append(example.score)
    return {  # np.mean, as the authors: it adds up in another order than sum()
        bucket: round(100 * float(np.mean(found)), 2) if found else None
        for bucket, found in scores.items()
    }


def tables(scores: Scores) -> list[Table]:
    """Tasks by buckets, and categories by buckets where all of a category's tasks are here."""
    figures = {name: bucket_scores(found) for name, found in scores.items()}
    without = [name for name, found in scores.items() if any(e.length is None for e in found)]
    per_task = Table(
        "LongBench-E: score per length",
        BUCKETS,
        tuple((name, tuple(buckets.values())) for name, buckets in figures.items()),
        f"without the rows' length, in no bucket: examples of {', '.join(without)}"
        if without
        else "",
    )
    rows = []
    for category in CATEGORIES:
        members = [
            name
            for name in task_names("longbench_e")
            if find_task("longbench_e", name).category == category
        ]
        if members and set(members) <= set(figures):
            cells = tuple(
                mean([figures[name][bucket] for name in members], 2) for bucket in BUCKETS
            )
            rows.append((category, cells))
    if not rows:
        return [per_task]
    return [per_task, Table("LongBench-E: categories per length", BUCKETS, tuple(rows))]
