"""Comparison of columns: averages over tasks, paired differences, cost, the answer.

Everything is over the examples that all columns answered (`reports.matched`), so that a
difference is the difference of the scores beside it. Two columns are compared example by example:
the same task and protocol, the same example id and the same document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reports import formats
from reports.costs import ByLength, Cost, by_length, cost_of
from reports.leaderboard import Column, TaskKey, compared_tasks, model_names
from reports.matched import Matched, key_of, matched
from reports.stats import Interval, Sample, average_of_tasks, difference_interval, holm, pair

SIGNIFICANCE = 0.05
MOST_MODELS = 3
"""Models of which the headline says a sentence each."""

LENGTH_AMOUNTS = ("cache_bytes_measured", "cache_bytes_analytic", "flops")


@dataclass(frozen=True)
class Difference:
    """A paired difference, and its p-value corrected for all that it is shown with."""

    interval: Interval
    adjusted: float
    """Holm's adjusted p-value of the mean being 0."""

    @property
    def clear(self) -> bool:
        """Whether it is significant at 5 % after the correction."""
        return self.adjusted < SIGNIFICANCE


@dataclass(frozen=True)
class SummaryRow:
    """Average score, difference and cost of a column over a set of tasks."""

    column: Column
    tasks: list[TaskKey]
    score: Interval | None
    baseline: Column | None
    difference: Difference | None
    """To the baseline."""
    reference: Column | None
    """Full attention of the same model, the 100 % of cost; itself, where it is that."""
    loss: Difference | None
    """The column minus the reference; None for the reference itself."""
    cost: Cost
    truncated: int
    answers_removed: int
    errors: int


def marked(intervals: Sequence[Interval | None]) -> list[Difference | None]:
    """Differences that are shown together, with their p-values corrected for their number."""
    p_values = holm([i.p for i in intervals if i is not None and i.p is not None])
    adjusted = iter(p_values)
    return [
        None if i is None else Difference(i, 1.0 if i.p is None else next(adjusted))
        for i in intervals
    ]


def baseline_of(column: Column, columns: Sequence[Column]) -> Column | None:
    """What `column` is compared with: the window of its run, any window, full attention.

    Of several windows it is the one of the column's own size: what a memory adds shows beside the
    same window without it. Of other runs, those of the same model come into question alone: another
    model's window says nothing of what a memory adds. Where there is neither, the page's first
    column. None for a column that is itself the baseline of its run, or when there is nothing else.
    """
    named = [c for c in columns if c.variant == "window" and c.model == column.model]
    if column.kind != "window" and not any(c.run is column.run for c in named):
        alike = [c for c in columns if _same_window(c, column)]
        for candidate in [c for c in alike if c.run is column.run] + alike:
            return candidate
    for variant in ("window", "full"):
        of_variant = [c for c in columns if c.variant == variant and c.model == column.model]
        in_run = [c for c in of_variant if c.run is column.run]
        for candidate in in_run + of_variant:
            return None if candidate is column else candidate
    return None if not columns or columns[0] is column else columns[0]


def _same_window(other: Column, column: Column) -> bool:
    """Whether `other` is the window of `column`, and nothing else, on the same model."""
    mine = column.window
    return (
        other.kind == "window"
        and mine is not None
        and (other.window, other.model) == (mine, column.model)
    )


def reference_of(column: Column, columns: Sequence[Column]) -> Column | None:
    """Full attention of the column's model, in its own run if it has it: 100 % of the cost."""
    of_model = [c for c in columns if c.variant == "full" and c.model == column.model]
    return next(iter([c for c in of_model if c.run is column.run] + of_model), None)


def paired_sample(
    column: Column, other: Column, task: TaskKey, shared: Matched | None = None
) -> Sample:
    """Differences of scores, column - other, over the examples of `task` that both scored.

    With `shared`, over those of them that all columns of the page scored.
    """
    documents: dict[str, str] = {}

    def scores(of: Column) -> dict[str, float]:
        records = of.scored(task) if shared is None else shared.records(of, task)
        found = {}
        for record in records:
            if record.score is not None:
                key = "\n".join(key_of(record))
                documents[key] = record.document_id
                found[key] = record.score
        return found

    return pair(scores(column), scores(other), documents)


