"""Analytic cost: published figures, closed forms against plain sums, and refusals."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ahn.config import CELLS, VARIANTS
from ahn.cost import zoo
from ahn.cost.accounting import (
    ACCOUNTINGS,
    BLOCK,
    ModelShape,
    added_parameters,
    allocated_slots,
    cache_bytes,
    flops,
)
from common.errors import InputError

TINY = ModelShape(3, 64, 4, 2, 16, 96, 200, tie_word_embeddings=True)
PAPER: dict[str, Any] = {"window": 32_640, "sinks": 128}


def seen_keys(position: int, window: int | None, sinks: int) -> int:
    """Lossless keys of one query, by going through them."""
    return sum(
        window is None or key < sinks or key > position - window for key in range(position + 1)
    )


# Table of the paper, in millions.
@pytest.mark.parametrize(
    ("model", "cell", "millions"),
    [
        ("qwen2.5-3b", "Mamba2", 11.9),
        ("qwen2.5-3b", "DeltaNet", 11.8),
        ("qwen2.5-3b", "GatedDeltaNet", 13.0),
        ("qwen2.5-7b", "Mamba2", 18.6),
        ("qwen2.5-7b", "DeltaNet", 18.5),
        ("qwen2.5-7b", "GatedDeltaNet", 21.3),
        ("qwen2.5-14b", "Mamba2", 51.4),
        ("qwen2.5-14b", "DeltaNet", 51.1),
        ("qwen2.5-14b", "GatedDeltaNet", 61.0),
    ],
)
def test_added_parameters_are_those_of_the_released_checkpoints(model, cell, millions):
    assert round(added_parameters(zoo.find(model).shape, cell) / 1e6, 1) == millions


def test_layers_that_keep_full_attention_add_no_parameters():
    every = added_parameters(TINY, "GatedDeltaNet")
    assert added_parameters(TINY, "GatedDeltaNet", full_attention_layers=[0, 2]) * 3 == every


def test_published_reductions_at_128k():
    shape = zoo.find("qwen2.5-3b").shape
    ahn: dict[str, Any] = {"cell": "GatedDeltaNet", **PAPER}

    def left(accounting: str) -> float:
        part = flops(shape, "ahn", 128_000, accounting=accounting, **ahn).total
        return 100 * part / flops(shape, "full", 128_000, accounting=accounting).total

    assert round(left("paper"), 1) == 59.4, "Table 2"
    assert round(left("paper-abstract") - 100, 1) == -40.5, "the abstract"
    assert 58.5 <= round(left("paper-free-lookup"), 1) <= 58.7

    part = cache_bytes(shape, "ahn", 128_000, accounting="paper", **ahn).total
    whole = cache_bytes(shape, "full", 128_000, accounting="paper").total
    assert round(100 * part / whole - 100, 1) == -74.0
    assert part / whole == pytest.approx(
        (2 * 32_768 * 2 * 128 + 16 * 128 * 128) / (2 * 128_000 * 2 * 128), rel=1e-12
    )


@given(
    prompt=st.integers(1, 90),
    generated=st.integers(0, 12),
    window=st.integers(1, 40),
    sinks=st.integers(0, 12),
)
def test_attention_counts_every_visible_pair_once(prompt, generated, window, sinks):
    steps = max(generated - 1, 0)
    for variant, seen in (("full", None), ("window", window)):
        pairs = sum(seen_keys(p, seen, sinks) for p in range(prompt + steps))
        count = flops(TINY, variant, prompt, generated, window=window, sinks=sinks)
        assert count.parts["attention"] == 3 * pairs * 4 * 4 * 16


@given(
    prompt=st.integers(2, 200),
    generated=st.integers(0, 20),
    variant=st.sampled_from(VARIANTS),
    cell=st.sampled_from(tuple(CELLS)),
    accounting=st.sampled_from(ACCOUNTINGS),
    data=st.data(),
)
def test_parts_add_up_and_a_reused_prefix_is_what_the_rest_leaves(
    prompt, generated, variant, cell, accounting, data
):
    reused = data.draw(st.integers(1, prompt - 1))
    kind: dict[str, Any] = {"window": 30, "sinks": 4, "cell": cell, "accounting": accounting}
    whole = flops(TINY, variant, prompt, generated, **kind)
    rest = flops(TINY, variant, prompt, generated, reused_tokens=reused, **kind)
    prefix = flops(TINY, variant, reused, **kind)
    assert sum(whole.parts.values()) == whole.total == whole.prefill + whole.decode
    assert rest.decode == whole.decode
    # Generation computes the head once per prefill, so two prefills compute it twice.
    twice = 2 * 64 * 200 if accounting == "exact" else 0
    assert prefix.prefill + rest.prefill == whole.prefill + twice


def test_variants_cost_the_same_until_something_leaves_the_window():
    cell = "GatedDeltaNet"
    for tokens, memory_reads in ((36, 0), (37, 1)):
        full = flops(TINY, "full", tokens).parts
        window, ahn, silent = (
            flops(TINY, variant, tokens, window=32, sinks=4, cell=cell).parts
            for variant in ("window", "ahn", "no-write")
        )
        assert (window["attention"] == full["attention"]) is (memory_reads == 0)
        gates = 3 * tokens * 2 * 2 * 64 * 4
        reads = 3 * memory_reads * (2 * 64 * 4 + 4 * 2 * 2 * 16 * 16)
        writes = 3 * memory_reads * 4 * 4 * 16 * 16
        assert window["memory"] == full["memory"] == 0
        assert ahn["memory"] == silent["memory"] == gates + reads + writes


def test_with_every_layer_full_a_variant_costs_what_full_costs():
    layers = range(TINY.num_hidden_layers)
    settings: dict[str, Any] = {
        "window": 32,
        "sinks": 4,
        "cell": "Mamba2",
        "full_attention_layers": layers,
    }
    assert flops(TINY, "ahn", 300, 5, **settings) == flops(TINY, "full", 300, 5)
    assert cache_bytes(TINY, "ahn", 300, **settings) == cache_bytes(TINY, "full", 300)


def test_decode_steps_beyond_the_window_cost_a_constant():
    settings: dict[str, Any] = {"window": 32, "sinks": 4, "cell": "DeltaNet"}
    step = {
        prompt: flops(TINY, "ahn", prompt, 2, **settings).decode for prompt in (36, 500, 100_000)
    }
    assert len(set(step.values())) == 1
    assert flops(TINY, "full", 500, 2).decode < flops(TINY, "full", 501, 2).decode
    assert flops(TINY, "ahn", 500, 1, **settings).decode == 0


@pytest.mark.parametrize(
    ("tokens", "window", "slots"),
    [
        (0, 128, 0),
        (1, None, BLOCK),
        (BLOCK, None, BLOCK),
        (BLOCK + 1, None, 2 * BLOCK),
        (1, 128, 132),
        (10_000, 128, 132),
        (BLOCK + 1, 1000, 2 * BLOCK),
        (10_000, 1000, 1004),
    ],
)
def test_slots_grow_by_blocks_and_stop_at_the_window(tokens, window, slots):
    assert allocated_slots(tokens, 4, window) == slots


def test_cache_bytes_by_tensor():
    settings: dict[str, Any] = {"window": 128, "sinks": 4, "dtype_bytes": 2, "batch_size": 2}
    keys_values = 2 * 3 * 2 * 2 * 132 * 16 * 2
    for cell, gate_bytes in (("GatedDeltaNet", 2 + 4), ("Mamba2", 4 + 4), ("DeltaNet", 2)):
        for variant in ("ahn", "no-write"):
            count = cache_bytes(TINY, variant, 5000, cell=cell, **settings)
            assert count.keys_values == keys_values
            assert count.gates == 2 * 3 * 4 * 132 * gate_bytes
            assert count.state == 2 * 3 * 4 * 16 * 16 * 4
    window = cache_bytes(TINY, "window", 5000, **settings)
    assert (window.keys_values, window.gates, window.state) == (keys_values, 0, 0)
    full = cache_bytes(TINY, "full", 5000, **settings)
    assert full.total == 2 * 3 * 2 * 2 * 5120 * 16 * 2


@pytest.mark.parametrize(
    ("variant", "settings", "message"),
    [
        ("half", {}, "variant 'half' is unknown"),
        ("window", {}, "needs a window"),
        ("window", {"window": 0}, "window must be at least 1"),
        ("window", {"window": 8, "sinks": -1}, "sinks must be at least 0"),
        ("ahn", {"window": 8}, "needs a memory cell"),
        ("ahn", {"window": 8, "cell": "LSTM"}, "cell 'LSTM' is unknown"),
        ("ahn", {"window": 8, "cell": "Mamba2", "full_attention_layers": [3]}, "no layer 3"),
        ("full", {"accounting": "cheap"}, "accounting 'cheap' is unknown"),
    ],
)
def test_settings_that_no_run_can_have_are_refused(variant, settings, message):
    with pytest.raises(InputError, match=message):
        flops(TINY, variant, 10, **settings)
    with pytest.raises(InputError, match=message):
        cache_bytes(TINY, variant, 10, **settings)


@pytest.mark.parametrize(("prompt", "generated", "reused"), [(0, 1, 0), (5, -1, 0), (5, 1, 5)])
def test_impossible_lengths_are_refused(prompt, generated, reused):
    with pytest.raises(InputError, match="at least one prompt token"):
        flops(TINY, "full", prompt, generated, reused_tokens=reused)
    with pytest.raises(InputError, match="none may be negative"):
        cache_bytes(TINY, "full", -1)


def test_shape_reads_configurations_of_both_families():
    config: dict[str, Any] = {
        "model_type": "qwen2",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "vocab_size": 200,
    }
    qwen2 = ModelShape.from_config(config)
    assert (qwen2.num_key_value_heads, qwen2.head_dim) == (4, 16)
    assert (qwen2.attention_bias, qwen2.qk_norm) == (True, False)
    qwen3 = ModelShape.from_config(config | {"model_type": "qwen3"})
    assert (qwen3.head_dim, qwen3.attention_bias, qwen3.qk_norm) == (128, False, True)
    assert ModelShape.from_config(config | {"model_type": "qwen3_ahn"}) == qwen3
    with pytest.raises(InputError, match="model_type 'gemma' is not supported"):
        ModelShape.from_config(config | {"model_type": "gemma"})
    with pytest.raises(InputError, match="lacks vocab_size"):
        ModelShape.from_config(config | {"vocab_size": None})
    with pytest.raises(InputError, match="hidden_size must be a positive integer"):
        ModelShape.from_config(config | {"hidden_size": "64", "head_dim": 16})
    with pytest.raises(InputError, match="no multiple"):
        ModelShape.from_config(config | {"num_key_value_heads": 3})


def test_cost_and_zoo_are_used_without_torch():
    code = "import sys, ahn.cost.zoo as zoo; zoo.names(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
