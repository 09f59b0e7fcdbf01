"""Score a file of predictions, whoever made it, without a model and without the rows.

Two kinds of line are understood, one JSON object each, plain or gzipped:

- the LongBench authors': `pred`, `answers`, `all_classes`, `length`;
- our records: `prediction`, `answers`, `all_classes` and more.

Other keys are ignored, but `task`, `dataset` and `benchmark` are checked where they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, StrictStr, ValidationError

from tasks.jsonl import located, parse_objects, read_bytes
from tasks.registry import find_task
from tasks.rows import describe
from tasks.schema import InputError, Task, scored_example


class Prediction(BaseModel):
    """What is scored of one line."""

    model_config = ConfigDict(extra="ignore")

    prediction: StrictStr
    answers: list[StrictStr]
    """Gold answers; none: the score is 0, as in the authors' script."""
    all_classes: list[StrictStr] | None = None


class ClassPrediction(Prediction):
    """What is scored of one line of a classification task: the classes must be said, or null."""

    all_classes: list[StrictStr] | None


def score_file(path: str | PathLike[str], benchmark: str, task: str, protocol: str) -> list[float]:
    """The score in [0, 1] of every line of a prediction file, in the order of the lines.

    As in the authors' eval.py, the classes of a classification task are those of the file's
    last line, for all of its lines; where that has none (the authors' code raises then) each
    line is scored with its own, and 0 without any.

    InputError for an unknown benchmark, task or protocol; for a file that cannot be read or
    has no lines; and, with one message for each, for every line that is not UTF-8, not a JSON
    object, lacks a key or belongs to another task.
    """
    return score_file_of(Path(path), find_task(benchmark, task), protocol)


def score_file_of(path: Path, task: Task, protocol: str) -> list[float]:
    """`score_file` for a task that has been found."""
    classes_needed = task.protocol(protocol).metric == "classification"
    form = ClassPrediction if classes_needed else Prediction
    lines, problems = parse_objects(read_bytes(path))
    predictions: list[Prediction] = []
    for line in lines:
        prediction, wrong = _read(line.value, task, form)
        problems += [(line.number, problem) for problem in wrong]
        if prediction is not None:
            predictions.append(prediction)
    if problems:
        raise located(str(path), problems)
    if not predictions:
        raise InputError(f"{path}: is empty: there are no predictions to score")

    classes_of_file = predictions[-1].all_classes
    return [
        task.score(
            line.prediction,
            scored_example(line.answers, classes_of_file or line.all_classes),
            protocol,
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


def _read(
    record: dict[str, Any], task: Task, form: type[Prediction]
) -> tuple[Prediction | None, list[str]]:
    """One line's prediction, or what is wrong with the line."""
    keys = [key for key in ("pred", "prediction") if key in record]
    text = record[keys[0]] if keys else ""
    problems = []
    if not keys:
        problems.append("field 'pred' (or 'prediction') is missing")
    elif record[keys[-1]] != text:
        problems.append("'pred' and 'prediction' are both given and differ")
    elif text is None and record.get("error"):
        text = ""  # the run failed on this example and said so: an empty prediction
    elif not isinstance(text, str):
        problems.append(f"{keys[0]!r}: should be text, is a JSON {type(text).__name__}")
        text = ""
    for key, expected in (
        ("benchmark", task.benchmark),
        ("task", task.name),
        ("dataset", task.name),
    ):
        given = record.get(key)
        if given is not None and given != expected:
            problems.append(f"{key!r} is {given!r}, but {expected!r} is being scored")
    try:
        prediction = form.model_validate({**record, "prediction": text})
    except ValidationError as error:
        return None, problems + [describe(problem) for problem in error.errors()]
    return (None if problems else prediction), problems
