"""One self-contained HTML page from one or several run folders.

The page loads nothing: styles and the small filter script stand inside it, and its content
security policy allows these two texts (by hash) and nothing else. All text from models, data
and configuration goes through jinja2's autoescape. Nothing on the page depends on when or
where it is built, so the same folders give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from common.errors import InputError, Problems
from common.pages import policy_hash, printable
from common.writing import write_whole
from reports import compare, examples, figures, formats
from reports.curves import Curve, Panel, curves
from reports.equal_bytes import kept_table
from reports.figure_registry import figures_of
from reports.figure_tables import MakeRemarks, MakeTables
from reports.leaderboard import (
    Column,
    TaskKey,
    columns_of,
    compared_tasks,
    leaderboard_rows,
    run_names,
    tasks_of,
)
from reports.matched import matched
from reports.notices import notices
from reports.over_window import over_window
from reports.run_details import details
from reports.run_folders import Run, read_run
from reports.stats import Interval, mean_interval
from reports.targets import check_page_target
from reports.variant_text import variant_text

MOST_BYTES = 2_000_000
"""A page is always smaller than this: 2 MB."""

MOST_TOGETHER = 8
"""Columns of which charts and tables stand beside one another; more stand below."""

_EXAMPLE_BYTES = 1_000_000

Write = Callable[[float | None], str]

_CACHE_AXES = (
    ("document_bytes", "measured, mean per example once the document was read"),
    ("cache_bytes_measured", "measured, mean per example at the end of generation"),
    ("cache_bytes_analytic", "analytic, mean per example at the end of generation"),
)
"""What a score may be drawn over: the first that all variants have."""


def build_report(
    run_dirs: Sequence[str | Path],
    output: str | Path,
    tables: MakeTables | None = None,
    remarks: MakeRemarks | None = None,
) -> Path:
    """Write the report on `run_dirs` to `output` and return its path.

    `tables` gives the benchmarks' own averages and published figures, which the page shows beside
    its own; None: none are shown. `remarks` gives sentences that join the page's own warnings.

    The file appears whole or not at all, and is smaller than `MOST_BYTES` whatever the number
    of examples. Raises `reports.records.InputError` when a folder is no readable run, is given
    twice, or the output cannot be written or is a file that is no page (`reports.targets`).
    """
    output = Path(output)
    if not run_dirs:
        raise InputError("no run folder given: a report needs at least one")
    paths = [Path(path) for path in run_dirs]
    twice = [
        path for i, path in enumerate(paths) if path.resolve() in {p.resolve() for p in paths[:i]}
    ]
    if twice:
        raise InputError(*(f"{path}: given twice" for path in twice))
    runs: list[Run] = []
    problems = Problems()
    for path in paths:
        with problems.collecting():
            runs.append(read_run(path))
    problems.check()
    check_page_target(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror})") from error
    write_whole(output, _page_within_limit(runs, tables, remarks))
    return output


def _page_within_limit(
    runs: Sequence[Run], tables: MakeTables | None, remarks: MakeRemarks | None
) -> bytes:
    """The page's bytes; examples are halved until it is small enough."""
    most, most_bytes = examples.MOST_EXAMPLES, _EXAMPLE_BYTES
    while True:
        page = printable(render(runs, most, most_bytes, tables, remarks))
        if len(page) < MOST_BYTES:
            return page
        if most == 0:
            raise InputError(
                f"the tables alone take {len(page):,} bytes, over the limit of {MOST_BYTES:,}: "
                "report fewer runs on one page"
            )
        most, most_bytes = most // 2, most_bytes // 2


