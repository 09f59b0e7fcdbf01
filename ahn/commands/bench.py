"""`python -m ahn.commands.bench`: how fast each variant is here, and how much its cache holds.

Prefill and decode are measured at several lengths on random tokens (speed does not depend on what
they say), the variants in turns, so that a slower minute of the machine slows all of them. All are
in memory at once and share the base's weights. Prints a table, then one JSON line with the same
numbers, for scripts.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from ahn.checkpoints.load import load_resolved
from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.resolve import resolve_checkpoint
from ahn.commands.options import Bench
from ahn.config import VARIANTS
from ahn.cost.accounting import ModelShape, layout_bytes, layout_flops
from common.commands import settings_command


@dataclass(frozen=True)
class Measurement:
    """One variant at one length.

    Attributes:
        variant: how the past is seen.
        tokens: length of the prompt.
        prefill_seconds: median over repeats (measured).
        decode_seconds_per_token: median over repeats, of the mean over steps (measured).
        cache_bytes: bytes of the cache after the prompt (measured).
        cache_bytes_analytic: what `ahn.cost.accounting` says of it.
        prefill_flops: what `ahn.cost.accounting` says, exact accounting.
        peak_memory_bytes: most memory in use at any time, weights included; only on CUDA.
    """

    variant: str
    tokens: int
    prefill_seconds: float
    decode_seconds_per_token: float
    cache_bytes: int
    cache_bytes_analytic: int
    prefill_flops: int
    peak_memory_bytes: int | None


def measure(
    model: Any, variant: str, shape: ModelShape, tokens: int, steps: int, repeats: int
) -> Measurement:
    """Times prefill of `tokens` tokens and `steps` decode steps, `repeats` times each."""
    return measure_in_turns({variant: model}, shape, tokens, steps, repeats)[0]


def measure_in_turns(
    models: Mapping[str, Any], shape: ModelShape, tokens: int, steps: int, repeats: int
) -> list[Measurement]:
    """As `measure`, of several variants: in each repeat one after the other.

    So whatever else the machine does, or how warm it is, falls on all of them alike.

    Args:
        models: by variant.
        shape: of all of them.
        tokens: prompt length.
        steps: decode steps.
        repeats: times each is measured; a first time warms up and is dropped.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocab_size, (1, tokens + steps), generator=generator)
    timings: dict[str, list[_Timing]] = {variant: [] for variant in models}
    with torch.inference_mode():
        for _ in range(repeats + 1):
            for variant, model in models.items():
                timings[variant].append(_time_once(model, ids.to(model.device), tokens, steps))
    return [
        _summary(model, variant, shape, tokens, timings[variant])
        for variant, model in models.items()
    ]


@dataclass(frozen=True)
class _Timing:
    """One prefill, and the decode steps after it.

    Attributes:
        prefill_seconds: of the prompt.
        decode_seconds: of one step, on average.
        cache_bytes: after the prompt.
        peak_memory_bytes: most memory in use, weights included; only on CUDA.
    """

    prefill_seconds: float
    decode_seconds: float
    cache_bytes: int
    peak_memory_bytes: int | None


def _time_once(model: Any, ids: torch.Tensor, tokens: int, steps: int) -> _Timing:
    cuda = model.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    cache = model.new_cache()

    def timed(first: int, end: int, width: int) -> float:
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for at in range(first, end, width):
            model(
                input_ids=ids[:, at : at + width],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    prefill = timed(0, tokens, tokens)
    held = cache.nbytes
    decode = timed(tokens, tokens + steps, 1) / steps
    return _Timing(prefill, decode, held, torch.cuda.max_memory_allocated() if cuda else None)


def _summary(
    model: Any, variant: str, shape: ModelShape, tokens: int, timings: list[_Timing]
) -> Measurement:
    """The median of all but the first of a variant's `timings`, beside the analytic figures."""
    warm = timings[1:]
    return Measurement(
        variant=variant,
        tokens=tokens,
        prefill_seconds=statistics.median(t.prefill_seconds for t in warm),
        decode_seconds_per_token=statistics.median(t.decode_seconds for t in warm),
        cache_bytes=warm[-1].cache_bytes,
        cache_bytes_analytic=layout_bytes(
            shape, model.layout, tokens, dtype_bytes=model.dtype.itemsize
        ).total,
        prefill_flops=layout_flops(shape, model.layout, tokens).prefill,
        peak_memory_bytes=max((t.peak_memory_bytes or 0 for t in timings), default=0) or None,
    )


def share_base(models: Mapping[str, Any]) -> None:
    """Let all models use the first one's base weights, so that these are in memory once."""
    first, *others = models.values()
    own = dict(first.named_parameters(remove_duplicate=False))  # embeddings may be tied
    for other in others:
        for name, parameter in list(other.named_parameters(remove_duplicate=False)):
            base = own.get(name)
            if base is not None and base.shape == parameter.shape and torch.equal(base, parameter):
                module, _, attribute = name.rpartition(".")
                setattr(other.get_submodule(module), attribute, base)


def table(measurements: list[Measurement]) -> Table:
    """The card that is printed."""
    shown = Table(title="prefill and decode, measured", title_justify="left")
    for name in ("tokens", "variant", "prefill s", "tokens/s", "decode ms/token", "cache KiB"):
        shown.add_column(name, justify="left" if name == "variant" else "right")
    for index, m in enumerate(measurements):
        if index and m.tokens != measurements[index - 1].tokens:
            shown.add_section()
        shown.add_row(
            f"{m.tokens:,}",
            m.variant,
            f"{m.prefill_seconds:.3f}",
            f"{m.tokens / m.prefill_seconds:,.0f}",
            f"{1000 * m.decode_seconds_per_token:.2f}",
            f"{m.cache_bytes / 1024:,.0f}",
        )
    return shown


def bench(asked: Bench) -> None:
    """Speed and cache size of every variant on this machine."""
    window, sinks = asked.window, asked.sinks
    base = CheckpointFiles(asked.model)
    resolved = {
        variant: resolve_checkpoint(
            base, variant, asked.ahn, window, sinks, asked.dtype, asked.device
        )
        for variant in VARIANTS
    }
    shape = resolved["full"].shape
    models: dict[str, Any] = {}
    for variant, checkpoint in resolved.items():
        models[variant] = load_resolved(checkpoint)
        share_base(models)
    measurements: list[Measurement] = []
    for tokens in asked.lengths:
        measurements += measure_in_turns(models, shape, tokens, asked.steps, asked.repeats)
    loaded = models["full"]
    where = (
        torch.cuda.get_device_name(loaded.device)
        if loaded.device.type == "cuda"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    measurements.sort(key=lambda m: (m.tokens, VARIANTS.index(m.variant)))
    console = Console(width=None if Console().is_terminal else 100)
    dtype = str(loaded.dtype).removeprefix("torch.")
    console.print(f"{asked.model}, {dtype}, window {window}, {sinks} sinks; {where}")
    console.print(table(measurements))
    result = {
        "model": asked.model,
        "dtype": dtype,
        "device": where,
        "torch": torch.__version__,
        "window": window,
        "sinks": sinks,
        "measurements": [asdict(m) for m in measurements],
    }
    click.echo(json.dumps(result))


command = settings_command(
    lambda: Bench, bench, examples=("python -m ahn.commands.bench --lengths 1k,8k",)
)

if __name__ == "__main__":
    command.main(prog_name="python -m ahn.commands.bench")
