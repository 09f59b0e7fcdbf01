"""Where the work of a plan is done. An engine runs variants and appends records to one store.

`LocalEngine` does it in this process, one variant after the other. The unit that another engine
would hand out is a variant (a loaded model); whoever answers it, records reach the folder
through one `RunStore`, whose lock allows one writer.
"""

from __future__ import annotations

import gc
from typing import Protocol

import torch

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
                    gc.collect()  # the model before the next one is loaded
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
        except BaseException:
            store.set_status("interrupted")
            raise
        store.set_status("finished")
        return errors
