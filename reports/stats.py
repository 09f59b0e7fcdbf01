"""Means and paired differences with intervals: the only place where uncertainty is computed.

Questions about one document are not independent, so the unit that is resampled is the
document (cluster), never the single question. Three situations, one rule each; every result
names the rule that made it:

=====================================  ====================================================
scores                                 interval
=====================================  ====================================================
all 0 or 1                             Wilson's score interval (Wilson 1927). Clusters shrink
                                       n to the effective n, by the design effect.
fractional, 10 or more clusters        percentile bootstrap over clusters, seeded
fractional, fewer clusters or equal    Wilson's with n = clusters: of all scores in [0, 1]
                                       with one mean, binary ones vary most, so it is wide
                                       enough for the rest.
=====================================  ====================================================

Paired differences lie in [-1, 1]. The same three rows hold with Agresti and Min's adjusted
interval (2005; half a pair added to each of the four outcomes) in Wilson's place. So 20 of 20
or one single example never gives an interval of width zero.

The average over tasks weighs tasks equally, as the benchmarks do. When every score is 0 or 1
its interval is the same closed form, with the n that a single sample of equal variance would
have; otherwise it is put together from the tasks' intervals (MOVER: Zou and Donner 2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
FEWEST_CLUSTERS_FOR_BOOTSTRAP = 10
_MOST_DRAWS_AT_ONCE = 2_000_000  # bounds the bootstrap's working memory to some 16 MB

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and its interval; `n` values in `clusters` documents; `method` in words."""

    mean: float
    low: float
    high: float
    n: int
    clusters: int
    method: str

    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval (for differences: a clear direction)."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Rule:
    """What may be averaged: range, the values of a discrete outcome, and its closed form."""

    name: str
    least: float
    most: float
    outcomes: frozenset[float]
    ends: Callable[[float, float, float, float], tuple[float, float]]
    """(mean, mean square, n, z) -> (low, high)"""


@dataclass(frozen=True)
class Sample:
    """Values and, value by value, the cluster (document) each belongs to."""

    values: tuple[float, ...]
    clusters: tuple[Hashable, ...]


def mean_interval(
    scores: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of scores in [0, 1] with its interval at `level`.

    `clusters` names the document of each score; None: each score stands for itself. Raises
    ValueError for no scores, scores outside [0, 1] or lists of unequal length.
    """
    return _interval(SCORES, scores, clusters, level, resamples, seed)


def difference_interval(
    differences: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of paired differences in [-1, 1]; otherwise as `mean_interval`."""
    return _interval(DIFFERENCES, differences, clusters, level, resamples, seed)


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
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of a - b over the examples that both have, each compared with itself.

    `a` and `b` map example ids to scores in [0, 1], `clusters` maps them to documents. Raises
    ValueError when no example is shared.
    """
    sample = pair(a, b, clusters)
    return difference_interval(sample.values, sample.clusters, level, resamples, seed)


def average_of_tasks(
    samples: Sequence[Sample],
    differences: bool = False,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of the tasks' means, tasks weighing equally, with its interval.

    The samples hold scores, or with `differences` paired differences (see `pair`). Documents
    that occur in several tasks tie these together; the variance is then multiplied by the
    ratio of the one with these ties to the one without. Raises ValueError for no tasks.
    """
    if not samples:
        raise ValueError("no tasks to average")
    rule = DIFFERENCES if differences else SCORES
    parts = [_interval(rule, s.values, s.clusters, level, resamples, seed) for s in samples]
    if len(parts) == 1:
        return parts[0]
    tie = _tie_between_tasks(samples)
    mean = sum(p.mean for p in parts) / len(parts)
    if all(v in rule.outcomes for s in samples for v in s.values):
        low, high = _stratified(rule, samples, mean, tie, NormalDist().inv_cdf((1 + level) / 2))
        method = f"{rule.name}, stratified by {len(parts)} tasks"
    else:
        widening = math.sqrt(tie) / len(parts)
        low = mean - math.hypot(*(p.mean - p.low for p in parts)) * widening
        high = mean + math.hypot(*(p.high - p.mean for p in parts)) * widening
        method = f"MOVER over the intervals of {len(parts)} tasks"
    if tie > 1:
        method += f", variance times {tie:.2f} for documents shared between tasks"
    return Interval(
        mean=mean,
        low=min(mean, max(rule.least, low)),
        high=max(mean, min(rule.most, high)),
        n=sum(p.n for p in parts),
        clusters=len({c for s in samples for c in s.clusters}),
        method=method,
    )


def _stratified(
    rule: Rule, samples: Sequence[Sample], mean: float, tie: float, z: float
) -> tuple[float, float]:
    """The rule's closed form for tasks of discrete outcomes, each task its own stratum.

    n is chosen so that the pooled outcomes would have the variance that the tasks have. A
    task's own spread is drawn to the pooled one by two pseudo-observations: twenty out of
    twenty in one task is no proof of spread zero.
    """
    arrays = [np.asarray(s.values, dtype=np.float64) for s in samples]
    worth = [
        _effective_n(x, *_cluster_sums(x, s.clusters)) for x, s in zip(arrays, samples, strict=True)
    ]
    mean_square = sum(float(np.mean(x * x)) for x in arrays) / len(arrays)
    pooled = mean_square - mean * mean
    if pooled <= 1e-12:
        variance_ratio = sum(1 / n for n in worth)
    else:
        spreads = [(len(x) * float(x.var()) + 2 * pooled) / (len(x) + 2) for x in arrays]
        variance_ratio = sum(v / n for v, n in zip(spreads, worth, strict=True)) / pooled
    return rule.ends(mean, mean_square, len(arrays) ** 2 / (variance_ratio * tie), z)


def _interval(
    rule: Rule,
    values: Sequence[float],
    clusters: Sequence[Hashable] | None,
    level: float,
    resamples: int,
    seed: int,
) -> Interval:
    """The three situations of this module, told apart."""
    if len(values) == 0:
        raise ValueError("no values: a mean needs at least one")
    if clusters is not None and len(clusters) != len(values):
        raise ValueError(f"{len(values)} values but {len(clusters)} clusters")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    x = np.asarray(values, dtype=np.float64)
    if not bool(np.all((x >= rule.least) & (x <= rule.most))):
        raise ValueError(f"values must lie in [{rule.least:g}, {rule.most:g}]")
    sums, sizes = _cluster_sums(x, clusters)
    n, count = len(x), len(sums)
    mean = float(x.mean())
    equal = bool(np.all(x == x[0]))
    discrete = all(v in rule.outcomes for v in x.tolist())
    if not discrete and not equal and count >= FEWEST_CLUSTERS_FOR_BOOTSTRAP:
        low, high = _bootstrap(sums, sizes, level, resamples, seed)
        method = f"bootstrap over {count} documents ({resamples} resamples, seed {seed})"
    else:
        effective = _effective_n(x, sums, sizes) if discrete else float(count)
        z = NormalDist().inv_cdf((1 + level) / 2)
        low, high = rule.ends(mean, float(np.mean(x * x)), effective, z)
        method = rule.name
        if effective != n:
            method += f", effective n {effective:.1f} of {n}"
        if not discrete:
            method += " (conservative: few documents or equal scores)"
    return Interval(
        mean=mean,
        low=min(mean, max(rule.least, low)),
        high=max(mean, min(rule.most, high)),
        n=n,
        clusters=count,
        method=method,
    )


def _cluster_sums(x: Floats, clusters: Sequence[Hashable] | None) -> tuple[Floats, Floats]:
    """Sum of values and number of values per cluster, in order of first appearance."""
    if clusters is None:
        return x, np.ones_like(x)
    numbers: dict[Hashable, int] = {}
    index = np.asarray([numbers.setdefault(c, len(numbers)) for c in clusters])
    sums: Floats = np.bincount(index, weights=x).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)


