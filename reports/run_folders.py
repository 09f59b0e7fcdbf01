"""Run folders, read: ``run.json``, the record files it names, and what is odd about them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from reports.records import SCHEMA_VERSION, ExampleRecord, InputError, RunInfo


@dataclass(frozen=True)
class Run:
    """A run folder, read: its description, its records, and what was odd about the files."""

    path: Path
    info: RunInfo
    records: list[ExampleRecord]
    warnings: list[str] = field(default_factory=list)


def read_jsonl(path: str | Path) -> tuple[list[ExampleRecord], list[str]]:
    """Read one record file.

    Returns the records in file order and a list of warnings. A torn last line (one that is not
    whole JSON: the writer was stopped in the middle) is dropped with a warning. A later record
    of an example whose earlier record failed replaces it: that is a retry. Every other
    irregular line is an `InputError` that names ``file:line``; all of the file's bad lines are
    listed at once.
    """
    path = Path(path)
    try:
        content = path.read_bytes().rstrip(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    warnings: list[str] = []
    problems: list[str] = []
    kept: dict[tuple[str, str, str, str], tuple[int, ExampleRecord]] = {}
    lines = content.split(b"\n") if content else []
    if lines and not _is_json(lines[-1]):
        warnings.append(f"{path}:{len(lines)}: torn last line dropped (the run was stopped there)")
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            record = _parse_record(line)
        except ValueError as error:
            problems += [f"{path}:{number}: {reason}" for reason in _reasons(error)]
            continue
        key = (record.benchmark, record.task, record.variant, record.example_id)
        earlier = kept.pop(key, None)
        if earlier is not None and earlier[1].error is None:
            problems.append(
                f"{path}:{number}: example {record.example_id!r} was already recorded in line "
                f"{earlier[0]}"
            )
        kept[key] = (number, record)
    if problems:
        raise InputError(_listing(problems))
    return [record for _, record in kept.values()], warnings


def read_run_info(path: str | Path) -> RunInfo:
    """Read ``run.json`` of the run folder `path`; `InputError` when absent or not readable."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such run folder")
    file = path / "run.json"
    if not file.is_file():
        raise InputError(f"{path}: not a run folder (it has no run.json)")
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not readable as JSON ({error})") from error
    try:
        _check_version(content)
        return RunInfo.model_validate(content)
    except ValueError as error:
        raise InputError(_listing([f"{file}: {reason}" for reason in _reasons(error)])) from error


def read_run(path: str | Path) -> Run:
    """Read a run folder: ``run.json`` and every ``<variant>/<task>.jsonl`` it names.

    Records are ordered by variant and task as in ``run.json``, then as in their files. Folders
    of variants that ``run.json`` does not name are left out with a warning. Raises `InputError`
    when the folder is no run, holds no record, or a file is damaged or misfiled.
    """
    path = Path(path)
    info = read_run_info(path)
    records: list[ExampleRecord] = []
    warnings: list[str] = []
    problems: list[str] = []
    for folder in _in_order((f for f in path.iterdir() if f.is_dir()), info.models):
        files = list(_in_order(folder.glob("*.jsonl"), info.tasks))
        if files and info.models and folder.name not in info.models:
            warnings.append(f"{folder}: left out, run.json names no variant {folder.name!r}")
            continue
        for file in files:
            try:
                found, odd = read_jsonl(file)
            except InputError as error:
                problems.append(str(error))
                continue
            warnings += odd
            records += found
            problems += _misfiled(file, found)
    if problems:
        raise InputError(_listing(problems))
    if not records:
        raise InputError(f"{path}: the run has no records yet")
    return Run(path=path, info=info, records=records, warnings=warnings)


def _parse_record(line: bytes) -> ExampleRecord:
    """One line as a record; ValueError (pydantic's among them) when it is not one."""
    if not line.strip():
        raise ValueError("empty line")
    content = json.loads(line)
    _check_version(content)
    return ExampleRecord.model_validate(content)


def _check_version(content: object) -> None:
    """Refuse a newer schema by name before its unknown fields are complained about."""
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    version = content.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ValueError(
            f"written with schema version {version}, this version of ahn-bench reads up to "
            f"{SCHEMA_VERSION}: update ahn-bench"
        )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _reasons(error: ValueError) -> list[str]:
    """The error as short messages, one per problem, each naming its field."""
    if isinstance(error, ValidationError):
        return [
            ": ".join(part for part in (".".join(map(str, item["loc"])), item["msg"]) if part)
            for item in error.errors()
        ]
    if isinstance(error, UnicodeDecodeError):
        return ["not UTF-8 text"]
    if isinstance(error, json.JSONDecodeError):
        return [f"not JSON ({error.msg}, column {error.colno})"]
    return [str(error)]


def _listing(problems: list[str], most: int = 20) -> str:
    """At most `most` problems, one per line, and how many more there are."""
    shown = problems[:most]
    if len(problems) > most:
        shown.append(f"... and {len(problems) - most} more")
    return "\n".join(shown)


def _misfiled(file: Path, records: Iterable[ExampleRecord]) -> list[str]:
    """Say so when a file holds records of another variant or task than its path says."""
    found = sorted({(r.variant, r.task) for r in records} - {(file.parent.name, file.stem)})
    return [f"{file}: holds records of variant {v!r}, task {t!r}" for v, t in found]


def _in_order(paths: Iterable[Path], names: Iterable[str]) -> list[Path]:
    """Sort files or folders as `names` lists their stems, unknown ones after them by name."""
    rank = {name: i for i, name in enumerate(names)}

    def key(path: Path) -> tuple[int, str]:
        name = path.name.removesuffix(".jsonl")
        return rank.get(name, len(rank)), name

    return sorted(paths, key=key)
