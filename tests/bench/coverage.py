"""How often is an interval right? Simulated for the rule of `reports/stats.py`.

    python tests/bench/coverage.py
    python tests/bench/coverage.py --only 'paired' --sizes 5,10 --replications 500

Samples are drawn from distributions whose mean is known, and counted is how often the 95 %
interval holds it. The numbers of examples are `--sizes` (documents for clustered samples, examples
per task for averages). Every cell has a seed of its own, made from `--seed` and its name, so that
a part gives the same figures as the whole. Prints the tables of `docs/statistics.md` (Markdown),
then one line of JSON; exit code 1 when a coverage is below `--least`.

2,000 replications have a standard error of 0.5 points. About a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reports.stats import Interval, Sample, average_of_tasks, difference_interval, mean_interval

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]
SIZES = (5, 6, 8, 10, 15, 20, 30, 50, 100, 200)


@dataclass(frozen=True)
class Scenario:
    """A distribution, the mean that intervals should hold, and how an interval is formed."""

    group: str
    name: str
    truth: float
    interval: Callable[[np.random.Generator, int], Interval]
    """(source of chance, size) -> the interval of one drawn sample."""


def binary(share: float) -> Draw:
    """1 with probability `share`, else 0."""
    return lambda rng, shape: (rng.random(shape) < share).astype(float)


def beta(a: float, b: float) -> Draw:
    """Beta distribution; mean a / (a + b)."""
    return lambda rng, shape: rng.beta(a, b, shape)


def values(choices: Sequence[float], shares: Sequence[float]) -> Draw:
    """A few values, as of an F1 of short answers."""
    return lambda rng, shape: rng.choice(choices, p=shares, size=shape)


def normal(mean: float, deviation: float, least: float = -1.0) -> Draw:
    """Normal distribution, cut to [`least`, 1], where next to nothing of it may lie outside."""
    return lambda rng, shape: np.clip(rng.normal(mean, deviation, shape), least, 1)


def mixed(share: float, rare: Draw, common: float = 0.0) -> Draw:
    """`rare` with probability `share`, else the value `common`."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        return np.where(rng.random(shape) < share, rare(rng, shape), common)

    return draw


def uniform(low: float, high: float) -> Draw:
    """Uniform between two values."""
    return lambda rng, shape: rng.uniform(low, high, shape)


F1 = ((0, 0.25, 0.4, 0.5, 2 / 3, 0.8, 1.0), (0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2))
F1_MEAN = sum(v * p for v, p in zip(*F1, strict=True))


def scores() -> list[Scenario]:
    """Single scores, every example a document of its own."""
    drawn: list[tuple[str, float, Draw]] = [
        *((f"right with p = {p:g}", p, binary(p)) for p in (0.5, 0.7, 0.9, 0.95, 0.98)),
        ("uniform", 0.5, uniform(0, 1)),
        ("U-shaped, beta(0.3, 0.3)", 0.5, beta(0.3, 0.3)),
        ("beta(0.3, 0.9)", 0.25, beta(0.3, 0.9)),
        ("mostly near 0, beta(0.3, 2.7)", 0.1, beta(0.3, 2.7)),
        ("mostly near 1, beta(5, 0.5)", 5 / 5.5, beta(5, 0.5)),
        ("beta(2, 5)", 2 / 7, beta(2, 5)),
        ("narrow, beta(20, 20)", 0.5, beta(20, 20)),
        ("ROUGE: normal 0.22, 0.06", 0.22, normal(0.22, 0.06, 0.0)),
        ("F1 of short answers", F1_MEAN, values(*F1)),
        ("70 % at 0, else beta(2, 2)", 0.15, mixed(0.3, beta(2, 2))),
        ("90 % at 0, else uniform", 0.05, mixed(0.1, uniform(0, 1))),
        ("90 % at 1, else uniform", 0.95, mixed(0.1, uniform(0, 1), 1.0)),
        ("0, 0.5 or 1", 0.7, values((0, 0.5, 1), (0.2, 0.2, 0.6))),
    ]

    def single(draw: Draw) -> Callable[[np.random.Generator, int], Interval]:
        return lambda rng, n: mean_interval(draw(rng, (n,)).tolist())

    return [Scenario("Scores", name, truth, single(draw)) for name, truth, draw in drawn]


