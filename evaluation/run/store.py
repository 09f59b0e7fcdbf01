"""The run folder: append-only record files that survive a kill, and can be continued.

::

    <run>/run.json                  replaced whole (written beside, then renamed)
    <run>/<variant>/<task>.jsonl    one record per line, each flushed to disk before the next
    <run>/.lock                     held by the process that writes

A record is one `write` of a whole line, so that only last lines can be torn; they are moved to
``<task>.jsonl.rejected``. What is still to be done is a set difference of example ids. A folder
whose ``run.json`` has another identity, or a record that answered another prompt, is refused.
Every start of a run adds itself to ``run.json``, and each record names the start that wrote it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from common.errors import InputError
from common.writing import write_whole
from evaluation.plan.environment import now
from evaluation.plan.identity import differences, parts_as_of
from evaluation.run.locks import FolderLock
from evaluation.run.record_files import rejected_path, set_aside, write_lines
from reports.records import OLDEST_CONTINUED, SCHEMA_VERSION, ExampleRecord, RunInfo, Start
from reports.run_folders import (
    RecordLine,
    holds_records,
    read_run_info,
    scan_jsonl,
    shortened,
    unlike_starts,
)

Status = Literal["running", "interrupted", "finished"]


def check_folder(folder: Path, parts: Mapping[str, Any]) -> None:
    """Refuse a folder that holds another run, as `RunStore` would; nothing is changed.

    `parts` are `evaluation.plan.identity.parts_without_weights`: weights are not compared.
    """
    if not (folder / "run.json").exists():
        if any(map(holds_records, folder.glob("*/*.jsonl"))):
            raise _no_description(folder)
        return
    earlier = read_run_info(folder)
    theirs = json.loads(json.dumps(earlier.identity_parts))
    for variant in theirs.get("variants", {}).values():
        variant.pop("weights_sha256", None)
    version = earlier.schema_version
    _refuse_another(folder, version, differences(parts_as_of(version, parts), theirs))


def _no_description(folder: Path) -> InputError:
    return InputError(f"--output: {folder} holds record files but no run.json; name another folder")


def _refuse_another(folder: Path, version: int, reasons: list[str]) -> None:
    """Raise where `folder` was written under another schema, or differs for `reasons`."""
    if version < OLDEST_CONTINUED:
        raise InputError(
            f"--output: {folder} was written by an earlier version of ahn-bench (schema "
            f"{version}, now {SCHEMA_VERSION}): run_eval report reads it, but it cannot be "
            "continued. Name another folder, or give --overwrite"
        )
    if reasons:
        raise InputError(
            f"--output: {folder} belongs to another run, and runs are never mixed "
            f"({'; '.join(reasons)}). Name another folder, or give --overwrite"
        )


def _reconstructed(info: RunInfo) -> Start:
    """The starts of a folder of schema 2, as far as its ``run.json`` tells of them."""
    return Start(
        time=info.created,
        command=info.command,
        configuration=info.configuration,
        git=info.git,
        packages=info.packages,
        hardware=info.hardware,
        environment=None,
        reconstructed=True,
    )


def written_files(folder: Path) -> list[Path]:
    """The record files that the run in `folder` wrote, and what was moved aside of them.

    Raises `InputError` where that cannot be told: its ``run.json`` is not readable, or something
    else stands where a record file should.
    """
    try:
        info = read_run_info(folder)
    except InputError as error:
        raise InputError(
            f"{error} (--overwrite deletes only what a run wrote, which its run.json tells: delete "
            "the folder yourself, or name another one)"
        ) from error
    named = [
        folder / variant / f"{task}.jsonl"
        for variant in info.models
        for task in info.tasks
        if Path(variant).name == variant and Path(task).name == task
    ]
    found = [path for path in named if path.exists()]
    foreign = [path for path in found if path.stat().st_size and not holds_records(path)]
    if foreign:
        raise InputError(
            *(f"--overwrite: {path} holds no records; move it away yourself" for path in foreign)
        )
    return [*found, *(path for path in map(rejected_path, named) if path.exists())]


class RunStore:
    """One run folder, open for writing. A context manager: leaving it releases the lock.

    Entering raises `InputError` when the folder is in use, belongs to another run, or holds
    records that do not fit; nothing is changed then.

    Args:
        folder: the run folder; made if absent.
        info: what ``run.json`` shall say of this run.
        expected: per task the ids of the examples that each variant answers, each with its
            `prompt_sha256`.
        overwrite: delete the records of an earlier run in `folder` first.
    """

    def __init__(
        self,
        folder: Path,
        info: RunInfo,
        expected: Mapping[str, Mapping[str, str]],
        overwrite: bool = False,
    ) -> None:
        self.folder = folder
        self.info = info
        self.warnings: list[str] = []
        self._expected = {task: dict(hashes) for task, hashes in expected.items()}
        self._overwrite = overwrite
        self._lock = FolderLock(folder)
        self._files: dict[Path, int] = {}
        self._done: dict[tuple[str, str], set[str]] = {}

    def __enter__(self) -> RunStore:
        self._lock.claim("run.json", self._open)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        try:
            if error is not None and self.info.status == "running":  # wherever it came from
                self.set_status("interrupted")
        finally:
            self._lock.release()

    @property
    def start(self) -> int | None:
        """The number of this start of the run: its index in ``run.json``'s `starts`."""
        return len(self.info.starts) - 1 if self.info.starts else None

    # -- the folder ------------------------------------------------------------------------

    def _record_files(self) -> list[Path]:
        """The files that hold records, in folders of this run's variants or in others."""
        own = {
            self.folder / v / f"{task}.jsonl" for v in self.info.models for task in self._expected
        }
        found = sorted(self.folder.glob("*/*.jsonl"))
        return [path for path in found if path in own or holds_records(path)]

    def _is_own(self, path: Path) -> bool:
        """Whether a file stands in the folder of a variant of this run."""
        return path.parent.name in self.info.models

    def _open(self) -> None:
        for pattern in (".run.json.*.tmp", "*/.*.jsonl.*.tmp"):  # of a writer that was killed
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        description = self.folder / "run.json"
        if self._overwrite and description.exists():
            self._delete(written_files(self.folder))
            description.unlink()
        elif description.exists():
            self._continue(read_run_info(self.folder))
        elif self._record_files():
            raise _no_description(self.folder)
        self.set_status("running")

    def _delete(self, written: list[Path]) -> None:
        """Delete what an earlier run wrote, unless something else is in the way of this one."""
        left = [path for path in self._record_files() if path not in written and self._is_own(path)]
        if left:
            raise InputError(
                *(
                    f"--overwrite: {path} was not written by the run in {self.folder}, whose "
                    "run.json does not name it; move it away yourself"
                    for path in left
                )
            )
        for path in written:
            path.unlink()

    def _continue(self, earlier: RunInfo) -> None:
        """Take over an earlier start of the same run."""
        version = earlier.schema_version
        parts = parts_as_of(version, self.info.identity_parts)
        _refuse_another(self.folder, version, differences(parts, earlier.identity_parts))
        # What loading a model added (parameters, layout) stays known if it need not be loaded.
        models = {name: earlier.models.get(name, {}) | m for name, m in self.info.models.items()}
        starts = self.info.starts
        if starts:
            starts = [*(earlier.starts or [_reconstructed(earlier)]), *starts]
        self.info = self.info.model_copy(
            update={"created": earlier.created, "models": models, "starts": starts}
        )
        found = {path: scan_jsonl(path) for path in self._record_files() if self._is_own(path)}
        for path, lines in found.items():  # all of them, before anything is changed
            self._check(path, lines)
        used: set[int | None] = {self.start}
        for path, lines in found.items():
            used |= self._take_over(path, lines)
        unlike = unlike_starts(starts, used)
        if unlike:
            self.warnings.append(
                f"{self.folder}: earlier records were made under other conditions: "
                f"{'; '.join(unlike)}. Each record names its start"
            )
        if version < SCHEMA_VERSION:
            self.warnings.append(
                f"{self.folder} was written by an earlier version of ahn-bench, which recorded "
                "neither its starts nor the metrics' code: run_eval check scores its records again"
            )

    def _check(self, path: Path, lines: list[RecordLine]) -> None:
        """Refuse a file with lines that are no records, or none of this run."""
        variant, task = path.parent.name, path.stem
        problems = [
            f"{path}:{line.number}: {reason}"
            for line in lines
            if not line.torn
            for reason in line.problems
        ]
        if problems:
            remedy = f"run_eval check {self.folder} --repair moves such lines aside"
            raise InputError(*shortened(problems), remedy)
        records = [line.record for line in lines if line.record is not None and not line.retried]
        expected = self._expected.get(task, {}) if variant in self.info.models else {}
        if not expected or any((r.variant, r.task) != (variant, task) for r in records):
            raise InputError(f"{path}: holds records that are not of this run")
        beyond = [r.example_id for r in records if r.example_id not in expected]
        if beyond:
            raise InputError(
                f"{path}: holds {len(beyond)} records of examples that are not asked now (first: "
                f"{beyond[0]!r}): --limit was another then. Give that one or, unless rows are "
                "generated, a higher one; or name another folder, or give --overwrite"
            )
        other = [
            r.example_id for r in records if r.prompt_sha256 not in (None, expected[r.example_id])
        ]
        if other:
            raise InputError(
                f"{path}: {len(other)} records answered other prompts or rows than are asked now "
                f"(first: {other[0]!r}). Name another folder, or give --overwrite"
            )

    def _take_over(self, path: Path, lines: list[RecordLine]) -> set[int | None]:
        """Note what is done in a record file, and make it ready to be written on.

        Torn lines are moved aside and failed examples dropped, to run again. Returns the starts
        that its records are of.
        """
        torn = [line for line in lines if line.torn]
        whole = [line for line in lines if line.record is not None and not line.retried]
        done = [line for line in whole if line.record is not None and line.record.error is None]
        if torn:
            self.warnings += shortened(
                [
                    f"{path}:{line.number}: torn last line dropped (into {rejected_path(path).name}"
                    "); its example runs again"
                    for line in torn
                ]
            )
            set_aside(path, lines, torn)
        if len(done) < len(whole):
            self.warnings.append(f"{path}: {len(whole) - len(done)} failed examples run again")
        if len(done) < len(lines) - len(torn) or not path.read_bytes().endswith(b"\n"):
            write_lines(path, done)
        records = [line.record for line in done if line.record is not None]
        self._done[path.parent.name, path.stem] = {record.example_id for record in records}
        return {record.start for record in records}

    # -- writing ---------------------------------------------------------------------------

    def done(self, variant: str, task: str) -> set[str]:
        """Ids of the examples that have a record without an error."""
        return set(self._done.get((variant, task), ()))

    def append(self, record: ExampleRecord) -> None:
        """Add one record, with the number of this start; when this returns it is on disk.

        Raises `InputError` where it cannot be written: the disk is full.
        """
        path = self.folder / record.variant / f"{record.task}.jsonl"
        numbered = record.model_copy(update={"start": self.start})
        line = memoryview(numbered.to_line().encode("utf-8") + b"\n")
        try:
            if path not in self._files:
                path.parent.mkdir(exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._files[path] = os.open(path, flags, 0o644)
            while line:  # one write, unless the disk takes only a part
                line = line[os.write(self._files[path], line) :]
            os.fsync(self._files[path])
        except OSError as error:
            raise InputError(
                f"{path}: a record cannot be written ({error.strerror or error}). Make room; the "
                "same command then continues"
            ) from error
        if record.error is None:
            self._done.setdefault((record.variant, record.task), set()).add(record.example_id)

    def describe_model(
        self, variant: str, found: Mapping[str, Any], forms: Mapping[str, str] | None = None
    ) -> None:
        """Add to ``run.json`` what was learnt by loading `variant`.

        Args:
            variant: its name.
            found: what is true of it in every start.
            forms: the forms of the memory's recurrence in this start (`Start.backends`).
        """
        models = self.info.models | {variant: self.info.models[variant] | dict(found)}
        update: dict[str, Any] = {"models": models}
        if forms and self.info.starts:
            start = self.info.starts[-1]
            backends = start.backends | {variant: dict(forms)}
            now_known = start.model_copy(update={"backends": backends})
            update["starts"] = [*self.info.starts[:-1], now_known]
        self.info = self.info.model_copy(update=update)
        self._write_info()

    def set_status(self, status: Status) -> None:
        """Write ``run.json`` with `status`."""
        self.info = self.info.model_copy(update={"status": status, "updated": now()})
        self._write_info()

    def _write_info(self) -> None:
        text = json.dumps(self.info.model_dump(mode="json"), ensure_ascii=False, indent=1)
        write_whole(self.folder / "run.json", text + "\n")
