"""Several questions at once: as many as are allowed, and first those about different documents."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from evaluation.run.at_once import AtOnce


def pieces(
    log: list[str], names: list[str], wait: float = 0.0
) -> list[tuple[str, Callable[[], str]]]:
    def work(name: str) -> str:
        log.append(name)
        time.sleep(wait)
        return name

    return [(name[0], lambda name=name: work(name)) for name in names]  # type: ignore[misc]


def test_all_are_done_and_no_more_than_allowed_at_once() -> None:
    lock, under_way, most = threading.Lock(), [0], [0]

    def work() -> int:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.01)
        with lock:
            under_way[0] -= 1
        return 1

    assert sum(AtOnce([(i % 3, work) for i in range(20)], 4)) == 20
    assert most[0] == 4


def test_one_at_a_time_documents_come_in_order() -> None:
    log: list[str] = []
    assert list(AtOnce(pieces(log, ["a1", "a2", "b1", "c1", "a3"]), 1)) == log
    assert log == ["a1", "a2", "a3", "b1", "c1"]


def test_a_document_is_begun_before_another_question_of_one_under_way() -> None:
    log: list[str] = []
    list(AtOnce(pieces(log, ["a1", "a2", "a3", "b1", "b2", "c1"], wait=0.05), 3))
    assert {name[0] for name in log[:3]} == {"a", "b", "c"} and len(log) == 6


def test_where_there_are_no_other_documents_questions_of_one_are_asked_together() -> None:
    log: list[str] = []
    at_once = iter(AtOnce(pieces(log, ["a1", "a2", "a3"], wait=0.05), 3))
    next(at_once)
    assert len(log) == 3


def test_what_a_piece_raises_is_raised_where_results_are_taken() -> None:
    def fails() -> int:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        list(AtOnce([("a", fails)], 2))


def test_what_is_ready_can_be_had_without_waiting() -> None:
    stop = threading.Event()

    def waits() -> str:
        stop.wait(30)
        return "late"

    many = AtOnce([("a", lambda: "a"), ("b", lambda: "b"), ("c", waits)], 3)
    assert next(iter(many)) in "ab"
    deadline = time.monotonic() + 10
    found: list[str] = []
    while not found and time.monotonic() < deadline:
        found += many.ready()
    assert found in (["a"], ["b"]) and list(many.ready()) == []
    stop.set()