def render(
    runs: Sequence[Run],
    most_examples: int = examples.MOST_EXAMPLES,
    most_example_bytes: int = _EXAMPLE_BYTES,
    tables: MakeTables | None = None,
    remarks: MakeRemarks | None = None,
) -> str:
    """The page as text, with at most `most_examples` single examples."""
    columns = columns_of(runs)
    rows = compare.summary_rows(columns)
    subject = compare.subject_of(rows)
    subject_number = 0 if subject is None else columns.index(subject.column)
    joined = examples.join(columns)
    shown = examples.choose(joined, subject_number, most_examples, most_example_bytes)
    given = [] if tables is None else list(tables(columns))
    added, left_out = figures_of(columns)
    tasks = _task_rows(columns)
    shares = compare.shares_by_length(rows)
    length_field = next(
        (
            field
            for field in ("cache_bytes_measured", "cache_bytes_analytic")
            if any(share[field] is not None for row in shares for share in row.shares)
        ),
        "cache_bytes_analytic",
    )
    environment = page_environment()
    return environment.get_template("report.html.j2").render(
        **page_parts(environment),
        names=run_names([run.path for run in runs]),
        runs=runs,
        columns=columns,
        answer=compare.answer(rows),
        notices=[*notices(runs, columns), *(remarks(columns) if remarks else []), *left_out],
        added_figures=added,
        rows=rows,
        shared_tasks=compared_tasks(columns),
        tasks=tasks,
        compared_cells=sum(c["difference"] is not None for row in tasks for c in row["cells"]),
        compared_averages=sum(row.difference is not None for row in rows),
        several_protocols=len({t.protocol for t in tasks_of(columns)}) > 1,
        several_benchmarks=len({t.benchmark for t in tasks_of(columns)}) > 1,
        curves=[(curve, _panels(columns, curve)) for curve in curves(columns)],
        over_window=over_window(rows),
        by_length=shares,
        length_field=length_field,
        length_how="measured" if length_field == "cache_bytes_measured" else "analytic",
        crowded=len(columns) > MOST_TOGETHER,
        kept=kept_table([(row.column, row.cost) for row in rows]),
        memories=compare.memories(rows),
        failed=[f"{column.label}: {column.errors:,}" for column in columns if column.errors],
        pairs=compare.every_pair(columns, compared_tasks(columns)),
        benchmark_tables=[table for table in given if not table.published],
        published_tables=[table for table in given if table.published],
        figures=_figures(columns, rows, subject),
        joined=joined,
        shown=shown,
        outcomes=examples.OUTCOMES,
        subject=subject,
        details=details(runs),
        numbers=[_without_gaps(row) for row in leaderboard_rows(runs)],
        prediction_characters=examples.PREDICTION_CHARACTERS,
    )


def page_bytes(template: str, styles: Sequence[str], more_style: str = "", **content: Any) -> bytes:
    """A page without scripts, from a template and style sheets of this package.

    Args:
        template: its name; it is given `style`, `style_hash` and `content`.
        styles: names of the style sheets, in their order.
        more_style: what follows them: our own text, never a model's.
        content: what the template shows; texts are escaped.
    """
    environment = page_environment()
    sheets = [_source(environment, name) for name in styles]
    style = Markup("").join([*sheets, Markup(more_style)])
    text = environment.get_template(template).render(
        style=style, style_hash=policy_hash(style), **content
    )
    return printable(text)


def _without_gaps(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of data without what is unknown, numbers to nine digits: pages have many of them."""
    return {
        name: float(f"{value:.9g}") if isinstance(value, float) else value
        for name, value in row.items()
        if value is not None
    }


def page_environment() -> Environment:
    """Jinja with autoescape on for everything, and missing names as errors."""
    environment = Environment(
        loader=PackageLoader("reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":")}
    environment.filters.update(
        points=formats.points,
        signed=formats.signed_points,
        number=formats.number,
        plus=formats.signed_number,
        between=formats.between,
        size=formats.size,
        operations=formats.operations,
        seconds=formats.seconds,
        seconds_between=formats.seconds_between,
        percent=formats.percent,
        signed_percent=formats.signed_percent,
        p_value=formats.p_value,
        figure=formats.figure,
        whole=formats.whole,
        clipped=formats.clipped,
    )
    environment.globals["swatch"] = figures.swatch
    environment.globals["variant_text"] = variant_text
    return environment


def page_parts(environment: Environment) -> dict[str, Any]:
    """What every page has: its style and script, and the hashes that allow them."""
    style = _source(environment, "report.css")
    script = _source(environment, "report.js")
    return {
        "style": style,
        "script": script,
        "style_hash": policy_hash(style),
        "script_hash": policy_hash(script),
    }


def _source(environment: Environment, name: str) -> Markup:
    """One of this package's own files (never a run's text), to stand in the page as it is."""
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _task_rows(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Per task and column: score with interval, counts, and the paired difference.

    The differences of all cells are corrected for their number together.
    """
    shared = matched(columns)
    baselines = [compare.baseline_of(column, columns) for column in columns]
    every = tasks_of(columns)
    differences = iter(
        compare.marked(
            [
                None if other is None else compare.task_difference(column, other, task, shared)
                for task in every
                for column, other in zip(columns, baselines, strict=True)
            ]
        )
    )
    rows = []
    for task in every:
        cells = []
        for column in columns:
            sample = shared.sample(column, task)
            records = column.cells.get(task, [])
            cells.append(
                {
                    "score": mean_interval(sample.values, sample.clusters)
                    if sample.values
                    else None,
                    "difference": next(differences),
                    "errors": sum(r.error is not None for r in records),
                    "truncated": sum(r.truncated for r in records),
                    "records": len(records),
                }
            )
        metrics = dict.fromkeys(r.metric for c in columns for r in c.cells.get(task, ()))
        rows.append({"task": task, "metric": ", ".join(metrics), "cells": cells})
    return rows


