"""Score a file of predictions, whoever made it, without a model and without the rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from common.errors import InputError
from tasks.averages import benchmark_tables
from tasks.means import Scored
from tasks.metrics import find_metric
from tasks.predictions import Prediction, read_predictions
from tasks.registry import find_task, protocol_name
from tasks.schema import Task
from tasks.sources import load_examples
from tasks.workers import Watch, scores_of


def score_file(
    path: str | PathLike[str],
    benchmark: str,
    task: str,
    protocol: str,
    *,
    data: str | None = None,
    metric: str | None = None,
    workers: int | None = None,
    watch: Watch | None = None,
) -> list[float]:
    """The score in [0, 1] of every line of a prediction file, in the order of the lines.

    As `scored_file`, whose arguments it takes.
    """
    found = scored_file(
        path, benchmark, task, protocol, data=data, metric=metric, workers=workers, watch=watch
    )
    return [line.score for line in found]


def scored_file(
    path: str | PathLike[str],
    benchmark: str,
    task: str,
    protocol: str,
    *,
    data: str | None = None,
    metric: str | None = None,
    workers: int | None = None,
    watch: Watch | None = None,
) -> list[Scored]:
    """The score and the length of every line of a prediction file, in the order of the lines.

    As in LongBench's eval.py, the classes of a classification task are those of the file's last
    line, for all of its lines; where that has none (the authors' code raises then) each line is
    scored with its own, and 0 without any.

    Args:
        path: the file; see `tasks.predictions`.
        benchmark, task, protocol: names; a data set with levels may be given without one.
        data: the folder of its rows, to check that there is a prediction for each; None: not
            checked.
        metric: name of another metric than the protocol's (`tasks.metrics.METRICS`), as
            `code_similarity_levenshtein`; the scores are not the protocol's then.
        workers: processes; 1: only this one. None: as many as there are processors, once this
            one alone proves slow. They are spawned, so a script that wants them needs the usual
            `if __name__ == "__main__":`.
        watch: is told how many predictions have been scored, and of how many.

    Raises:
        InputError: unknown benchmark, task, protocol or metric; a file that cannot be read, has no
            lines or not as many as there are rows; and, with one message for each, every line
            that is not UTF-8, not a JSON object, lacks a key or belongs to another task.
    """
    found = find_task(benchmark, task)
    protocol = protocol_name(found.benchmark, protocol)
    rules = found.protocol(protocol)  # before the file is read
    if metric is not None:
        find_metric(metric)  # there is one, before the file is read
        rules = dataclasses.replace(rules, metric=metric)
        found = dataclasses.replace(found, protocols={**found.protocols, protocol: rules})
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, not {workers}")
    predictions = read_predictions(Path(path), found)
    if data is not None:
        _check_count(Path(path), len(predictions), found, data)
    if rules.metric == "classification":
        predictions = _with_classes_of_the_last(predictions)
    scores = scores_of(predictions, found, protocol, workers, watch)
    return [
        Scored(score, _length(line), line.example.attributes)
        for score, line in zip(scores, predictions, strict=True)
    ]


def score_per_length(benchmark: str, task: str, lines: Sequence[Scored]) -> dict[str, float]:
    """The figures of a task by length, where its authors print these (LongBench-E); else none."""
    found = find_task(benchmark, task)
    return {
        column: figure
        for table in benchmark_tables(found.benchmark, {found.name: lines})
        for name, row in table.rows
        if name == found.name and len(table.columns) > 1
        for column, figure in zip(table.columns, row, strict=True)
        if figure is not None
    }


def _length(line: Prediction) -> int | None:
    length = line.example.row.get("length")
    return length if isinstance(length, int) and not isinstance(length, bool) else None


def benchmark_score(scores: Sequence[float]) -> float:
    """The figure that the authors print for a task: 100 times the mean, to two decimals.

    InputError without scores, of which there is no mean.
    """
    if not scores:
        raise InputError("no scores to average")
    return round(100 * sum(scores) / len(scores), 2)


def _with_classes_of_the_last(predictions: list[Prediction]) -> list[Prediction]:
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


def _check_count(path: Path, predictions: int, task: Task, data: str) -> None:
    """A mean over some of the rows is not the task's score: there is one prediction for each."""
    source = load_examples(task, data, None, 0)
    rows = len(source.examples)
    if predictions == rows:
        return
    where = source.files[0]["path"]
    if predictions < rows:
        what = f"ends after {predictions} predictions, but {where} has {rows} rows"
        raise InputError(f"{path}:{predictions + 1}: {what}")
    what = f"is one prediction too many: {where} has {rows} rows"
    raise InputError(f"{path}:{rows + 1}: {what}, the file {predictions} lines")
