"""What is printed: the plan before a run, the scores and costs after it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group
from rich.table import Table
from rich.text import Text

from evaluation.costs import example_cache_bytes, example_flops
from evaluation.plan import Plan
from reports import formats
from reports.compare import answer, standings
from reports.curves import by_facts
from reports.leaderboard import Column, TaskKey, columns_of, tasks_of
from reports.run_folders import Run
from reports.stats import Interval, mean_interval

MOST_WITH_INTERVALS = 4
"""Variants whose intervals fit beside one another into a terminal."""


def plan_tables(plan: Plan) -> Group:
    """The plan of ``--dry-run``: tasks with tokens, variants with FLOPs and cache bytes."""
    configuration = plan.configuration
    factor = configuration.yarn_factor
    stretched = "" if factor is None else f" (YaRN x {factor:g}: {plan.context:,} positions)"
    head = Text(
        f"{configuration.benchmark}, protocol {configuration.protocol}, model "
        f"{configuration.model}{stretched}, {len(plan.tasks)} tasks x {len(plan.models)} variants, "
        f"{plan.examples_per_variant} examples per variant, seed {plan.seed}"
    )
    notes = [Text(f"warning: {warning}", style="yellow") for warning in plan.warnings]
    nothing = Text("Nothing is missing. No weights were loaded.")
    return Group(head, _task_table(plan), _variant_table(plan), *notes, nothing)


def _task_table(plan: Plan) -> Table:
    table = Table(title="Prompts (tokens, chat template included)", title_justify="left")
    table.add_column("task", no_wrap=True)
    for name in ("examples", "documents", "tokens", "mean", "longest", "cut", "answer up to"):
        table.add_column(name, justify="right", overflow="fold")
    for planned in plan.tasks:
        lengths = [prompt.tokens for prompt in planned.prompts]
        cut = sum(prompt.tokens_cut > 0 for prompt in planned.prompts)
        table.add_row(
            planned.task.name,
            str(len(lengths)),
            str(len({example.document_id for example in planned.examples})),
            f"{sum(lengths):,}",
            f"{sum(lengths) / len(lengths):,.0f}" if lengths else formats.MISSING,
            f"{max(lengths, default=0):,}",
            f"{cut} {planned.rules.truncation}" if cut else "0",
            str(planned.rules.max_new_tokens),
        )
    table.add_section()
    table.add_row(
        "all",
        str(plan.examples_per_variant),
        "",
        f"{sum(prompt.tokens for planned in plan.tasks for prompt in planned.prompts):,}",
    )
    return table


def _variant_table(plan: Plan) -> Table:
    table = Table(
        title="Cost (analytic; answers of full length, nothing reused between examples)",
        title_justify="left",
    )
    table.add_column("variant", no_wrap=True)
    for name in ("window", "sinks", "memory", "type", "device"):
        table.add_column(name, overflow="fold")
    table.add_column("FLOPs, whole run", justify="right", overflow="fold")
    table.add_column("cache at the longest example", justify="right", overflow="fold")
    for name, spec in plan.models.items():
        operations = held = 0
        for planned in plan.tasks:
            new = planned.rules.max_new_tokens
            for prompt in planned.prompts:
                operations += example_flops(plan.shape, spec, prompt.tokens, new)
            longest = max((prompt.tokens for prompt in planned.prompts), default=0) + new - 1
            held = max(held, example_cache_bytes(plan.shape, spec, longest))
        table.add_row(
            name,
            f"{spec.window:,}" if spec.window is not None else "all",
            str(spec.sinks) if spec.sinks is not None else "",
            spec.cell or "",
            spec.dtype,
            spec.device,
            formats.operations(operations),
            formats.size(held),
        )
    return table


def result_tables(run: Run) -> Group:
    """Scores (tasks x variants, 95 % intervals) and costs (one row per variant) of a run."""
    columns = columns_of([run])
    sentence = Text("".join(piece for piece, _ in answer(standings(columns))))
    return Group(_score_table(columns), _cost_table(columns), sentence)


def _score(column: Column, task: TaskKey, crowded: bool) -> str:
    sample = column.sample(task)
    if not sample.values:
        return formats.MISSING
    interval = mean_interval(sample.values, sample.clusters)
    return formats.points(interval.mean) if crowded else _interval(interval)


def _interval(interval: Interval | None, between: str = " ") -> str:
    mean = formats.points(interval.mean if interval else None)
    return f"{mean}{between}{formats.between(interval)}".rstrip()


def _levels(columns: list[Column]) -> dict[int, list[Interval | None]]:
    """Scores by the number of stored facts, where the tasks differ in it."""
    levels = by_facts(columns)
    return levels if len(levels) > 1 else {}


def _examples(columns: Iterable[Column], task: TaskKey) -> str:
    counts = [len(column.scored(task)) for column in columns]
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}-{max(counts)}"


def _score_table(columns: list[Column]) -> Table:
    crowded = len(columns) > MOST_WITH_INTERVALS  # their tasks' intervals stand in the report
    table = Table(title="Score, points of 100 [95 % interval]", title_justify="left")
    table.add_column("task", no_wrap=True)
    table.add_column("examples", justify="right", overflow="fold")
    for column in columns:
        table.add_column(column.label, justify="right", overflow="fold")
    tasks = tasks_of(columns)
    for task in tasks:
        scores = [_score(column, task, crowded) for column in columns]
        table.add_row(task.task, _examples(columns, task), *scores)
    if len(tasks) > 1:
        table.add_section()
        between = "\n" if crowded else " "
        means = [_interval(row.score, between) for row in standings(columns)]
        for facts, intervals in _levels(columns).items():
            stored = f"mean, {facts} stored fact{'s' if facts > 1 else ''}"
            table.add_row(stored, "", *(_interval(interval, between) for interval in intervals))
        table.add_row("mean of tasks", "", *means, style="bold")
    return table


def _cost_table(columns: list[Column]) -> Table:
    table = Table(
        title="Cost, mean per example (FLOPs: analytic; cache, seconds: measured)",
        title_justify="left",
    )
    table.add_column("variant", no_wrap=True)
    for name in ("score", "FLOPs", "of full", "cache", "of full", "prefill", "decode", "failed"):
        table.add_column(name, justify="right", overflow="fold")
    for row in standings(columns):
        cost, share = row.cost, row.share_of_full
        table.add_row(
            row.column.label,
            _interval(row.score),
            formats.operations(cost["flops"]),
            formats.percent(share["flops"]),
            formats.size(cost["cache_bytes_measured"]),
            formats.percent(share["cache_bytes_measured"]),
            formats.seconds(cost["prefill_seconds"]),
            formats.seconds(cost["decode_seconds"]),
            str(row.errors),
        )
    return table
