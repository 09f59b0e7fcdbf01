"""What is printed: the plan before a run, the scores and costs after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from evaluation.plan.planned import Plan
from reports import formats
from reports.compare import SummaryRow, answer, summary_rows
from reports.costs import Cost
from reports.curves import Panel, curve
from reports.equal_bytes import kept_table
from reports.leaderboard import Column, TaskKey, columns_of, tasks_of
from reports.matched import Matched, matched
from reports.run_folders import Run
from reports.stats import Interval, mean_interval

MOST_WITH_INTERVALS = 4
"""Variants whose intervals fit beside one another into a terminal."""
MOST_TOGETHER = 7
"""Variants that fit beside one another into a terminal; more have further tables."""


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
        sinks = said.get("sinks")
        table.add_row(
            name,
            _window(said, model.sizable),
            "" if sinks is None else str(sinks),
            str(said.get("cell") or ""),
            str(said.get("dtype") or ""),
            model.device or "",
            formats.operations(sum(flops)) if len(flops) == len(costs) else "unknown",
            formats.size(max(held, default=0)) if len(held) == len(costs) else "unknown",
        )
    return table


def _window(said: Mapping[str, Any], sizable: bool) -> str:
    """The window of a variant that describes itself so."""
    if said.get("window") is not None:
        return f"{said['window']:,}"
    if said.get("cell") is not None:
        return "none"
    if sizable:
        return "by budget"
    return "all" if "window" in said else ""


def result_tables(*runs: Run) -> Group:
    """Scores (tasks x variants, 95 % intervals) and costs (one row per variant) of runs."""
    columns = columns_of(runs)
    sentence = Text("".join(piece for piece, _ in answer(summary_rows(columns))))
    return Group(*_score_tables(columns), _cost_table(columns), *_kept_tables(columns), sentence)


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
    """Scores over the examples that all variants answered; below them, by stored facts.

    Many variants are shown some at a time.
    """
    shared, rows, by_facts = matched(columns), summary_rows(columns), curve(columns, "facts")
    panel = by_facts.panels[0] if by_facts is not None else None
    tasks = tasks_of(columns)
    number = -(-len(columns) // MOST_TOGETHER)
    size = -(-len(columns) // number)  # about as many in each
    found: list[Table | Text] = [
        _score_table(columns, range(start, min(start + size, len(columns))), shared, rows, panel)
        for start in range(0, len(columns), size)
    ]
    if panel is not None and len(tasks) > 1:
        found.append(Text(f"Stored facts compared over {panel.held}.", style="dim"))
    return found


def _score_table(
    columns: list[Column],
    numbers: range,
    shared: Matched,
    rows: Sequence[SummaryRow],
    panel: Panel | None,
) -> Table:
    """The scores of the columns with these numbers."""
    crowded = len(columns) > MOST_WITH_INTERVALS  # their tasks' intervals stand in the report
    between = "\n" if crowded else " "
    title = "Score, points of 100 [95 % interval]"
    if len(numbers) < len(columns):
        title += f"; variants {numbers.start + 1} to {numbers.stop} of {len(columns)}"
    table = Table(title=title, title_justify="left")
    table.add_column("task", no_wrap=True)
    table.add_column("examples", justify="right", overflow="fold")
    shown = [columns[i] for i in numbers]
    for column in shown:
        table.add_column(column.label, justify="right", overflow="fold")
    tasks = tasks_of(columns)
    for task in tasks:
        scores = [_score(column, task, shared, crowded) for column in shown]
        table.add_row(task.task, _examples(columns, task, shared), *scores)
    if len(tasks) > 1:
        table.add_section()
        if panel is not None:
            _add_facts(table, panel, between, numbers)
        means = [_interval(rows[i].score, between) for i in numbers]
        table.add_row("mean of tasks", "", *means, style="bold")
    return table


def _add_facts(table: Table, panel: Panel, between: str, numbers: range) -> None:
    """A row for each number of stored facts, over like examples."""
    for facts, intervals in panel.points:
        stored = f"mean, {facts} stored fact{'' if facts == '1' else 's'}"
        count = next((str(i.n) for i in intervals if i is not None), "")
        table.add_row(stored, count, *(_interval(intervals[i], between) for i in numbers))


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


def _kept_tables(columns: list[Column]) -> list[Table | Text]:
    """What is kept of documents, where records say it: at most one table, and its gaps."""
    kept = kept_table([(row.column, row.cost) for row in summary_rows(columns)])
    if kept is None:
        return []
    has = kept["fields"]
    budget = "".join(f"; budget: {text}" for text in kept["budgets"].values())
    table = Table(
        title=f"Kept of a document (mean, measured{budget}; off it: furthest example; peak: "
        "largest, weights not counted)",
        title_justify="left",
    )
    table.add_column("variant", no_wrap=True)
    names = {
        "budget_bytes": ("budget", "off it"),
        "kept_tokens": ("tokens kept",),
        "document_bytes": ("after document",),
        "": ("at the end",),
        "cache_bytes_stored": ("stored",),
        "peak_bytes": ("peak", "examples"),
    }
    for field, heads in names.items():
        for head in heads if not field or field in has else ():
            table.add_column(head, justify="right", overflow="fold")
    for row in kept["rows"]:
        cells = _kept_cells(row["cost"])
        table.add_row(
            row["column"].label,
            *(cell for field in names if not field or field in has for cell in cells[field]),
        )
    gaps = [f"{row['column'].label}: not known: {row['gap']}" for row in kept["rows"] if row["gap"]]
    return [table, *(Text(line, style="dim") for line in gaps)]


def _kept_cells(cost: Cost) -> dict[str, tuple[str, ...]]:
    """The cells of a variant, by the record's field that they are on; '' is on no new one."""
    amounts, kept = cost.amounts, cost.kept
    tokens, of = amounts["kept_tokens"].mean, amounts["document_tokens"].mean
    return {
        "budget_bytes": (
            formats.size(amounts["budget_bytes"].mean),
            formats.signed_percent(kept.deviation),
        ),
        "kept_tokens": (
            formats.whole(tokens)
            if tokens is None or of is None
            else f"{formats.whole(tokens)} of {formats.whole(of)}",
        ),
        "document_bytes": (formats.size(amounts["document_bytes"].mean),),
        "": (formats.size(amounts["cache_bytes_measured"].mean),),
        "cache_bytes_stored": (formats.size(amounts["cache_bytes_stored"].mean),),
        "peak_bytes": (
            formats.size(kept.largest_peak),
            f"{kept.peaks:,} of {kept.examples:,}",
        ),
    }