def paired() -> list[Scenario]:
    """Differences of two scores of one example."""
    f1 = values(*F1)
    drawn: list[tuple[str, float, Draw]] = [
        ("binary: 30 % gained, 10 % lost", 0.2, values((-1, 0, 1), (0.1, 0.6, 0.3))),
        ("binary: 10 % gained, 10 % lost", 0.0, values((-1, 0, 1), (0.1, 0.8, 0.1))),
        ("binary: 5 % gained, 5 % lost", 0.0, values((-1, 0, 1), (0.05, 0.9, 0.05))),
        ("binary: 90 % gained, none lost", 0.9, binary(0.9)),
        ("binary: 20 % gained, none lost", 0.2, binary(0.2)),
        ("independent F1", 0.0, lambda rng, shape: f1(rng, shape) - f1(rng, shape)),
        ("U-shaped minus U-shaped", 0.25, _minus(beta(0.3, 0.3), beta(0.3, 0.9))),
        ("uniform minus uniform", 0.0, _minus(uniform(0, 1), uniform(0, 1))),
        ("ROUGE: normal 0.02, 0.1", 0.02, normal(0.02, 0.1)),
        ("narrow: normal 0.02, 0.03", 0.02, normal(0.02, 0.03)),
        ("50 % ties, else normal 0, 0.3", 0.0, mixed(0.5, normal(0, 0.3))),
        ("80 % ties, else normal 0, 0.3", 0.0, mixed(0.2, normal(0, 0.3))),
        ("60 % ties, else -0.3 to 0.9", 0.12, mixed(0.4, uniform(-0.3, 0.9))),
        ("80 % ties, else 0 to 1", 0.1, mixed(0.2, uniform(0, 1))),
        ("90 % ties, else 0 to 1", 0.05, mixed(0.1, uniform(0, 1))),
    ]

    def single(draw: Draw) -> Callable[[np.random.Generator, int], Interval]:
        return lambda rng, n: difference_interval(draw(rng, (n,)).tolist())

    return [Scenario("Paired differences", name, truth, single(d)) for name, truth, d in drawn]


def _minus(a: Draw, b: Draw) -> Draw:
    return lambda rng, shape: a(rng, shape) - b(rng, shape)


def clustered() -> list[Scenario]:
    """Several questions about each document, which is easy or hard as a whole."""

    def four(rng: np.random.Generator, documents: int) -> npt.NDArray[np.int64]:
        return np.full(documents, 4)

    def one_to_eight(rng: np.random.Generator, documents: int) -> npt.NDArray[np.int64]:
        return rng.integers(1, 9, documents)

    def skewed(rng: np.random.Generator, documents: int) -> npt.NDArray[np.int64]:
        return np.maximum(1, rng.lognormal(1, 1, documents).round()).astype(int)

    def scenario(
        what: str, mean: float, alike: float, sizes: Callable[..., npt.NDArray[np.int64]], how: str
    ) -> Scenario:
        def interval(rng: np.random.Generator, documents: int) -> Interval:
            index = np.repeat(np.arange(documents), sizes(rng, documents))
            total = 1 / alike - 1 if 0 < alike < 1 else 1.0
            level = rng.beta(mean * total, (1 - mean) * total, documents)
            if alike == 0:
                level = np.full(documents, mean)
            if alike == 1:
                level = (rng.random(documents) < mean).astype(float)
            share = level[index]
            if what == "paired":
                tied = rng.random(len(index)) < 0.6
                found = np.where(tied, 0.0, np.sign(share - rng.random(len(index))))
                return difference_interval(found.tolist(), index.tolist())
            if what == "binary":
                found = (rng.random(len(index)) < share).astype(float)
            else:
                found = rng.beta(np.maximum(4 * share, 1e-3), np.maximum(4 * (1 - share), 1e-3))
            return mean_interval(found.tolist(), index.tolist())

        truth = 0.4 * (2 * mean - 1) if what == "paired" else mean
        name = f"{what}, mean {truth:g}, {how} a document, correlation {alike:g}"
        return Scenario("Questions about documents (n: documents)", name, truth, interval)

    return [
        scenario(what, mean, alike, sizes, how)
        for sizes, how in ((four, "4"), (one_to_eight, "1 to 8"), (skewed, "1 to some 30"))
        for what, mean, alike in (
            ("binary", 0.5, 0.0),
            ("binary", 0.9, 0.3),
            ("binary", 0.8, 1.0),
            ("fractional", 0.3, 0.0),
            ("fractional", 0.2, 0.3),
            ("paired", 0.6, 0.3),
        )
    ]


