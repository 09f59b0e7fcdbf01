"""A progress bar, shown only if the wait lasts. No torch."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_DELAY_SECONDS = 2.0  # what takes less is not worth a bar


class ProgressBar:
    """Shows how far something is, if it takes long enough to be waited for."""

    def __init__(self, console: Console, what: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._what = what
        self._task: TaskID | None = None
        self._started = time.monotonic()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task is not None:  # one that was never shown would still print its last newline
            self._progress.stop()

    def update(self, done: int, total: int | None, what: str | None = None) -> None:
        """Show how far it is.

        Args:
            done: units that are done.
            total: all units; None: not known.
            what: is done, where it is something else than before.
        """
        if self._task is None:
            if time.monotonic() - self._started < _DELAY_SECONDS:
                return
            self._progress.start()
            self._task = self._progress.add_task(what or self._what, total=total)
        elif what not in (None, self._what):
            self._progress.reset(self._task, description=what)
        self._what = what or self._what
        self._progress.update(self._task, completed=done, total=total)