def _effective_n(x: Floats, sums: Floats, sizes: Floats) -> float:
    """n over the design effect: how many independent values the clustered ones are worth.

    Never more than n. With few clusters of several values, or equal values throughout, the
    design effect is unknown, and each cluster counts once.
    """
    n, count = len(x), len(sums)
    if count == n:
        return float(n)
    if count < FEWEST_CLUSTERS_FOR_BOOTSTRAP or bool(np.all(x == x[0])):
        return float(count)
    mean = x.mean()
    clustered = float(np.sum((sums - mean * sizes) ** 2)) * count / (count - 1)
    independent = float(np.sum((x - mean) ** 2)) * n / (n - 1)
    return n / max(1.0, clustered / independent)


def _bootstrap(
    sums: Floats, sizes: Floats, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of the mean when whole clusters are drawn with replacement."""
    rng = np.random.default_rng(seed)
    count = len(sums)
    rows = max(1, _MOST_DRAWS_AT_ONCE // count)
    means = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(0, count, size=(min(rows, resamples - start), count))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def _wilson(mean: float, mean_square: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's score interval for a proportion `mean` of `n`; `mean_square` is not needed."""
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(0.0, mean * (1 - mean)) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def _agresti_min(mean: float, mean_square: float, n: float, z: float) -> tuple[float, float]:
    """Agresti and Min's interval: Wald's after adding half a pair to each of four outcomes.

    For differences d in {-1, 0, 1} that is half an observation of -1, half of +1 and one of 0.
    """
    centre = mean * n / (n + 2)
    variance = (mean_square * n + 1) / (n + 2) - centre * centre
    half = z * math.sqrt(max(0.0, variance) / (n + 2))
    return centre - half, centre + half


SCORES = Rule("Wilson", 0.0, 1.0, frozenset({0.0, 1.0}), _wilson)
DIFFERENCES = Rule("Agresti-Min", -1.0, 1.0, frozenset({-1.0, 0.0, 1.0}), _agresti_min)


def _tie_between_tasks(samples: Sequence[Sample]) -> float:
    """Variance of the tasks' average with shared documents over that without; 1 or more."""
    joint: dict[Hashable, float] = {}
    separate = 0.0
    occurrences = 0
    for sample in samples:
        mean = sum(sample.values) / len(sample.values)
        own: dict[Hashable, float] = {}
        for value, cluster in zip(sample.values, sample.clusters, strict=True):
            own[cluster] = own.get(cluster, 0.0) + (value - mean) / len(sample.values)
        separate += sum(v * v for v in own.values())
        occurrences += len(own)
        for cluster, part in own.items():
            joint[cluster] = joint.get(cluster, 0.0) + part
    if occurrences == len(joint):
        return 1.0
    if separate == 0:
        return occurrences / len(joint)
    return max(1.0, sum(v * v for v in joint.values()) / separate)
