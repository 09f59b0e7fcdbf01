"""Intervals: against known values, by their properties, and by how often they are right."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.stats import (
    Interval,
    Sample,
    average_of_tasks,
    difference_interval,
    mean_interval,
    paired_difference,
)

scores = st.lists(st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)), min_size=1, max_size=60)
binary = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60)


def ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # Wilson's interval without continuity correction, as R's prop.test(correct=FALSE) gives it:
    # for 20/20 the low end is n/(n+z^2), and the others are classics of the literature.
    [
        (20, 20, 0.838875, 1.0),
        (0, 20, 0.0, 0.161125),
        (81, 263, 0.255260, 0.366228),  # Newcombe (1998), table I
        (15, 148, 0.062386, 0.160501),  # Newcombe: 0.0624 to 0.1605
        (1, 29, 0.006113, 0.171756),  # Newcombe: 0.0061 to 0.1718
    ],
)
def test_binary_scores_get_wilsons_interval(right: int, n: int, low: float, high: float) -> None:
    interval = mean_interval([1.0] * right + [0.0] * (n - right))
    assert interval.mean == pytest.approx(right / n)
    assert ends(interval) == pytest.approx((low, high), abs=2e-4)
    assert interval.method == "Wilson"


def test_paired_binary_differences_get_agresti_and_mins_interval() -> None:
    # By hand for 8 gains, 2 losses, 10 ties: n + 2 = 22, (8 - 2)/22 = 0.272727,
    # variance (8 + 2 + 1)/22 - 0.272727^2 = 0.425620, half = 1.959964 sqrt(0.425620/22).
    interval = difference_interval([1.0] * 8 + [-1.0] * 2 + [0.0] * 10)
    half = 1.959964 * math.sqrt(0.42561983 / 22)
    assert interval.mean == pytest.approx(0.3)
    assert ends(interval) == pytest.approx((6 / 22 - half, 6 / 22 + half), abs=1e-6)


@given(scores, st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_an_interval_holds_its_mean_within_0_and_1_and_is_never_of_width_zero(
    values: list[float], seed: int
) -> None:
    interval = mean_interval(values, resamples=200, seed=seed)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    assert interval.n == len(values)
    if len(values) < 10 or len(set(values)) == 1 or set(values) <= {0.0, 1.0}:
        assert interval.high > interval.low


@given(scores)
@settings(max_examples=40, deadline=None)
def test_the_same_input_gives_the_same_interval(values: list[float]) -> None:
    documents = [f"d{i // 2}" for i in range(len(values))]
    first = mean_interval(values, documents, resamples=200, seed=3)
    assert mean_interval(values, documents, resamples=200, seed=3) == first


@given(binary)
@settings(max_examples=60, deadline=None)
def test_right_and_wrong_exchanged_mirror_the_interval(values: list[float]) -> None:
    interval = mean_interval(values)
    mirrored = mean_interval([1 - v for v in values])
    assert ends(mirrored) == pytest.approx((1 - interval.high, 1 - interval.low))


@given(scores)
@settings(max_examples=40, deadline=None)
def test_a_difference_to_itself_is_zero_and_exchange_turns_the_sign(values: list[float]) -> None:
    a = {str(i): v for i, v in enumerate(values)}
    b = {str(i): v for i, v in enumerate(reversed(values))}
    same = paired_difference(a, a)
    assert same.mean == 0
    assert same.low < 0 < same.high
    forward, backward = paired_difference(a, b), paired_difference(b, a)
    assert backward.mean == pytest.approx(-forward.mean)
    if "Agresti" in forward.method:
        assert ends(backward) == pytest.approx((-forward.high, -forward.low))


@given(binary)
@settings(max_examples=40, deadline=None)
def test_repeating_every_answer_within_its_document_adds_no_certainty(values: list[float]) -> None:
    once = mean_interval(values)
    documents = [str(i) for i in range(len(values)) for _ in range(4)]
    fourfold = mean_interval([v for v in values for _ in range(4)], documents)
    assert fourfold.clusters == len(values)
    assert fourfold.high - fourfold.low >= 0.97 * (once.high - once.low)


def test_the_bootstrap_draws_documents_not_questions() -> None:
    rng = np.random.default_rng(0)
    per_document = rng.random(40)
    values = np.repeat(per_document, 5).tolist()
    documents = [f"d{i // 5}" for i in range(200)]
    clustered = mean_interval(values, documents)
    naive = mean_interval(values)
    expected = 2 * 1.96 * per_document.std(ddof=1) / math.sqrt(40)
    assert clustered.high - clustered.low == pytest.approx(expected, rel=0.1)
    assert naive.high - naive.low < 0.6 * (clustered.high - clustered.low)
    assert "40 documents" in clustered.method
    assert "seed 0" in clustered.method


def test_another_level_widens_and_another_seed_only_jitters() -> None:
    values = np.random.default_rng(1).random(50).tolist()
    narrow, wide = mean_interval(values, level=0.5), mean_interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
    other = mean_interval(values, seed=1)
    assert ends(other) != ends(mean_interval(values))
    assert ends(other) == pytest.approx(ends(mean_interval(values)), abs=0.02)


def test_only_shared_examples_are_compared() -> None:
    interval = paired_difference({"a": 1.0, "b": 1.0, "c": 0.0}, {"b": 0.0, "c": 0.0, "z": 1.0})
    assert interval.n == 2
    assert interval.mean == 0.5
    with pytest.raises(ValueError, match="at least one"):
        paired_difference({"a": 1.0}, {"b": 1.0})


def test_pairing_removes_what_both_find_hard() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.random(100) * 0.8
    a = {str(i): float(d + 0.04 + 0.02 * rng.random()) for i, d in enumerate(difficulty)}
    b = {str(i): float(d) for i, d in enumerate(difficulty)}
    interval = paired_difference(a, b)
    assert interval.excludes_zero()
    assert interval.high - interval.low < 0.01
    assert mean_interval(list(a.values())).low < mean_interval(list(b.values())).high


def test_tasks_weigh_equally_whatever_their_size() -> None:
    small = Sample((1.0,) * 10, tuple(f"a{i}" for i in range(10)))
    large = Sample((0.0,) * 1000, tuple(f"b{i}" for i in range(1000)))
    average = average_of_tasks([small, large])
    assert average.mean == 0.5
    assert 0.3 < average.low < 0.5 < average.high < 0.7
    assert average.n == 1010


def test_one_task_averages_to_itself() -> None:
    sample = Sample((1.0, 0.0, 1.0), ("a", "b", "c"))
    assert average_of_tasks([sample]) == mean_interval(sample.values, sample.clusters)


def test_documents_shared_between_tasks_widen_the_average() -> None:
    values = tuple(np.random.default_rng(0).random(30).tolist())
    shared = [Sample(values, tuple(f"d{i}" for i in range(30)))] * 4
    apart = [Sample(values, tuple(f"t{t}-{i}" for i in range(30))) for t in range(4)]
    tied, free = average_of_tasks(shared), average_of_tasks(apart)
    assert tied.high - tied.low == pytest.approx(2 * (free.high - free.low), rel=0.01)
    assert "shared between tasks" in tied.method


@pytest.mark.parametrize("bad", [[], [1.2], [-0.1], [math.nan]])
def test_what_is_no_list_of_scores_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="value"):
        mean_interval(bad)


def test_unequal_lists_and_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values but 1 clusters"):
        mean_interval([0.0, 1.0], ["a"])
    with pytest.raises(ValueError, match="level"):
        mean_interval([0.0], level=95)
    with pytest.raises(ValueError, match="no tasks"):
        average_of_tasks([])


@pytest.mark.parametrize(
    ("share", "tasks", "n"), [(0.99, 18, 20), (0.5, 18, 20), (0.95, 6, 20), (0.9, 1, 30)]
)
def test_the_average_of_binary_tasks_covers_the_truth(share: float, tasks: int, n: int) -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(300):
        drawn = (rng.random((tasks, n)) < share).astype(float)
        samples = [
            Sample(tuple(row), tuple(f"{t}-{i}" for i in range(n)))
            for t, row in enumerate(drawn.tolist())
        ]
        interval = average_of_tasks(samples)
        hits += interval.low <= share <= interval.high
    # 95 % of 300 is 285; with a true coverage of 95 % fewer than 270 happen once in 4000 times.
    assert hits >= 270


def test_clustered_binary_scores_are_covered_too() -> None:
    rng = np.random.default_rng(3)
    documents = [f"d{i}" for i in range(25) for _ in range(6)]
    hits = naive_hits = 0
    for _ in range(300):
        knows = rng.beta(1.0, 1.0, size=25)  # a document is easy or hard as a whole
        values = (rng.random((25, 6)) < knows[:, None]).astype(float).ravel().tolist()
        clustered, naive = mean_interval(values, documents), mean_interval(values)
        hits += clustered.low <= 0.5 <= clustered.high
        naive_hits += naive.low <= 0.5 <= naive.high
    assert hits >= 270
    assert naive_hits < 260, "without clusters the interval must be seen to be too narrow"
