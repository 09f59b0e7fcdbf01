"""The most bytes that are allocated at a time while something is computed, weights not counted.

On a GPU the allocator keeps the number itself, for nothing. On a CPU torch's profiler reports every
allocation, which slows a pass down: it is done in a pass of its own.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

import torch


class GpuPeak:
    """The peak on a GPU since it was made.

    Args:
        device: where to look; not a GPU: nothing is known.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known = device.type == "cuda"
        if self._known:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)

    def bytes(self, already: int = 0) -> int | None:
        """The most allocated since then, above what was; None: not a GPU.

        Args:
            already: bytes that count although they were there before.
        """
        if not self._known:
            return None
        return int(torch.cuda.max_memory_allocated(self._device)) - self._before + already


def cpu_peak(work: Callable[[], object], quiet: bool = False) -> int:
    """The most bytes that torch allocated on the CPU at a time during `work`.

    Args:
        work: is called once.
        quiet: nothing it writes to standard error is shown. Where it frees what was there before,
            the profiler says so, and does not count it.
    """
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _without_stderr():
        profiler.start()
    try:
        with _without_stderr() if quiet else nullcontext():
            work()
    finally:
        with _without_stderr():
            profiler.stop()
    results = getattr(profiler.profiler, "kineto_results", None)
    events = results.events() if results is not None else []
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Without the lines that the profiler's library prints when it starts and stops."""
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
