"""What each table and figure of the AHN paper is made from, and how it is run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import Field, model_validator

from evaluation.paper.files import Strict, read
from tasks.published import Source

POCKET = "pocket"
"""The model on which all of it can be done here."""
TRAININGS = {
    "kl-fixed1024": "KL, window 1024 fixed",
    "ce-random": "CE, random window",
    "kl-random": "KL, random window",
}
"""Rows of Table 4, by what the memory's weights are named after."""


class Part(Strict):
    """A benchmark, or a part of one, as several tables and figures ask it.

    Attributes:
        title: for people.
        run: keys of `RunConfiguration`.
        examples: of all tasks, at the part's own limit.
        tokens: of one example, at most.
        limit: examples of each task where no other number is asked for; None: all.
        stands_for: the part of the paper that it is a miniature of; empty: it is the paper's.
        note: what must be known to compare.
    """

    title: str
    run: dict[str, Any]
    examples: int = Field(ge=1)
    tokens: int = Field(ge=1)
    limit: int | None = None
    stands_for: str = ""
    note: str = ""


class Sweep(Strict):
    """What variants with a window keep, in tokens: each of the windows, and the sinks before it."""

    windows: tuple[int, ...] = Field(min_length=1)
    sinks: int


class Training(Strict):
    """What is trained before anything is answered."""

    runs: int
    steps: int
    """Of each run."""


class Experiment(Strict):
    """What a table or figure is made from."""

    title: str
    arithmetic: str = ""
    """`all` or `costs`: what of it is computed without a model."""
    models: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    """Names of `Part`s: it can be run. Empty: what follows describes it."""
    data: str = ""
    examples: int = 0
    tokens: int = 0
    windows: tuple[int, ...] = ()
    sinks: int = 0
    pocket: Sweep | None = None
    """On the pocket model, with the stand-ins of `parts`."""
    training: Training | None = None

    def parts_of(self, model: str) -> list[str]:
        """Names of the parts that `model` is asked."""
        return [_stand_in(name) if model == POCKET else name for name in self.parts]

    def sweep_of(self, model: str) -> Sweep:
        """Windows and sinks for `model`."""
        if model != POCKET:
            return Sweep(windows=self.windows, sinks=self.sinks)
        assert self.pocket is not None, "checked by whoever chooses the model"
        return self.pocket


class _Experiments(Strict):
    source: Source
    parts: dict[str, Part]
    experiments: dict[str, Experiment]

    @model_validator(mode="after")
    def _parts_are_there(self) -> _Experiments:
        for name, made in self.experiments.items():
            wanted = [*made.parts, *([_stand_in(n) for n in made.parts] if made.pocket else [])]
            unknown = [part for part in wanted if part not in self.parts]
            if unknown:
                raise ValueError(f"{name}: no part is called {', '.join(unknown)}")
        for name, part in self.parts.items():
            if part.stands_for and name != _stand_in(part.stands_for):
                raise ValueError(f"{name}: what stands for X is called {_stand_in('X')}")
        return self


def _stand_in(part: str) -> str:
    """The name of the part that stands for another one on the pocket model."""
    return f"{POCKET}-{part}"


@cache
def _file() -> _Experiments:
    return read("experiments.yaml", _Experiments)


def experiments() -> Mapping[str, Experiment]:
    """Every table and figure, by the name that it has as a command."""
    return _file().experiments


def parts() -> Mapping[str, Part]:
    """Every part by name, which is also that of its folder."""
    return _file().parts
