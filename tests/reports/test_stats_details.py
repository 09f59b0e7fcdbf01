"""Details of the interval rule that its general properties do not tell."""

from __future__ import annotations

import math
import re

import pytest

from reports.interval_rule import DIFFERENCES, SCORES, _similarity, estimate_of, stratum_of
from reports.stats import (
    Interval,
    Sample,
    average_of_tasks,
    difference_interval,
    mean_interval,
    pair,
    paired_difference,
)


@pytest.mark.parametrize(
    ("low", "high", "excluded"),
    [
        (0.1, 0.2, True),
        (-0.2, -0.1, True),
        (-0.1, 0.1, False),
        (0.0, 0.2, False),
        (-0.2, 0.0, False),
    ],
)
def test_an_interval_that_ends_at_zero_does_not_exclude_it(
    low: float, high: float, excluded: bool
) -> None:
    assert Interval((low + high) / 2, low, high, 5, 5, "").excludes_zero() is excluded


def test_pairs_carry_the_document_of_each_example() -> None:
    a, b = {"x": 1.0, "y": 0.5, "z": 1.0}, {"y": 0.0, "x": 0.25}
    assert pair(a, b) == Sample((0.75, 0.5), ("x", "y"))
    assert pair(a, b, {"x": "one", "y": "one", "z": "two"}) == Sample((0.75, 0.5), ("one", "one"))


def test_questions_about_one_document_count_as_one_in_a_paired_difference() -> None:
    a = {f"q{n}": float(n % 3 > 0) for n in range(12)}
    b = {f"q{n}": float(n % 4 > 1) for n in range(12)}
    single = paired_difference(a, b)
    joint = paired_difference(a, b, {key: int(key[1:]) // 4 for key in a})
    assert (single.clusters, joint.clusters) == (12, 3)
    assert joint.high - joint.low > single.high - single.low


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 1.5])
def test_a_level_outside_of_zero_and_one_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match=rf"^level must lie between 0 and 1, not {level}$"):
        mean_interval([0.0, 1.0], level=level)


def test_no_values_and_no_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^no values: a mean needs at least one$"):
        mean_interval([])
    with pytest.raises(ValueError, match=r"^no tasks to average$"):
        average_of_tasks([])


def test_the_method_says_the_effective_number_that_the_interval_follows_from() -> None:
    """Wilson's interval for that number, with half an answer's variance, is the interval."""
    scores = [0.0, 0.2, 0.4, 0.9, 1.0, 0.3, 0.5, 0.7]
    found = mean_interval(scores, level=0.9)
    told = re.fullmatch(
        r"Wilson's rule with an effective n of ([\d.]+) for 8, t with ([\d.]+) degrees of freedom",
        found.method,
    )
    assert told is not None, found.method
    estimate, _ = estimate_of([stratum_of(SCORES, scores, None, 1.0)])
    assert float(told[1]) == pytest.approx(1 / estimate.unit, abs=0.05)
    assert float(told[1]) > 8  # fractional scores: more than as many binary ones
    assert float(told[2]) == pytest.approx(estimate.freedom, abs=0.05)


def test_binary_scores_have_no_degrees_of_freedom_to_tell() -> None:
    assert mean_interval([0.0, 1.0, 1.0, 1.0]).method == (
        "Wilson's rule with an effective n of 4.0 for 4"
    )
    assert "1,200" in mean_interval([0.0, 1.0] * 600).method


def test_values_are_as_alike_as_pairs_of_documents_drawn_at_random() -> None:
    import numpy as np

    share = np.full(4, 0.25)
    assert _similarity(np.array([0.5]), np.ones(1), 0.05) == 1.0
    assert _similarity(np.array([0.5, 0.5, 0.5, 0.5]), share, 0.05) == pytest.approx(1.0)
    assert _similarity(np.array([0.0, 0.2, 0.4, 0.6]), share, 0.05) == 0.0
    # one of four apart: 3 of the 6 pairs agree
    assert _similarity(np.array([1.0, 0.5, 0.5, 0.5]), share, 0.05) == pytest.approx(0.5)
    # a pair at half the width counts half
    assert _similarity(np.array([0.0, 0.025]), np.full(2, 0.5), 0.05) == pytest.approx(0.5)


def test_documents_that_several_tasks_share_widen_the_average_by_their_joint_residuals() -> None:
    """Residuals of one sign in both tasks add up; of opposite signs they cancel."""
    a = (1.0, 1.0, 0.0, 0.0, 1.0, 0.0)
    names = tuple(range(6))
    same = average_of_tasks([Sample(a, names), Sample(a, names)])
    opposite = average_of_tasks([Sample(a, names), Sample(tuple(1 - v for v in a), names)])
    apart = average_of_tasks([Sample(a, names), Sample(a, tuple(n + 6 for n in names))])
    # Twelve values of which each document's two agree carry what six do.
    ratio = (same.high - same.low) / (apart.high - apart.low)
    assert 1.2 < ratio < 1.5  # sqrt(2), less what the interval's ends bend
    assert "variance times 2.0" in same.method
    assert "shared between tasks" not in opposite.method  # never narrower for it
    assert (same.clusters, apart.clusters) == (6, 12)


@pytest.mark.parametrize(("values", "scale"), [([0.2, 1.2], SCORES), ([-1.5, 0.0], DIFFERENCES)])
def test_values_beyond_the_scale_are_refused(values: list[float], scale: object) -> None:
    interval = mean_interval if scale is SCORES else difference_interval
    with pytest.raises(ValueError, match="values must lie in"):
        interval(values)
    assert math.isfinite(interval([0.0, 1.0]).mean)
