"""What does a training step need? Our trainer's step against a plain one, measured in one run.

    python tests/bench/training.py                                    # CPU, about two minutes
    python tests/bench/training.py --device cuda --dtype bfloat16 --shape qwen2.5-3b \
        --lengths 24576 --window 8192 --forms ours --output training.json             # a GPU

Random weights and random tokens, one sequence, every position labelled (the most logits that can be
asked for), loss `kl` between full attention and window + memory. Forms:

- ours: the module, optimiser and options that `ahn train` runs: `Distillation` with gradient
  checkpointing, losses in chunks of positions.
- plain: the same model, the same loss, the same frozen base, written down plainly: teacher's
  logits whole, student's logits whole, one KL over them, every layer's activations kept.

Both must give the same loss; the run says so, or ends with exit code 1. Reported:

- seconds of a step: CPU time of one thread, or wall time on a GPU; the smallest over repeats.
- peak memory above the weights, over a whole step (forward, backward, first AdamW step). CPU: every
  case runs in a process of its own, and it is the peak of its resident memory (see
  `tests/bench/streaming.py`); GPU: torch.cuda.max_memory_allocated.
- growth: slope of log bytes and log seconds over log tokens (1: linear).

Then the memory of a step by the formula in `tests/bench/step_memory.py`: beside what was measured
here, and, labelled as computed, for the paper's three models at 24,576 tokens and its largest
training window (8,192). Required: ours holds less than plain at the greatest common length; the
formula agrees with what was measured on a CPU; at Qwen2.5-3B's shape a step fits 80 GB.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import ahn
from ahn.config import LayerLayout
from ahn.cost import zoo
from ahn.cost.accounting import ModelShape
from ahn.distill.distillation import Distillation
from ahn.distill.options import new_optimizer
from ahn.distill.recipe import Recipe
from ahn.distill.student import make_trainable
from common.errors import InputError
from tests.bench.step_memory import StepMemory, step_memory
from tests.bench.streaming import Peak, build, clock, numbers

FORMS = ("ours", "plain")
FIGURES = ("peak_bytes", "seconds")
#: vocabulary and hidden size in about the ratio of Qwen2.5-3B's
SMALL = ModelShape(
    num_hidden_layers=6,
    hidden_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    intermediate_size=512,
    vocab_size=8192,
    tie_word_embeddings=True,
)
#: what the paper trains, its longest samples, its largest window that is drawn for them
PAPER = ("qwen2.5-3b", "qwen2.5-7b", "qwen2.5-14b")
PAPER_TOKENS, PAPER_WINDOW = 24_576, 8192
LIMIT_BYTES = 80 * 10**9
#: formula and measurement agree within it on a CPU (the allocator's slack, kernels' buffers)
FACTOR = 1.3


@dataclass(frozen=True)
class Case:
    """One form at one length, measured.

    Attributes:
        form: ours or plain.
        tokens: of the sequence.
        peak_bytes: above the weights, over a step.
        seconds: of a step, smallest over repeats.
        loss: of a first step.
    """

    form: str
    tokens: int
    peak_bytes: int
    seconds: float
    loss: float


def plain_loss(model: Any, ids: Tensor, span: tuple[int, int]) -> Tensor:
    """KL(teacher || student) beyond the window, from whole logits."""
    total, sinks = span
    student_layout = [LayerLayout(total - sinks, sinks, seen.cell) for seen in model.layout]
    with torch.no_grad():
        layout = [LayerLayout()] * len(student_layout)
        teacher = model.lm_head(model.model(ids, layout=layout, use_cache=False)[0])
    student = model.lm_head(model.model(ids, layout=student_layout, use_cache=False)[0])
    return F.kl_div(
        student[:, total:].flatten(0, 1).float().log_softmax(-1),
        teacher[:, total:].flatten(0, 1).float().log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )


def stepper(model: Any, options: argparse.Namespace, form: str) -> Callable[[Tensor], float]:
    """A function that takes one step with `ids [1, L]` and gives the loss before it."""
    span = (options.window, options.sinks)
    values: dict[str, Any] = {
        "model_name_or_path": "random",
        "output_dir": "unused",
        "dataset": "random",
        "sliding_window": options.window,
        "num_attn_sinks": options.sinks,
        "gradient_checkpointing": form == "ours",
        "bf16": options.dtype == torch.bfloat16,
    }
    recipe = Recipe(**values)
    model.train()
    torch.manual_seed(0)
    make_trainable(model, recipe)
    with torch.no_grad():  # a fresh memory changes nothing, and then the loss is zero
        for layer in model.model.layers:
            layer.ahn.fn.o_proj.weight.normal_(std=0.1)
    module = Distillation(model, recipe)
    optimizer = new_optimizer(module, recipe)

    def step(ids: Tensor) -> float:
        optimizer.zero_grad()
        with torch.autocast(options.device.type, torch.bfloat16, enabled=recipe.bf16):
            if form == "ours":
                loss = module(input_ids=ids, labels=ids, span=span)["loss"]
            else:
                loss = plain_loss(model, ids, span)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def seconds_of(model: Any, ids: Tensor, options: argparse.Namespace, form: str) -> float:
    """Seconds of a step, smallest over repeats; a short step before them loads kernels."""
    step = stepper(model, options, form)
    step(ids[:, : options.window + 64])
    seconds = []
    for _ in range(options.repeats):
        start = clock(options)
        step(ids)
        seconds.append(clock(options) - start)
    return min(seconds)


def peak_of(model: Any, ids: Tensor, options: argparse.Namespace, form: str) -> tuple[int, float]:
    """Peak bytes above the weights of a first step, and its loss."""
    stepper(model, options, form)(ids[:, : options.window + 64])  # loads kernels
    model.zero_grad()
    step = stepper(model, options, form)  # whose moments are not there yet
    peak = Peak(options)
    loss = step(ids)
    return peak.bytes(), loss


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result from a fork of this process, in whose memory nothing else ran.

    None: the fork was ended, as the kernel does it when memory is short.
    """
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=lambda: send.send(function(*arguments)), daemon=True)
    child.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        return None
    finally:
        child.join()


