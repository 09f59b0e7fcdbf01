"""RULER's tasks by name, as `scripts/synthetic.yaml` of the authors lists them, and their rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError, shown
from common.files import read_text
from common.suggestions import did_you_mean
from tasks.ruler.generators import (
    Count,
    Needles,
    Row,
    common_words,
    frequent_words,
    niah,
    variable_tracking,
)

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
TASKS: tuple[str, ...] = (*NEEDLES, "vt", "cwe", "fwe")
"""The tasks whose rows are made here; `qa_1` and `qa_2` need SQuAD and HotpotQA."""
WITHOUT_FILES: tuple[str, ...] = tuple(
    task for task in TASKS if task not in NEEDLES or NEEDLES[task].haystack != "essay"
)
"""Those that need no text of the user's."""


@dataclass(frozen=True)
class Files:
    """What the authors download, where the user has it."""

    essay: Path | None = None
    """Haystack of the essay tasks: `PaulGrahamEssays.json` (its `text`), or plain text."""
    words: Path | None = None
    """`english_words.json`, which long rows of `cwe` draw from."""

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
) -> Iterator[Row]:
    """Rows of a task, in the authors' format.

    Args:
        task: of `TASKS`.
        length: of prompt and answer, in tokens.
        count: tokens of a text.
        limit: rows.
        seed: of the random numbers.
        files: of the user.

    Raises:
        InputError: no such task; a text that it needs was not given; the length is too short.
    """
    own = files or Files()
    if task in NEEDLES:
        kind = NEEDLES[task]
        essay = own.essay_text() if kind.haystack == "essay" else None
        return niah(kind, length, limit, seed, count, essay)
    if task == "cwe":
        more: Callable[[], list[str]] | None = own.word_list if own.words is not None else None
        return common_words(length, limit, seed, count, more)
    if task == "vt":
        return variable_tracking(length, limit, seed, count)
    if task == "fwe":
        return frequent_words(length, limit, seed, count)
    raise InputError(
        f"unknown task {shown(repr(task))} of ruler{did_you_mean(task, TASKS)} (known: "
        f"{', '.join(TASKS)})"
    )
