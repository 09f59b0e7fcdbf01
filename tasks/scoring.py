"""Score a file of predictions, whoever made it, without a model and without the rows.

Two kinds of line are understood, one JSON object each, plain or gzipped:

- the benchmark authors' (`tasks.rows.RowForm.gold` of each benchmark says which keys);
- our records: `prediction`, `answers`, `label`, `all_classes` and more.

Other keys are ignored, but `task`, `dataset` and `benchmark` are checked where they are given,
and a key that only another benchmark's files have gives a mixed-up file away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from tasks.jsonl import located, parse_objects, read_bytes
from tasks.registry import benchmark_names, find_task, protocol_name
from tasks.rows import foreign_keys, form_of
from tasks.schema import Example, InputError, Task

Watch = Callable[[int, int], None]
"""Is told how many predictions are scored, and of how many."""


@dataclass(frozen=True)
class Prediction:
    """What is scored of one line."""

    text: str
    example: Example


def score_file(path: str | PathLike[str], benchmark: str, task: str, protocol: str) -> list[float]:
    """The score in [0, 1] of every line of a prediction file, in the order of the lines.

    InputError for an unknown benchmark, task or protocol; for a file that cannot be read or
    has no lines; and, with one message for each, for every line that is not UTF-8, not a JSON
    object, lacks a key or belongs to another task.
    """
    found = find_task(benchmark, task)
    return score_file_of(Path(path), found, protocol_name(found.benchmark, protocol))


def score_file_of(path: Path, task: Task, protocol: str) -> list[float]:
    """`score_file` for a task that has been found."""
    task.protocol(protocol)  # before the file is read
    predictions = read_predictions(path, task)
    if task.protocol(protocol).metric == "classification":
        predictions = _with_classes_of_the_last(predictions)
    return [task.score(line.text, line.example, protocol) for line in predictions]


def read_predictions(path: Path, task: Task) -> list[Prediction]:
    """The predictions of a file, in the order of its lines; InputError as in `score_file`."""
    lines, problems = parse_objects(read_bytes(path))
    predictions: list[Prediction] = []
    for line in lines:
        prediction, wrong = _read(line.value, task)
        problems += [(line.number, problem) for problem in wrong]
        if prediction is not None:
            predictions.append(prediction)
    if problems:
        raise located(str(path), problems)
    if not predictions:
        raise InputError(f"{path}: is empty: there are no predictions to score")
    return predictions


def _with_classes_of_the_last(predictions: list[Prediction]) -> list[Prediction]:
    """All lines with the classes of the last one, as in LongBench's eval.py.

    Where the last line has none (the authors' code raises then) each keeps its own.
    """
    classes = predictions[-1].example.row.get("all_classes")
    if not classes:
        return predictions
    return [
        Prediction(
            line.text,
            dataclasses.replace(line.example, row={**line.example.row, "all_classes": classes}),
        )
        for line in predictions
    ]


def benchmark_score(scores: Sequence[float]) -> float:
    """The figure that the authors print for a task: 100 times the mean, to two decimals.

    InputError without scores, of which there is no mean.
    """
    if not scores:
        raise InputError("no scores to average")
    return round(100 * sum(scores) / len(scores), 2)


def _read(record: dict[str, Any], task: Task) -> tuple[Prediction | None, list[str]]:
    """One line's prediction, or what is wrong with the line."""
    others = [name for name in benchmark_names() if name != task.benchmark]
    mixed_up = _named_otherwise(record, task) + foreign_keys(
        record, task, others, lambda form: form.own_keys
    )
    text, problems = _text(record)
    example, wrong = form_of(task.benchmark).gold(record, task)
    problems += mixed_up or wrong
    if problems or example is None:
        return None, problems
    return Prediction(text, example), []


def _text(record: dict[str, Any]) -> tuple[str, list[str]]:
    """The prediction itself, and what is wrong with it."""
    keys = [key for key in ("pred", "prediction") if key in record]
    if not keys:
        return "", ["field 'pred' (or 'prediction') is missing"]
    text = record[keys[0]]
    if record[keys[-1]] != text:
        return "", ["'pred' and 'prediction' are both given and differ"]
    if text is None and record.get("error"):
        return "", []  # the run failed on this example and said so: an empty prediction
    if not isinstance(text, str):
        return "", [f"{keys[0]!r}: should be text, is a JSON {type(text).__name__}"]
    return text, []


def _named_otherwise(record: dict[str, Any], task: Task) -> list[str]:
    """A message for each key of the line that names another task or benchmark."""
    problems = []
    for key in ("benchmark", "task", "dataset"):
        given, expected = record.get(key), task.benchmark if key == "benchmark" else task.name
        if given is not None and given != expected and not _means(given, task, key):
            problems.append(f"{key!r} is {given!r}, but {expected!r} is being scored")
    return problems


def _means(name: Any, task: Task, key: str) -> bool:
    """Whether a name that a line gives is another spelling of the task's."""
    if key == "benchmark" or not isinstance(name, str):
        return False
    try:
        return find_task(task.benchmark, name).dataset == task.dataset
    except InputError:
        return False
