"""`run_eval export`: a run's predictions as files for the benchmark authors' scripts. No torch.

Folders and names are those that their scorers look for, below `output`::

    longbench       pred/<model>/<task>.jsonl, LongBench-E pred_e/<model>/<task>.jsonl   eval.py
    lveval          outputs/<model>/<task>_<level>.jsonl                            evaluation.py
    infinitebench   results/<model>/preds_<task>.jsonl                          compute_scores.py
    ruler           <length>/pred/<model>/<task>.jsonl                                evaluate.py
    longbench_v2    results/<model>.jsonl                                               result.py
    scbench         results/<model>/prediction_<task>_<mode>.jsonl                compute_scores.py

(THUDM/LongBench 2e00731; infinigence/LVEval 63e7ae9; OpenBMB/InfiniteBench 88b3daa;
NVIDIA/RULER c3f5e3b; microsoft/MInference fb56c91.) Any other benchmark has a format of its own
name, which its adapter gives (`tasks.schema.RowAdapter`). ``<model>`` is the model's name and the
variant. An example that failed has an empty prediction, which scores 0.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError, Problems, shown
from common.suggestions import did_you_mean
from evaluation.commands.data_folders import register_benchmark_of
from evaluation.commands.options import Export
from reports.records import ExampleRecord
from reports.run_folders import Run, read_run
from reports.targets import check_no_run_file
from tasks.registry import benchmark_definition, benchmark_names, find_task


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
    run = read_run(folder)
    register_benchmark_of(run.info)
    _check(run, form, variants, asked.model_name)
    output = asked.output or folder / "export"
    contents: dict[Path, list[str]] = {}
    failed = 0
    for record in run.records:
        if variants and record.variant not in variants:
            continue
        failed += record.error is not None
        path = output / _place(run, record, asked.model_name)
        task = find_task(record.benchmark, record.task)
        line = task.adapter.export(record.model_dump(), task)
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
    problems = Problems(
        f"--variant: {run.path} has no variant {name!r} (it has {', '.join(there)})"
        for name in variants
        if name not in there
    )
    if form not in benchmark_names():
        raise InputError(
            f"--format: unknown format {form!r}{did_you_mean(form, benchmark_names())} (known: "
            f"{', '.join(benchmark_names())})"
        )
    held = {form, *benchmark_definition(form).related}
    others: dict[str, list[str]] = {}
    for record in run.records:
        if record.benchmark not in held:
            of_benchmark = others.setdefault(record.benchmark, [])
            if record.task not in of_benchmark:
                of_benchmark.append(record.task)
        else:
            with problems.collecting(f"{run.path}: "):
                find_task(record.benchmark, record.task)
    for benchmark, tasks in others.items():
        remedy = f"; its format is --format {benchmark}" if benchmark in benchmark_names() else ""
        problems.add(
            f"--format: {form} cannot hold {benchmark}'s {', '.join(tasks)} of {run.path}{remedy}"
        )
    if model_name is not None and (
        not model_name.strip(".") or "/" in model_name or "\0" in model_name
    ):
        problems.add(f"--model-name: {model_name!r} cannot name a folder")
    if model_name is not None and len(set(variants or there)) > 1:
        problems.add("--model-name: names one folder; choose one --variant")
    problems.check()


def _place(run: Run, record: ExampleRecord, model_name: str | None) -> Path:
    if model_name is None:
        path = str(run.info.models.get(record.variant, {}).get("path") or run.path.name)
        model_name = f"{Path(path).name}-{record.variant}"
    task = find_task(record.benchmark, record.task)
    return Path(task.adapter.export_path(task, model_name, record.protocol))


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
