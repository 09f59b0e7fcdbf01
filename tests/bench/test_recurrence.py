"""The benchmark of the recurrences measures real passes and refuses what it cannot run."""

from __future__ import annotations

import json
import math

import pytest
import typer
from typer.testing import CliRunner

from tests.bench.recurrence import RECURRENCES, Timing, bench, growth

APP = typer.Typer()
APP.command()(bench)
SMALL = ["--lengths", "64,16,32", "--heads", "2", "--head-dim", "8", "--repeats", "1"]
ON_CPU = [*SMALL, "--device", "cpu"]


@pytest.mark.parametrize("cell", RECURRENCES)
@pytest.mark.parametrize("direction", ["--backward", "--no-backward"])
def test_forms_stand_side_by_side(cell: str, direction: str) -> None:
    result = CliRunner().invoke(APP, [*ON_CPU, "--cell", cell, direction])
    assert result.exit_code == 0, result.output
    assert "recurrent tokens/s" in result.output and "chunked / recurrent" in result.output
    record = json.loads(result.output.splitlines()[-1])
    timings = {(t["backend"], t["tokens"]): t for t in record["timings"]}
    assert set(timings) == {(b, n) for b in ("recurrent", "chunked") for n in (16, 32, 64)}
    for (_, tokens), timing in timings.items():
        assert timing["seconds"] > 0
        assert math.isclose(timing["tokens_per_second"], tokens / timing["seconds"])
    assert set(record["growth"]) == {"recurrent", "chunked"}


def test_a_slow_form_leaves_out_longer_inputs() -> None:
    result = CliRunner().invoke(APP, [*ON_CPU, "--limit", "0"])
    record = json.loads(result.output.splitlines()[-1])
    assert [t["tokens"] for t in record["timings"]] == [16, 16]
    assert record["growth"] == {"recurrent": None, "chunked": None}


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_growth_exponent_is_the_slope_of_the_logarithms(power: float) -> None:
    timings = [Timing("chunked", n, 1e-6 * n**power, 0.0) for n in (256, 1024, 16_384)]
    found = growth(timings)
    assert found is not None and math.isclose(found, power)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "12,x"], "--lengths: positive integers"),
        (["--lengths", "0"], "--lengths: positive integers"),
        (["--cell", "LSTM"], "--cell: one of GatedDeltaNet"),
        (["--dtype", "int8"], "--dtype: one of float32"),
        (["--device", "tpu9"], "--device tpu9"),
        (["--device", "cpu", "--backends", "fla"], "on cpu"),
        (["--backends", "cuda"], "unknown backend 'cuda'"),
    ],
)
def test_bad_input_ends_with_code_2_and_a_message(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(APP, [*SMALL, *arguments])
    assert result.exit_code == 2
    assert message in result.output
