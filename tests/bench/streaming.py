"""Is memory constant, and time per token, however long the context? Measured, in one run.

    python tests/bench/streaming.py                                   # CPU, a few minutes
    python tests/bench/streaming.py --device cuda --shape qwen2.5-3b --dtype bfloat16 \
        --window 32640 --sinks 128 --chunk 8192 --lengths 8192,32768,131072,1048576 \
        --decode-batches 1,16 --compile --output streaming.json       # a GPU

Random weights and random tokens: speed and memory do not depend on what they say. Each variant and
length gets a prefill of `length` tokens through `model.forward` in chunks, as `generate` does it,
then decode steps on top. Reported:

- seconds: on a CPU, CPU time of the one thread that runs (another process on the machine then
  counts little); on a GPU, wall time between synchronisations. The smallest over repeats, which
  run interleaved.
- peak memory above the weights. CPU: every case runs in a process of its own, and it is the peak of
  its resident memory (VmHWM, reset through /proc/self/clear_refs; Linux only) minus what was
  resident with weights and prompt in place: kernels' own buffers and the allocator's slack are
  in it. GPU: torch.cuda.max_memory_allocated minus what was allocated before.
- cache bytes: `AHNCache.nbytes` after the prompt, and `ahn.cost`'s analytic figure beside it.

Required, and checked when the lengths are there (exit code 1 otherwise): for `ahn`, peak memory at
128k within 10 % of that at 32k, seconds per prompt token within 15 %, decode time per token too.
Targets on one H200 at 128k tokens with Qwen2.5-3B's shape in bf16, printed as reached or not:
prefill 1.55 times as fast as full attention, decode 1.4 times at batch 1 and 3 times at batch 16,
peak memory above the weights at most 35 % of full attention's.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import ahn
from ahn.config import AHNConfig
from ahn.cost import zoo
from ahn.cost.accounting import ModelShape, cache_bytes
from common.errors import InputError

K = 1024
VARIANTS = ("full", "window", "ahn")
#: small enough for full attention over 128k tokens on one CPU core
SMALL = ModelShape(
    num_hidden_layers=2,
    hidden_size=128,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    intermediate_size=256,
    vocab_size=512,
    tie_word_embeddings=True,
)


@dataclass(frozen=True)
class Case:
    """One variant at one length, measured.

    Attributes:
        variant: how the past is seen.
        tokens: length of the prompt.
        prefill_seconds: smallest over repeats.
        decode_seconds_per_token: by batch size, median over steps, smallest over repeats.
        peak_bytes: above the weights, prefill and decode at the first batch size.
        cache_bytes: after the prompt, one sequence.
        cache_bytes_analytic: `ahn.cost`'s figure.
    """

    variant: str
    tokens: int
    prefill_seconds: float
    decode_seconds_per_token: dict[str, float]
    peak_bytes: int
    cache_bytes: int
    cache_bytes_analytic: int


def build(shape: ModelShape, options: argparse.Namespace, variant: str) -> Any:
    """A model of this shape with random weights on the device."""
    from ahn.models.causal_lm import Qwen2AHNConfig, Qwen2AHNForCausalLM

    sizes = {k: v for k, v in asdict(shape).items() if k not in ("attention_bias", "qk_norm")}
    settings = AHNConfig(
        cell=options.cell, window=options.window, sinks=options.sinks, variant=variant
    )
    config = Qwen2AHNConfig(ahn=asdict(settings), max_position_embeddings=1 << 20, **sizes)
    default = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(options.dtype)
    try:
        with torch.device(options.device):
            model = Qwen2AHNForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)
    model.prefill_chunk_size = options.chunk
    return ahn.compile_decode(model) if options.compile else model


def clock(options: argparse.Namespace) -> float:
    """Seconds: CPU time of this process, or wall time once a GPU is done."""
    if options.device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Peak:
    """Most memory in use since the start, above what was in use then."""

    def __init__(self, options: argparse.Namespace) -> None:
        gc.collect()
        self.cuda = options.device.type == "cuda"
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            libc = ctypes.CDLL(None)
            libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back, no holes stay
            libc.malloc_trim(0)  # what earlier work freed is not in use
            Path("/proc/self/clear_refs").write_text("5")
            self.start = self._resident("VmRSS")

    @staticmethod
    def _resident(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return K * int(next(line for line in lines if line.startswith(name)).split()[1])

    def bytes(self) -> int:
        """Up to now."""
        now = torch.cuda.max_memory_allocated() if self.cuda else self._resident("VmHWM")
        return now - self.start


@torch.inference_mode()
def measure(model: Any, shape: ModelShape, options: argparse.Namespace, tokens: int) -> Case:
    """Prefill and decode once."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocab_size, (1, tokens), generator=generator).to(options.device)
    steps = torch.randint(shape.vocab_size, (1, 1), generator=generator).to(options.device)
    cache = model.new_cache()  # warm up: the first pass loads kernels
    for part in (ids[:, : options.chunk], steps):
        model(part, past_key_values=cache, logits_to_keep=1)
    cache = model.new_cache()
    peak = Peak(options)
    start = clock(options)
    model(ids, past_key_values=cache, logits_to_keep=1)
    prefill, held = clock(options) - start, cache.nbytes
    decode, most = {}, 0
    for batch in options.decode_batches:
        fork = cache.copy() if len(options.decode_batches) > 1 else cache
        if batch > 1:
            fork.batch_repeat_interleave(batch)
        seconds = []
        for _ in range(options.steps + options.warmup):
            start = clock(options)
            model(steps.expand(batch, 1), past_key_values=fork, logits_to_keep=1)
            seconds.append(clock(options) - start)
        decode[str(batch)] = statistics.median(seconds[options.warmup :])
        most = most or peak.bytes()
    layout = model.layout[0]
    return Case(
        variant=model.config.ahn["variant"],
        tokens=tokens,
        prefill_seconds=prefill,
        decode_seconds_per_token=decode,
        peak_bytes=most,
        cache_bytes=held,
        cache_bytes_analytic=cache_bytes(
            shape,
            model.config.ahn["variant"],
            tokens,
            window=layout.window,
            sinks=layout.sinks,
            cell=layout.cell,
            dtype_bytes=options.dtype.itemsize,
        ).total,
    )


