"""Read a file of predictions, whoever made it.

Two kinds of line are understood, one JSON object each, plain or gzipped:

- the benchmark authors' (`tasks.schema.RowAdapter.gold` of each benchmark says which keys);
- our records: `prediction`, `answers`, `label`, `all_classes` and more.

Other keys are ignored, but `task`, `dataset` and `benchmark` are checked where they are given, a
key that only another benchmark's files have gives a mixed-up file away, and no example may be
there twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import InputError, shown
from tasks.jsonl import located, read_objects
from tasks.registry import find_task, foreign_keys
from tasks.schema import Example, Task


@dataclass(frozen=True)
class Prediction:
    """What is scored of one line."""

    text: str
    example: Example


def read_predictions(path: Path, task: Task) -> list[Prediction]:
    """The predictions of a file, in the order of its lines.

    InputError when the file cannot be read or has none, else with a message for each thing that
    is wrong with any of its lines.
    """
    lines, problems = read_objects(path)
    predictions: list[Prediction] = []
    seen: dict[tuple[str, str], int] = {}
    for line in lines:
        prediction, wrong = _read(line.value, task)
        wrong += _seen_before(line.value, task, line.number, seen)
        problems += [(line.number, problem) for problem in wrong]
        if prediction is not None:
            predictions.append(prediction)
    if problems:
        raise located(shown(path), problems)
    if not predictions:
        raise InputError(f"{shown(path)}: is empty: there are no predictions to score")
    return with_shared_gold(predictions, task)


def with_shared_gold(predictions: list[Prediction], task: Task) -> list[Prediction]:
    """The predictions of a file, each with what its score needs of the others' gold."""
    found: dict[str, list[Any]] = {}
    for prediction in predictions:
        if entry := task.adapter.shared_gold(prediction.example, task):
            found.setdefault(entry[0], []).append(entry[1])
    if not found:
        return predictions
    complete = task.adapter.with_shared_gold
    return [Prediction(p.text, complete(p.example, found)) for p in predictions]


def _read(record: dict[str, Any], task: Task) -> tuple[Prediction | None, list[str]]:
    """One line's prediction, or what is wrong with the line."""
    mixed_up = _named_otherwise(record, task) or foreign_keys(
        record, task, lambda adapter: adapter.own_keys
    )
    if mixed_up:
        return None, mixed_up
    text, problems = _text(record, task.adapter.prediction_keys)
    example, wrong = task.adapter.gold(record, task)
    problems += wrong
    if problems or example is None:
        return None, problems
    return Prediction(text, example), []


def _text(record: dict[str, Any], known: Sequence[str]) -> tuple[str, list[str]]:
    """The prediction itself, under one of the `known` keys, and what is wrong with it."""
    keys = [key for key in known if key in record]
    if not keys:
        more = f" (or {', '.join(map(repr, known[1:]))})" if known[1:] else ""
        return "", [f"field {known[0]!r}{more} is missing"]
    text = record[keys[0]]
    if record[keys[-1]] != text:
        return "", [f"{keys[0]!r} and {keys[-1]!r} are both given and differ"]
    if text is None and record.get("error"):
        return "", []  # the run failed on this example and said so: an empty prediction
    if not isinstance(text, str):
        return "", [f"{keys[0]!r}: should be text, is a JSON {type(text).__name__}"]
    return text, []


def _seen_before(
    record: dict[str, Any], task: Task, number: int, seen: dict[tuple[str, str], int]
) -> list[str]:
    """A message if an earlier line answered the same example; one that failed may be tried again.

    `seen` holds the lines so far, by variant and identifier.
    """
    given = task.adapter.line_id(record)
    if given is None or record.get("error"):
        return []
    key = (str(record.get("variant")), str(given))
    earlier = seen.setdefault(key, number)
    return [] if earlier == number else [f"example {given!r} is that of line {earlier} too"]


def _named_otherwise(record: dict[str, Any], task: Task) -> list[str]:
    """A message for each key of the line that names another task or benchmark."""
    problems = []
    for key in ("benchmark", "task", "dataset"):
        given, expected = record.get(key), task.benchmark if key == "benchmark" else task.name
        if key == "task" and given in task.adapter.parts(task):
            continue
        if given is not None and given != expected and not _means(given, task, key):
            problems.append(f"{key!r} is {given!r}, but {expected!r} is being scored")
    return problems


def _means(name: Any, task: Task, key: str) -> bool:
    """Whether a name that a line gives is another spelling of the task's."""
    if key == "benchmark" or not isinstance(name, str):
        return False
    try:
        meant = find_task(task.benchmark, name)
    except InputError:
        return False
    levels = {meant.level, task.level} - {None}
    return (meant.benchmark, meant.dataset) == (task.benchmark, task.dataset) and len(levels) < 2
