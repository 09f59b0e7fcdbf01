"""Means and paired differences with intervals: the only place where uncertainty is computed.

One rule for all (`reports.interval_rule`): binary and fractional scores, single examples and
questions about one document, one task and the average over many. It has no thresholds, so a small
change of the scores, or one more document, changes an interval only a little. How often it is right
was measured (`tests/bench/coverage.py`; the table and the reasons stand in `docs/statistics.md`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from reports.interval_rule import DIFFERENCES, SCORES, Scale, estimate_of, stratum_of

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its interval; `n` values in `clusters` documents; `method` in words.

    `p` is that of the mean being 0, for differences: 1 minus the highest level whose interval
    excludes 0. None for scores.
    """

    mean: float
    low: float
    high: float
    n: int
    clusters: int
    method: str
    p: float | None = None

    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval (for differences: a clear direction)."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Sample:
    """Values and, value by value, the cluster (document) each belongs to."""

    values: tuple[float, ...]
    clusters: tuple[Hashable, ...]


def mean_interval(
    scores: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = LEVEL
) -> Interval:
    """Mean of scores in [0, 1] with its interval at `level`.

    `clusters` names the document of each score; None: each score stands for itself. Raises
    ValueError for no scores, scores outside [0, 1] or lists of unequal length.
    """
    return _interval(SCORES, [(scores, clusters)], None, level)


def difference_interval(
    differences: Sequence[float], clusters: Sequence[Hashable] | None = None, level: float = LEVEL
) -> Interval:
    """Mean of paired differences in [-1, 1]; otherwise as `mean_interval`."""
    return _interval(DIFFERENCES, [(differences, clusters)], None, level)


def pair(
    a: Mapping[str, float],
    b: Mapping[str, float],
    clusters: Mapping[str, Hashable] | None = None,
) -> Sample:
    """The differences a - b over the examples that both have, in the order of `a`."""
    shared = [key for key in a if key in b]
    return Sample(
        values=tuple(a[key] - b[key] for key in shared),
        clusters=tuple(key if clusters is None else clusters[key] for key in shared),
    )


def paired_difference(
    a: Mapping[str, float],
    b: Mapping[str, float],
    clusters: Mapping[str, Hashable] | None = None,
    level: float = LEVEL,
) -> Interval:
    """Mean of a - b over the examples that both have, each compared with itself.

    `a` and `b` map example ids to scores in [0, 1], `clusters` maps them to documents. Raises
    ValueError when no example is shared.
    """
    sample = pair(a, b, clusters)
    return difference_interval(sample.values, sample.clusters, level)


def average_of_tasks(
    samples: Sequence[Sample],
    differences: bool = False,
    level: float = LEVEL,
    weights: Sequence[float] | None = None,
) -> Interval:
    """Mean of the tasks' means with its interval; the tasks weigh equally, or as `weights` say.

    The samples hold scores, or with `differences` paired differences (see `pair`). Documents
    that occur in several tasks tie these together; the variance is then multiplied by the
    ratio of the one with these ties to the one without. Raises ValueError for no tasks, and for
    weights that are not one positive number for each.
    """
    if not samples:
        raise ValueError("no tasks to average")
    if weights is not None and (
        len(weights) != len(samples) or not all(0 < w < math.inf for w in weights)
    ):
        raise ValueError(f"{len(samples)} tasks need as many positive weights, not {weights}")
    scale = DIFFERENCES if differences else SCORES
    return _interval(scale, [(s.values, s.clusters) for s in samples], weights, level)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order.

    To call significant what lies below 0.05 is then wrong about any of them in at most one of
    twenty such families of tests (Holm 1979).
    """
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def _interval(
    scale: Scale,
    samples: Sequence[tuple[Sequence[float], Sequence[Hashable] | None]],
    weights: Sequence[float] | None,
    level: float,
) -> Interval:
    """The rule of this module, for one sample or the average of several."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    relative = [1.0] * len(samples) if weights is None else list(weights)
    strata = [
        stratum_of(scale, values, clusters, weight / sum(relative))
        for (values, clusters), weight in zip(samples, relative, strict=True)
    ]
    estimate, tie = estimate_of(strata)
    low, high = estimate.ends(level)
    means = [
        s.weight * math.fsum(values) / len(values)
        for s, (values, _) in zip(strata, samples, strict=True)
    ]
    mean = min(scale.most, max(scale.least, math.fsum(means)))
    n = sum(len(values) for values, _ in samples)
    method = f"Wilson's rule with an effective n of {1 / estimate.unit:,.1f} for {n:,}"
    if estimate.freedom < 1000:
        method += f", t with {estimate.freedom:.1f} degrees of freedom"
    if len(samples) > 1:
        method += f", stratified by {len(samples)} tasks"
    if tie > 1:
        method += f", variance times {tie:.2f} for documents shared between tasks"
    return Interval(
        mean=mean,
        low=min(mean, max(scale.least, scale.least + scale.span * low)),
        high=max(mean, min(scale.most, scale.least + scale.span * high)),
        n=n,
        clusters=len({c for s in strata for c in s.residuals})
        if all(clusters is not None for _, clusters in samples)
        else n,
        method=method,
        p=estimate.p(0.5) if scale is DIFFERENCES else None,
    )
