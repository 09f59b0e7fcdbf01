"""The benchmark measures what it says: a real pass, the real cache, beside the analytic figure."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

from ahn.bench import bench, measure, table
from ahn.config import VARIANTS
from ahn.cost import ModelShape
from ahn.modeling import Qwen2AHNConfig, Qwen2AHNForCausalLM

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 60,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_measured_bytes_equal_the_analytic_ones(variant):
    torch.manual_seed(0)
    ahn = {"window": 24, "sinks": 4, "variant": variant, "full_attention_layers": (1,)}
    model = Qwen2AHNForCausalLM(Qwen2AHNConfig(**SIZES, ahn=ahn)).eval()
    shape = ModelShape.from_config(SIZES | {"model_type": "qwen2"})
    result = measure(model, variant, shape, tokens=100, steps=3, repeats=2)
    assert result.cache_bytes == result.cache_bytes_analytic > 0
    assert result.prefill_seconds > 0 and result.decode_seconds_per_token > 0
    assert result.prefill_flops > 0
    console = Console(file=io.StringIO(), width=120)
    console.print(table([result]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert variant in shown and f"{result.prefill_seconds:.3f}" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "12,x"], "--lengths: positive integers"),
        (["--lengths", "0"], "--lengths: positive integers"),
        (["--model", "./nowhere"], "nowhere"),
    ],
)
def test_bad_input_ends_with_code_2_and_a_message(arguments, message):
    app = typer.Typer()
    app.command()(bench)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.output
