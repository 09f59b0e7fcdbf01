"""The benchmark measures what it says: a real pass, the real cache, beside the analytic figure."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

from ahn.commands import bench as bench_module
from ahn.commands.bench import command, measure, measure_in_turns, share_base, table
from ahn.config import VARIANTS
from ahn.cost.accounting import ModelShape
from ahn.models.causal_lm import Qwen2AHNConfig, Qwen2AHNForCausalLM

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


def models() -> dict[str, Any]:
    """Three variants of one base, each with weights of its own in memory."""
    made: dict[str, Any] = {}
    for variant in ("full", "window", "ahn"):
        torch.manual_seed(0)
        config = Qwen2AHNConfig(**SIZES, ahn={"window": 24, "sinks": 4, "variant": variant})
        made[variant] = Qwen2AHNForCausalLM(config).eval()
    for model in made.values():
        model.load_state_dict(made["full"].state_dict(), strict=False)
    return made


def test_variants_are_measured_in_turns(monkeypatch):
    order: list[str] = []
    made = models()
    names = {id(model): variant for variant, model in made.items()}
    once = bench_module._time_once

    def watched(model: Any, *arguments: Any) -> Any:
        order.append(names[id(model)])
        return once(model, *arguments)

    monkeypatch.setattr(bench_module, "_time_once", watched)
    shape = ModelShape.from_config(SIZES | {"model_type": "qwen2"})
    found = measure_in_turns(made, shape, tokens=30, steps=2, repeats=3)
    assert [m.variant for m in found] == list(made)
    assert order == list(made) * 4  # a round to warm up, and three that count


def test_the_first_round_does_not_count_and_the_median_does(monkeypatch):
    times = iter([9.0, 3.0, 1.0, 2.0])

    def once(*_: Any) -> Any:
        seconds = next(times)
        return bench_module._Timing(seconds, seconds / 10, 5, None)

    monkeypatch.setattr(bench_module, "_time_once", once)
    shape = ModelShape.from_config(SIZES | {"model_type": "qwen2"})
    found = measure(models()["window"], "window", shape, tokens=30, steps=2, repeats=3)
    assert (found.prefill_seconds, found.decode_seconds_per_token) == (2.0, 0.2)
    assert found.peak_memory_bytes is None


def test_models_of_a_bench_share_the_base_and_compute_the_same():
    ids = torch.arange(40)[None] % SIZES["vocab_size"]
    with torch.inference_mode():
        before = {name: model(ids).logits for name, model in models().items()}
        made = models()
        share_base(made)
        assert all(torch.equal(made[name](ids).logits, before[name]) for name in made)
    first = {p.data_ptr() for p in made["full"].parameters()}
    for name, parameter in made["ahn"].named_parameters(remove_duplicate=False):
        assert (parameter.data_ptr() in first) == (".ahn." not in name), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "12,x"], "--lengths.1: input should be a valid integer"),
        (["--lengths", "0"], "--lengths.0: must be at least 1, not 0"),
        (["--lengths", ""], "--lengths: "),
        (["--repeats", "0"], "--repeats: must be at least 1, not 0"),
        (["--dtype", "int4"], "--dtype: must be 'auto', 'float32'"),
        (["--model", "./nowhere"], "nowhere"),
    ],
)
def test_bad_input_ends_with_code_2_and_a_message(arguments, message):
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert message in result.output