def in_own_process(model: Any, shape: ModelShape, options: argparse.Namespace, tokens: int) -> Case:
    """The case in a fork of this process, so that no other case's memory is seen."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(
        target=lambda: send.send(measure(model, shape, options, tokens)), daemon=True
    )
    child.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        raise SystemExit(f"{tokens} tokens: the measuring process ended early") from None
    finally:
        child.join()


def best(cases: list[Case]) -> Case:
    """Repeats of one case as one: the smallest times, the median peak."""
    decode = {
        batch: min(case.decode_seconds_per_token[batch] for case in cases)
        for batch in cases[0].decode_seconds_per_token
    }
    return Case(
        **{
            **asdict(cases[0]),
            "prefill_seconds": min(case.prefill_seconds for case in cases),
            "decode_seconds_per_token": decode,
            "peak_bytes": int(statistics.median(case.peak_bytes for case in cases)),
        }
    )


def run(shape: ModelShape, options: argparse.Namespace) -> list[Case]:
    """All variants at all lengths, interleaved; `full` is repeated only where it is short."""
    one_process = options.device.type == "cuda"
    found: dict[tuple[str, int], list[Case]] = {}
    models = {} if one_process else {name: build(shape, options, name) for name in options.variants}
    for repeat in range(options.repeats):
        for tokens in options.lengths:
            for variant in options.variants:
                if repeat and variant == "full" and tokens > min(options.lengths):
                    continue
                if one_process:  # one model at a time on the GPU
                    model = build(shape, options, variant)
                    case = measure(model, shape, options, tokens)
                    del model
                else:
                    case = in_own_process(models[variant], shape, options, tokens)
                found.setdefault((variant, tokens), []).append(case)
                print(
                    f"  {variant} {tokens:,}: {case.prefill_seconds:.2f} s, "
                    f"{case.peak_bytes / 2**20:.1f} MiB",
                    file=sys.stderr,
                )
    return [best(cases) for cases in found.values()]


def table(cases: list[Case]) -> Table:
    """The card that is printed; ratios are to the shortest length of the same variant."""
    shown = Table(title="prefill and decode, measured", title_justify="left")
    for name in ("variant", "tokens", "prefill s", "tokens/s", "µs/token", "x", "decode ms", "x"):
        shown.add_column(name, justify="left" if name == "variant" else "right")
    for name in ("peak MiB", "x", "cache MiB", "x"):
        shown.add_column(name, justify="right")
    for variant in dict.fromkeys(case.variant for case in cases):
        mine = sorted((c for c in cases if c.variant == variant), key=lambda c: c.tokens)
        first = mine[0]
        for case in mine:
            decode, at_first = (
                next(iter(c.decode_seconds_per_token.values())) for c in (case, first)
            )
            each, each_first = (c.prefill_seconds / c.tokens for c in (case, first))
            shown.add_row(
                variant,
                f"{case.tokens:,}",
                f"{case.prefill_seconds:.2f}",
                f"{case.tokens / case.prefill_seconds:,.0f}",
                f"{1e6 * each:.1f}",
                f"{each / each_first:.2f}",
                f"{1e3 * decode:.2f}",
                f"{decode / at_first:.2f}",
                f"{case.peak_bytes / 2**20:,.1f}",
                f"{case.peak_bytes / first.peak_bytes:.2f}",
                f"{case.cache_bytes / 2**20:,.2f}",
                f"{case.cache_bytes / first.cache_bytes:.2f}",
            )
        shown.add_section()
    return shown


def verdicts(cases: list[Case], cuda: bool) -> list[tuple[str, float, bool, bool]]:
    """What is asked of these figures: in words, the figure, whether it is met, whether it must."""
    by = {(case.variant, case.tokens): case for case in cases}
    found = []
    short, long = by.get(("ahn", 32 * K)), by.get(("ahn", 128 * K))
    if short and long:
        ratios = {
            "peak memory, 128k / 32k": (long.peak_bytes / short.peak_bytes, 1.10),
            "seconds per prompt token, 128k / 32k": (
                long.prefill_seconds / long.tokens / (short.prefill_seconds / short.tokens),
                1.15,
            ),
        }
        for batch, seconds in long.decode_seconds_per_token.items():
            ratios[f"decode seconds per token at batch {batch}, 128k / 32k"] = (
                seconds / short.decode_seconds_per_token[batch],
                1.15,
            )
        for name, (ratio, limit) in ratios.items():
            found.append((f"ahn: {name}, at most {limit:.2f}", ratio, ratio <= limit, True))
    full = by.get(("full", 128 * K))
    if cuda and full and long:
        speed = full.prefill_seconds / long.prefill_seconds
        found.append(("prefill, times as fast as full, at least 1.55", speed, speed >= 1.55, False))
        for batch, least in (("1", 1.4), ("16", 3.0)):
            if batch in long.decode_seconds_per_token:
                speed = full.decode_seconds_per_token[batch] / long.decode_seconds_per_token[batch]
                name = f"decode at batch {batch}, times as fast as full, at least {least}"
                found.append((name, speed, speed >= least, False))
        share = long.peak_bytes / full.peak_bytes
        found.append(("peak memory, share of full's, at most 0.35", share, share <= 0.35, False))
    return found


def numbers(text: str) -> list[int]:
    """`8192,32768` as integers; `32k` and `1m` are understood."""
    units = {"k": K, "m": K * K}
    return [
        int(part[:-1]) * units[part[-1]] if part[-1:] in units else int(part)
        for part in text.lower().split(",")
    ]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--shape", default="small", help="small, or a model of configs/models")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated")
    parser.add_argument("--lengths", type=numbers, default="8k,32k,128k", help="comma-separated")
    parser.add_argument("--cell", default="GatedDeltaNet", choices=ahn.CELLS)
    parser.add_argument("--window", type=int, default=4032)
    parser.add_argument("--sinks", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=1024, help="tokens a chunk of the prefill")
    parser.add_argument("--steps", type=int, default=48, help="decode steps measured")
    parser.add_argument("--warmup", type=int, default=4, help="decode steps before them")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--decode-batches", type=numbers, default="1", help="comma-separated")
    parser.add_argument("--dtype", default="float32", type=lambda name: getattr(torch, name))
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--compile", action="store_true", help="decode through ahn.compile_decode")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    options = parser.parse_args(arguments)
    options.variants = options.variants.split(",")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and say whether what is required holds."""
    options = parse(arguments)
    if options.device.type == "cpu":
        torch.set_num_threads(1)
    try:
        shape = SMALL if options.shape == "small" else zoo.find(options.shape).shape
        for variant in options.variants:
            AHNConfig(variant=variant, window=options.window, sinks=options.sinks)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    cases = run(shape, options)
    cuda = options.device.type == "cuda"
    where = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, one thread"
    console = Console(width=None if Console().is_terminal else 130)
    console.print(
        f"{options.shape} shape, random weights, {str(options.dtype).removeprefix('torch.')}, "
        f"window {options.window}, {options.sinks} sinks, {options.cell}; {where}"
    )
    console.print(table(cases))
    asked = verdicts(cases, cuda)
    for name, figure, met, required in asked:
        kind = "required" if required else "target"
        print(f"{kind}: {name}: {figure:.3f} ({'met' if met else 'NOT MET'})")
    result = {
        "shape": options.shape,
        "dtype": str(options.dtype).removeprefix("torch."),
        "device": where,
        "seconds": "wall" if cuda else "CPU time, one thread",
        "torch": torch.__version__,
        **{key: getattr(options, key) for key in ("window", "sinks", "cell", "chunk", "compile")},
        "cases": [asdict(case) for case in cases],
        "asked": [
            {"what": name, "figure": figure, "met": met, "required": required}
            for name, figure, met, required in asked
        ],
    }
    text = json.dumps(result)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    return 1 if any(required and not met for _, _, met, required in asked) else 0


if __name__ == "__main__":
    sys.exit(main())
