"""`run_eval export`: a run's predictions as files for the benchmark authors' scripts. No torch.

Folders and names are those that their scorers look for, below `output`::

    longbench       pred/<model>/<task>.jsonl, LongBench-E pred_e/<model>/<task>.jsonl   eval.py
    lveval          outputs/<model>/<task>_<level>.jsonl                            evaluation.py
    infinitebench   results/<model>/preds_<task>.jsonl                          compute_scores.py

(THUDM/LongBench 2e00731; infinigence/LVEval 63e7ae9; OpenBMB/InfiniteBench 88b3daa.) ``<model>`` is
the model's name and the variant. An example that failed has an empty prediction, which scores 0.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError, shown
from common.suggestions import did_you_mean
from evaluation.commands.options import Export
from reports.records import ExampleRecord
from reports.run_folders import Run, read_run
from reports.targets import check_no_run_file
from tasks.registry import find_task
from tasks.rows import form_of

FOLDERS = {
    "longbench": {"longbench": "pred", "longbench_e": "pred_e"},
    "lveval": {"lveval": "outputs"},
    "infinitebench": {"infinitebench": "results"},
}
"""By format, the benchmarks that have it and the folder where their scorer looks."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    files: list[Path]
    warnings: list[str]


def export_run(asked: Export) -> Exported:
    """Write the predictions of a run below the folder that was asked for.

    All files appear, or none does.

    Raises:
        InputError: an unknown format or variant, a run of another benchmark, or files that are
            there already, unless `force`.
    """
    folder, form, variants = asked.run, asked.format, asked.variants
    if form not in FOLDERS:
        hint = did_you_mean(form, FOLDERS)
        raise InputError(f"--format: unknown format {form!r} (known: {', '.join(FOLDERS)}){hint}")
    run = read_run(folder)
    _check(run, form, variants, asked.model_name)
    output = asked.output or folder / "export"
    contents: dict[Path, list[str]] = {}
    failed = 0
    for record in run.records:
        if variants and record.variant not in variants:
            continue
        failed += record.error is not None
        path = output / _place(run, record, form, asked.model_name)
        task = find_task(record.benchmark, record.task)
        line = form_of(task.benchmark).export(record.model_dump(), task)
        contents.setdefault(path, []).append(json.dumps(line, ensure_ascii=False) + "\n")
    for path in contents:
        check_no_run_file(path)
        if path.is_dir():
            raise InputError(f"--output: {path} is a folder, where a file is to be written")
    there = [path for path in contents if os.path.lexists(path)]
    if there and not asked.force:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise InputError(
            f"--output: {there[0]}{more} exist already; give --force to replace them, or another "
            "folder"
        )
    _write_all(output, {path: "".join(lines) for path, lines in contents.items()})
    warnings = []
    if run.info.status != "finished":
        warnings.append(f"{folder}: the run is not finished (status: {run.info.status})")
    if failed:
        warnings.append(f"{folder}: {failed} failed examples have empty predictions, which score 0")
    return Exported(list(contents), warnings)


def _check(run: Run, form: str, variants: Sequence[str], model_name: str | None) -> None:
    there = list(dict.fromkeys(record.variant for record in run.records))
    problems = [
        f"--variant: {run.path} has no variant {name!r} (it has {', '.join(there)})"
        for name in variants
        if name not in there
    ]
    others: dict[str, list[str]] = {}
    for record in run.records:
        if record.benchmark not in FOLDERS[form]:
            of_benchmark = others.setdefault(record.benchmark, [])
            if record.task not in of_benchmark:
                of_benchmark.append(record.task)
    for benchmark, tasks in others.items():
        right = next((name for name, has in FOLDERS.items() if benchmark in has), None)
        remedy = f"; its format is --format {right}" if right else ""
        problems.append(
            f"--format: {form} cannot hold {benchmark}'s {', '.join(tasks)} of {run.path}{remedy}"
        )
    if model_name is not None and (
        not model_name.strip(".") or "/" in model_name or "\0" in model_name
    ):
        problems.append(f"--model-name: {model_name!r} cannot name a folder")
    if model_name is not None and len(set(variants or there)) > 1:
        problems.append("--model-name: names one folder; choose one --variant")
    if problems:
        raise InputError(*problems)


def _place(run: Run, record: ExampleRecord, form: str, model_name: str | None) -> Path:
    if model_name is None:
        path = str(run.info.models.get(record.variant, {}).get("path") or run.path.name)
        model_name = f"{Path(path).name}-{record.variant}"
    task = find_task(record.benchmark, record.task)
    name = form_of(task.benchmark).export_name(task)
    return Path(FOLDERS[form][record.benchmark], model_name, name)


def _write_all(output: Path, contents: dict[Path, str]) -> None:
    """Write every file beside its place first, then move all into place."""
    place = Path(os.path.abspath(output))  # "." has no name
    beside = place.parent / f".{place.name}.{os.getpid()}.tmp"
    try:
        try:
            for path, text in contents.items():
                written = beside / path.relative_to(output)
                written.parent.mkdir(parents=True, exist_ok=True)
                written.write_text(text, encoding="utf-8", newline="\n")
            for path in contents:
                path.parent.mkdir(parents=True, exist_ok=True)
                (beside / path.relative_to(output)).replace(path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"--output: {shown(output)}: cannot be written ({error.strerror})"
        ) from error
