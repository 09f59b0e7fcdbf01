"""RULER's tasks by name, as `scripts/synthetic.yaml` of the authors lists them, and their rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.errors import InputError, shown
from common.files import read_text
from common.suggestions import did_you_mean
from tasks.hub import file_from_hub
from tasks.ruler.generators import (
    Count,
    Needles,
    QuestionSet,
    Row,
    common_words,
    frequent_words,
    niah,
    question_answering,
    variable_tracking,
)
from tasks.ruler.questions import SOURCES

SEED = 42
"""The authors' default."""
ROWS = 500
"""Rows of a task in the paper."""
_MOST_BYTES = 2**28

NEEDLES: Mapping[str, Needles] = {
    "niah_single_1": Needles("noise", "words", "numbers"),
    "niah_single_2": Needles("essay", "words", "numbers"),
    "niah_single_3": Needles("essay", "words", "uuids"),
    "niah_multikey_1": Needles("essay", "words", "numbers", number_of_keys=4),
    "niah_multikey_2": Needles("needle", "words", "numbers"),
    "niah_multikey_3": Needles("needle", "uuids", "uuids"),
    "niah_multivalue": Needles("essay", "words", "numbers", values_of_a_key=4),
    "niah_multiquery": Needles("essay", "words", "numbers", queries=4),
}
QUESTIONS: Mapping[str, str] = {"qa_1": "squad", "qa_2": "hotpotqa"}
"""The data set that a task asks questions of."""
TASKS: tuple[str, ...] = (*NEEDLES, "vt", "cwe", "fwe", *QUESTIONS)
ESSAY_TASKS: tuple[str, ...] = tuple(
    task for task, kind in NEEDLES.items() if kind.haystack == "essay"
)
"""The tasks whose haystack is a text of the user's."""
WITHOUT_FILES: tuple[str, ...] = tuple(
    task for task in TASKS if task not in ESSAY_TASKS and task not in QUESTIONS
)
"""Those that need no text of the user's, and nothing from the hub."""


@dataclass(frozen=True)
class Files:
    """What the authors download, where the user has it.

    Attributes:
        essay: haystack of the essay tasks: `PaulGrahamEssays.json` (its `text`), or plain text.
        words: `english_words.json`, which long rows of `cwe` draw from.
        squad: SQuAD v2's validation questions, for `qa_1`; None: the hub's.
        hotpotqa: HotpotQA's, distractor setting, for `qa_2`; None: the hub's.
    """

    essay: Path | None = None
    words: Path | None = None
    squad: Path | None = None
    hotpotqa: Path | None = None

    def of(self, task: str) -> dict[str, Path]:
        """The given files that rows of a task are made of, by their names here."""
        names = {"essay"} if task in ESSAY_TASKS else {"words"} if task == "cwe" else set()
        names |= {QUESTIONS[task]} if task in QUESTIONS else set()
        given = {name: getattr(self, name) for name in sorted(names)}
        return {name: path for name, path in given.items() if path is not None}

    def essay_text(self) -> str | None:
        """The haystack; None: none was given.

        Raises:
            InputError: it cannot be read, or is JSON without `text`.
        """
        if self.essay is None:
            return None
        text = read_text(self.essay, _MOST_BYTES)
        if self.essay.suffix != ".json":
            return text
        found = _json(text, self.essay)
        if not isinstance(found, dict) or not isinstance(found.get("text"), str):
            raise InputError(f"{shown(self.essay)}: has no text under 'text'")
        return str(found["text"])

    def word_list(self) -> list[str]:
        """The values of `english_words.json`, in their order.

        Raises:
            InputError: it was not given, cannot be read, or holds something else.
        """
        if self.words is None:
            raise InputError("the authors' english_words.json was not given")
        found = _json(read_text(self.words, _MOST_BYTES), self.words)
        values = list(found.values()) if isinstance(found, dict) else []
        if not values or not all(isinstance(value, str) for value in values):
            raise InputError(f"{shown(self.words)}: is no mapping of words")
        return values

    def question_file(self, name: str) -> tuple[Path, str | None]:
        """The file of a set of questions, and the commit on the hub where it is the hub's.

        Args:
            name: `squad` or `hotpotqa`.

        Raises:
            InputError: it was not given, and cannot be had from the hub.
        """
        given: Path | None = getattr(self, name)
        if given is not None:
            return given, None
        source = SOURCES[name]
        remedy = f"give it with --{name}"
        path = file_from_hub(source.repository, source.revision, source.file, remedy)
        return path, source.revision


@lru_cache(maxsize=2)
def _questions(name: str, path: Path) -> QuestionSet:
    """A set of questions, read once for all lengths."""
    return SOURCES[name].read(path)


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{shown(path)}: is no JSON ({error})") from None


def rows(
    task: str,
    length: int,
    count: Count,
    limit: int = ROWS,
    seed: int = SEED,
    files: Files | None = None,
    reserved: int = 0,
) -> Iterator[Row]:
    """Rows of a task, in the authors' format.

    Args:
        task: of `TASKS`.
        length: of prompt and answer, in tokens.
        count: tokens of a text.
        limit: rows.
        seed: of the random numbers.
        files: of the user.
        reserved: tokens of `length` that are left to a chat template, as `--prepare_for_ns` of the
            authors' `prepare.py` does.

    Raises:
        InputError: no such task; a text that it needs was not given; the length is too short.
    """
    own = files or Files()
    if task in NEEDLES:
        kind = NEEDLES[task]
        essay = own.essay_text() if kind.haystack == "essay" else None
        return niah(kind, length, limit, seed, count, essay, reserved)
    if task == "cwe":
        more: Callable[[], list[str]] | None = own.word_list if own.words is not None else None
        return common_words(length, limit, seed, count, more, reserved)
    if task == "vt":
        return variable_tracking(length, limit, seed, count, reserved=reserved)
    if task == "fwe":
        return frequent_words(length, limit, seed, count, reserved=reserved)
    if task in QUESTIONS:
        known = _questions(QUESTIONS[task], own.question_file(QUESTIONS[task])[0])
        return question_answering(known, length, limit, seed, count, reserved)
    raise InputError(
        f"unknown task {shown(repr(task))} of ruler{did_you_mean(task, TASKS)} (known: "
        f"{', '.join(TASKS)})"
    )
