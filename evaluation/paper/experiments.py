"""What each table and figure of the AHN paper is made from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from evaluation.paper.files import Strict, read
from tasks.published import Source


class Experiment(Strict):
    """What a table or figure is made from."""

    title: str
    arithmetic: str = ""
    """`all` or `costs`: what of it is computed without a model."""
    models: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    more_methods: tuple[str, ...] = ()
    """Those whose cost is not known here."""
    data: str = ""
    examples: int = 0
    tokens: int = 0
    window: int | None = None
    windows: tuple[int, ...] = ()
    sinks: int = 0
    training: bool = False


class _Experiments(Strict):
    source: Source
    experiments: dict[str, Experiment]


@cache
def experiments() -> Mapping[str, Experiment]:
    """Every table and figure, by the name that it has as a command."""
    return read("experiments.yaml", _Experiments).experiments
