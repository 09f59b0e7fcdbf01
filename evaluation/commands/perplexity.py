"""`run_eval perplexity`: plan, run, tables, page."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.errors import InputError
from common.progress import ProgressBar
from evaluation.commands.run import DONE, SOME_FAILED, quieten, set_threads
from evaluation.commands.terminal import console
from evaluation.perplexity.configuration import PerplexityConfiguration
from evaluation.perplexity.run import (
    PerplexityPlan,
    default_folder,
    plan_perplexity,
    run_perplexity,
)
from evaluation.perplexity.store import check_perplexity_folder
from reports import formats
from reports.perplexity import PerplexityRun
from reports.perplexity_page import (
    as_data,
    baseline_of,
    build_perplexity_page,
    compared_tokens,
    loss_text,
    perplexity_text,
    summaries,
)
from reports.targets import check_page_target
from reports.variant_text import variant_text

PAGE = "report.html"


def perplexity(configuration: PerplexityConfiguration, dry_run: bool = False) -> int:
    """Do what is asked for; returns the exit code.

    Raises:
        InputError: every problem, before weights are loaded or anything is written.
    """
    quieten()
    plan = plan_perplexity(configuration)
    if dry_run:
        return _show_plan(plan)
    set_threads(configuration.threads, plan.models.values())
    folder = _folder(plan)
    if configuration.report:
        check_page_target(folder / PAGE)  # not when all is read
    status = console(stderr=True)
    for warning in plan.warnings:
        _warn(status, warning)
    with ProgressBar(status, "reading") as bar:
        run = run_perplexity(plan, folder, bar.update, lambda text: _warn(status, text))
    _show(run, configuration)
    for name in plan.models:
        if name in run.info.failures:
            failure = run.info.failures[name]
            print(
                f"{name} stopped at token {failure['token']:,}: {failure['error']}", file=sys.stderr
            )
    return SOME_FAILED if any(name in run.info.failures for name in plan.models) else DONE


def _warn(status: Console, text: str) -> None:
    status.print(f"warning: {text}", markup=False, style="yellow")


def _folder(plan: PerplexityPlan) -> Path:
    given = plan.configuration.output
    return Path(given) if given else default_folder(plan.parts(weights=False))


def _show_plan(plan: PerplexityPlan) -> int:
    configuration, text = plan.configuration, plan.text
    folder = _folder(plan)
    if configuration.overwrite:
        if (folder / "run.json").exists():
            raise InputError(f"--output: {folder} is the folder of a run; name another folder")
    else:
        check_perplexity_folder(folder, plan.parts(weights=False))
    if configuration.report:
        check_page_target(folder / PAGE)
    costs = {name: model.document_bytes(text.tokens) for name, model in plan.models.items()}
    if configuration.json_:
        content: dict[str, Any] = {
            "tokens": text.tokens,
            "data": dict(text.data),
            "prefix": None if text.prefix is None else dict(text.prefix),
            "block_tokens": configuration.block_tokens,
            "chunk_tokens": configuration.chunk,
            "output": str(folder),
            "warnings": plan.warnings,
            "variants": {
                name: dict(model.describe()) | {"cache_bytes": costs[name]}
                for name, model in plan.models.items()
            },
        }
        print(json.dumps(content, indent=1, ensure_ascii=False))
        return DONE
    out = console()
    for warning in plan.warnings:
        out.print(f"warning: {warning}", markup=False, style="yellow")
    table = Table(title=f"{text.tokens:,} tokens, in blocks of {configuration.block_tokens:,}")
    for heading in ("variant", "keeps", "cache at the end (analytic)"):
        table.add_column(heading)
    for name, model in plan.models.items():
        table.add_row(
            escape(name), escape(variant_text(model.describe())), formats.size(costs[name])
        )
    out.print(table)
    out.print(f"folder: {folder}", markup=False, soft_wrap=True)
    return DONE


def _show(run: PerplexityRun, configuration: PerplexityConfiguration) -> None:
    """The results, and where they are."""
    page = None
    if configuration.report:
        page = build_perplexity_page(run, run.path / PAGE)
    if configuration.json_:
        print(json.dumps(as_data(run), indent=1, ensure_ascii=False))
        return
    out = console()
    out.print(result_table(run))
    out.print(f"folder: {run.path}", markup=False, soft_wrap=True)
    if page is not None:
        out.print(f"report: {page}", markup=False, soft_wrap=True)


def result_table(run: PerplexityRun) -> Table:
    """Perplexity of each variant with its interval, and what memory it took."""
    baseline = baseline_of(run)
    table = Table(title=f"Perplexity over {compared_tokens(run):,} tokens, 95 % intervals")
    against = "difference" if baseline is None else f"nats a token against {baseline}"
    for heading in ("variant", "perplexity", escape(against), "peak memory", "cache", "tokens"):
        table.add_column(heading)
    for row in summaries(run):
        table.add_row(
            escape(row.name),
            escape(perplexity_text(row.log_perplexity)),
            escape(loss_text(row.difference, signed=True)),
            formats.size(row.peak_bytes),
            formats.size(row.cache_bytes),
            f"{row.tokens:,}",
        )
    return table
