"""`run_eval check`: is every line of a run what was written, and its score what the metric gives?

No model, no rows and no torch: what can be wrong of a record is found in the record, in
``run.json`` and by scoring its prediction again. With repair, lines that are wrong are moved to
``<task>.jsonl.rejected``; the next start of the run answers their examples anew.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import InputError
from common.writing import write_whole
from evaluation.commands.data_folders import register_benchmark_of
from evaluation.plan.environment import now
from evaluation.run.locks import FolderLock, is_locked
from evaluation.run.record_files import rejected_path, set_aside, write_lines
from reports.records import ExampleRecord, RunInfo, content_sha256
from reports.run_folders import (
    NewerVersion,
    RecordLine,
    holds_records,
    read_run_info,
    scan_jsonl,
)
from tasks.metric_code import metric_sha256
from tasks.metrics import METRICS
from tasks.predictions import Prediction
from tasks.registry import known_task
from tasks.schema import Task
from tasks.workers import scores_of

Watch = Callable[[int, int, str], None]
"""Is told how many predictions are scored again, of how many, and what is being done."""

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass
class RecordFile:
    """A record file and what was found in it."""

    path: Path
    lines: list[RecordLine]
    bad: dict[int, list[str]] = field(default_factory=dict)
    """By line number, why the line is moved aside."""
    of_file: list[str] = field(default_factory=list)
    """What is wrong with the file as a whole, which moving lines does not mend."""

    def reject(self, line: RecordLine, *reasons: str) -> None:
        """Note why `line` must go."""
        if reasons:
            self.bad.setdefault(line.number, []).extend(reasons)

    def good(self) -> list[tuple[RecordLine, ExampleRecord]]:
        """Lines that count: no problem so far, and no later line replaces them."""
        return [
            (line, line.record)
            for line in self.lines
            if line.record is not None and not line.retried and line.number not in self.bad
        ]

    def problems(self) -> list[str]:
        """One message for each problem, by line."""
        found = [f"{self.path}: {reason}" for reason in self.of_file]
        for line in self.lines:
            reasons = [*self.bad.get(line.number, []), *([line.untidy] if line.untidy else [])]
            found += [f"{self.path}:{line.number}: {reason}" for reason in reasons]
        return found


@dataclass
class Checked:
    """What a check found, and what it did."""

    problems: list[str]
    notices: list[str]
    records: int
    files: int
    moved: int = 0
    """Lines that were moved aside."""
    tidied: int = 0
    """Lines whose ends were mended."""

    def summary(self, repair: bool) -> str:
        """One line: what was looked at, what was found, and what to do."""
        files = f"{self.files} file{'s' if self.files != 1 else ''}"
        looked = f"{self.records:,} whole records in {files}"
        if not self.problems:
            return f"{looked}; nothing is wrong"
        counted = f"{len(self.problems):,} problem{'s' if len(self.problems) > 1 else ''}"
        if repair:
            done = f"{self.moved} lines moved aside, {self.tidied} line ends mended"
            return f"{looked}; {counted}; {done}; the run's own command answers the rest anew"
        return f"{looked}; {counted}; --repair moves bad lines aside"


def check_run(
    folder: Path, repair: bool = False, workers: int | None = None, watch: Watch | None = None
) -> Checked:
    """Check the run in `folder`; with `repair` move bad lines aside.

    Args:
        folder: of the run. Without `repair` another process may be writing into it.
        repair: whether anything is changed; takes the folder's lock.
        workers: processes that score; None: as many as are worth it.
        watch: is told how scoring goes on.

    Raises:
        InputError: no run folder, a later version's, or with `repair` one that is being written.
    """
    if not (folder / "run.json").is_file():
        read_run_info(folder)  # says what is missing
    if not repair:
        return _check(folder, False, workers, watch)
    lock = FolderLock(folder)
    try:
        lock.acquire()
    except OSError as error:
        raise InputError(f"{folder}: cannot be repaired ({error.strerror or error})") from error
    try:
        return _check(folder, True, workers, watch)
    finally:
        lock.release()


def _check(folder: Path, repair: bool, workers: int | None, watch: Watch | None) -> Checked:
    notices: list[str] = []
    writer = None if repair else is_locked(folder)
    if writer is not None:
        notices.append(f"{folder}: a process is writing into it{writer}; this is its state so far")
    info, problems = _description(folder)
    files = _read_files(folder, info, writer is not None, notices)
    for file in files:
        _check_lines(file, info)
    _check_prompts(files)
    _score_again(files, info, workers, watch, notices)
    for file in files:
        problems += file.problems()
    missing = _missing(files, info, notices)
    if missing and info is not None and info.status == "finished":
        problems.append(f"{folder / 'run.json'}: says finished, but {missing}")
    elif missing:
        notices.append(f"{folder}: {missing}")
    checked = Checked(problems, notices, sum(len(file.good()) for file in files), len(files))
    if repair:
        _repair(folder, files, checked)
        if info is not None and info.status == "finished" and (missing or checked.moved):
            _set_interrupted(folder)
    return checked


def _description(folder: Path) -> tuple[RunInfo | None, list[str]]:
    """``run.json``, and what is wrong with it; None where it is damaged."""
    try:
        info = read_run_info(folder)
    except NewerVersion:
        raise
    except InputError as error:
        return None, [
            *error.problems,
            f"{folder}: without its description a run cannot be continued; its lines are checked "
            "as far as they speak for themselves",
        ]
    register_benchmark_of(info)
    if content_sha256(info.identity_parts) != info.identity:
        return info, [f"{folder / 'run.json'}: identity is not the digest of identity_parts"]
    return info, []


def _read_files(
    folder: Path, info: RunInfo | None, being_written: bool, notices: list[str]
) -> list[RecordFile]:
    found = []
    for path in sorted(folder.glob("*/*.jsonl")):
        why = _unknown(path, info)
        if why and not holds_records(path):
            notices.append(f"{path}: no file of this run; left alone")
            continue
        file = RecordFile(path, scan_jsonl(path))
        if being_written:  # a last line may be half there
            file.lines = [line for line in file.lines if not line.torn]
        for line in file.lines:
            file.reject(line, *([why] if why else line.problems))
        found.append(file)
        if rejected_path(path).exists():
            count = rejected_path(path).read_bytes().count(b"\n")
            notices.append(f"{rejected_path(path)}: {count} lines were moved here before")
    return found


def _unknown(path: Path, info: RunInfo | None) -> str:
    """Why no record file of the run has this path; empty: one has."""
    if info is None:
        return ""
    if path.parent.name not in info.models:
        return f"run.json names no variant {path.parent.name!r}"
    return "" if path.stem in info.tasks else f"run.json names no task {path.stem!r}"


# -- what single lines say ---------------------------------------------------------------------


def _check_lines(file: RecordFile, info: RunInfo | None) -> None:
    for line, record in file.good():
        file.reject(line, *_wrong(file.path, line, record, info))
    planned = _planned(info, file.path.stem)
    if planned is not None and len(file.good()) > planned:
        file.of_file.append(f"holds {len(file.good())} records, but {planned} were planned")


def _wrong(path: Path, line: RecordLine, record: ExampleRecord, info: RunInfo | None) -> list[str]:
    """What is wrong with a line that is a record."""
    found = []
    if (record.variant, record.task) != (path.parent.name, path.stem):
        found.append(f"is of variant {record.variant!r}, task {record.task!r}")
    if record.record_sha256 is not None and not _is_unchanged(line):
        found.append("was changed after it was written (record_sha256)")
    if record.prompt_sha256 is not None and not _SHA256.fullmatch(record.prompt_sha256):
        found.append(f"prompt_sha256 is no SHA-256: {record.prompt_sha256[:70]!r}")
    if info is None:
        return found
    if record.start is not None and record.start >= len(info.starts):
        found.append(f"is of start {record.start}, but run.json lists {len(info.starts)}")
    described = info.tasks.get(record.task, {})
    for name in ("benchmark", "protocol", "metric"):
        expected = described.get(name)
        if expected is not None and getattr(record, name) != expected:
            found.append(f"{name} is {getattr(record, name)!r}, in run.json {expected!r}")
    return found


def _is_unchanged(line: RecordLine) -> bool:
    """Whether a line has the digest that it was written with."""
    content = json.loads(line.raw.decode("utf-8-sig"))
    return content.pop("record_sha256", None) == content_sha256(content)


# -- what lines say together -------------------------------------------------------------------


def _check_prompts(files: Sequence[RecordFile]) -> None:
    """One example has one prompt in all variants; of records that differ, whole ones are right."""
    asked: dict[tuple[str, str], list[tuple[RecordFile, RecordLine, ExampleRecord]]] = {}
    for file in files:
        for line, record in file.good():
            if record.prompt_sha256 is not None:
                key = (record.task, record.example_id)
                asked.setdefault(key, []).append((file, line, record))
    for of_example in asked.values():
        if len({record.prompt_sha256 for *_, record in of_example}) < 2:
            continue
        some_certain = any(record.record_sha256 is not None for *_, record in of_example)
        for file, line, record in of_example:
            if not some_certain or record.record_sha256 is None:
                file.reject(line, "answers another prompt than in other variants (prompt_sha256)")


def _score_again(
    files: Sequence[RecordFile],
    info: RunInfo | None,
    workers: int | None,
    watch: Watch | None,
    notices: list[str],
) -> None:
    """Reject records whose score is not what their prediction is worth."""
    groups: dict[tuple[str, str, str, str], list[tuple[RecordFile, RecordLine, ExampleRecord]]] = {}
    for file in files:
        for line, record in file.good():
            if record.error is None:
                key = (record.benchmark, record.task, record.protocol, record.metric)
                groups.setdefault(key, []).append((file, line, record))
    total, done = sum(map(len, groups.values())), 0
    for (benchmark, name, protocol, metric), of_group in groups.items():
        task = _scorer(benchmark, name, protocol, metric, info, notices)
        if task is not None:
            before = done

            def told(count: int, _: int, before: int = before) -> None:
                if watch:
                    watch(before + count, total, "scoring")

            _compare(of_group, task, protocol, workers, told)
        done += len(of_group)


def _scorer(
    benchmark: str,
    name: str,
    protocol: str,
    metric: str,
    info: RunInfo | None,
    notices: list[str],
) -> Task | None:
    """The task as the records name it; None, with a notice, where this version lacks it."""
    task = known_task(benchmark, name)
    lacking = (
        f"task {benchmark}/{name}"
        if task is None
        else f"protocol {protocol!r} of {name}"
        if protocol not in task.protocols
        else f"metric {metric!r} of {name}"
        if metric not in METRICS
        else ""
    )
    if task is None or lacking:
        notices.append(f"{lacking} is not known to this version: scores are not checked")
        return None
    rules = task.protocols[protocol]
    if rules.metric != metric:
        notices.append(f"{name} is scored by {rules.metric} now, in this run by {metric}")
        rules = dataclasses.replace(rules, metric=metric)
        task = dataclasses.replace(task, protocols={**task.protocols, protocol: rules})
    parts = {} if info is None else info.identity_parts.get("tasks", {}).get(name, {})
    code = parts.get("metric_sha256") if isinstance(parts, dict) else None
    if code not in (None, metric_sha256(metric)):
        notices.append(f"{name}: the code of metric {metric} is another than the run's")
    return task


def _compare(
    group: Iterable[tuple[RecordFile, RecordLine, ExampleRecord]],
    task: Task,
    protocol: str,
    workers: int | None,
    watch: Callable[[int, int], None],
) -> None:
    scored = []
    for file, line, record in group:
        example, wrong = task.adapter.gold(record.model_dump(), task)
        if example is None or wrong:
            file.reject(line, *(f"cannot be scored again: {reason}" for reason in wrong))
        else:
            scored.append((file, line, record, Prediction(record.prediction, example)))
    scores = scores_of([entry[-1] for entry in scored], task, protocol, workers, watch)
    for (file, line, record, _), score in zip(scored, scores, strict=True):
        assert record.score is not None
        if not math.isclose(record.score, score, rel_tol=1e-9, abs_tol=1e-12):
            file.reject(line, f"score is {record.score!r}, but {record.metric} gives {score!r}")


def _planned(info: RunInfo | None, task: str) -> int | None:
    """Examples of a task that each variant was to answer, where ``run.json`` says."""
    count = None if info is None else info.tasks.get(task, {}).get("examples")
    return count if type(count) is int else None


def _missing(files: Sequence[RecordFile], info: RunInfo | None, notices: list[str]) -> str:
    """How many planned examples have no record, in words; empty: none."""
    failed = sum(record.error is not None for file in files for _, record in file.good())
    if failed:
        notices.append(f"{failed} examples failed; the next start tries them again")
    bare = sum(record.record_sha256 is None for file in files for _, record in file.good())
    if bare:
        notices.append(
            f"{bare} records hold no digest of their own (written before schema 3): only their "
            "form and their score were checked"
        )
    if info is None:
        return ""
    have = {(file.path.parent.name, file.path.stem): len(file.good()) for file in files}
    planned = lacking = 0
    for variant in info.models:
        for task in info.tasks:
            count = _planned(info, task) or 0
            planned += count
            lacking += max(0, count - have.get((variant, task), 0))
    return f"{lacking} of {planned} planned examples have no whole record" if lacking else ""


# -- repair ------------------------------------------------------------------------------------


def _repair(folder: Path, files: Sequence[RecordFile], checked: Checked) -> None:
    for file in files:
        bad = [line for line in file.lines if line.number in file.bad]
        untidy = [line for line in file.lines if line.untidy and line.number not in file.bad]
        if bad:
            set_aside(file.path, file.lines, bad)
            if len(bad) == len(file.lines):
                file.path.unlink()
        elif untidy:
            write_lines(file.path, file.lines)
        checked.moved += len(bad)
        checked.tidied += len(untidy)


def _set_interrupted(folder: Path) -> None:
    """``run.json`` no longer says that all is done."""
    path = folder / "run.json"
    content = json.loads(path.read_bytes())
    content |= {"status": "interrupted", "updated": now()}
    write_whole(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
