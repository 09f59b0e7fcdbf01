"""Decoding through torch.compile changes nothing and is compiled once, not once a token."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import ahn
from ahn.models.causal_lm import Qwen2AHNConfig, Qwen2AHNForCausalLM
from tests.ahn.conftest import SINKS, SIZES, WINDOW, tokens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("g++") is None and shutil.which("clang++") is None,
        reason="torch.compile on a CPU needs a C++ compiler (g++ or clang++)",
    ),
]


def one_layer(variant: str) -> Any:
    torch.manual_seed(0)
    settings = {"variant": variant, "window": WINDOW, "sinks": SINKS}
    config = Qwen2AHNConfig(**{**SIZES, "num_hidden_layers": 1}, ahn=settings)
    model = Qwen2AHNForCausalLM(config).eval()
    if variant in ("ahn", "memory-only"):
        torch.nn.init.normal_(model.model.layers[0].ahn.fn.o_proj.weight, std=0.3)
    return model


@torch.no_grad()
def decoded(model: Any, start: int, steps: int) -> tuple[Tensor, list[int]]:
    """Logits of tokens one by one, and how many graphs there were after each."""
    ids, cache = tokens(start + steps, rows=2), model.new_cache()
    model(ids[:, :start], past_key_values=cache)
    counters.clear()
    logits, graphs = [], []
    for at in range(start, start + steps):
        logits.append(model(ids[:, at : at + 1], past_key_values=cache).logits)
        graphs.append(counters["stats"]["unique_graphs"])
    return torch.cat(logits, 1), graphs


def test_a_full_window_is_compiled_once_and_changes_nothing() -> None:
    model, start = one_layer("ahn"), SINKS + WINDOW + 2
    ids = tokens(start, rows=2, seed=1)
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    options["attention_mask"] = torch.ones_like(ids)
    expected, none = decoded(model, start, 40)
    answer = model.generate(ids, **options)
    compiled, graphs = decoded(ahn.compile_decode(model), start, 40)
    assert none == [0] * 40 and graphs == [1] * 40
    torch.testing.assert_close(compiled, expected, rtol=0, atol=1e-5)
    assert torch.equal(model.generate(ids, **options), answer)
    assert counters["stats"]["unique_graphs"] == 1, "generate decodes with the same graph"


def test_the_memory_alone_is_compiled_once_from_the_second_token_on() -> None:
    model = one_layer("memory-only")
    expected, _ = decoded(model, 2, 20)
    compiled, graphs = decoded(ahn.compile_decode(model), 2, 20)
    assert graphs == [1] * 20
    torch.testing.assert_close(compiled, expected, rtol=0, atol=1e-5)


def test_full_attention_is_compiled_for_blocks_of_slots() -> None:
    model = one_layer("full")
    expected, _ = decoded(model, 250, 20)
    compiled, graphs = decoded(torch.compile(model), 250, 20)  # and the whole model can be
    # slots come in blocks of 256: one graph for the first, one for those that follow
    assert graphs == [graphs[0]] * 6 + [graphs[6]] * 14
    assert graphs[0] < graphs[6] <= 2 * graphs[0]
    torch.testing.assert_close(compiled, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_a_layout_that_pools_has_one_graph_more_for_steps_that_complete_a_group(
    padded: bool,
) -> None:
    model, start, steps = one_layer("compressive"), 90, 14
    ids, mask = tokens(start + steps, rows=2), torch.ones(2, start, dtype=torch.long)
    if padded:
        mask[1, :29] = 0

    @torch.no_grad()
    def run() -> tuple[Tensor, list[int]]:
        cache = model.new_cache()
        model(ids[:, :start], attention_mask=mask, past_key_values=cache)
        counters.clear()
        logits, graphs = [], []
        for at in range(start, start + steps):
            logits.append(model(ids[:, at : at + 1], past_key_values=cache).logits)
            graphs.append(counters["stats"]["unique_graphs"])
        return torch.cat(logits, 1), graphs

    expected, _ = run()
    ahn.compile_decode(model)
    compiled, graphs = run()
    assert graphs[-1] == 2 and graphs[4:] == [2] * (steps - 4)
    torch.testing.assert_close(compiled, expected, rtol=0, atol=1e-5)