def task_difference(
    column: Column, other: Column, task: TaskKey, shared: Matched | None = None
) -> Interval | None:
    """Paired difference in one task; None when no example is shared."""
    sample = paired_sample(column, other, task, shared)
    return difference_interval(sample.values, sample.clusters) if sample.values else None


def average_score(column: Column, tasks: Sequence[TaskKey], shared: Matched) -> Interval | None:
    """Mean over `tasks` of the column's task means; None when it scored in none of them."""
    samples = [s for task in tasks if (s := shared.sample(column, task)).values]
    return average_of_tasks(samples) if samples else None


def average_difference(
    column: Column, other: Column, tasks: Sequence[TaskKey], shared: Matched
) -> Interval | None:
    """Mean over `tasks` of the paired differences; None when no example is shared."""
    samples = [s for t in tasks if (s := paired_sample(column, other, t, shared)).values]
    return average_of_tasks(samples, differences=True) if samples else None


def summary_rows(columns: Sequence[Column]) -> list[SummaryRow]:
    """Every column over the tasks all columns share; over its own where they share none."""
    tasks, shared = compared_tasks(columns), matched(columns)
    rows = [_standing(column, columns, tasks, shared) for column in columns]
    differences = marked([r.difference.interval if r.difference else None for r in rows])
    losses = marked([r.loss.interval if r.loss else None for r in rows])
    return [
        replace(row, difference=difference, loss=loss)
        for row, difference, loss in zip(rows, differences, losses, strict=True)
    ]


def _standing(
    column: Column, columns: Sequence[Column], compared: list[TaskKey], shared: Matched
) -> SummaryRow:
    tasks = compared or [task for task in column.cells if column.scored(task)]
    baseline = baseline_of(column, columns)
    reference = reference_of(column, columns)

    def alone(other: Column | None) -> Difference | None:
        if other is None or other is column:
            return None
        interval = average_difference(column, other, tasks, shared)
        return None if interval is None else Difference(interval, 1.0)

    return SummaryRow(
        column=column,
        tasks=tasks,
        score=average_score(column, tasks, shared),
        baseline=baseline,
        difference=alone(baseline),
        reference=reference,
        loss=alone(reference),
        cost=cost_of(
            shared.pairs(column, reference, tasks),
            timed_in_one_run=reference is not None and reference.run is column.run,
        ),
        truncated=sum(record.truncated for record in column.records),
        answers_removed=sum(record.answer_removed for record in column.records),
        errors=column.errors,
    )


def shares_by_length(rows: Sequence[SummaryRow]) -> list[ByLength]:
    """The columns' shares of full attention's cache and FLOPs, by the length of the prompt."""
    shared = matched([row.column for row in rows])
    pairs = [shared.pairs(row.column, row.reference, row.tasks) for row in rows]
    return by_length(pairs, LENGTH_AMOUNTS)


def memories(rows: Sequence[SummaryRow]) -> list[SummaryRow]:
    """The rows of columns with a memory that is written to, and a score."""
    return [row for row in rows if row.column.kind == "ahn" and row.score is not None]


def subject_of(rows: Sequence[SummaryRow]) -> SummaryRow | None:
    """The column the page is about: the best memory of the first model that has one.

    Without a memory, the first column that is neither full attention nor the window, or the
    first that is not full attention, or the first.
    """
    scored = [row for row in rows if row.score is not None]
    with_memory = memories(rows)
    if with_memory:
        model = with_memory[0].column.model
        of_model = [row for row in with_memory if row.column.model == model]
        return max(of_model, key=lambda row: row.score.mean if row.score else 0.0)
    for wanted in (
        [r for r in scored if r.column.kind not in ("full", "window")],
        [r for r in scored if r.column.kind != "full"],
        scored,
    ):
        if wanted:
            return wanted[0]
    return None


Pieces = list[tuple[str, bool]]
"""Pieces of a text, True for a figure."""


def answer(rows: Sequence[SummaryRow]) -> Pieces:
    """The reader's question answered: per model, what its best memory keeps, costs and saves."""
    by_model: dict[str, list[SummaryRow]] = {}
    for row in rows:
        by_model.setdefault(row.column.model, []).append(row)
    names = model_names(by_model)
    sentences = [
        sentence
        for model, of_model in by_model.items()
        if (sentence := _sentence(of_model, names[model] if model else "", rows))
    ]
    if not sentences:
        return [("No example has a score yet: every one that was tried failed.", False)]
    pieces: Pieces = []
    for sentence in sentences[:MOST_MODELS]:
        pieces += [(" ", False)] * bool(pieces) + sentence
    if len(sentences) > MOST_MODELS:
        pieces.append((f" The other {len(sentences) - MOST_MODELS} models: see below.", False))
    return pieces


