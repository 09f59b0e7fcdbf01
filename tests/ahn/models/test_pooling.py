"""Compressive layouts against their definition, written out query by query.

What a query sees is a list here, made from the paper's words: sinks, the window, tokens of a group
that has not left the window whole, and the last groups that have, each one key and one value.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

import ahn.models.attention
from ahn.config import LayerLayout
from ahn.cost.accounting import BLOCK, ModelShape, cache_bytes, layout_bytes
from ahn.models.attention import Chunk
from ahn.models.cache import AHNCache, LayerCache
from ahn.models.decode_step import TokenStep
from ahn.models.slots import take
from tests.ahn.conftest import FAMILIES, SINKS, SIZES, WINDOW, tokens, variant_model

HEADS, KV_HEADS, D = 4, 2, 4
S, W = SINKS, WINDOW
#: float32 through three layers; chunks only change the order of sums
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}
Array = NDArray[np.float64]


def visible(position: int, layout: LayerLayout) -> tuple[list[int], list[list[int]]]:
    """Tokens that a query sees as they are, and the tokens of each group that it sees pooled."""
    assert layout.window is not None
    gone = [j for j in range(layout.sinks, position + 1) if j <= position - layout.window]
    whole = len(gone) // layout.rate
    groups = [gone[i * layout.rate : (i + 1) * layout.rate] for i in range(whole)]
    waiting = gone[whole * layout.rate :]
    window = [j for j in range(position + 1) if j >= layout.sinks and j > position - layout.window]
    sinks = list(range(min(layout.sinks, position + 1)))
    return sinks + waiting + window, groups[max(0, whole - layout.slots) :]


def oracle(q: Array, k: Array, v: Array, position: int, layout: LayerLayout) -> Array:
    """One query `[H, d]` over its row's keys and values `[n, K, d]`."""
    alone, groups = visible(position, layout)
    shared: Any = np.mean if layout.pooling == "mean" else np.max
    found = []
    for x in (k, v):
        parts = [x[alone]]
        if groups:
            parts.append(np.stack([shared(x[group], axis=0) for group in groups]))
        found.append(np.concatenate(parts).repeat(HEADS // KV_HEADS, axis=1))
    scores = np.einsum("hd,nhd->hn", q, found[0])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hn,nhd->hd", weights / weights.sum(-1, keepdims=True), found[1])


@st.composite
def readings(draw: Any) -> dict[str, Any]:
    """Turns of some rows: new tokens of each, with padding on the left, on the right, or both."""
    rows = draw(st.integers(1, 3))
    row = st.tuples(st.integers(0, 4), st.integers(0, 25), st.integers(0, 4))
    turns = draw(st.lists(st.lists(row, min_size=rows, max_size=rows), min_size=1, max_size=4))
    if draw(st.booleans()):  # rows alike, without padding
        turns = [[(0, turn[0][1], 0)] * rows for turn in turns]
    return {
        "layout": LayerLayout(
            draw(st.sampled_from([1, 2, 3, 5, 9])),
            draw(st.sampled_from([0, 1, 4, 7])),
            rate=draw(st.integers(1, 5)),
            slots=draw(st.sampled_from([1, 2, 3, 5, 40])),
            pooling=draw(st.sampled_from(["mean", "max"])),
        ),
        "turns": turns,
        "steps": draw(st.integers(0, 12)),
        "fixed": draw(st.booleans()),
        "pairs": draw(st.sampled_from([1, 16, 64, 1 << 23])),
        "block": draw(st.sampled_from([1, 3, 8, 1024])),
        "seed": draw(st.integers(0, 99)),
    }


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(case=readings())
@pytest.mark.slow
def test_chunks_and_steps_equal_the_definition_for_every_query(case: dict[str, Any]) -> None:
    layout, turns = case["layout"], list(case["turns"])
    rows = len(turns[0])
    turns += [[(0, 1, 0)] * rows] * case["steps"]
    generator = torch.Generator().manual_seed(case["seed"])
    total = max(sum(turn[row][1] for turn in turns) for row in range(rows))

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = (random(rows, max(total, 1), n, D) for n in (HEADS, KV_HEADS, KV_HEADS))
    cache = AHNCache([layout])
    layer, read = cache.layers[0], [0] * rows
    for turn in turns:
        # padding in front, tokens, padding behind; every row as wide as the widest
        width = max(sum(row) for row in turn)
        index = torch.full((rows, width), -1)
        for row, (front, count, _) in enumerate(turn):
            index[row, front : front + count] = torch.arange(read[row], read[row] + count)
        chunk = cache.chunk(width, (index >= 0).long(), torch.device("cpu"))
        with torch.no_grad():  # else nothing is done in place
            (plan,) = cache.plans(chunk, case["fixed"])
        one_each = width == 1 and bool((index >= 0).all()) and cache.is_initialized
        assert isinstance(plan, TokenStep) == one_each
        each, at = torch.arange(rows)[:, None], index.clamp(min=0)
        new = {"keys": k[each, at].transpose(1, 2), "values": v[each, at].transpose(1, 2)}
        with (
            mock.patch.object(ahn.models.attention, "_PAIRS", case["pairs"]),
            mock.patch.object(ahn.models.attention, "_QUERY_BLOCK", case["block"]),
            torch.no_grad(),
        ):
            keys, values, leaving = plan.look(layer, new, False)
            output = plan.attend(q[each, at].transpose(1, 2), keys, values, 1.0)
            plan.keep(layer, new)
        assert leaving is None
        for row in range(rows):
            for column in range(width):
                position = int(index[row, column])
                if position >= 0:
                    expected = oracle(
                        q[row, position].numpy(), k[row].numpy(), v[row].numpy(), position, layout
                    )
                    np.testing.assert_allclose(output[row, :, column], expected, rtol=0, atol=1e-12)
            read[row] += turn[row][1]
        cache.advance(chunk)
        cache.check()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    window=st.integers(1, 9),
    sinks=st.integers(0, 5),
    rate=st.integers(1, 5),
    slots=st.integers(1, 9),
    position=st.integers(0, 90),
)
def test_what_a_query_sees_is_a_partition_of_what_is_kept(
    window: int, sinks: int, rate: int, slots: int, position: int
) -> None:
    """The definition itself: nothing is seen twice, and only the oldest groups are not seen."""
    alone, groups = visible(position, LayerLayout(window, sinks, rate=rate, slots=slots))
    seen = sorted(alone + [j for group in groups for j in group])
    assert len(set(seen)) == len(seen)
    assert all(len(group) == rate for group in groups) and len(groups) <= slots
    newest = [j for j in range(position + 1) if j >= seen[min(sinks, len(seen) - 1)]]
    assert seen == sorted({*range(min(sinks, position + 1)), *newest})
    assert len(alone) <= sinks + window + rate - 1


@pytest.mark.parametrize("pooling", ["mean", "max"])
@torch.no_grad()
@pytest.mark.slow
def test_rate_one_is_a_window_longer_by_the_slots(pooling: str) -> None:
    slots = 7
    one = variant_model("compressive", rate=1, slots=slots, pooling=pooling)
    longer = variant_model("window", window=W + slots)
    ids = tokens(90, rows=2)
    mask = torch.ones_like(ids)
    mask[1, :31] = 0
    for given_mask in (None, mask):
        for chunk in (10_000, 9, 1):
            outputs, bytes_held = [], []
            for model in (one, longer):
                model.prefill_chunk_size = chunk
                cache = model.new_cache()
                read = None if given_mask is None else given_mask[:, :80]
                pieces = [model(ids[:, :80], attention_mask=read, past_key_values=cache).logits]
                for at in range(80, 90):
                    read = None if given_mask is None else given_mask[:, : at + 1]
                    step = model(ids[:, at : at + 1], attention_mask=read, past_key_values=cache)
                    pieces.append(step.logits)
                outputs.append(torch.cat(pieces, 1))
                bytes_held.append(cache.nbytes)
                del model.prefill_chunk_size
            real = torch.ones_like(ids, dtype=torch.bool) if given_mask is None else mask.bool()
            torch.testing.assert_close(outputs[0][real], outputs[1][real], **CLOSE)
            assert bytes_held[0] == bytes_held[1]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_model_computes_the_definition_in_its_first_layer(family: str) -> None:
    """From the model's own keys and queries, for every family: what reaches `o_proj`."""
    model = variant_model("compressive", family=family, rate=3, slots=4, pooling="max").double()
    layout, ids = model.layout[0], tokens(70)
    seen: dict[str, Tensor] = {}
    attention = model.model.layers[0].self_attn
    real = attention._attend

    def spy(plan: Any, past: Any, given: Any, **options: Any) -> Tensor:
        seen.update(q=given.q[0], **{name: x[0] for name, x in given.new.items()})
        seen["output"] = real(plan, past, given, **options)
        return seen["output"]

    attention._attend = spy
    model.prefill_chunk_size = 10_000
    model(ids)
    q, k, v = (seen[name].transpose(0, 1).numpy() for name in ("q", "keys", "values"))
    for position in range(70):
        expected = oracle(q[position] * attention.scaling, k, v, position, layout)
        np.testing.assert_allclose(seen["output"][0, position], expected, rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_packed_document_gets_what_it_gets_alone() -> None:
    model, lengths = variant_model("compressive", rate=3, slots=4), [41, 7, 60]
    documents = [tokens(n, seed=n) for n in lengths]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    whole = model(torch.cat(documents, 1), position_ids=positions, use_cache=False).logits
    alone = torch.cat([model(document).logits for document in documents], 1)
    torch.testing.assert_close(whole, alone, **CLOSE)


def test_layers_that_differ_in_pooling_alone_do_not_share_a_plan() -> None:
    mean = LayerLayout(W, S, rate=3, slots=4)
    layouts = [
        mean,
        replace(mean, pooling="max"),
        replace(mean, rate=2),
        replace(mean, slots=5),
        LayerLayout(W, S),
        LayerLayout(W, S, "GatedDeltaNet"),
        replace(mean),
    ]
    model = variant_model("full", options={"num_hidden_layers": 7}).double()
    ids = tokens(60)
    # a memory reads nothing that differs before the fifth layer, so it may stay away
    layouts[5] = LayerLayout(W, S)
    cache = model.new_cache(layouts)
    plans = Chunk(60, 0, None, torch.device("cpu")).plans(layouts)
    assert len({id(plan) for plan in plans}) == 5
    assert plans[0] is plans[6] and plans[4] is plans[5]
    with torch.no_grad():
        whole = model(ids, layout=layouts, use_cache=False).logits
        packed = model(
            torch.cat([ids, ids], 1),
            position_ids=torch.arange(60).repeat(2)[None],
            layout=layouts,
            use_cache=False,
        ).logits
        steps = [
            model(ids[:, at : at + 1], layout=layouts, past_key_values=cache).logits
            for at in range(60)
        ]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=0, atol=1e-10)
    torch.testing.assert_close(packed[:, 60:], whole, rtol=0, atol=1e-10)


def test_a_memory_and_a_window_share_a_plan() -> None:
    layouts = [LayerLayout(W, S), LayerLayout(W, S, "GatedDeltaNet")]
    plans = Chunk(60, 0, None, torch.device("cpu")).plans(layouts)
    assert plans[0] is plans[1]


SHAPE = ModelShape(
    **{name: size for name, size in SIZES.items() if name != "max_position_embeddings"}, head_dim=12
)


@pytest.mark.parametrize(("rate", "slots"), [(1, 3), (4, 12), (3, 700), (5, BLOCK), (2, 1)])
@pytest.mark.parametrize("chunk", [1, 37, 10_000])
@torch.no_grad()
def test_bytes_are_those_of_the_arithmetic_after_every_chunk(
    rate: int, slots: int, chunk: int
) -> None:
    model = variant_model("compressive", rate=rate, slots=slots, options={"num_hidden_layers": 1})
    length = 120 if chunk == 1 else 900
    ids, cache, at = tokens(length, rows=2), model.new_cache(), 0
    shape = replace(SHAPE, num_hidden_layers=1)
    while at < length:
        model(ids[:, at : at + chunk], past_key_values=cache)
        at = min(at + chunk, length)
        held = cache_bytes(
            shape, "compressive", at, window=W, sinks=S, rate=rate, slots=slots,
            dtype_bytes=4, batch_size=2,
        )  # fmt: skip
        assert (
            cache.nbytes
            == held.total
            == layout_bytes(shape, model.layout, at, dtype_bytes=4, batch_size=2).total
        )
        layer = cache.layers[0]
        pooled = 0 if layer.pooled_keys is None else layer.pooled_keys.nbytes
        assert held.pooled == 2 * pooled
    cap = (S + W + rate - 1 + slots) * 2 * 2 * 12 * 4 * 2
    assert cache.nbytes <= cap and (slots > BLOCK or cache.nbytes == cap)


@torch.no_grad()
def test_the_pooled_slots_hold_the_last_groups() -> None:
    layout = LayerLayout(4, 2, rate=3, slots=2, pooling="max")
    k = torch.randn(1, 1, 30, 2)
    for sizes in ([30], [1] * 30, [11, 1, 1, 9, 1, 7]):
        cache, at = AHNCache([layout]), 0
        layer = cache.layers[0]
        for size in sizes:
            chunk = cache.chunk(size, None, torch.device("cpu"))
            (plan,) = cache.plans(chunk, False)
            new = {name: k[:, :, at : at + size].clone() for name in ("keys", "values")}
            plan.look(layer, new, False)
            plan.keep(layer, new)
            cache.advance(chunk)
            at += size
            if at <= 8:
                assert layer.pooled_keys is None and layer.pooled_values is None
        # of 24 tokens that left the window: groups 0 ... 7, of which 6 and 7 are kept
        groups = [k[:, :, 2 + 3 * i : 5 + 3 * i].amax(2) for i in (6, 7)]
        assert layer.pooled_keys is not None and layer.pooled_values is not None
        assert torch.equal(layer.pooled_keys, torch.stack(groups, 2))
        assert torch.equal(layer.pooled_values, layer.pooled_keys)
        assert layer.keys is not None and layer.keys.shape[2] == 2 + 4 + 2 + 2


@torch.no_grad()
def test_a_copy_goes_its_own_way_and_rows_can_be_chosen(tmp_path: Path) -> None:
    model = variant_model("compressive", rate=3, slots=4)
    ids, rest = tokens(60, rows=3), tokens(25, rows=3, seed=1)
    mask = torch.ones_like(ids)
    mask[2, :50] = 0
    cache = model.new_cache()
    model(ids, attention_mask=mask, past_key_values=cache)
    cache.save(tmp_path / "past.safetensors")

    def answer(past: AHNCache, rows: list[int]) -> Tensor:
        steps = [model(rest[rows, at : at + 1], past_key_values=past).logits for at in range(12)]
        return torch.cat([*steps, model(rest[rows, 12:], past_key_values=past).logits], 1)

    everyone = answer(cache.copy(), [0, 1, 2])
    chosen = cache.copy()
    chosen.batch_select_indices([2, 0])
    torch.testing.assert_close(answer(chosen, [2, 0]), everyone[[2, 0]], **CLOSE)
    read = AHNCache.load(tmp_path / "past.safetensors", model)
    torch.testing.assert_close(answer(read, [0, 1, 2]), everyone, rtol=0, atol=0)
    torch.testing.assert_close(answer(cache, [0, 1, 2]), everyone, rtol=0, atol=0)
    assert read.to("cpu") is read
    with safe_open(tmp_path / "past.safetensors", framework="pt") as file:
        (first, *_) = json.loads(file.metadata()["ahn_cache"])["layouts"]
    assert {name: first[name] for name in ("rate", "slots", "pooling")} == model.layout[0].pooled
    window = variant_model("window")
    past = window.new_cache()
    window(ids, past_key_values=past)
    past.save(tmp_path / "plain.safetensors")
    with safe_open(tmp_path / "plain.safetensors", framework="pt") as file:  # as ever
        (first, *_) = json.loads(file.metadata()["ahn_cache"])["layouts"]
    assert first.keys() == {"window", "sinks", "cell", "write"}
    other = variant_model("compressive", rate=3, slots=5)
    with pytest.raises(Exception, match="5 slots for the mean of 3 tokens each"):
        AHNCache.load(tmp_path / "past.safetensors", other)


def test_gradients_reach_what_was_pooled_and_equal_numeric_ones() -> None:
    layout = LayerLayout(3, 1, rate=2, slots=2)
    q, k, v = (torch.randn(1, n, 12, 4, dtype=torch.float64) for n in (4, 2, 2))

    def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        plan = Chunk(12, 0, None, torch.device("cpu")).plan(layout)
        keys, values, _ = plan.look(LayerCache(layout), {"keys": k, "values": v}, False)
        return plan.attend(q, keys, values, 0.5)

    inputs = [x.requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(attended, inputs)


def test_training_in_chunks_on_a_cache_gets_the_gradients_of_one_pass() -> None:
    model, ids = variant_model("compressive", rate=3, slots=4).double(), tokens(70)
    model.prefill_chunk_size = 10_000
    found = []
    for sizes in ([70], [33, 1, 36]):
        model.zero_grad()
        cache, at, loss = model.new_cache(), 0, torch.zeros((), dtype=torch.float64)
        for size in sizes:
            logits = model(ids[:, at : at + size], past_key_values=cache, use_cache=True).logits
            loss = loss + logits.square().sum()
            at += size
        loss.backward()
        found.append(model.model.layers[0].self_attn.k_proj.weight.grad.clone())
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seen", [torch.tensor([3, 42]), 42])
def test_plans_are_moved_with_all_their_tensors(seen: Any) -> None:
    layout = LayerLayout(8, 2, rate=3, slots=4)
    step = TokenStep(Chunk(1, seen, None, torch.device("cpu")), layout, 16, fixed=True)
    assert step.groups is not None  # tokens 2 ... 33 have left the window with the next one
    twin = step.to("meta")
    assert twin.groups is not None and twin.mask is not None and twin.mask.device.type == "meta"
    for name in ("members", "target", "completes"):
        mine, theirs = getattr(step.groups, name), getattr(twin.groups, name)
        assert (mine is None) == (theirs is None) == (name == "completes" and isinstance(seen, int))
        if mine is not None:
            assert (mine.device.type, theirs.device.type) == ("cpu", "meta")
    plan = Chunk(9, seen, None, torch.device("cpu")).plan(layout)
    moved = plan.to("meta")
    assert plan.groups is not None and moved.groups is not None
    assert moved.groups.opens.device.type == moved.keys.device.type == "meta"
    assert moved.groups.write.slots.device.type == "meta"
    assert plan.groups.write.slots.device.type == "cpu"
    assert moved.visible(0, 9, slice(None)).device.type == "meta"
    columns = torch.empty(2, 1, plan.cached + 9, 4, device="meta")
    assert moved.groups.pool(columns).device.type == "meta"


def test_a_gpu_takes_the_masked_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where queries see groups is no sliding window: flash attention's pieces would be wrong."""
    model, ids = variant_model("compressive", rate=3, slots=4), tokens(70, rows=2)
    with torch.no_grad():
        expected = model(ids).logits
        monkeypatch.setattr(ahn.models.attention, "mask_free", lambda q: True)
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings_given", "said"),
    [
        ({"window": 8, "rate": 2}, "nothing is pooled without slots"),
        ({"window": 8, "pooling": "max"}, "nothing is pooled without slots"),
        ({"slots": 3}, "give the layer a window"),
        ({"window": 8, "slots": 3, "cell": "GatedDeltaNet"}, "no cell"),
        ({"window": 8, "slots": -1}, "slots must be at least 1"),
        ({"window": 8, "slots": 1.5}, "slots must be a whole number of slots"),
        ({"window": 8, "slots": False}, "slots must be a whole number of slots"),
        ({"window": 8, "slots": 3, "rate": 0}, "rate must be at least 1"),
        ({"window": 8, "slots": 3, "rate": 10**6 + 1}, "rate must be at most 1,000,000"),
        ({"window": 8, "slots": 10**12 + 1}, "slots must be at most"),
        ({"window": 8, "slots": 3, "pooling": "median"}, "pooling 'median' is unknown"),
    ],
)
def test_layouts_that_cannot_be_are_refused(settings_given: dict[str, Any], said: str) -> None:
    with pytest.raises(ahn.InputError, match=said):
        LayerLayout(**settings_given)


def test_bounds_of_a_layout_stay_within_64_bits() -> None:
    layout = LayerLayout(10**12, 10**12, rate=10**6, slots=10**12)
    assert layout.groups(10**14) == (10**14 - 2 * 10**12) // 10**6
    assert math.log2(layout.slots * layout.rate + 3 * 10**12) < 63
    chunk = Chunk(5, 5 * 10**6 + 20, None, torch.device("cpu"))
    groups = chunk.plan(replace(layout, sinks=4, window=9)).groups
    assert groups is not None and groups.held == 5
    assert int(groups.closes.min()) > 10**17


@torch.no_grad()
def test_rows_of_a_batch_are_padded_on_the_left_and_answered_together() -> None:
    model, lengths = variant_model("compressive", rate=4, slots=3), [70, 41, 5, 26]
    rows = [tokens(n, seed=n) for n in lengths]
    ids = torch.cat([F.pad(row, (max(lengths) - row.shape[1], 0)) for row in rows])
    mask = torch.stack([(torch.arange(70) >= 70 - n).long() for n in lengths])
    together = model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False)
    for row, alone in zip(together, rows, strict=True):
        single = model.generate(
            alone, attention_mask=torch.ones_like(alone), max_new_tokens=20, do_sample=False
        )
        assert row[-20:].tolist() == single[0, -20:].tolist()


def test_picking_columns_is_the_same_for_all_rows_or_each_its_own() -> None:
    x = torch.arange(24.0).view(2, 1, 6, 2)
    each = take(x, torch.tensor([[1, 3], [5, 0]]))
    assert torch.equal(each[1], x[1][:, [5, 0]]) and torch.equal(each[0], x[0][:, [1, 3]])


@pytest.mark.parametrize("seen", [0, 21, torch.tensor([3, 42, 20])])
def test_no_slot_is_written_twice_in_a_chunk(seen: Any) -> None:
    """Which of two writes to a slot would be the last one is not defined on a GPU."""
    plan = Chunk(60, seen, None, torch.device("cpu")).plan(LayerLayout(8, 2, rate=3, slots=4))
    assert plan.groups is not None and plan.groups.new > 4
    for write in (plan.groups.write, plan.slot_write):
        rows = torch.zeros_like(write.slots) if write.rows is None else write.rows
        places = list(zip(rows.tolist(), write.slots.tolist(), strict=True))
        assert len(set(places)) == len(places)
    assert len(plan.groups.write.slots) == 4 * (1 if isinstance(seen, int) else 3)