def _panels(columns: Sequence[Column], curve: Curve) -> list[tuple[Panel, Markup]]:
    """The curve's panels, each with its chart."""
    labels = [column.label for column in columns]
    return [
        (
            panel,
            figures.score_lines(labels, panel.points, curve.axis, f"{curve.title}: {panel.held}"),
        )
        for panel in curve.panels
    ]


def _figures(
    columns: Sequence[Column],
    rows: Sequence[compare.SummaryRow],
    subject: compare.SummaryRow | None,
) -> dict[str, Any]:
    """The page's charts; one that has nothing to show is None."""
    points, how = [], ""
    for field, name in _CACHE_AXES:
        points = [
            figures.Point(row.column.label, i, row.cost.amounts[field].mean, row.score)
            for i, row in enumerate(rows)
            if row.score is not None
        ]
        how = name
        if field == "document_bytes" and any(
            row.cost.amounts["document_bytes"].mean is None
            and row.cost.amounts["cache_bytes_measured"].mean is not None
            for row in rows
        ):
            continue  # some have the bytes at the end alone
        if any(point.cache_bytes is not None for point in points):
            break
    else:
        points = []
    charts: list[tuple[str, Callable[[compare.SummaryRow], float | None], Write]] = [
        ("FLOPs (analytic), mean", lambda row: row.cost.amounts["flops"].mean, formats.operations),
        (
            "Whole prefill (measured), median",
            lambda row: row.cost.times["prefill_seconds"].median,
            formats.seconds,
        ),
        (
            "Decode (measured), median",
            lambda row: row.cost.times["decode_seconds"].median,
            formats.seconds,
        ),
    ]
    return {
        "cache": _cache_figure(points) if points else None,
        "cache_as_rows": len(points) > MOST_TOGETHER,
        "cache_how": how,
        "costs": [
            figures.bars(
                title, [(row.column.label, i, value(row)) for i, row in enumerate(rows)], write
            )
            for title, value, write in charts
            if any(value(row) is not None for row in rows)
        ],
        "differences": _differences_figure(columns, subject),
    }


def _cache_figure(points: Sequence[figures.Point]) -> Markup:
    """Score against cache: as points in a plane, or as rows where these would lie on a heap."""
    many = len(points) > MOST_TOGETHER
    return figures.score_rows(points) if many else figures.score_against_cache(points)


def _differences_figure(
    columns: Sequence[Column], subject: compare.SummaryRow | None
) -> Markup | None:
    if subject is None or subject.baseline is None or subject.difference is None:
        return None
    found: list[tuple[str, Interval]] = []
    if len(subject.tasks) > 1:
        found.append(("Average", subject.difference.interval))
    shared = matched(columns)
    for task in subject.tasks:
        interval = compare.task_difference(subject.column, subject.baseline, task, shared)
        if interval is not None:
            found.append((_short(task, subject.tasks), interval))
    title = f"{subject.column.label} − {subject.baseline.label}, points"
    return figures.differences(title, found, columns.index(subject.column))


def _short(task: TaskKey, among: Sequence[TaskKey]) -> str:
    """The task's name, with its protocol where another has the same name; cut to 28 letters."""
    same = [t for t in among if t.task == task.task]
    name = task.task if len(same) == 1 else f"{task.task} ({task.protocol})"
    return name if len(name) <= 28 else f"{name[:27]}…"
