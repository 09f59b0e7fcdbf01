"""Where the work of a plan is done. An engine runs variants and appends records to one store.

`LocalEngine` does it in this process, one variant after the other. `runner.Worker` answers examples
and knows no store, so that it can be elsewhere; the process that runs the engine is the only one
that writes records, through one `RunStore`.
"""

from __future__ import annotations

from typing import Protocol

from evaluation.plan.planned import Plan
from evaluation.run.runner import Listener, run_in_turns, run_variant
from evaluation.run.store import RunStore


class Engine(Protocol):
    """Runs what is left of a plan."""

    def run(self, plan: Plan, store: RunStore, listener: Listener) -> int:
        """Answer everything that `store` has no record of; returns how many examples failed."""


class LocalEngine:
    """One process, one model in memory at a time; all of them with ``in_turns``."""

    def run(self, plan: Plan, store: RunStore, listener: Listener) -> int:
        """See `Engine`. The folder's status is ``interrupted`` unless all of it was done."""
        errors = 0
        try:
            if plan.configuration.in_turns:
                errors = run_in_turns(plan, store, listener)
            else:
                for variant in plan.models:
                    errors += run_variant(plan, variant, store, listener)
        except BaseException:
            store.set_status("interrupted")
            raise
        store.set_status("finished")
        return errors
