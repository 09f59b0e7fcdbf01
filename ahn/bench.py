"""`python -m ahn.bench`: how fast each variant is here, and how much its cache holds.

Prefill and decode are measured at several lengths on random tokens (speed does not depend on what
they say). Prints a table, then one JSON line with the same numbers, for scripts.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import ahn
from ahn.config import VARIANTS, AHNConfig, InputError
from ahn.cost import ModelShape, cache_bytes, flops


@dataclass(frozen=True)
class Measurement:
    """One variant at one length.

    Attributes:
        variant: how the past is seen.
        tokens: length of the prompt.
        prefill_seconds: median over repeats (measured).
        decode_seconds_per_token: median over repeats, of the mean over steps (measured).
        cache_bytes: bytes of the cache after the prompt (measured).
        cache_bytes_analytic: what `ahn.cost` says of it.
        prefill_flops: what `ahn.cost` says, exact accounting.
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
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocab_size, (1, tokens + steps), generator=generator)
    ids = ids.to(model.device)
    cuda = model.device.type == "cuda"

    def timed(step: Callable[[], None]) -> float:
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    prefills, decodes, held = [], [], 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        for _ in range(repeats + 1):  # the first warms up and is dropped
            cache = model.new_cache()

            def forward(part: torch.Tensor, cache: Any = cache) -> None:
                model(input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1)

            def decode(cache: Any = cache) -> None:
                for step in range(steps):
                    forward(ids[:, tokens + step, None], cache)

            prefills.append(timed(lambda: forward(ids[:, :tokens])))
            held = cache.nbytes
            decodes.append(timed(decode) / steps)
    windowed = next((layer for layer in model.layout if layer.window is not None), None)
    kind: dict[str, Any] = {
        "full_attention_layers": [
            index for index, layer in enumerate(model.layout) if layer.window is None
        ]
    }
    if windowed is None:
        kind = {}
    else:
        kind |= {"window": windowed.window, "sinks": windowed.sinks, "cell": windowed.cell}
    return Measurement(
        variant=variant,
        tokens=tokens,
        prefill_seconds=statistics.median(prefills[1:]),
        decode_seconds_per_token=statistics.median(decodes[1:]),
        cache_bytes=held,
        cache_bytes_analytic=cache_bytes(
            shape, variant, tokens, dtype_bytes=model.dtype.itemsize, **kind
        ).total,
        prefill_flops=flops(shape, variant, tokens, **kind).prefill,
        peak_memory_bytes=torch.cuda.max_memory_allocated() if cuda else None,
    )


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


def bench(
    model: Annotated[str, typer.Option(help="Base model: folder or hub id.")] = "pocket",
    memory: Annotated[str, typer.Option("--ahn", help="AHN weights: folder or hub id.")] = "pocket",
    window: Annotated[int, typer.Option(min=1, help="Window, tokens.")] = 128,
    sinks: Annotated[int, typer.Option(min=0, help="Sinks, tokens.")] = 4,
    lengths: Annotated[
        str, typer.Option(help="Prompt lengths, comma-separated.")
    ] = "512,2048,8192",
    steps: Annotated[int, typer.Option(min=1, help="Decode steps.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Times each is measured.")] = 3,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.")] = None,
) -> None:
    """Speed and cache size of every variant on this machine."""
    try:
        sizes = [int(length) for length in lengths.split(",")]
        if min(sizes) < 1:
            raise ValueError
    except ValueError:
        typer.echo(f"--lengths: positive integers, comma-separated, not {lengths!r}", err=True)
        raise typer.Exit(2) from None
    base = str(ahn.POCKET_PATH) if model == "pocket" else model
    weights = str(ahn.POCKET_PATH / "gdn") if memory == "pocket" else memory
    measurements = []
    try:
        shape = ModelShape.from_config(ahn.describe_model(base))
        for variant in VARIANTS:
            seen = AHNConfig(variant=variant).layer(0)
            loaded = ahn.load_model(
                base,
                variant=variant,
                ahn=None if seen.cell is None else weights,
                window=None if seen.window is None else window,
                sinks=None if seen.window is None else sinks,
                dtype=dtype,
                device=device,
            )
            for tokens in sizes:
                measurements.append(measure(loaded, variant, shape, tokens, steps, repeats))
    except InputError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    where = (
        torch.cuda.get_device_name(loaded.device)
        if loaded.device.type == "cuda"
        else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    measurements.sort(key=lambda m: (m.tokens, VARIANTS.index(m.variant)))
    console = Console(width=None if Console().is_terminal else 100)
    console.print(
        f"{model}, {loaded.dtype}, window {window}, {sinks} sinks; {where}".replace("torch.", "")
    )
    console.print(table(measurements))
    result = {
        "model": model,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": where,
        "torch": torch.__version__,
        "window": window,
        "sinks": sinks,
        "measurements": [asdict(m) for m in measurements],
    }
    typer.echo(json.dumps(result))


if __name__ == "__main__":
    typer.run(bench)