def measure(shape: ModelShape, options: argparse.Namespace, form: str, tokens: int) -> Case | None:
    """One case; None where memory does not hold it."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(shape.vocab_size, (1, tokens), generator=generator).to(options.device)
    model = build(shape, options, "ahn")
    arguments = (model, ids, options, form)
    if options.device.type == "cuda":
        try:
            found = peak_of(*arguments)
            return Case(form, tokens, found[0], seconds_of(*arguments), found[1])
        except torch.OutOfMemoryError:
            return None
    # apart: what timed steps leave in the allocator would count as memory in use
    found = in_own_process(peak_of, *arguments)
    seconds = None if found is None else in_own_process(seconds_of, *arguments)
    return None if seconds is None else Case(form, tokens, found[0], seconds, found[1])


def fits(done: list[Case], tokens: int) -> bool:
    """Whether the memory that is free now holds a case that grows linearly from the last one."""
    if not done:
        return True
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return done[-1].peak_bytes * tokens / done[-1].tokens < 0.8 * free


def run(shape: ModelShape, options: argparse.Namespace) -> list[Case]:
    """All forms at all lengths; a form ends where memory does."""
    cases: list[Case] = []
    for form in options.forms:
        done: list[Case] = []
        for tokens in sorted(options.lengths):
            room = options.device.type == "cuda" or fits(done, tokens)
            case = measure(shape, options, form, tokens) if room else None
            if case is None:
                print(f"  {form} {tokens:,}: does not fit here", file=sys.stderr)
                break
            done.append(case)
            figures = f"{case.peak_bytes / 2**20:,.0f} MiB, {case.seconds:.2f} s"
            print(f"  {form} {tokens:,}: {figures}", file=sys.stderr)
        cases += done
    return cases


def growth(cases: list[Case], figure: str) -> float | None:
    """Least-squares slope of log figure over log tokens; None for fewer than two lengths."""
    if len(cases) < 2:
        return None
    x, y = [math.log(c.tokens) for c in cases], [math.log(getattr(c, figure)) for c in cases]
    return statistics.linear_regression(x, y).slope


def table(cases: list[Case], computed: dict[int, StepMemory]) -> Table:
    """Peak and seconds by length, plain's beside ours, ratios, and growth."""
    shown = Table(title="one training step, measured", title_justify="left")
    names = ("tokens", "ours MiB", "plain MiB", "plain/ours", "ours s", "plain s", "plain/ours")
    for name in (*names, "ours by formula MiB", "formula/ours"):
        shown.add_column(name, justify="right")
    by = {(case.form, case.tokens): case for case in cases}
    for tokens in sorted(computed):
        pair = [by.get((form, tokens)) for form in FORMS]
        row = [f"{tokens:,}"]
        for name, scale, digits in (("peak_bytes", 2**20, 0), ("seconds", 1, 2)):
            figures = [None if case is None else getattr(case, name) / scale for case in pair]
            row += ["-" if f is None else f"{f:,.{digits}f}" for f in figures]
            both = figures[0] is not None and figures[1] is not None
            row.append(f"{figures[1] / figures[0]:.1f} x" if both else "-")  # type: ignore[operator]
        formula = computed[tokens].above_weights
        ratio = "-" if pair[0] is None else f"{formula / pair[0].peak_bytes:.2f}"
        shown.add_row(*row, f"{formula / 2**20:,.0f}", ratio)
    shown.add_section()
    row = ["~ tokens^"]
    for name in FIGURES:
        slopes = [growth([c for c in cases if c.form == form], name) for form in FORMS]
        row += [*("-" if slope is None else f"{slope:.2f}" for slope in slopes), ""]
    shown.add_row(*row, "", "")
    return shown


