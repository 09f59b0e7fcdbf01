"""Examples that every column answered, so that all are compared over the same ones.

A mean over what one column answered cannot be set beside a mean over what another did: the
examples on which one failed are seldom its easiest. So means, costs and curves are over the
examples that all columns with the task have a score of. Where columns have none in common, each
keeps its own, and `reports.notices` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports.costs import Pair
from reports.leaderboard import Column, TaskKey, tasks_of
from reports.records import ExampleRecord
from reports.stats import Sample

ExampleKey = tuple[str, str]
"""Document id and example id: what tells the examples of a task apart."""


def key_of(record: ExampleRecord) -> ExampleKey:
    """The example that `record` answers."""
    return record.document_id, record.example_id


@dataclass(frozen=True)
class Matched:
    """Per task, the examples that all columns which have scores in it share."""

    common: Mapping[TaskKey, frozenset[ExampleKey]]
    """Empty for a task in which the columns have no scored example in common."""
    having: Mapping[TaskKey, tuple[int, ...]]
    """Numbers of the columns with a score in the task."""

    def records(self, column: Column, task: TaskKey) -> list[ExampleRecord]:
        """The column's records of the common examples; of its own where there are none."""
        scored = column.scored(task)
        common = self.common.get(task)
        return [r for r in scored if key_of(r) in common] if common else scored

    def sample(self, column: Column, task: TaskKey) -> Sample:
        """The scores of `records`, with the documents they belong to."""
        records = self.records(column, task)
        return Sample(
            values=tuple(float(r.score) for r in records if r.score is not None),
            clusters=tuple(r.document_id for r in records),
        )

    def pairs(
        self, column: Column, reference: Column | None, tasks: Sequence[TaskKey]
    ) -> list[Pair]:
        """`records` over the tasks, each beside the `reference`'s of the same example."""
        found: list[Pair] = []
        for task in tasks:
            others: dict[ExampleKey, ExampleRecord] = {}
            if reference is not None:
                others = {key_of(r): r for r in self.records(reference, task)}
            found += [(r, others.get(key_of(r))) for r in self.records(column, task)]
        return found

    def left_out(self, columns: Sequence[Column], task: TaskKey) -> int:
        """How many examples of the task some column has a score of, but not every one."""
        scored = {key_of(r) for i in self.having.get(task, ()) for r in columns[i].scored(task)}
        return len(scored - self.common.get(task, frozenset()))


def matched(columns: Sequence[Column]) -> Matched:
    """What the columns of a page have in common."""
    common: dict[TaskKey, frozenset[ExampleKey]] = {}
    having: dict[TaskKey, tuple[int, ...]] = {}
    for task in tasks_of(columns):
        answered = [frozenset(key_of(r) for r in column.scored(task)) for column in columns]
        having[task] = tuple(i for i, keys in enumerate(answered) if keys)
        present = [keys for keys in answered if keys]
        common[task] = frozenset.intersection(*present) if present else frozenset()
    return Matched(common, having)
