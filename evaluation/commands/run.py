"""One `run_eval <benchmark>`: configuration, plan, run, tables, report."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.progress import ProgressBar
from evaluation.backends.base import Backend
from evaluation.commands.report import write_report
from evaluation.commands.tables import plan_tables, result_tables
from evaluation.commands.terminal import console
from evaluation.plan.configuration import resolve_configuration
from evaluation.plan.identity import (
    digest_of,
    parts_as_of,
    parts_without_weights,
    prompt_sha256,
    run_info,
)
from evaluation.plan.plan import make_plan
from evaluation.plan.planned import Plan
from evaluation.run.engine import Engine, LocalEngine
from evaluation.run.progress import RunProgress
from evaluation.run.runner import TooManyErrors
from evaluation.run.store import RunStore, check_folder, written_files
from reports.records import OLDEST_CONTINUED, SCHEMA_VERSION, RunInfo
from reports.run_folders import read_run
from reports.targets import check_page_target

DONE, SOME_FAILED = 0, 1
TINY_PARAMETERS = 10_000_000


def run(
    benchmark: str,
    flags: Mapping[str, Any],
    file: str | None,
    dry_run: bool,
    engine: Engine | None = None,
) -> int:
    """Do what the flags and the file ask for; returns the exit code.

    Raises `InputError` with every problem before a model is loaded or a file written, and
    KeyboardInterrupt, with a whole run folder left behind, when interrupted.
    """
    quieten()
    configuration, problems = resolve_configuration({"benchmark": benchmark, **flags}, file)
    with ProgressBar(console(stderr=True), "preparing prompts") as bar:
        plan = make_plan(configuration, problems, bar.update)
    if dry_run:
        if configuration.output:
            folder = Path(configuration.output)
            if not configuration.overwrite:
                check_folder(folder, parts_without_weights(plan))
            elif (folder / "run.json").exists():
                written_files(folder)  # says what cannot be deleted
            if configuration.report:
                check_page_target(folder / "report.html")
        console().print(plan_tables(plan))
        return DONE
    return _run(plan, engine or LocalEngine())


def quieten() -> None:
    """Keep the libraries' advice to their developers out of the user's terminal."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()  # what it could not fetch is told once, by the plan


def set_threads(threads: int | None, models: Iterable[Backend]) -> None:
    """Choose torch's threads on the CPU.

    A tiny model's operations are too small to share: threads then only wait for one another, on
    busy cores a hundred times longer than they work.

    Args:
        threads: as asked for; None: nothing was said.
        models: that compute.
    """
    import torch

    largest = max(model.parameters or 0 for model in models)
    if threads is None and largest < TINY_PARAMETERS:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)


def _run(plan: Plan, engine: Engine) -> int:
    configuration = plan.configuration
    set_threads(configuration.threads, plan.models.values())
    info = run_info(plan)
    folder = Path(configuration.output) if configuration.output else default_folder(plan, info)
    if configuration.report:
        check_page_target(folder / "report.html")  # not when all is answered
    failed, stopped = answer(plan, info, folder, engine)
    return _finish(folder, configuration.report, failed, stopped)


def answer(plan: Plan, info: RunInfo, folder: Path, engine: Engine) -> tuple[int, str]:
    """Answer what is left of a plan into its folder, and tell how it goes on stderr.

    Args:
        plan: what is asked.
        info: of this start.
        folder: made, or continued.
        engine: does the work.

    Returns:
        How many examples failed, and why it was stopped; empty: it was not.

    Raises:
        InputError: the folder is in use or belongs to another run; nothing is changed then.
    """
    status = console(stderr=True)
    ids = {
        p.task.name: {e.example_id: prompt_sha256(p, i) for i, e in enumerate(p.examples)}
        for p in plan.tasks
    }
    with RunStore(folder, info, ids, plan.configuration.overwrite) as store:
        for warning in [*plan.warnings, *store.warnings]:
            status.print(f"warning: {warning}", markup=False, style="yellow")
        before = sum(len(store.done(v, task)) for v in plan.models for task in ids)
        if before:
            total = len(plan.models) * plan.examples_per_variant
            status.print(f"continuing: {before} of {total} examples are done")
        try:
            with RunProgress(status, plan, store) as progress:
                return engine.run(plan, store, progress), ""
        except TooManyErrors as error:
            return 0, str(error)


def default_folder(plan: Plan, info: RunInfo) -> Path:
    """``runs/<benchmark>-<start of the identity>``, of an earlier schema where there is one."""
    identities = [info.identity] + [
        digest_of(parts_as_of(version, info.identity_parts))
        for version in range(SCHEMA_VERSION - 1, OLDEST_CONTINUED - 1, -1)
    ]
    folders = [Path("runs") / f"{plan.configuration.benchmark}-{i[:12]}" for i in identities]
    return next((folder for folder in folders if folder.exists()), folders[0])


def _finish(folder: Path, with_report: bool, failed: int, stopped: str) -> int:
    """Print the results and where they are, write the report."""
    out = console()
    run = read_run(folder)
    out.print(result_tables(run))
    out.print(f"run folder: {folder}", markup=False, soft_wrap=True)
    if with_report:
        report = write_report([folder], folder / "report.html")
        out.print(f"report: {report}", markup=False, soft_wrap=True)
    if stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
    elif failed:
        print(f"{failed} examples failed; the same command tries them again", file=sys.stderr)
    return SOME_FAILED if failed or stopped else DONE
