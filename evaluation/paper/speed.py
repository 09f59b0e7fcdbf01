"""Operations per second on this device: of runs that are there, or of matrix products."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from common.errors import InputError
from evaluation.paper.state import as_record, lines_of
from evaluation.plan.environment import processor
from reports import formats
from reports.run_folders import read_run_info

_MOST_RECORDS = 200
"""Of each run folder; their mean is what is wanted, not all of them."""


@dataclass(frozen=True)
class Speed:
    """How fast this device is.

    Attributes:
        flops_per_second: counted as the exact accounting does.
        basis: `runs` or `matrix products`.
        device: what it was measured on.
        told: the same for people.
    """

    flops_per_second: float
    basis: str
    device: str
    told: str

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def speed_of_runs(folder: Path) -> Speed | None:
    """The rate of a model's earlier runs on this machine, on its fastest device; None: none are.

    Args:
        folder: of the model: `<part>/<variant>` below it are run folders.
    """
    work, seconds = Counter[str](), Counter[str]()
    for described in sorted(folder.glob("*/*/run.json")):
        try:
            info = read_run_info(described.parent)
        except InputError:
            continue
        if not _is_of_this_machine(info.hardware):
            continue
        device = _device(info.hardware)
        for line in islice(lines_of(described.parent), _MOST_RECORDS):
            record = as_record(line)
            known = [record.get(key) or 0 for key in ("flops", "prefill_seconds", "decode_seconds")]
            if 0 in known or record.get("reused_prefix_tokens"):
                continue  # its work was not all done, or is not known
            work[device] += known[0]
            seconds[device] += known[1] + known[2]
    rates = {device: work[device] / took for device, took in seconds.items()}
    if not rates:
        return None
    device, rate = max(rates.items(), key=lambda item: item[1])
    told = f"{folder.name} at the rate of its runs here, {formats.operations(round(rate))}/s"
    return Speed(rate, "runs", device, f"{told} ({device})")


def _is_of_this_machine(hardware: Any) -> bool:
    return hardware.get("processor") == processor() and hardware.get("cores") == os.cpu_count()


def _device(hardware: Any) -> str:
    return str(hardware.get("accelerator") or hardware.get("processor"))


def measured_speed(device: str, dtype: str, seconds: float = 1.0) -> Speed:
    """The rate of matrix products on a device, which no run reaches.

    Args:
        device: `cpu`, `cuda` ... or `auto`.
        dtype: `float32`, `bfloat16`, `float16` or `auto`, as a run has it.
        seconds: how long is measured.

    Raises:
        InputError: there is no such device.
    """
    import torch

    from ahn.checkpoints.placement import resolve_device
    from evaluation.plan.environment import hardware

    where = resolve_device(device)
    if dtype == "auto":
        dtype = "bfloat16" if where.startswith("cuda") else "float32"
    size = 4096 if where.startswith("cuda") else 1024
    one, two = (torch.randn(size, size, device=where, dtype=getattr(torch, dtype)) for _ in "ab")

    def wait() -> None:
        if where.startswith("cuda"):
            torch.cuda.synchronize(where)

    one @ two  # the first one loads kernels
    wait()
    products, begun = 0, time.perf_counter()
    while (took := time.perf_counter() - begun) < seconds:
        one @ two
        wait()
        products += 1
    rate, name = products * 2 * size**3 / took, _device(hardware(where))
    return Speed(
        rate,
        "matrix products",
        name,
        f"at the speed of matrix products in {dtype}, {formats.operations(round(rate))}/s "
        f"({name}); a run is slower",
    )
