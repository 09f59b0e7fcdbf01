"""`python tests/bench/recurrence.py`: tokens/s of the forms of a recurrence, side by side.

Every form at every length in one run on one machine, so that their ratios mean something; the
growth exponent is the slope of log seconds over log tokens (1: linear).  A form leaves out the
lengths after the first one that took longer than `--limit`, and is left out where it cannot run.
Prints a table, then one JSON line with the same numbers, for scripts.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from ahn.config import BACKENDS
from ahn.ops import check, recurrence
from ahn.ops.selector import Case
from common.errors import InputError

#: Recurrences by the cell that uses them: whether there is a delta rule, and a decay.
RECURRENCES = {
    "GatedDeltaNet": (True, True),
    "DeltaNet": (True, False),
    "Mamba2": (False, True),
}


@dataclass(frozen=True)
class Timing:
    """One form at one length.

    Attributes:
        backend: the form.
        tokens: T.
        seconds: median over repeats, after a pass to warm up.
        tokens_per_second: batch x T / seconds.
    """

    backend: str
    tokens: int
    seconds: float
    tokens_per_second: float


def run_once(
    cell: str,
    backend: str,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    device: str,
    backward: bool,
) -> Callable[[], None]:
    """A pass over random tokens of shape B, T, H, d; keys and queries of unit length."""
    delta_rule, decays = RECURRENCES[cell]
    batch, _, heads, head_dim = shape
    torch.manual_seed(0)
    q, k, v = torch.randn(3, *shape, device=device)
    q, k = torch.nn.functional.normalize(q, dim=-1), torch.nn.functional.normalize(k, dim=-1)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    write = torch.rand(shape[:3], device=device).to(dtype)
    log_decay = -0.1 * torch.rand(shape[:3], device=device) if decays else None
    state = torch.zeros(batch, heads, head_dim, head_dim, device=device)
    if backward:
        for tensor in (q, k, v, write):
            tensor.requires_grad_()

    def once() -> None:
        with torch.set_grad_enabled(backward):
            output, last = recurrence(
                q, k, v, write, log_decay, state, delta_rule=delta_rule, backend=backend
            )
            if backward:
                (output.sum() + last.sum()).backward()

    return once


def seconds_of(once: Callable[[], None], cuda: bool, repeats: int) -> float:
    """Median seconds of a pass; the first warms up (kernels are compiled) and is dropped."""
    taken = []
    for _ in range(repeats + 1):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        once()
        if cuda:
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def growth(timings: list[Timing]) -> float | None:
    """Least-squares slope of log seconds over log tokens; None for fewer than two lengths."""
    if len(timings) < 2:
        return None
    slope, _ = statistics.linear_regression(
        [math.log(t.tokens) for t in timings], [math.log(t.seconds) for t in timings]
    )
    return slope


def table(timings: list[Timing], backends: list[str], lengths: list[int], title: str) -> Table:
    """Tokens/s by length and form, each beside its ratio to the first form; then the growth."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("tokens", justify="right")
    for backend in backends:
        shown.add_column(f"{backend} tokens/s", justify="right")
    for backend in backends[1:]:
        shown.add_column(f"{backend} / {backends[0]}", justify="right")
    speed = {(t.backend, t.tokens): t.tokens_per_second for t in timings}
    for tokens in lengths:
        speeds = [speed.get((backend, tokens)) for backend in backends]
        shown.add_row(
            f"{tokens:,}",
            *("-" if s is None else f"{s:,.0f}" for s in speeds),
            *(
                "-" if s is None or speeds[0] is None else f"{s / speeds[0]:.2f} x"
                for s in speeds[1:]
            ),
        )
    shown.add_section()
    exponents = [growth([t for t in timings if t.backend == b]) for b in backends]
    shown.add_row(
        "seconds ~ T^",
        *("-" if e is None else f"{e:.2f}" for e in exponents),
        *[""] * len(backends[1:]),
    )
    return shown


def bench(
    cell: Annotated[str, typer.Option(help=f"{', '.join(RECURRENCES)}.")] = "GatedDeltaNet",
    backends: Annotated[
        str | None, typer.Option(help="Comma-separated; default: all that run here.")
    ] = None,
    lengths: Annotated[
        str, typer.Option(help="Tokens, comma-separated.")
    ] = "256,512,1024,2048,4096,8192,16384",
    batch: Annotated[int, typer.Option(min=1, help="Rows.")] = 1,
    heads: Annotated[int, typer.Option(min=1, help="Query heads.")] = 4,
    head_dim: Annotated[int, typer.Option(min=1, help="Dimensions of a head.")] = 64,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16; default: by device.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; default: cuda where there is one.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Times each is measured.")] = 3,
    limit: Annotated[
        float, typer.Option(help="Seconds a pass may take before longer ones are left out.")
    ] = 10.0,
    backward: Annotated[bool, typer.Option(help="Measure forward and backward pass.")] = False,
) -> None:
    """Tokens/s of the forms of a recurrence, side by side."""
    try:
        sizes = _lengths(lengths)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        kind = _device(device)
        kept = _dtype(dtype or ("bfloat16" if kind == "cuda" else "float32"))
        if cell not in RECURRENCES:
            raise InputError(f"--cell: one of {', '.join(RECURRENCES)}, not {cell!r}")
        case = Case(kind, kept, head_dim, False, RECURRENCES[cell][0], backward)
        if backends is None:
            names = [name for name in BACKENDS if _runs(name, case)]
        else:
            names = [name.strip() for name in backends.split(",")]
            for name in names:
                check(name, case)
    except InputError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    timings = []
    for name in names:
        for tokens in sizes:
            once = run_once(cell, name, (batch, tokens, heads, head_dim), kept, device, backward)
            seconds = seconds_of(once, kind == "cuda", repeats)
            timings.append(Timing(name, tokens, seconds, batch * tokens / seconds))
            if seconds > limit:
                break
    where = (
        torch.cuda.get_device_name(device)
        if kind == "cuda"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    title = (
        f"{cell}, {'forward and backward' if backward else 'forward'}, B {batch}, H {heads}, "
        f"d {head_dim}, {str(kept).removeprefix('torch.')}; {where}"
    )
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table(timings, names, sizes, title))
    result = {
        "cell": cell,
        "backward": backward,
        "batch": batch,
        "heads": heads,
        "head_dim": head_dim,
        "dtype": str(kept).removeprefix("torch."),
        "device": where,
        "torch": torch.__version__,
        "timings": [asdict(t) for t in timings],
        "growth": {n: growth([t for t in timings if t.backend == n]) for n in names},
    }
    typer.echo(json.dumps(result))


def _runs(name: str, case: Case) -> bool:
    try:
        check(name, case)
    except InputError:
        return False
    return True


def _lengths(text: str) -> list[int]:
    try:
        sizes = sorted({int(length) for length in text.split(",")})
    except ValueError:
        sizes = [0]
    if sizes[0] < 1:
        raise InputError(f"--lengths: positive integers, comma-separated, not {text!r}")
    return sizes


def _device(name: str) -> str:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return torch.device(name).type


def _dtype(name: str) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise InputError(f"--dtype: one of {', '.join(known)}, not {name!r}")
    return known[name]


if __name__ == "__main__":
    typer.run(bench)