def paper_table(cell: str) -> tuple[Table, dict[str, StepMemory]]:
    """Computed memory of a step of the paper's training."""
    title = f"one step at {PAPER_TOKENS:,} tokens, bfloat16, {cell}: computed, not measured (GB)"
    shown = Table(title=title, title_justify="left")
    names = ("weights", "training_state", "layer_inputs", "logits", "layer", "total")
    shown.add_column("model")
    for name in names:
        shown.add_column(name.replace("_", " "), justify="right")
    found = {}
    for name in PAPER:
        shape = zoo.find(name).shape
        found[name] = step_memory(shape, PAPER_TOKENS, PAPER_WINDOW, cell, 2, cuda=True)
        figures = found[name].record()
        shown.add_row(name, *(f"{figures[part] / 1e9:.1f}" for part in names))
    return shown, found


def verdicts(
    cases: list[Case],
    computed: dict[int, StepMemory],
    paper: dict[str, StepMemory],
    shape: str,
    cuda: bool,
) -> list[tuple[str, float, bool]]:
    """What is required of these figures: in words, the figure, whether it is met."""
    by = {(case.form, case.tokens): case for case in cases}
    found = []
    common = [c.tokens for c in cases if {(f, c.tokens) for f in FORMS} <= by.keys()]
    for tokens in sorted(set(common)):
        off = abs(by["ours", tokens].loss / by["plain", tokens].loss - 1)
        limit = 1e-2 if cuda else 1e-4  # half types round, float32 sums in another order
        found.append((f"{tokens:,} tokens: losses differ by at most {limit}", off, off <= limit))
    if common:
        ratio = by["ours", max(common)].peak_bytes / by["plain", max(common)].peak_bytes
        name = f"{max(common):,} tokens: ours holds a smaller part of plain's memory than 1"
        found.append((name, ratio, ratio < 1))
    ours = [case for case in cases if case.form == "ours"]
    if ours and not cuda:
        ratio = computed[ours[-1].tokens].above_weights / ours[-1].peak_bytes
        name = f"{ours[-1].tokens:,} tokens: formula / measured, within a factor of {FACTOR}"
        found.append((name, ratio, 1 / FACTOR < ratio < FACTOR))
    totals = {"computed": paper["qwen2.5-3b"].total}
    for case in ours:
        if shape == "qwen2.5-3b" and case.tokens == PAPER_TOKENS:
            totals["measured"] = computed[case.tokens].weights + case.peak_bytes
    for how, total in totals.items():
        name = f"Qwen2.5-3B at {PAPER_TOKENS:,} tokens, {how}, GB, at most 80"
        found.append((name, total / 1e9, total <= LIMIT_BYTES))
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--shape", default="small", help="small, or a model of configs/models")
    parser.add_argument("--forms", default=",".join(FORMS), help="comma-separated")
    parser.add_argument("--lengths", type=numbers, default="512,1k,2k,4k,8k", help="tokens")
    parser.add_argument("--cell", default="GatedDeltaNet", choices=ahn.CELLS)
    parser.add_argument("--window", type=int, default=256, help="W_total, sinks included")
    parser.add_argument("--sinks", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2, help="steps measured")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--json", action="store_true", help="one JSON line and no tables")
    parser.add_argument("--output", type=Path, help="write the JSON here too")
    options = parser.parse_args(arguments)
    options.dtype = getattr(torch, options.dtype)
    options.forms = options.forms.split(",")
    options.chunk, options.compile = 0, False  # of a prompt's prefill, which there is none of
    problems = [f"--forms: one of {', '.join(FORMS)}" for f in options.forms if f not in FORMS]
    if min(options.lengths) <= options.window:
        problems.append("--lengths: something must lie beyond --window")
    if not 0 <= options.sinks < options.window:
        problems.append("--sinks: fewer than --window")
    if problems:
        raise InputError(*problems)
    if options.device.type != "cuda":
        torch.set_num_threads(1)
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure, compute, print, and say whether what is required holds."""
    try:
        options = parse(arguments)
        shape = SMALL if options.shape == "small" else zoo.find(options.shape).shape
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    cuda = options.device.type == "cuda"
    cases = run(shape, options)
    computed = {
        tokens: step_memory(
            shape, tokens, options.window, options.cell, options.dtype.itemsize, cuda
        )
        for tokens in options.lengths
    }
    papers, paper = paper_table(options.cell)
    asked = verdicts(cases, computed, paper, options.shape, cuda)
    where = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, one thread"
    kind = str(options.dtype).removeprefix("torch.")
    if not options.json:
        console = Console(width=None if Console().is_terminal else 130)
        console.print(
            f"{options.shape} shape, random weights, {kind}, W_total {options.window}, "
            f"{options.sinks} sinks, {options.cell}; {where}"
        )
        console.print(table(cases, computed))
        console.print(papers)
        for name, figure, met in asked:
            print(f"required: {name}: {figure:.3g} ({'met' if met else 'NOT MET'})")
    result = {
        "shape": options.shape,
        "dtype": kind,
        "device": where,
        "seconds": "wall" if cuda else "CPU time, one thread",
        "torch": torch.__version__,
        **{key: getattr(options, key) for key in ("window", "sinks", "cell")},
        "cases": [asdict(case) for case in cases],
        "growth": {
            form: {name: growth([c for c in cases if c.form == form], name) for name in FIGURES}
            for form in options.forms
        },
        "computed": {str(tokens): memory.record() for tokens, memory in computed.items()},
        "computed_for_the_paper": {name: memory.record() for name, memory in paper.items()},
        "asked": [{"what": name, "figure": figure, "met": met} for name, figure, met in asked],
    }
    text = json.dumps(result)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0 if all(met for _, _, met in asked) else 1


if __name__ == "__main__":
    sys.exit(main())
