"""The run folder: append-only record files that survive a kill, and can be continued.

::

    <run>/run.json                  replaced whole (written beside, then renamed)
    <run>/<variant>/<task>.jsonl    one record per line, each flushed to disk before the next
    <run>/.lock                     held by the process that writes

A record is one `write` of a whole line, so that only its last line can be torn. What is still
to be done is a set difference of example ids. A folder whose ``run.json`` has another identity,
or a record that answered another prompt, is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from evaluation.files import write_atomically
from evaluation.identity import differences, now
from evaluation.problems import InputError
from reports.records import SCHEMA_VERSION, ExampleRecord, RunInfo
from reports.run_folders import read_jsonl, read_run_info

Status = Literal["running", "interrupted", "finished"]


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def repair(path: Path) -> list[str]:
    """Cut a torn last line off a record file, in place; returns what was done, for a warning.

    A line is torn if it is not JSON. One that is whole but lacks its newline gets it.
    """
    content = path.read_bytes()
    body, end = content.rstrip(b"\n"), b"\n" if content.rstrip(b"\n") else b""
    start = body.rfind(b"\n") + 1
    warnings = []
    if body and not _is_json(body[start:]):
        number = body.count(b"\n") + 1
        warnings.append(f"{path}:{number}: torn last line dropped; its example runs again")
        body = body[:start].rstrip(b"\n")
        end = b"\n" if body else b""
    repaired = body + end
    if repaired != content:
        with path.open("r+b") as file:
            if len(repaired) > len(content):  # only a newline is missing
                file.seek(0, os.SEEK_END)
                file.write(b"\n")
            else:
                file.truncate(len(repaired))
            file.flush()
            os.fsync(file.fileno())
    return warnings


def check_folder(folder: Path, parts: Mapping[str, Any]) -> None:
    """Refuse a folder that holds another run, as `RunStore` would; nothing is changed.

    `parts` are `evaluation.identity.parts_without_weights`: weights are not compared.
    """
    if not (folder / "run.json").exists():
        if any(folder.glob("*/*.jsonl")):
            raise _no_description(folder)
        return
    earlier = read_run_info(folder)
    theirs = json.loads(json.dumps(earlier.identity_parts))
    for variant in theirs.get("variants", {}).values():
        variant.pop("weights_sha256", None)
    _refuse_another(folder, earlier.schema_version, differences(parts, theirs))


def _no_description(folder: Path) -> InputError:
    return InputError(f"--output: {folder} holds record files but no run.json; name another folder")


def _refuse_another(folder: Path, version: int, reasons: list[str]) -> None:
    """Raise where `folder` was written under another schema, or differs for `reasons`."""
    if version < SCHEMA_VERSION:
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
        self._lock: int | None = None
        self._files: dict[Path, int] = {}
        self._done: dict[tuple[str, str], set[str]] = {}

    def __enter__(self) -> RunStore:
        created = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except OSError as error:
            raise InputError(
                f"--output: {self.folder} cannot be written ({error.strerror or error})"
            ) from error
        try:
            self._open()
        except BaseException:
            self._release()
            if created:
                (self.folder / ".lock").unlink(missing_ok=True)
                self.folder.rmdir()
            raise
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
        self._release()

    # -- the folder ------------------------------------------------------------------------

    def _acquire(self) -> None:
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            os.close(lock)
            raise InputError(
                f"--output: {self.folder} is being written by another process"
                + (f" ({holder})" if holder else "")
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        self._lock = lock

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)  # the kernel drops the lock, also when the process is killed
            self._lock = None

    def _record_files(self) -> list[Path]:
        return sorted(self.folder.glob("*/*.jsonl"))

    def _open(self) -> None:
        description = self.folder / "run.json"
        if self._overwrite and description.exists():
            for path in self._record_files():
                path.unlink()
            description.unlink()
        if description.exists():
            self._continue(read_run_info(self.folder))
        elif self._record_files():
            raise _no_description(self.folder)
        self.set_status("running")

    def _continue(self, earlier: RunInfo) -> None:
        """Take over an earlier start of the same run."""
        same = earlier.identity == self.info.identity
        reasons = differences(self.info.identity_parts, earlier.identity_parts)
        _refuse_another(self.folder, earlier.schema_version, [] if same else reasons)
        # What loading a model added (parameters, layout) stays known if it need not be loaded.
        models = {name: earlier.models.get(name, {}) | m for name, m in self.info.models.items()}
        self.info = self.info.model_copy(update={"created": earlier.created, "models": models})
        for path in self._record_files():
            self.warnings += repair(path)
            self._read(path)

    def _read(self, path: Path) -> None:
        """Note what is done in a record file; failed examples are dropped from it, to run again."""
        variant, task = path.parent.name, path.stem
        records, warnings = read_jsonl(path)
        self.warnings += warnings
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
        whole = [record for record in records if record.error is None]
        if len(whole) < len(records):
            self.warnings.append(f"{path}: {len(records) - len(whole)} failed examples run again")
            write_atomically(path, "".join(r.to_line() + "\n" for r in whole))
        self._done[variant, task] = {record.example_id for record in whole}

    # -- writing ---------------------------------------------------------------------------

    def done(self, variant: str, task: str) -> set[str]:
        """Ids of the examples that have a record without an error."""
        return set(self._done.get((variant, task), ()))

    def append(self, record: ExampleRecord) -> None:
        """Add one record; when this returns it is on disk."""
        path = self.folder / record.variant / f"{record.task}.jsonl"
        if path not in self._files:
            path.parent.mkdir(exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._files[path] = os.open(path, flags, 0o644)
        line = memoryview(record.to_line().encode("utf-8") + b"\n")
        while line:  # one write, unless the disk takes only a part
            line = line[os.write(self._files[path], line) :]
        os.fsync(self._files[path])
        if record.error is None:
            self._done.setdefault((record.variant, record.task), set()).add(record.example_id)

    def describe_model(self, variant: str, found: Mapping[str, Any]) -> None:
        """Add to ``run.json`` what was learnt by loading `variant`."""
        models = self.info.models | {variant: self.info.models[variant] | dict(found)}
        self.info = self.info.model_copy(update={"models": models})
        self._write_info()

    def set_status(self, status: Status) -> None:
        """Write ``run.json`` with `status`."""
        self.info = self.info.model_copy(update={"status": status, "updated": now()})
        self._write_info()

    def _write_info(self) -> None:
        text = json.dumps(self.info.model_dump(mode="json"), ensure_ascii=False, indent=1)
        write_atomically(self.folder / "run.json", text + "\n")
