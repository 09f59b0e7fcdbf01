"""Scores of many predictions, in this process or, where that takes long, in several."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace

from tasks.predictions import Prediction
from tasks.schema import Metric, Task

Watch = Callable[[int, int], None]
"""Is told how many predictions have been scored, and of how many."""

ALONE_SECONDS = 2.0
"""What one process may take before its pace is looked at."""
WORTH_SECONDS = 6.0
"""Starting workers takes a second or two: work that takes less than this is done without."""
CHUNKS_PER_WORKER = 8
"""So many pieces each, so that one with long texts is not waited for at the end."""
_TOLD_EVERY = 0.1


@dataclass
class _Progress:
    watch: Watch | None
    total: int
    done: int = 0
    told: float = -math.inf

    def add(self, count: int) -> None:
        """So many more are scored; the watcher is told ten times a second, and at the end."""
        self.done += count
        now = time.perf_counter()
        if self.watch and (self.done == self.total or now - self.told >= _TOLD_EVERY):
            self.told = now
            self.watch(self.done, self.total)


def scores_of(
    predictions: Sequence[Prediction],
    task: Task,
    protocol: str,
    workers: int | None = None,
    watch: Watch | None = None,
) -> list[float]:
    """The score of each prediction, in their order and the same for any number of `workers`.

    None: this process, and as many as there are processors once that shows to be slow.
    """
    progress = _Progress(watch, len(predictions))
    count = _processors() if workers is None else workers
    scores: list[float] = []
    if count > 1 and not _can_be_sent(task, protocol):
        workers = count = 1
    if workers is None or count == 1:
        scores = _alone(predictions, task, protocol, progress, to_the_end=count == 1)
    if len(scores) < len(predictions):
        scores += _together(predictions[len(scores) :], task, protocol, progress, count)
    return scores


def _processors() -> int:
    if multiprocessing.current_process().daemon:
        return 1  # may have no processes of its own
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _metric(task: Task, protocol: str) -> Metric | None:
    """The function itself: what a program registered, a process that it starts does not know."""
    return task.find_metric and task.find_metric(task.protocol(protocol).metric)


def _can_be_sent(task: Task, protocol: str) -> bool:
    """Whether another process can be given the task and its metric, which a lambda cannot."""
    try:
        pickle.dumps((task, _metric(task, protocol)))
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


def _score_there(
    lines: Sequence[Prediction], task: Task, protocol: str, metric: Metric | None
) -> list[float]:
    """Scores in a worker, by the metric that it was sent."""
    return _score(lines, replace(task, find_metric=metric and (lambda name: metric)), protocol)


def _score(lines: Sequence[Prediction], task: Task, protocol: str) -> list[float]:
    return [task.score(line.text, line.example, protocol) for line in lines]


def _alone(
    predictions: Sequence[Prediction],
    task: Task,
    protocol: str,
    progress: _Progress,
    to_the_end: bool,
) -> list[float]:
    """Scores in this process: of all, or of the first until the rest would take long."""
    started = time.perf_counter()
    scores: list[float] = []
    for line in predictions:
        scores += _score([line], task, protocol)
        progress.add(1)
        taken = time.perf_counter() - started
        rest = len(predictions) - len(scores)
        if not to_the_end and taken > ALONE_SECONDS and taken / len(scores) * rest > WORTH_SECONDS:
            break
    return scores


def _together(
    predictions: Sequence[Prediction], task: Task, protocol: str, progress: _Progress, count: int
) -> list[float]:
    """Scores in `count` processes; what a worker that dies leaves undone is done here."""
    size = max(1, math.ceil(len(predictions) / (count * CHUNKS_PER_WORKER)))
    chunks = [predictions[start : start + size] for start in range(0, len(predictions), size)]
    scores: list[list[float]] = [[] for _ in chunks]
    # Spawned, not forked: a fork copies the locks of whatever threads are running here.
    context = multiprocessing.get_context("spawn")
    metric = _metric(task, protocol)
    pool = ProcessPoolExecutor(min(count, len(chunks)), mp_context=context)
    try:
        futures = {
            pool.submit(_score_there, chunk, task, protocol, metric): number
            for number, chunk in enumerate(chunks)
        }
        for future in as_completed(futures):
            scores[futures[future]] = future.result()
            progress.add(len(chunks[futures[future]]))
    except BrokenExecutor:
        pass
    finally:
        pool.shutdown(cancel_futures=True)
    for number, chunk in enumerate(chunks):
        if not scores[number]:
            scores[number] = _score(chunk, task, protocol)
            progress.add(len(chunk))
    return [score for chunk in scores for score in chunk]
