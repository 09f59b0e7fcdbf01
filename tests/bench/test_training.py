"""The benchmark of the training step measures real steps, and its formula agrees with them."""

from __future__ import annotations

import json
import math
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ahn.cost import zoo
from ahn.cost.accounting import added_parameters
from tests.bench import training
from tests.bench.step_memory import StepMemory, step_memory
from tests.bench.streaming import build
from tests.bench.training import (
    FACTOR,
    LIMIT_BYTES,
    PAPER_TOKENS,
    PAPER_WINDOW,
    SMALL,
    Case,
    growth,
    in_own_process,
    main,
    parse,
    peak_of,
)

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads peaks from /proc")


@pytest.mark.slow
@LINUX
def test_forms_stand_side_by_side_in_one_run() -> None:
    """As the script is run: what it measures is resident memory, which a used process blurs."""
    arguments = ["--lengths", "256,512", "--window", "64", "--sinks", "8", "--repeats", "1"]
    script = Path(training.__file__ or "")
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert "computed, not measured" in shown and "NOT MET" not in shown
    record = json.loads(shown.splitlines()[-1])
    cases = {(case["form"], case["tokens"]): case for case in record["cases"]}
    assert set(cases) == {(f, n) for f in ("ours", "plain") for n in (256, 512)}
    for tokens in (256, 512):
        ours, plain = cases["ours", tokens], cases["plain", tokens]
        assert math.isclose(ours["loss"], plain["loss"], rel_tol=1e-4) and ours["loss"] > 0
        assert ours["seconds"] > 0 and ours["peak_bytes"] < plain["peak_bytes"]
    assert set(record["growth"]) == {"ours", "plain"} and record["computed"]["512"]["logits"] > 0
    assert record["computed_for_the_paper"]["qwen2.5-3b"]["total"] <= LIMIT_BYTES


def measured_peak(cell: str, vocab_size: int) -> tuple[StepMemory, int]:
    """What the formula says of a step, and the bytes it took."""
    shape = replace(SMALL, vocab_size=vocab_size, num_hidden_layers=2)
    tokens, window = 1536, 128
    options = parse(["--lengths", str(tokens), "--window", str(window), "--cell", cell])
    ids = torch.randint(vocab_size, (1, tokens))
    model = build(shape, options, "ahn")
    measured, loss = in_own_process(peak_of, model, ids, options, "ours")
    assert loss > 0
    return step_memory(shape, tokens, window, cell, 4, cuda=False), measured


@pytest.fixture(scope="module")
def clean_process() -> Iterator[ProcessPoolExecutor]:
    """A process in which no test ran: holes in the heap of one that ran many would be counted."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.slow
@LINUX
@pytest.mark.parametrize(
    ("cell", "vocab_size", "larger"),
    [
        ("GatedDeltaNet", 8192, "logits"),
        ("GatedDeltaNet", 512, "layer"),
        ("DeltaNet", 512, "layer"),
        ("Mamba2", 512, "layer"),
    ],
)
def test_the_formula_agrees_with_what_is_measured(
    clean_process: ProcessPoolExecutor, cell: str, vocab_size: int, larger: str
) -> None:
    """Within a factor either way: the allocator's slack, and kernels' own buffers."""
    computed, measured = clean_process.submit(measured_peak, cell, vocab_size).result()
    assert getattr(computed, larger) == max(computed.logits, computed.layer)
    assert 1 / FACTOR < computed.above_weights / measured < FACTOR


def test_the_papers_step_fits_80_gb_and_grows_with_everything() -> None:
    shape = zoo.find("qwen2.5-3b").shape
    given: dict[str, Any] = {
        "tokens": PAPER_TOKENS,
        "window": PAPER_WINDOW,
        "cell": "GatedDeltaNet",
        "dtype_bytes": 2,
        "cuda": True,
    }
    memory = step_memory(shape, **given)
    assert memory.weights < memory.total <= LIMIT_BYTES
    assert memory.weights == 2 * shape.parameters + 4 * added_parameters(shape, "GatedDeltaNet")
    for change in ({"tokens": 2 * PAPER_TOKENS}, {"window": 16_384}, {"dtype_bytes": 4}):
        assert step_memory(shape, **{**given, **change}).total > memory.total, change


def test_growth_is_the_slope_of_the_logarithms() -> None:
    cases = [Case("ours", n, 7 * n**2, 1e-3 * n, 1.0) for n in (256, 1024, 4096)]
    found = growth(cases, "peak_bytes"), growth(cases, "seconds"), growth(cases[:1], "seconds")
    assert found[2] is None and found[:2] == (pytest.approx(2.0), pytest.approx(1.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--forms", "ours,best"], "--forms: one of ours, plain"),
        (["--lengths", "128"], "something must lie beyond --window"),
        (["--sinks", "256"], "--sinks: fewer than --window"),
        (["--shape", "qwen9"], "no model 'qwen9' in the zoo"),
    ],
)
def test_bad_input_ends_with_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
