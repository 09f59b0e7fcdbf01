"""Compressive layouts by arithmetic: the paper's figures, plain sums, and sizes for a budget."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ahn
from ahn.config import LayerLayout
from ahn.cost import (
    BLOCK,
    ModelShape,
    allocated_slots,
    cache_bytes,
    fit_layouts,
    flops,
    layer_slots,
    layout_bytes,
    layout_flops,
    variant_layouts,
    zoo,
)
from common.errors import InputError

TINY = ModelShape(3, 64, 4, 2, 16, 96, 200, tie_word_embeddings=True)
PAPER: dict[str, Any] = {"window": 32_640, "sinks": 128, "accounting": "paper"}


# Table 2 of the paper (arXiv 2510.07318v2) at 128,000 tokens: compression by pooling ("CT") and the
# sliding window ("SWA"), in percent of full attention.
@pytest.mark.parametrize(
    ("model", "slots", "window_flops", "pooled_flops", "cache"),
    [
        ("qwen2.5-3b", 512, 46.6, 47.1, 26.00),
        ("qwen2.5-7b", 448, 48.0, 48.5, 25.95),
        ("qwen2.5-14b", 320, 49.5, 49.8, 25.85),
    ],
)
def test_the_papers_ratios_come_out(model, slots, window_flops, pooled_flops, cache):
    shape = zoo.find(model).shape

    def mixing(variant: str) -> int:
        parts = flops(shape, variant, 128_000, **PAPER).parts
        return parts["projections"] + parts["attention"]

    layouts = variant_layouts(shape, "compressive", window=32_640, sinks=128)
    assert {layout.slots for layout in layouts} == {slots}
    assert {(layout.rate, layout.pooling) for layout in layouts} == {(4, "mean")}
    assert round(100 * mixing("window") / mixing("full"), 1) == window_flops
    assert round(100 * mixing("compressive") / mixing("full"), 1) == pooled_flops
    held = {variant: cache_bytes(shape, variant, 128_000, **PAPER) for variant in ("compressive",)}
    whole = cache_bytes(shape, "full", 128_000, **PAPER).total
    assert round(100 * held["compressive"].total / whole, 2) == cache
    # the pooled slots take the bytes of the recurrent states in the model's type
    ahn = cache_bytes(shape, "ahn", 128_000, cell="GatedDeltaNet", **PAPER)
    assert held["compressive"].total == ahn.total and held["compressive"].pooled == ahn.state


def seen_keys(position: int, layout: LayerLayout) -> int:
    """Keys of one query, pooled ones among them, by going through the tokens."""
    assert layout.window is not None
    gone = [j for j in range(layout.sinks, position + 1) if j <= position - layout.window]
    whole = len(gone) // layout.rate
    kept = sum(j < layout.sinks or j > position - layout.window for j in range(position + 1))
    return kept + len(gone) - whole * layout.rate + min(whole, layout.slots)


@given(
    prompt=st.integers(1, 90),
    generated=st.integers(0, 12),
    window=st.integers(1, 40),
    sinks=st.integers(0, 12),
    rate=st.integers(1, 6),
    slots=st.integers(1, 12),
)
def test_attention_counts_every_visible_pair_once(prompt, generated, window, sinks, rate, slots):
    steps = max(generated - 1, 0)
    layout = LayerLayout(window, sinks, rate=rate, slots=slots)
    pairs = sum(seen_keys(p, layout) for p in range(prompt + steps))
    kind: dict[str, Any] = {"window": window, "sinks": sinks, "rate": rate, "slots": slots}
    count = flops(TINY, "compressive", prompt, generated, **kind)
    assert count.parts["attention"] == 3 * pairs * 4 * 4 * 16
    assert count == layout_flops(TINY, [layout] * 3, prompt, generated)
    assert count.parts["memory"] == 0


@given(tokens=st.integers(0, 3000), window=st.integers(1, 900), slots=st.integers(1, 900))
def test_rate_one_costs_what_a_longer_window_costs(tokens, window, slots):
    kind: dict[str, Any] = {"window": window, "sinks": 4, "rate": 1, "slots": slots}
    longer: dict[str, Any] = {"window": window + slots, "sinks": 4}
    if tokens:
        assert flops(TINY, "compressive", tokens, 5, **kind) == flops(
            TINY, "window", tokens, 5, **longer
        )
    for accounting in ("exact", "paper"):
        pooled, plain = (
            cache_bytes(TINY, variant, tokens, accounting=accounting, **options).total
            for variant, options in (("compressive", kind), ("window", longer))
        )
        if accounting == "paper" or tokens >= 4 + window + slots:
            assert pooled == plain
        else:  # the ring and the groups are allocated in blocks of their own
            assert abs(pooled - plain) < 3 * T * BLOCK


@pytest.mark.parametrize(
    ("tokens", "slots"),
    [
        (0, 0),
        (1, 132 + 3),
        (135, 135),
        (136, 135 + 256),  # the first group is whole
        (132 + 4 * 256 + 3, 135 + 256),
        (132 + 4 * 257, 135 + 400),
        (10**6, 135 + 400),
    ],
)
def test_room_for_groups_grows_by_blocks_and_stops_at_the_slots(tokens, slots):
    assert allocated_slots(tokens, 4, 128, 4, 400) == slots
    assert layer_slots(LayerLayout(128, 4, rate=4, slots=400), tokens) == slots


T = 2 * 2 * 16 * 2  # bytes of a slot of one layer of TINY


@st.composite
def budgets(draw: Any) -> dict[str, Any]:
    compressive = draw(st.booleans())
    layout = LayerLayout(
        draw(st.integers(1, 300)),
        draw(st.integers(0, 20)),
        **(
            {"rate": draw(st.integers(1, 6)), "slots": draw(st.integers(1, 900))}
            if compressive
            else {"cell": draw(st.sampled_from([None, "GatedDeltaNet"]))}
        ),
    )
    full = draw(st.sampled_from([0, 0, 1]))
    return {
        "layouts": [layout] * (3 - full) + [LayerLayout()] * full,
        "size": draw(st.sampled_from(["window", "slots"] if compressive else ["window"])),
        "tokens": draw(st.integers(1, 1500)) if full else draw(st.none() | st.integers(1, 1500)),
        "budget": draw(st.integers(0, 3 * T * 1200)),
    }


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True)
@given(case=budgets())
def test_the_size_found_fits_and_the_next_larger_ones_do_not(case: dict[str, Any]) -> None:
    layouts, size, tokens = case["layouts"], case["size"], case["tokens"]
    length = 10**9 if tokens is None else tokens

    def held(number: int) -> int:
        sized = [
            layout if layout.window is None else replace(layout, **{size: number})
            for layout in layouts
        ]
        return layout_bytes(TINY, sized, length).total

    most = 1300 if tokens is None else tokens
    if size == "slots" and tokens is not None:
        most = max(1, layouts[0].groups(tokens))
    fitting = [number for number in range(1, most + 1) if held(number) <= case["budget"]]
    if not fitting:
        with pytest.raises(InputError, match="bytes hold no"):
            fit_layouts(TINY, layouts, case["budget"], size, tokens=tokens)
        return
    found = fit_layouts(TINY, layouts, case["budget"], size, tokens=tokens)
    assert getattr(found[0], size) == max(fitting)
    assert [replace(one, **{size: getattr(layouts[0], size)}) for one in found[:2]] == layouts[:2]
    assert found[2:] == tuple(layouts[2:]) or layouts[2].window is not None
    assert layout_bytes(TINY, found, length).total <= case["budget"]
    if tokens is None:  # a budget for any length is one for each
        for shorter in (1, 100, 1000):
            assert layout_bytes(TINY, found, shorter).total <= case["budget"]


def test_a_window_and_pooled_slots_hold_what_a_memory_holds():
    """The closed form: n = budget / t tokens; S + W + c - 1 + M = n."""
    shape = ModelShape.from_config(json.loads((ahn.POCKET_PATH / "config.json").read_text("utf-8")))
    memory: dict[str, Any] = {"window": 128, "sinks": 4, "cell": "GatedDeltaNet"}
    budget = cache_bytes(shape, "ahn", 500, dtype_bytes=4, **memory).total
    n = budget // shape.num_hidden_layers // (2 * shape.num_key_value_heads * shape.head_dim * 4)
    assert (budget, n) == (1_020_288, 166)
    (window, *_) = fit_layouts(shape, [LayerLayout(1, 4)] * 3, budget, tokens=None, dtype_bytes=4)
    assert window == LayerLayout(n - 4, 4)
    start = [LayerLayout(64, 4, rate=4, slots=1)] * 3
    (pooled, *_) = fit_layouts(shape, start, budget, "slots", dtype_bytes=4)
    assert pooled.slots == n - 4 - 64 - 3
    (wider, *_) = fit_layouts(
        shape, [replace(one, slots=20) for one in start], budget, dtype_bytes=4
    )
    assert wider.window == n - 4 - 20 - 3


def test_a_short_text_may_keep_more_than_a_long_one() -> None:
    layouts = [LayerLayout(8, 4, rate=4, slots=300)] * 3
    budget = 3 * T * 400
    assert fit_layouts(TINY, layouts, budget)[0].window == 400 - 4 - 3 - 300
    # after 300 tokens few groups are whole, and their room is one block
    assert fit_layouts(TINY, layouts, budget, tokens=300)[0].window == 300
    assert fit_layouts(TINY, layouts, budget, "slots", tokens=300)[0].slots == 72


@pytest.mark.parametrize(
    ("layouts", "options", "said"),
    [
        ([LayerLayout()] * 3, {}, "no layer has a window"),
        ([LayerLayout(8)] * 3, {"size": "slots"}, "no layer has pooled slots"),
        ([LayerLayout(8)] * 3, {"size": "sinks"}, "size 'sinks' is unknown"),
        ([LayerLayout(8)] * 2 + [LayerLayout()], {}, "layers with full attention grow"),
        ([LayerLayout(8)] * 2, {}, "2 layouts for 3 layers"),
        ([LayerLayout(8, 4)] * 3, {"budget": 3 * T * 5 - 1}, "one of 1 takes 1,920"),
    ],
)
def test_budgets_that_cannot_be_met_are_refused(layouts, options, said):
    with pytest.raises(InputError, match=said):
        fit_layouts(TINY, layouts, **{"budget": 10**6, **options})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs a window"),
        ({"window": 8, "rate": 0}, "rate must be at least 1"),
        ({"window": 8, "slots": 0}, "slots must be at least 1"),
    ],
)
def test_settings_that_no_run_can_have_are_refused(options, said):
    for count in (flops, cache_bytes):
        with pytest.raises(InputError, match=said):
            count(TINY, "compressive", 50, **options)
