"""Columns set against each other: averages over tasks, paired differences, cost, the answer.

Two columns are compared on the examples that both answered: the same task and protocol, the
same example id and the same document. What only one of them has is left out of the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports import formats
from reports.leaderboard import Column, TaskKey, average, compared_tasks
from reports.records import ExampleRecord
from reports.stats import Interval, Sample, average_of_tasks, difference_interval, pair

_COST_FIELDS = (
    "flops",
    "cache_bytes_analytic",
    "cache_bytes_measured",
    "prefill_seconds",
    "decode_seconds",
    "prompt_tokens",
    "generated_tokens",
)


@dataclass(frozen=True)
class Standing:
    """What a column comes to over a set of tasks. Costs are means per example."""

    column: Column
    tasks: list[TaskKey]
    score: Interval | None
    baseline: Column | None
    difference: Interval | None
    cost: dict[str, float | None]
    share_of_full: dict[str, float | None]
    truncated: int
    answers_removed: int
    errors: int


def baseline_of(column: Column, columns: Sequence[Column]) -> Column | None:
    """What `column` is compared with: the window of its run, any window, full attention.

    None for a column that is itself the baseline of its run, or when there is nothing else.
    """
    for variant in ("window", "full"):
        of_variant = [c for c in columns if c.variant == variant]
        in_run = [c for c in of_variant if c.run is column.run]
        for candidate in in_run + of_variant:
            return None if candidate is column else candidate
    return None if not columns or columns[0] is column else columns[0]


def reference_of(column: Column, columns: Sequence[Column]) -> Column | None:
    """Full attention in the column's own run: the 100 % of its cache and FLOPs."""
    return next((c for c in columns if c.variant == "full" and c.run is column.run), None)


def paired_sample(column: Column, other: Column, task: TaskKey) -> Sample:
    """Differences of scores, column - other, over the examples of `task` that both scored."""
    documents: dict[str, str] = {}

    def scores(records: Sequence[ExampleRecord]) -> dict[str, float]:
        found = {}
        for record in records:
            if record.score is not None:
                key = f"{record.document_id}\n{record.example_id}"
                documents[key] = record.document_id
                found[key] = record.score
        return found

    return pair(scores(column.scored(task)), scores(other.scored(task)), documents)


def task_difference(column: Column, other: Column, task: TaskKey) -> Interval | None:
    """Paired difference in one task; None when no example is shared."""
    sample = paired_sample(column, other, task)
    return difference_interval(sample.values, sample.clusters) if sample.values else None


def average_score(column: Column, tasks: Sequence[TaskKey]) -> Interval | None:
    """Mean over `tasks` of the column's task means; None when it scored in none of them."""
    samples = [sample for task in tasks if (sample := column.sample(task)).values]
    return average_of_tasks(samples) if samples else None


def average_difference(column: Column, other: Column, tasks: Sequence[TaskKey]) -> Interval | None:
    """Mean over `tasks` of the paired differences; None when no example is shared."""
    samples = [s for task in tasks if (s := paired_sample(column, other, task)).values]
    return average_of_tasks(samples, differences=True) if samples else None


def standings(columns: Sequence[Column]) -> list[Standing]:
    """Every column over the tasks all columns share; over its own where they share none."""
    shared = compared_tasks(columns)
    return [_standing(column, columns, shared) for column in columns]


def _standing(column: Column, columns: Sequence[Column], shared: list[TaskKey]) -> Standing:
    tasks = shared or [task for task in column.cells if column.scored(task)]
    baseline = baseline_of(column, columns)
    reference = reference_of(column, columns)
    cost = _cost(column, tasks)
    whole = {} if reference is None else _cost(reference, tasks)
    return Standing(
        column=column,
        tasks=tasks,
        score=average_score(column, tasks),
        baseline=baseline,
        difference=None if baseline is None else average_difference(column, baseline, tasks),
        cost=cost,
        share_of_full={name: _ratio(cost[name], whole.get(name)) for name in _COST_FIELDS},
        truncated=sum(record.truncated for record in column.records),
        answers_removed=sum(record.answer_removed for record in column.records),
        errors=column.errors,
    )


def _cost(column: Column, tasks: Sequence[TaskKey]) -> dict[str, float | None]:
    records = [record for task in tasks for record in column.cells.get(task, ())]
    return {name: average(records, name) for name in _COST_FIELDS}


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def subject_of(rows: Sequence[Standing]) -> Standing | None:
    """The column the page is about: the first AHN; else the first that is not full attention."""
    scored = [row for row in rows if row.score is not None]
    for wanted in (
        [r for r in scored if r.column.variant.startswith("ahn")],
        [r for r in scored if r.column.variant not in ("full", "window")],
        [r for r in scored if r.column.variant != "full"],
        scored,
    ):
        if wanted:
            return wanted[0]
    return None


def answer(rows: Sequence[Standing]) -> list[tuple[str, bool]]:
    """The reader's question answered in one sentence: pieces of text, True for a figure."""
    row = subject_of(rows)
    if row is None or row.score is None:
        return [("No example has a score yet: every one that was tried failed.", False)]
    name = "AHN" if row.column.label == "ahn" else row.column.label
    pieces: list[tuple[str, bool]] = [(f"{name} scores ", False)]
    pieces.append((f"{formats.points(row.score.mean)} {formats.between(row.score)}", True))
    pieces.append((f" of 100 over {_tasks(row.tasks)}", False))
    full = next(
        (r for r in rows if r.column.variant == "full" and r.column.run is row.column.run), None
    )
    if full is not None and full is not row and full.score is not None:
        pieces.append((", where full attention scores ", False))
        pieces.append((formats.points(full.score.mean), True))
        share = row.share_of_full["cache_bytes_measured"]
        how = "measured"
        if share is None:
            share, how = row.share_of_full["cache_bytes_analytic"], "analytic"
        if share is not None:
            pieces += [(", with ", False), (formats.percent(share), True)]
            pieces.append((f" of its cache ({how})", False))
    if row.baseline is not None and row.difference is not None:
        pieces.append((f"; paired difference to {row.baseline.label}: ", False))
        change = formats.signed_points(row.difference.mean)
        pieces.append((f"{change} {formats.between(row.difference, signed=True)}", True))
        pieces.append((" points", False))
        if not row.difference.excludes_zero():
            pieces.append((", which may be chance", False))
    return [*pieces, (".", False)]


def _tasks(tasks: Sequence[TaskKey]) -> str:
    return f"the task {tasks[0].task}" if len(tasks) == 1 else f"{len(tasks)} tasks"


def every_pair(
    columns: Sequence[Column], tasks: Sequence[TaskKey]
) -> list[tuple[Column, list[Interval | None]]]:
    """Average paired difference, row - column, of every two columns; None on the diagonal."""
    return [
        (
            row,
            [None if row is other else average_difference(row, other, tasks) for other in columns],
        )
        for row in columns
    ]
