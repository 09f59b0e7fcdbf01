"""The paper's count of costs: its formula written out, and what must hold of any count."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahn.cost import zoo
from ahn.cost.accounting import ModelShape
from ahn.cost.paper import METHODS, method_cost, training_step, variant_of
from common.errors import InputError

TINY = ModelShape(3, 64, 4, 2, 16, 96, 200, tie_word_embeddings=True)
SPLIT: dict[str, Any] = {"window": 30, "sinks": 4}
#: D Nq of each memory's gates, as Table 1 counts
GATES = {"AHN-GDN": 3, "AHN-DN": 2, "AHN-Mamba2": 2}


def mixing_of_a_layer(shape: ModelShape, method: str, L: int, W: int) -> float:
    """Table 1, from the paper; `W` with the sinks."""
    D, H = shape.hidden_size, shape.head_dim
    Nq, Nkv = shape.num_attention_heads, shape.num_key_value_heads
    projections = 4 * L * D * H * (Nq + Nkv)
    if method == "Full Attn" or L <= W:
        return projections + 2 * H * Nq * L**2
    beyond = 2.0 * W * H * Nq
    if method.startswith("CT"):
        beyond += 2 * (H * Nq // (2 * Nkv)) * H * Nq
    if method in GATES:
        beyond += 2 * H**2 * Nq + GATES[method] * D * Nq
    return projections + 2 * H * Nq * W**2 + 2 * (L - W) * beyond


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["qwen2.5-3b", "qwen2.5-7b", "qwen2.5-14b", "qwen3-8b"])
def test_mixing_and_model_are_the_formula(name: str, method: str) -> None:
    shape, L, W = zoo.find(name).shape, 128_000, 32_768
    cost = method_cost(shape, method, L, window=32_640, sinks=128)
    mixing = shape.num_hidden_layers * mixing_of_a_layer(shape, method, L, W)
    rest = 6 * L * shape.hidden_size * shape.intermediate_size * shape.num_hidden_layers
    rest += 4 * L * shape.hidden_size * shape.vocab_size
    assert cost.mixing_flops == mixing
    assert cost.model_flops == mixing + rest


@given(length=st.integers(1, 34), method=st.sampled_from(list(METHODS)))
def test_every_method_costs_what_full_attention_costs_within_the_window(
    length: int, method: str
) -> None:
    cost, full = (method_cost(TINY, name, length, **SPLIT) for name in (method, "Full Attn"))
    assert (cost.mixing_flops, cost.model_flops) == (full.mixing_flops, full.model_flops)
    if variant_of(method)["variant"] != "ahn":
        assert cost == full
    else:
        assert cost.cache_bytes == full.cache_bytes + 3 * 4 * 4 * 16 * 16, "the state is there"


@given(
    length=st.integers(1, 400),
    window=st.integers(1, 60),
    method=st.sampled_from(list(METHODS)),
    output_gate=st.booleans(),
)
def test_costs_grow_with_the_length_and_not_faster_than_full_attentions(
    length: int, window: int, method: str, output_gate: bool
) -> None:
    options: dict[str, Any] = {"window": window, "sinks": 4, "output_gate": output_gate}
    shorter, longer = (
        method_cost(TINY, method, tokens, **options) for tokens in (length, length + 1)
    )
    assert longer.mixing_flops > shorter.mixing_flops
    assert longer.model_flops > shorter.model_flops
    assert longer.cache_bytes >= shorter.cache_bytes
    full = method_cost(TINY, "Full Attn", length, **options)
    bounded = method_cost(TINY, "Sinks + SWA", length, **options)
    assert bounded.mixing_flops <= shorter.mixing_flops or method == "Full Attn"
    assert bounded.mixing_flops <= full.mixing_flops


def test_without_the_output_gate_a_memory_multiplies_one_vector_less_for_each_token() -> None:
    for method in METHODS:
        whole, without = (
            method_cost(TINY, method, 50, output_gate=kept, **SPLIT) for kept in (True, False)
        )
        left_out = 3 * (50 - 34) * 2 * 64 * 4 if method in GATES else 0
        assert whole.mixing_flops - without.mixing_flops == left_out
        assert whole.model_flops - without.model_flops == left_out


def test_a_training_step_is_two_forward_passes_of_every_sequence() -> None:
    for method in METHODS:
        step = training_step(TINY, length=50, batch_size=7, **SPLIT, **variant_of(method))
        forward = method_cost(TINY, method, 50, output_gate=False, **SPLIT).model_flops
        assert step == 2 * 7 * forward


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(InputError, match="batch_size must be at least 1, not 0"):
        training_step(TINY, "full", 50, batch_size=0)
    with pytest.raises(InputError, match="no method 'AHN-GND'.*did you mean 'AHN-GDN'"):
        method_cost(TINY, "AHN-GND", 50, **SPLIT)
    assert variant_of("Full attention") == variant_of("Full Attn") == {"variant": "full"}
    assert variant_of("Attention Sinks + SWA") == {"variant": "window"}
