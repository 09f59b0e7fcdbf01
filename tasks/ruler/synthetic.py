"""RULER's rows for the tokenizer of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from common.errors import InputError, Problems, shown
from common.files import open_file
from tasks.making import Making
from tasks.ruler.generators import Row, check_sentences
from tasks.ruler.questions import SOURCES
from tasks.ruler.rows import ESSAY_TASKS, QUESTIONS, ROWS, Files, rows

NO_DOWNLOAD = "ruler_no_download"
"""The group of tasks that need no text from elsewhere."""
_PROBE = (
    "One of the special magic numbers for quick-brown-fox is: 0123456789. Jumps over the lazy dog; "
    "VAR QUICKBROWNFX = 12345 JMPSVTHLZYDG"
)
"""Every digit, and every letter, small and large."""


def row_count(task: str, limit: int | None) -> int:
    """How many rows `generate` gives: `limit`, else as many as the paper has."""
    return ROWS if limit is None else limit


def problems(tasks: Sequence[str], making: Making) -> list[str]:
    """What is wrong with the files and the tokenizer for these tasks; none: nothing."""
    found = Problems()
    essays = [task for task in dict.fromkeys(tasks) if task in ESSAY_TASKS]
    if essays and "essay" not in making.files:
        found.add(
            f"--essay: needed by {', '.join(essays)}: the authors' PaulGrahamEssays.json, or a "
            f"text of your own (no essays come with this package); --tasks {NO_DOWNLOAD} needs none"
        )
    elif essays:
        with found.collecting():
            check_sentences()
    for name, path in making.files.items():
        with found.collecting(f"--{name}: "):
            open_file(path).close()
    read = {name for task in tasks for name in Files(**making.files).of(task)}
    for name in making.files.keys() - read:
        found.add(f"--{name}: none of these tasks reads it")
    if (left := unwritten(making.read_back)) is not None:
        found.add(f"--tokenizer: cannot write RULER's texts: {left}")
    return list(found)


def unwritten(read_back: Callable[[str], str]) -> str | None:
    """What a tokenizer makes of RULER's texts, in words; None: it can write them.

    Args:
        read_back: a text after it was made tokens and these text again.
    """
    if "".join(read_back(_PROBE).split()) == "".join(_PROBE.split()):
        return None
    return f"of {_PROBE[:66]!r} it leaves {shown(repr(read_back(_PROBE[:66])))}"


def generate(task: str, length: int, limit: int | None, seed: int, making: Making) -> Iterator[Row]:
    """Rows in the authors' format; a shorter list is the beginning of a longer one.

    Args:
        task: of `rows.TASKS`.
        length: of chat template, prompt and answer, in tokens.
        limit: rows; None: `rows.ROWS`.
        seed: of the random numbers.
        making: the tokenizer, and the user's files.

    Raises:
        InputError: a text that the task needs was not given; the length is too short.
    """
    files, count = Files(**making.files), making.count
    try:
        yield from rows(task, length, count, row_count(task, limit), seed, files, making.reserved)
    except InputError as error:
        raise error.prefixed(f"{task}: ") from None


def files(task: str, making: Making) -> dict[str, dict[str, str | None]]:
    """The files that a task's rows are made of, by name: `path`, `sha256` and `revision`.

    Raises:
        InputError: one cannot be read, or cannot be had from the hub.
    """
    given = Files(**making.files)
    places: dict[str, tuple[Path, str | None]] = {
        name: (path, None) for name, path in given.of(task).items()
    }
    if task in QUESTIONS:
        places[QUESTIONS[task]] = given.question_file(QUESTIONS[task])
    return {
        name: {"path": str(path), "sha256": _sha256(path), "revision": revision}
        for name, (path, revision) in places.items()
    }


def source(task: str) -> tuple[str, bool]:
    """Where a task's rows come from, in words, and whether all of it is on this machine."""
    if task in ESSAY_TASKS:
        return "made of your essays (--essay), for the run's tokenizer", False
    if task not in QUESTIONS:
        return "made for the run's tokenizer", True
    from huggingface_hub import try_to_load_from_cache

    hub = SOURCES[QUESTIONS[task]]
    cached = try_to_load_from_cache(
        hub.repository, hub.file, repo_type="dataset", revision=hub.revision
    )
    return f"made of {hub.repository} on the hub, for the run's tokenizer", isinstance(cached, str)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open_file(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
