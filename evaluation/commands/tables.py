"""What is printed: the plan before a run, the scores and costs after it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group
from rich.table import Table
from rich.text import Text

from evaluation.plan.planned import Plan
from reports import formats
from reports.compare import answer, summary_rows
from reports.curves import Panel, curve
from reports.leaderboard import Column, TaskKey, columns_of, tasks_of
from reports.matched import Matched, matched
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
    for name, model in plan.models.items():
        said = model.describe()
        costs = [
            plan.cost_of(name, prompt, planned.rules.max_new_tokens)
            for planned in plan.tasks
            for prompt in planned.prompts
        ]
        flops = [cost.flops for cost in costs if cost.flops is not None]
        held = [cost.cache_bytes for cost in costs if cost.cache_bytes is not None]
        window, sinks = said.get("window"), said.get("sinks")
        table.add_row(
            name,
            f"{window:,}" if window is not None else "all" if "window" in said else "",
            "" if sinks is None else str(sinks),
            str(said.get("cell") or ""),
            str(said.get("dtype") or ""),
            model.device or "",
            formats.operations(sum(flops)) if len(flops) == len(costs) else "unknown",
            formats.size(max(held, default=0)) if len(held) == len(costs) else "unknown",
        )
    return table


def result_tables(run: Run) -> Group:
    """Scores (tasks x variants, 95 % intervals) and costs (one row per variant) of a run."""
    columns = columns_of([run])
    sentence = Text("".join(piece for piece, _ in answer(summary_rows(columns))))
    return Group(*_score_tables(columns), _cost_table(columns), sentence)


def _score(column: Column, task: TaskKey, shared: Matched, crowded: bool) -> str:
    sample = shared.sample(column, task)
    if not sample.values:
        return formats.MISSING
    interval = mean_interval(sample.values, sample.clusters)
    return formats.points(interval.mean) if crowded else _interval(interval)


def _interval(interval: Interval | None, between: str = " ") -> str:
    mean = formats.points(interval.mean if interval else None)
    return f"{mean}{between}{formats.between(interval)}".rstrip()


def _examples(columns: Iterable[Column], task: TaskKey, shared: Matched) -> str:
    counts = [len(shared.records(column, task)) for column in columns]
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}-{max(counts)}"


def _score_tables(columns: list[Column]) -> list[Table | Text]:
    """Scores over the examples that all variants answered; below them, by stored facts."""
    crowded = len(columns) > MOST_WITH_INTERVALS  # their tasks' intervals stand in the report
    between = "\n" if crowded else " "
    shared = matched(columns)
    table = Table(title="Score, points of 100 [95 % interval]", title_justify="left")
    table.add_column("task", no_wrap=True)
    table.add_column("examples", justify="right", overflow="fold")
    for column in columns:
        table.add_column(column.label, justify="right", overflow="fold")
    tasks = tasks_of(columns)
    for task in tasks:
        scores = [_score(column, task, shared, crowded) for column in columns]
        table.add_row(task.task, _examples(columns, task, shared), *scores)
    found: list[Table | Text] = [table]
    if len(tasks) > 1:
        table.add_section()
        means = [_interval(row.score, between) for row in summary_rows(columns)]
        by_facts = curve(columns, "facts")
        if by_facts is not None:
            panel = by_facts.panels[0]
            _add_facts(table, panel, between)
            found.append(Text(f"Stored facts compared over {panel.held}.", style="dim"))
        table.add_row("mean of tasks", "", *means, style="bold")
    return found


def _add_facts(table: Table, panel: Panel, between: str) -> None:
    """A row for each number of stored facts, over like examples."""
    for facts, intervals in panel.points:
        stored = f"mean, {facts} stored fact{'' if facts == '1' else 's'}"
        count = next((str(i.n) for i in intervals if i is not None), "")
        table.add_row(stored, count, *(_interval(interval, between) for interval in intervals))


def _cost_table(columns: list[Column]) -> Table:
    table = Table(
        title="Cost per example (FLOPs: mean, analytic; cache: mean, measured; seconds: median, "
        "measured, of whole prefills; of full: mean of the examples' own shares)",
        title_justify="left",
    )
    table.add_column("variant", no_wrap=True)
    names = ("score", "FLOPs", "of full", "cache", "of full", "prefill", "reused", "decode")
    for name in (*names, "failed"):
        table.add_column(name, justify="right", overflow="fold")
    for row in summary_rows(columns):
        amounts, times = row.cost.amounts, row.cost.times
        table.add_row(
            row.column.label,
            _interval(row.score),
            formats.operations(amounts["flops"].mean),
            formats.percent(amounts["flops"].of_each),
            formats.size(amounts["cache_bytes_measured"].mean),
            formats.percent(amounts["cache_bytes_measured"].of_each),
            formats.seconds(times["prefill_seconds"].median),
            "unknown" if row.cost.reuse.unknown else formats.percent(row.cost.reuse.share),
            formats.seconds(times["decode_seconds"].median),
            str(row.errors),
        )
    return table
