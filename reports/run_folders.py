"""Run folders, read: ``run.json``, the record files it names, and what is odd about them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common import json as strict
from common.errors import InputError, Problems
from common.files import open_file
from common.validation import messages
from reports.records import SCHEMA_VERSION, ExampleRecord, RunInfo, Start

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FIRST_BYTES = b'{"schema_version":'
_LINES_LOOKED_AT = 100
_MOST_LINE_BYTES = 1 << 24
_MOST_TORN_ALONE = 2


class NewerVersion(InputError):
    """Something was written by a later version of ahn-bench than this one."""


@dataclass(frozen=True)
class Run:
    """A run folder, read: its description, its records, and what was odd about the files."""

    path: Path
    info: RunInfo
    records: list[ExampleRecord]
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RecordLine:
    """One line of a record file."""

    number: int
    """From 1."""
    raw: bytes
    """Its bytes, without the newline."""
    record: ExampleRecord | None
    """None where there are problems."""
    problems: tuple[str, ...] = ()
    """Why it is no record, or none of this file."""
    torn: bool = False
    """Whether it is one of the last lines, none of which is whole JSON: the writer was stopped."""
    retried: bool = False
    """Whether it is the record of a failure, and a later line answers the example."""
    untidy: str = ""
    """What is wrong with its bytes though the record is whole; empty: nothing."""


def scan_jsonl(path: str | Path) -> list[RecordLine]:
    """Every line of a record file, each with its record or with what is wrong with it.

    Newlines at the end of the file end no further line. A file of several lines of which none is
    JSON was not torn but damaged. `InputError` where it cannot be read.
    """
    path = Path(path)
    try:
        with open_file(path) as file:  # never a pipe, which would be waited for
            content = file.read().rstrip(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    raw_lines = content.split(b"\n") if content else []
    whole = len(raw_lines)
    while whole and not _is_json(raw_lines[whole - 1]):
        whole -= 1
    if not whole and len(raw_lines) > _MOST_TORN_ALONE:
        whole = len(raw_lines)
    lines: list[RecordLine] = []
    answered: dict[tuple[str, str, str, str], int] = {}  # indices into `lines`
    for number, raw in enumerate(raw_lines[:whole], start=1):
        line = _scan_line(number, raw)
        if line.record is not None:
            record = line.record
            key = (record.benchmark, record.task, record.variant, record.example_id)
            earlier = answered.get(key)
            if earlier is not None and lines[earlier].record.error is None:  # type: ignore[union-attr]
                said = f"example {record.example_id!r} was already recorded in line {earlier + 1}"
                line = replace(line, record=None, problems=(said,))
            else:
                if earlier is not None:
                    lines[earlier] = replace(lines[earlier], retried=True)
                answered[key] = number - 1
        lines.append(line)
    for number, raw in enumerate(raw_lines[whole:], start=whole + 1):
        lines.append(RecordLine(number, raw, None, ("not whole JSON",), torn=True))
    return lines


def holds_records(path: Path) -> bool:
    """Whether one of the first lines of a file is a record, or was one: it is no other data.

    A file that cannot be read holds none.
    """
    try:
        with open_file(path) as file:
            lines = (file.readline(_MOST_LINE_BYTES) for _ in range(_LINES_LOOKED_AT))
            return any(_is_like_a_record(line) for line in lines)
    except (InputError, OSError):
        return False


def _is_like_a_record(line: bytes) -> bool:
    if line.startswith(_FIRST_BYTES):
        return True
    try:
        content = _loads(line.removeprefix(_BYTE_ORDER_MARK))
    except ValueError:
        return False
    return isinstance(content, dict) and {"variant", "task", "example_id"} <= content.keys()


def _scan_line(number: int, raw: bytes) -> RecordLine:
    text, odd = raw, []
    if number == 1 and text.startswith(_BYTE_ORDER_MARK):
        text = text.removeprefix(_BYTE_ORDER_MARK)
        odd.append("begins with a byte order mark")
    if text.endswith(b"\r"):
        text = text.rstrip(b"\r")
        odd.append("ends in a carriage return")
    try:
        record = _parse_record(text)
    except ValueError as error:
        return RecordLine(number, raw, None, tuple(_reasons(error)))
    return RecordLine(number, raw, record, untidy=" and ".join(odd))


def read_jsonl(path: str | Path) -> tuple[list[ExampleRecord], list[str]]:
    """Read one record file.

    Returns the records in file order and a list of warnings. Torn last lines (those that are not
    whole JSON: the writer was stopped in the middle) are dropped with a warning. A later record
    of an example whose earlier record failed replaces it: that is a retry. Every other
    irregular line is an `InputError` that names ``file:line``; all of the file's bad lines are
    listed at once.
    """
    lines = scan_jsonl(path)
    problems = [
        f"{path}:{line.number}: {reason}"
        for line in lines
        if not line.torn
        for reason in line.problems
    ]
    if problems:
        raise InputError(*shortened(problems))
    warnings = [
        f"{path}:{line.number}: torn last line dropped (the run was stopped there)"
        for line in lines
        if line.torn
    ]
    records = [line.record for line in lines if line.record is not None and not line.retried]
    return records, shortened(warnings)


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
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: not readable as JSON ({error})") from error
    try:
        _check_version(content)
        info = RunInfo.model_validate(content)
    except NewerVersion as error:
        raise NewerVersion(f"{file}: {error}") from error
    except ValueError as error:
        raise InputError(*(f"{file}: {reason}" for reason in _reasons(error))) from error
    for task, described in info.tasks.items():
        if "benchmark" in described:
            described["benchmark"] = _benchmark_today(described["benchmark"], task)
    return info


def _benchmark_today(benchmark: Any, task: str) -> Any:
    """The benchmark of a task, by today's name.

    The pocket suite was filed under LongBench until it was a benchmark of its own; LongBench has no
    tasks of these names.
    """
    return "pocket" if benchmark == "longbench" and task.startswith("pocket_") else benchmark


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
    problems = Problems()
    for folder in _in_order((f for f in path.iterdir() if f.is_dir()), info.models):
        files = list(_in_order(folder.glob("*.jsonl"), info.tasks))
        if files and info.models and folder.name not in info.models:
            warnings.append(f"{folder}: left out, run.json names no variant {folder.name!r}")
            continue
        for file in files:
            if info.tasks and file.stem not in info.tasks and not holds_records(file):
                warnings.append(f"{file}: left out, it holds no records")
                continue
            with problems.collecting():
                found, odd = read_jsonl(file)
                warnings += odd
                records += found
                problems.add(*_misfiled(file, found))
    if problems:
        raise InputError(*shortened(list(problems)))
    if not records:
        raise InputError(f"{path}: the run has no records yet")
    differences = unlike_starts(info.starts, {record.start for record in records})
    if differences:
        warnings.append(
            f"{path}: the records come from {len(info.starts)} starts of the run that were not "
            f"alike: {'; '.join(differences)}. Each record names its start."
        )
    return Run(path=path, info=info, records=records, warnings=warnings)


_HARDWARE = ("processor", "cpu_capability", "threads", "accelerator", "cuda")
_CONFIGURATION = ("reuse_prefixes",)


def unlike_starts(starts: Sequence[Start], used: Iterable[int | None]) -> list[str]:
    """In what the starts differ that can change a figure, and that the identity does not hold.

    Args:
        starts: all of a run.
        used: the starts that records name; None is the first, which schema 2 did not number.

    Returns:
        One text for each such fact: its values, each with the numbers of its starts.
    """
    numbers = sorted({number or 0 for number in used} & set(range(len(starts))))
    facts = {number: _facts(starts[number]) for number in numbers}
    found = []
    for name in dict.fromkeys(name for of_start in facts.values() for name in of_start):
        values: dict[str, list[str]] = {}
        for number, of_start in facts.items():
            value = of_start.get(name, _absent(name, starts[number]))
            if value is not None:
                values.setdefault(value, []).append(str(number))
        if len(values) > 1:
            each = (
                f"{value} (start{'s' if len(of) > 1 else ''} {', '.join(of)})"
                for value, of in values.items()
            )
            found.append(f"{name} {', '.join(each)}")
    return found


_RECURRENCE = "recurrence of "


def _absent(name: str, start: Start) -> str | None:
    """What to say of a fact that a start does not have; None: nothing."""
    if name.startswith(_RECURRENCE):
        return None  # a start loads only the variants that have something left to do
    if start.reconstructed:  # of schema 2, which recorded less
        return "not recorded" if name == "AHN_BACKEND" else None
    return "none"


def _facts(start: Start) -> dict[str, str]:
    """What may differ between two starts of one run, by the name that a person is told."""
    git = start.git or {}
    revision = f"{str(git.get('revision', 'none'))[:12]}"
    if git.get("dirty"):
        revision += f" with uncommitted changes {str(git.get('diff_sha256', ''))[:12]}".rstrip()
    facts = dict(start.packages) | {"code revision": revision}
    facts |= {key: str(start.hardware[key]) for key in _HARDWARE if key in start.hardware}
    facts |= {
        key: str(start.configuration[key]) for key in _CONFIGURATION if key in start.configuration
    }
    facts |= start.environment or {}
    facts |= {
        f"{_RECURRENCE}{variant}": "/".join(forms.values())
        for variant, forms in start.backends.items()
    }
    return facts


def _parse_record(line: bytes) -> ExampleRecord:
    """One line as a record; ValueError (pydantic's among them) when it is not one.

    Strict: what the writer never writes (NaN, a number as text, a key twice) is damage.
    """
    if not line.strip():
        raise ValueError("empty line")
    content = _loads(line)
    _check_version(content)
    if isinstance(content.get("task"), str):
        content["benchmark"] = _benchmark_today(content.get("benchmark"), content["task"])
    return ExampleRecord.model_validate(content, strict=True)


def _loads(line: bytes) -> Any:
    """The JSON of a line of UTF-8, by `common.json`; ValueError where it is none."""
    try:
        return strict.loads(line.decode("utf-8"))
    except RecursionError:
        raise ValueError("not a record: nested too deeply") from None


def _check_version(content: object) -> None:
    """Refuse a newer schema by name before its unknown fields are complained about."""
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    version = content.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise NewerVersion(
            f"written with schema version {version}, this version of ahn-bench reads up to "
            f"{SCHEMA_VERSION}: update ahn-bench"
        )


def _is_json(line: bytes) -> bool:
    """Whether a line is whole JSON, a record or not."""
    try:
        _loads(line.removeprefix(_BYTE_ORDER_MARK))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    except ValueError:  # it is whole, and still not as the writer writes it
        return True
    return True


def _reasons(error: ValueError) -> list[str]:
    """The error as short messages, one per problem, each naming its field."""
    if isinstance(error, ValidationError):
        return [
            ": ".join(part for part in (".".join(place), text) if part)
            for place, text in messages(error, noun="field")
        ]
    if isinstance(error, UnicodeDecodeError):
        return ["not UTF-8 text"]
    if isinstance(error, json.JSONDecodeError):
        return [f"not JSON ({error.msg}, column {error.colno})"]
    return [str(error)]


def shortened(messages: list[str], most: int = 20) -> list[str]:
    """At most `most` messages, and how many more there are."""
    more = len(messages) - most
    return messages[:most] + ([f"... and {more} more"] if more > 0 else [])


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
