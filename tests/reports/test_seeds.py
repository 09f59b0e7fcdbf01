"""Trainings with several seeds, compared as one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from reports.compare import average_difference, average_score
from reports.leaderboard import Column, columns_of, tasks_of
from reports.matched import matched
from reports.run_folders import read_run
from reports.seeds import mean_difference, mean_score

MakeRun = Callable[..., Path]
SCORES = {
    "ahn-a-seed0": {"qa": [1.0, 1.0, 0.0, 1.0], "kv": [1.0, 0.0, 0.0]},
    "ahn-a-seed1": {"qa": [1.0, 0.0, 0.0, 1.0], "kv": [1.0, 1.0, 0.0]},
    "ahn-b-seed0": {"qa": [0.0, 1.0, 0.0, 0.0], "kv": [0.0, 0.0, 0.0]},
    "ahn-b-seed1": {"qa": [0.0, 0.0, 0.0, 1.0], "kv": [1.0, 0.0, 0.0]},
}


def columns(folder: Path) -> dict[str, Column]:
    return {column.variant: column for column in columns_of([read_run(folder)])}


def test_one_seed_is_compared_as_any_two_columns(make_run: MakeRun) -> None:
    found = columns(make_run("run", SCORES))
    a, b = found["ahn-a-seed0"], found["ahn-b-seed0"]
    shared, tasks = matched(list(found.values())), tasks_of([a])
    assert mean_score([a], tasks, shared) == average_score(a, tasks, shared)
    assert mean_difference([a], [b], tasks, shared) == average_difference(a, b, tasks, shared)


def test_two_seeds_are_averaged_example_by_example(make_run: MakeRun) -> None:
    found = columns(make_run("run", SCORES))
    a = [found["ahn-a-seed0"], found["ahn-a-seed1"]]
    b = [found["ahn-b-seed0"], found["ahn-b-seed1"]]
    shared, tasks = matched(list(found.values())), tasks_of(a)
    score, difference = mean_score(a, tasks, shared), mean_difference(a, b, tasks, shared)
    assert score is not None and difference is not None
    # qa: 1, .5, 0, 1 less 0, .5, 0, .5; kv: 1, .5, 0 less .5, 0, 0
    assert score.mean == pytest.approx((2.5 / 4 + 1.5 / 3) / 2)
    assert difference.mean == pytest.approx((1.5 / 4 + 1 / 3) / 2)
    assert (difference.n, difference.clusters) == (7, 7), "examples, not examples x seeds"
    assert difference.low < difference.mean < difference.high


def test_what_one_seed_did_not_answer_counts_for_none(make_run: MakeRun) -> None:
    scores = {name: dict(tasks) for name, tasks in SCORES.items()}
    scores["ahn-a-seed1"]["qa"] = [None, 0.0, 0.0, 1.0]  # type: ignore[list-item]
    found = columns(make_run("run", scores))
    a = [found["ahn-a-seed0"], found["ahn-a-seed1"]]
    qa = [task for task in tasks_of(a) if task.task == "qa"]
    alone = {name: column for name, column in found.items() if name.startswith("ahn-a")}
    difference = mean_difference(a, [found["ahn-b-seed0"]], qa, matched(list(alone.values())))
    assert difference is not None and difference.n == 3
    assert difference.mean == pytest.approx((-0.5 + 0 + 1) / 3)


def test_questions_about_one_document_stay_together(make_run: MakeRun) -> None:
    found = columns(make_run("run", SCORES, record={"document_id": "one"}))
    a, b = [found["ahn-a-seed0"]], [found["ahn-b-seed0"]]
    difference = mean_difference(a, b, tasks_of(a), matched([*a, *b]))
    assert difference is not None and difference.clusters == 1


def test_nothing_in_common_is_nothing(make_run: MakeRun) -> None:
    found = columns(make_run("run", {"a": {"qa": [1.0]}, "b": {"kv": [1.0]}}))
    both = list(found.values())
    tasks, shared = tasks_of(both), matched(both)
    assert mean_difference([found["a"]], [found["b"]], tasks, shared) is None
    assert mean_score(both, tasks, shared) is None
