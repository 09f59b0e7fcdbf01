"""Metrics by name: those of this package, those that a program adds, those of other packages.

A metric is a function `(prediction, example) -> score in [0, 1]`. A package adds one by an entry
point in the group `ahn_bench.metrics`, a program by `register_metric`. Task files name it then.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from common.errors import InputError
from common.plugins import installed, load
from common.suggestions import did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from tasks.schema import Metric

GROUP = "ahn_bench.metrics"
"""The group of entry points; the name of an entry is that of the metric."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")


class MetricTable(Mapping[str, "Metric"]):
    """Metrics by name; those of other packages are loaded when they are asked for."""

    def __init__(self) -> None:
        self._functions: dict[str, Metric] = {}
        self._loaded: set[str] = set()
        """Names of those that came from other packages."""

    def add(self, name: str, function: Metric) -> None:
        """Add a metric; see `register_metric`."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f"metric: {name!r} is no name (letters, digits, '_', '.', '-')")
        if not callable(function):
            raise InputError(f"metric {name!r}: {function!r} is no function")
        if self._functions.get(name, function) is not function:
            raise InputError(f"metric {name!r} is there already; choose another name")
        self._functions[name] = function

    def __getitem__(self, name: str) -> Metric:
        if name not in self._functions:
            self.add(name, load(self._installed()[name], "metric"))
            self._loaded.add(name)
        return self._functions[name]

    def _installed(self) -> dict[str, EntryPoint]:
        """The metrics of other packages; InputError where one has a name that is taken."""
        found = installed(GROUP)
        if taken := sorted(found.keys() & (self._functions.keys() - self._loaded)):
            raise InputError(
                f"entry point {taken[0]!r} of {GROUP}: {found[taken[0]].value} has the name of "
                "another metric and is never used; rename it, or uninstall the package"
            )
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._functions, *self._installed()]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._functions or name in self._installed()


TABLE = MetricTable()
"""All metrics; `tasks.metrics.METRICS` is this table with the metrics of this package in it."""


def register_metric(name: str, function: Callable[..., float]) -> None:
    """Add a metric, for this process and those that it starts to score.

    Args:
        name: by which task files name it.
        function: `(prediction, example) -> score in [0, 1]`, where the prediction has been cleaned
            by the task's protocol and the example is a `tasks.schema.Example`. A function of a
            module can be sent to worker processes; any other is called in this process only. Its
            code is part of a run's identity.

    Raises:
        InputError: the name cannot be used, or another function has it.
    """
    TABLE.add(name, function)


def unknown_metric(name: str) -> str:
    """A message about a name that no metric has."""
    known = did_you_mean(name, TABLE, cutoff=0.5) or f" (known: {', '.join(sorted(TABLE))})"
    return f"unknown metric {name!r}{known}"


def find_metric(name: str) -> Metric:
    """The metric of this name.

    Raises:
        InputError: there is none, or the package that has it cannot be loaded.
    """
    if name not in TABLE:
        raise InputError(unknown_metric(name))
    return TABLE[name]
