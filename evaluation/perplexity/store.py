"""The folder of a perplexity: append-only records that survive a kill, and can be continued.

A record is a line that is written whole and flushed to the disk before the next is computed, so
that only a last line can be torn; it is moved to ``<variant>.jsonl.rejected``. What a variant has
done is what its records say. A file ``<variant>.cache`` beside them may hold the past of its model
at the end of some block, from which it goes on; without one the text is read again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from common.errors import InputError
from common.writing import write_whole
from evaluation.plan.environment import now
from evaluation.plan.identity import differences
from evaluation.run.locks import FolderLock
from reports.perplexity import (
    INFO_FILE,
    BlockRecord,
    PerplexityInfo,
    read_blocks,
    read_perplexity_info,
    record_path,
)
from reports.run_folders import unlike_starts

Status = Literal["running", "interrupted", "failed", "finished"]


def cache_path(folder: Path, variant: str) -> Path:
    """Where the past of a variant is kept while it is under way."""
    return folder / f"{variant}.cache"


def _rejected(path: Path) -> Path:
    return path.with_name(f"{path.name}.rejected")


def common_parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of an identity that all variants share."""
    return {key: value for key, value in parts.items() if key != "variants"}


def check_perplexity_folder(folder: Path, parts: Mapping[str, Any]) -> None:
    """Refuse a folder that holds something else than what would be continued; changes nothing.

    Args:
        folder: to be written to.
        parts: identity parts; of variants without `weights_sha256`, weights are not compared.

    Raises:
        InputError: another text or setting, another kind of folder, or one that is damaged.
    """
    if not (folder / INFO_FILE).exists():
        _refuse_foreign(folder, parts["variants"])
        return
    earlier = read_perplexity_info(folder)
    _refuse_another(folder, parts, earlier)
    for name in earlier.variants:
        if record_path(folder, name).is_file():
            read_blocks(record_path(folder, name), name, earlier)


def _refuse_foreign(folder: Path, variants: Mapping[str, Any]) -> None:
    if (folder / "run.json").exists():
        raise InputError(f"--output: {folder} is the folder of a run; name another folder")
    there = [path for name in variants if (path := record_path(folder, name)).exists()]
    if there:
        raise InputError(
            f"--output: {there[0]} is there, but no {INFO_FILE}; name another folder, or move it "
            "away"
        )


def _refuse_another(folder: Path, mine: Mapping[str, Any], earlier: PerplexityInfo) -> None:
    theirs = earlier.identity_parts
    found = differences(common_parts(mine), common_parts(theirs))
    for name, parts in mine["variants"].items():
        other = theirs.get("variants", {}).get(name)
        if other is None:
            continue
        if "weights_sha256" not in parts:
            other = {key: value for key, value in other.items() if key != "weights_sha256"}
        found += [f"{name}: {reason}" for reason in differences(parts, other)]
    if found:
        raise InputError(
            f"--output: {folder} belongs to another text or setting, and these are never mixed "
            f"({'; '.join(found)}). Name another folder, or give --overwrite"
        )


