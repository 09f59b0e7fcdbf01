"""What a person sees while a run goes on: a bar with the time left, and a line per variant."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from evaluation.plan.planned import Plan
from evaluation.run.runner import pending_groups
from evaluation.run.store import RunStore
from reports.records import ExampleRecord


class RunProgress:
    """A `Listener` that draws. The bar counts prompt tokens, which time goes with, not examples."""

    def __init__(self, console: Console, plan: Plan, store: RunStore) -> None:
        self._console = console
        self._errors = 0
        self._examples = 0
        self._answered: Counter[str] = Counter()
        self._pending = 0
        tokens = 0
        for variant in plan.models:
            for group, left in pending_groups(plan, variant, store):
                tokens += sum(group.planned.prompts[i].tokens for i in left)
                self._pending += len(left)
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(),
            TextColumn("{task.fields[examples]}/{task.fields[total_examples]}"),
            TextColumn("{task.fields[failed]}", style="red"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task(
            "", total=tokens, examples=0, total_examples=self._pending, failed=""
        )

    def __enter__(self) -> RunProgress:
        if self._pending:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def variant_started(self, variant: str, examples: int) -> None:
        """See `evaluation.run.runner.Listener`."""
        self._progress.update(self._task, description=variant)

    def example_done(self, record: ExampleRecord, tokens: int) -> None:
        """See `evaluation.run.runner.Listener`."""
        self._examples += 1
        self._answered[record.variant] += 1
        self._errors += record.error is not None
        self._progress.update(
            self._task,
            description=record.variant,
            advance=tokens,
            examples=self._examples,
            failed=f"{self._errors} failed" if self._errors else "",
        )

    def variant_finished(self, variant: str, seconds: float) -> None:
        """See `evaluation.run.runner.Listener`."""
        answered = self._answered[variant]
        self._console.print(f"{variant}: {answered} examples in {seconds:.1f} s", highlight=False)
