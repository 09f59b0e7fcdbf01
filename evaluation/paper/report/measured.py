"""Figures of the runs, for one of the paper's cells: mean, interval, paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from evaluation.paper.report.tried import POCKET, Tried
from reports.compare import paired_sample
from reports.leaderboard import Column, TaskKey
from reports.matched import matched
from reports.seeds import mean_difference, mean_score
from reports.stats import Interval, average_of_tasks

Tasks = Sequence[tuple[str, str]]
"""Benchmark and name of each task of a cell."""


@dataclass(frozen=True)
class Asked:
    """One of the paper's settings.

    Attributes:
        model: by the paper's name, or `pocket`.
        method: by the name in the tables.
        window: tokens, sinks not among them; for methods that have none it is not looked at.
        sinks: likewise.
        training: a key of `TRAININGS`; None: as the weights were released.
        seed: of that training; None: whichever there are.
    """

    model: str
    method: str
    window: int
    sinks: int
    training: str | None = None
    seed: str | None = None

    def fits(self, tried: Tried) -> bool:
        """Whether a variant is of this setting."""
        if tried.unfit or (tried.model, tried.method) != (self.model, self.method):
            return False
        if self.seed is not None and tried.seed != self.seed:
            return False
        if (tried.window, tried.sinks) not in ((None, None), (self.window, self.sinks)):
            return False
        # The released weights are Table 4's "KL, random window": its 40.59 stands in Table 3, too.
        as_released = self.training == "kl-random" and self.model != POCKET and tried.released
        return tried.training == self.training or as_released


@dataclass(frozen=True)
class Measured:
    """What the runs give for a cell.

    Attributes:
        interval: of the mean, as shares of 1.
        remarks: in what the runs differ from the paper's setting.
        sources: run and variant of each.
        tasks: how many are averaged.
    """

    interval: Interval
    remarks: tuple[str, ...]
    sources: tuple[str, ...]
    tasks: int


@dataclass
class Measurements:
    """All variants of the runs, and which of them a figure was taken from."""

    tried: Sequence[Tried]
    used: set[str] = field(default_factory=set)
    """Names of those."""

    def cell(self, asked: Asked, tasks: Tasks) -> Measured | None:
        """The mean over tasks; None where not every one of them was answered."""
        seeds = self._of_seeds(asked, tasks)
        if not seeds:
            return None
        found = [one for of_seed in seeds for one in of_seed]
        if len(seeds) == 1:
            interval = average_of_tasks([tried.column.sample(key) for tried, key in found])
        else:
            columns = [of_seed[0][0].column for of_seed in seeds]
            keys = list(dict.fromkeys(key for _, key in found))
            over_seeds = mean_score(columns, keys, matched(columns))
            if over_seeds is None:
                return None
            interval = over_seeds
        several = (f"mean of {len(seeds)} seeds",) if len(seeds) > 1 else ()
        return Measured(
            interval=interval,
            remarks=(*several, *_remarks(found)),
            sources=tuple(dict.fromkeys(tried.name for tried, _ in found)),
            tasks=len(tasks),
        )

    def difference(self, first: Asked, second: Asked, tasks: Tasks) -> Interval | None:
        """Mean over tasks of first less second, example by example.

        None where there is a task in which the two share no example that both answered. With
        several seeds of a training, the mean of the seeds' scores counts.
        """
        if first.training is not None and first.seed is None:
            return self._over_seeds(first, second, tasks)
        samples = []
        for (one, key), (other, same) in zip(
            self._all(first, tasks), self._all(second, tasks), strict=False
        ):
            if key != same or not (sample := paired_sample(one.column, other.column, key)).values:
                return None
            samples.append(sample)
        return average_of_tasks(samples, differences=True) if samples else None

    def _over_seeds(self, first: Asked, second: Asked, tasks: Tasks) -> Interval | None:
        sides: list[list[Column]] = []
        keys: set[TaskKey] = set()
        for asked in (first, second):
            of_seeds = self._of_seeds(asked, tasks)
            columns = [found[0][0].column for found in of_seeds]
            keys |= {key for found in of_seeds for _, key in found}
            sides.append(columns)
        if not all(sides) or len(keys) != len(tasks):
            return None
        shared = matched([column for side in sides for column in side])
        return mean_difference(sides[0], sides[1], sorted(keys), shared)

    def fitting(self, asked: Asked) -> list[Tried]:
        """The variants of a setting."""
        return [tried for tried in self.tried if asked.fits(tried)]

    def windows(self, model: str, methods: Sequence[str], sinks: int) -> list[int]:
        """Windows that any of the methods was run with, ascending."""
        return sorted(
            {
                tried.window
                for tried in self.tried
                if tried.window is not None
                and not tried.unfit
                and (tried.model, tried.sinks) == (model, sinks)
                and tried.method in methods
            }
        )

    def seeds(self, asked: Asked) -> list[str]:
        """Seeds of a training."""
        return sorted({tried.seed for tried in self.fitting(asked)})

    def _of_seeds(self, asked: Asked, tasks: Tasks) -> list[list[tuple[Tried, TaskKey]]]:
        """`_all` of each seed of a training that has all tasks; of what has no seeds, once."""
        every = asked.training is not None and asked.seed is None
        which = [replace(asked, seed=seed) for seed in self.seeds(asked)] if every else [asked]
        return [found for one in which if (found := self._all(one, tasks))]

    def _all(self, asked: Asked, tasks: Tasks) -> list[tuple[Tried, TaskKey]]:
        """Per task the variant that fits best; empty where one of them has none."""
        candidates = self.fitting(asked)
        found = []
        for benchmark, name in tasks:
            of_task = [
                (tried, key)
                for tried in candidates
                for key in tried.column.cells
                if (key.benchmark, key.task) == (benchmark, name) and tried.column.scored(key)
            ]
            if not of_task:
                return []
            found.append(min(of_task, key=_distance))
        self.used |= {tried.name for tried, _ in found}
        return found


def _distance(found: tuple[Tried, TaskKey]) -> tuple[int, int]:
    """How far records are from the paper's setting; of the same, more examples come first."""
    tried, key = found
    remarks = len(tried.remarks) + len(tried.task_remarks(key))
    return remarks, -len(tried.column.scored(key))


def _remarks(found: Sequence[tuple[Tried, TaskKey]]) -> tuple[str, ...]:
    every = [text for tried, key in found for text in (*tried.remarks, *tried.task_remarks(key))]
    return tuple(dict.fromkeys(every))