class PerplexityStore:
    """A folder, open for writing. A context manager: leaving it releases the lock.

    Entering raises `InputError` where the folder is in use or holds something else.

    Args:
        folder: made if absent.
        info: what ``perplexity.json`` shall say; variants of earlier starts are added to it.
        overwrite: delete what an earlier run wrote first.
    """

    def __init__(self, folder: Path, info: PerplexityInfo, overwrite: bool = False) -> None:
        self.folder = folder
        self.info = info
        self.warnings: list[str] = []
        self._asked = list(info.variants)
        self._overwrite = overwrite
        self._lock = FolderLock(folder)
        self._records: dict[str, list[BlockRecord]] = {}

    def __enter__(self) -> PerplexityStore:
        self._lock.claim(INFO_FILE, self._open)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is not None and self.info.status == "running":
                self.set_status("interrupted")
        finally:
            self._lock.release()

    # -- the folder ------------------------------------------------------------------------

    def _open(self) -> None:
        for left in self.folder.glob(".*.tmp"):  # of a writer that was killed
            left.unlink(missing_ok=True)
        if not (self.folder / INFO_FILE).exists():
            _refuse_foreign(self.folder, self.info.variants)
        else:
            earlier = read_perplexity_info(self.folder)
            if self._overwrite:
                self._delete(earlier)
            else:
                _refuse_another(self.folder, self.info.identity_parts, earlier)
                self._continue(earlier)
        self.set_status("running")

    def _delete(self, earlier: PerplexityInfo) -> None:
        for name in {*earlier.variants, *self.info.variants}:
            path = record_path(self.folder, name)
            for old in (path, _rejected(path), cache_path(self.folder, name)):
                old.unlink(missing_ok=True)
        (self.folder / INFO_FILE).unlink()

    def _continue(self, earlier: PerplexityInfo) -> None:
        mine = self.info
        # what was learnt by loading a model stays known if it need not be loaded
        described = {
            name: earlier.variants.get(name, {}) | mine.variants.get(name, {})
            for name in [*earlier.variants, *mine.variants]
        }
        parts = mine.identity_parts | {
            "variants": earlier.identity_parts["variants"] | mine.identity_parts["variants"]
        }
        self.info = mine.model_copy(
            update={
                "created": earlier.created,
                "starts": [*earlier.starts, *mine.starts],
                "variants": described,
                "identity_parts": parts,
                "failures": dict(earlier.failures),
                "warnings": list(dict.fromkeys([*earlier.warnings, *mine.warnings])),
                "peak": mine.peak or earlier.peak,
            }
        )
        found = {}
        for name in described:  # all of them, before anything is changed
            path = record_path(self.folder, name)
            if path.is_file():
                found[name] = read_blocks(path, name, earlier)
        used: set[int | None] = {self.start}
        for name, (records, torn) in found.items():
            if torn:
                self._set_aside(record_path(self.folder, name), torn)
            self._records[name] = records
            used |= {record.start for record in records}
        unlike = unlike_starts(self.info.starts, used)
        if unlike:
            self.warnings.append(
                f"{self.folder}: earlier records were made under other conditions: "
                f"{'; '.join(unlike)}. Each record names its start"
            )

    def _set_aside(self, path: Path, torn: bytes) -> None:
        """Move a last line that is not whole beside the file, then cut it off."""
        with _rejected(path).open("ab") as file:
            file.write(torn + b"\n")
            file.flush()
            os.fsync(file.fileno())
        content = path.read_bytes()
        write_whole(path, content[: len(content) - len(torn)])
        self.warnings.append(
            f"{path}: its last line was not whole; it was moved to {_rejected(path).name} and is "
            "computed again"
        )

    # -- what is done ----------------------------------------------------------------------

    @property
    def start(self) -> int:
        """The number of this start."""
        return len(self.info.starts) - 1

    def records(self, variant: str) -> Sequence[BlockRecord]:
        """What a variant has done."""
        return self._records.setdefault(variant, [])

    def done(self, variant: str) -> int:
        """Tokens that a variant has done."""
        records = self.records(variant)
        return records[-1].first + records[-1].tokens if records else 0

    def append(self, record: BlockRecord) -> None:
        """Write the record that follows; when this returns it is on the disk."""
        if record.first != self.done(record.variant):
            raise ValueError(
                f"{record.variant}: {record.first} follows {self.done(record.variant)}"
            )
        path = record_path(self.folder, record.variant)
        line = f"{record.to_line()}\n".encode()
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            before = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError("the disk is full")
            except OSError:
                os.ftruncate(descriptor, before)
                raise
            os.fsync(descriptor)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror or error}); the same command "
                "continues once it can"
            ) from error
        finally:
            os.close(descriptor)
        self._records.setdefault(record.variant, []).append(record)

    # -- the description -------------------------------------------------------------------

    def describe(self, variant: str, learnt: Mapping[str, Any]) -> None:
        """Add what loading a variant's model told."""
        self.info.variants[variant] = self.info.variants[variant] | dict(learnt)
        self._write()

    def fail(self, variant: str, error: str) -> None:
        """A variant does not get on."""
        self.info.failures[variant] = {"token": self.done(variant), "error": error}
        self._write()

    def retry(self, variant: str) -> None:
        """A variant that may have failed before is tried again."""
        if self.info.failures.pop(variant, None) is not None:
            self._write()

    def finish(self) -> Status:
        """Say how it ended."""
        whole = all(self.done(name) == self.info.tokens for name in self.info.variants)
        status: Status = "finished" if whole else "failed" if self.info.failures else "interrupted"
        self.set_status(status)
        return status

    def set_status(self, status: Status) -> None:
        """Write ``perplexity.json`` with this status."""
        self.info = self.info.model_copy(update={"status": status})
        self._write()

    def _write(self) -> None:
        self.info = self.info.model_copy(update={"updated": now()})
        write_whole(self.folder / INFO_FILE, self.info.model_dump_json(indent=1) + "\n")