def averages() -> list[Scenario]:
    """Averages over tasks that weigh equally."""
    some_binary = [(p, binary(p)) for p in (0.02, 0.5, 0.98, 0.8, 0.3, 1.0)]
    unlike = [
        (0.7, binary(0.7)),
        (0.2, mixed(0.4, beta(2, 2))),
        (0.25, beta(9, 27)),
        (F1_MEAN, values(*F1)),
    ]
    ties = [(0.06, mixed(0.3, uniform(-0.4, 0.8)))]
    gains = [(0.1, binary(0.1))]

    def scenario(
        name: str, tasks: int, of: Sequence[tuple[float, Draw]], differences: bool, sizes: int = 1
    ) -> Scenario:
        chosen = [of[i % len(of)] for i in range(tasks)]

        def interval(rng: np.random.Generator, n: int) -> Interval:
            samples = []
            for i, (_, draw) in enumerate(chosen):
                own = n * (1 + i % sizes)
                documents = tuple(f"{i}-{j}" for j in range(own))
                samples.append(Sample(tuple(draw(rng, (own,)).tolist()), documents))
            return average_of_tasks(samples, differences)

        truth = sum(mean for mean, _ in chosen) / tasks
        return Scenario(
            "Averages over tasks (n: examples a task)", f"{tasks} tasks, {name}", truth, interval
        )

    def shared(tasks: int) -> Scenario:
        def interval(rng: np.random.Generator, n: int) -> Interval:
            level = rng.beta(1, 1, n)
            documents = tuple(range(n))
            drawn = (rng.random((tasks, n)) < level).astype(float).tolist()
            return average_of_tasks([Sample(tuple(row), documents) for row in drawn])

        return Scenario(
            "Averages over tasks (n: examples a task)",
            f"{tasks} tasks, binary, about the same documents",
            0.5,
            interval,
        )

    return [
        scenario("right with p = 0.5", 6, [(0.5, binary(0.5))], False),
        scenario("right with p = 0.95", 6, [(0.95, binary(0.95))], False),
        scenario("right with p = 0.99", 18, [(0.99, binary(0.99))], False),
        scenario("binary, p from 0.02 to 1", 6, some_binary, False),
        scenario("binary, p from 0.02 to 1, n to 3 n", 6, some_binary, False, sizes=3),
        scenario("binary, F1 and narrow ones", 2, unlike[1:3], False),
        scenario("binary, F1 and narrow ones", 8, unlike, False),
        scenario("differences, 70 % ties", 6, ties, True),
        scenario("differences, 70 % ties", 18, ties, True),
        scenario("differences, 10 % gained, none lost", 6, gains, True),
        shared(3),
    ]


def all_scenarios() -> list[Scenario]:
    """Every scenario, group by group."""
    return [*scores(), *paired(), *clustered(), *averages()]


def matches(scenario: Scenario, pattern: str) -> bool:
    """Whether the regular expression `pattern` is found in "group: name" of the scenario."""
    return re.search(pattern, f"{scenario.group}: {scenario.name}") is not None


def coverage(scenario: Scenario, size: int, replications: int, seed: int) -> float:
    """Share of intervals that hold the true mean."""
    rng = np.random.default_rng([seed, size, zlib.crc32(scenario.name.encode())])
    hits = 0
    for _ in range(replications):
        interval = scenario.interval(rng, size)
        hits += interval.low - 1e-9 <= scenario.truth <= interval.high + 1e-9
    return hits / replications


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, print, and say by the exit code whether every coverage is high enough."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replications", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--only", default="", help="regular expression on group and name")
    parser.add_argument("--least", type=float, default=0.92, help="lowest coverage allowed")
    chosen = parser.parse_args(arguments)
    sizes = [int(size) for size in chosen.sizes.split(",")]
    started = time.perf_counter()
    group = ""
    found: dict[str, dict[str, float]] = {}
    for scenario in all_scenarios():
        if not matches(scenario, chosen.only):
            continue
        if scenario.group != group:
            group = scenario.group
            print(f"\n| {group} | " + " | ".join(map(str, sizes)) + " |")
            print("|---" * (len(sizes) + 1) + "|", flush=True)
        row = {str(n): coverage(scenario, n, chosen.replications, chosen.seed) for n in sizes}
        found[f"{group}: {scenario.name}"] = row
        cells = " | ".join(f"{100 * share:.1f}" for share in row.values())
        print(f"| {scenario.name} | {cells} |", flush=True)
    if not found:
        parser.error(f"--only: no scenario matches {chosen.only!r}")
    shares = [share for row in found.values() for share in row.values()]
    summary = {
        "replications": chosen.replications,
        "seed": chosen.seed,
        "cells": len(shares),
        "lowest": min(shares),
        "below_0.93": sum(share < 0.93 for share in shares),
        "above_0.98": sum(share > 0.98 for share in shares),
        "seconds": round(time.perf_counter() - started, 1),
    }
    print()
    print(json.dumps(summary | {"coverage": found}))
    return int(min(shares) < chosen.least)


if __name__ == "__main__":
    sys.exit(main())
