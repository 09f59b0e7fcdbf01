"""What was run already: the state of run folders, read quickly. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError
from reports.run_folders import read_run_info

_NO_ERROR = b'"error":null'
"""As a record's line has it; a text that holds these words has its quotation marks escaped."""


@dataclass(frozen=True)
class State:
    """How far a run folder is.

    Attributes:
        answered: examples with a record that did not fail.
        status: of `run.json`; empty: there is none.
        problem: why it cannot be read; empty: it can, or is not there.
    """

    answered: int = 0
    status: str = ""
    problem: str = ""

    def word(self, examples: int) -> str:
        """`done`, `partly` or `none`, of so many examples in all."""
        if not self.answered:
            return "none"
        return "done" if self.answered >= examples else "partly"

    def in_words(self, examples: int) -> str:
        """The same for people."""
        if self.problem:
            return self.problem
        word = self.word(examples)
        if word == "none":
            return "not run"
        return "done" if word == "done" else f"{self.answered:,} of {examples:,} done"


def state_of(folder: Path) -> State:
    """How far the run in a folder is, without checking its records."""
    if not (folder / "run.json").exists():
        return State()
    try:
        info = read_run_info(folder)
    except InputError as error:
        return State(problem=str(error))
    answered = sum(1 for line in lines_of(folder) if _is_answer(line))
    return State(answered, info.status)


def lines_of(folder: Path) -> Iterator[bytes]:
    """Whole lines of a folder's record files."""
    for path in sorted(folder.glob("*/*.jsonl")):
        with path.open("rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))


def _is_answer(line: bytes) -> bool:
    return _NO_ERROR in line or as_record(line).get("error", "") is None


def as_record(line: bytes) -> dict[str, Any]:
    """A record as plain data; empty where a line is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