def _sentence(of_model: Sequence[SummaryRow], model: str, rows: Sequence[SummaryRow]) -> Pieces:
    """What there is to say of one model; empty when none of its columns has a score."""
    row = subject_of(of_model)
    if row is None or row.score is None:
        return []
    several = len(memories(of_model))
    name = _named(row.column, model)
    name = "AHN" if name == "ahn" else name
    of, on = (f" {word} {model}" if model else "" for word in ("of", "on"))
    pieces: Pieces = []
    if several > 1:
        one_window = len({r.column.window for r in memories(of_model)}) == 1
        what = f"memories{of}" if one_window else f"variants with a memory{on}"
        pieces.append((f"Of {several} {what}, {name} scores best: ", False))
    else:
        pieces.append((f"{name}{on} scores ", False))
    pieces.append((f"{formats.points(row.score.mean)} {formats.between(row.score)}", True))
    pieces.append((f" of 100 over {_tasks(row.tasks)}", False))
    compared = []
    if row.loss is not None and row.reference is not None:
        compared.append(("full attention", row.loss, row.reference))
    if row.difference is not None and row.baseline not in (None, row.reference):
        assert row.baseline is not None
        other = _named(row.baseline, model)
        compared.append(
            ("the window" if other == "window" else other, row.difference, row.baseline)
        )
    for other, difference, column in compared:
        change = formats.signed_points(difference.interval.mean)
        pieces.append((", ", False))
        pieces.append((f"{change} {formats.between(difference.interval, signed=True)}", True))
        other_score = next((r.score for r in rows if r.column is column), None)
        remarks = [] if other_score is None else [formats.points(other_score.mean)]
        remarks += [] if difference.clear else ["may be chance"]
        remark = f" ({', '.join(remarks)})" if remarks else ""
        pieces.append((f" against {other}{remark}", False))
    return [*pieces, *_saved(row), (".", False)]


def _named(column: Column, model: str) -> str:
    """The column's label, without the model that the sentence names anyway."""
    return column.label.removesuffix(f" · {model}") if model else column.label


def _saved(row: SummaryRow) -> Pieces:
    """Cache and FLOPs, as shares of full attention's in the mean example; empty if unknown."""
    if row.loss is None:
        return []
    shares: list[tuple[str, float, str]] = []
    for name, how in (("cache_bytes_measured", "measured"), ("cache_bytes_analytic", "analytic")):
        share = row.cost.amounts[name].of_each
        if share is not None:
            shares.append(("cache", share, how))
            break
    flops = row.cost.amounts["flops"].of_each
    if flops is not None:
        shares.append(("FLOPs", flops, "analytic"))
    pieces: Pieces = []
    for number, (what, share, how) in enumerate(shares):
        whose = "its" if number else "full attention's"
        pieces.append((" and " if number else ", with ", False))
        pieces.append((formats.percent(share), True))
        pieces.append((f" of {whose} {what} ({how})", False))
    return [*pieces, (" in the mean example", False)] if pieces else []


def _tasks(tasks: Sequence[TaskKey]) -> str:
    return f"the task {tasks[0].task}" if len(tasks) == 1 else f"{len(tasks)} tasks"


def every_pair(
    columns: Sequence[Column], tasks: Sequence[TaskKey]
) -> list[tuple[Column, list[Difference | None]]]:
    """Average paired difference, row - column, of every two columns; None on the diagonal.

    The correction is for the number of pairs, each of which stands here twice.
    """
    shared = matched(columns)
    found = [
        [
            None if row is other else average_difference(row, other, tasks, shared)
            for other in columns
        ]
        for row in columns
    ]
    upper = [(i, j) for i in range(len(columns)) for j in range(i + 1, len(columns))]
    once = dict(zip(upper, marked([found[i][j] for i, j in upper]), strict=True))

    def cell(i: int, j: int) -> Difference | None:
        interval, pair_of = found[i][j], once.get((min(i, j), max(i, j)))
        return None if interval is None or pair_of is None else replace(pair_of, interval=interval)

    numbers = range(len(columns))
    return [(column, [cell(i, j) for j in numbers]) for i, column in enumerate(columns)]
