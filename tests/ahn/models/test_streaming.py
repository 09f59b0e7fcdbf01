"""What a query sees, and that it does not matter in how many pieces a text comes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb, repeat_kv

import ahn.models.attention
from ahn.config import CELLS, VARIANTS, LayerLayout
from ahn.models.attention import Chunk, MemoryStep, SlotWrite
from ahn.models.decode_step import TokenStep
from tests.ahn.conftest import SINKS, WINDOW, tokens, variant_model

S, W = SINKS, WINDOW
LENGTHS = [1, W - 1, W, W + 1, S + W, S + W + 1, 2 * W, 3 * W + 5]
#: float32 through three layers; chunks only change the order of sums
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}


@torch.no_grad()
def logits(model: Any, ids: Tensor, chunk: int | None = None, **inputs: Any) -> Tensor:
    """Logits of all positions, streamed in chunks of `chunk` tokens."""
    model.prefill_chunk_size = chunk or 10_000
    try:
        return model(ids, **inputs).logits
    finally:
        del model.prefill_chunk_size


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_chunks_of_any_size_equal_one_pass(models: Any, variant: str, length: int) -> None:
    model, ids = models(variant), tokens(length, rows=2)
    if variant == "memory-only":  # no attention beside it makes rounding small: without rounding
        model = copy.deepcopy(model).double()
    whole = logits(model, ids)
    for chunk in sorted({1, 2, W - 1, W, W + 1, S + W, length}):
        torch.testing.assert_close(logits(model, ids, chunk), whole, **CLOSE)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_prefill_then_decode_equals_one_pass(models: Any, variant: str, length: int) -> None:
    model, ids = models(variant), tokens(length + 2 * W)
    whole = logits(model, ids)
    cache = model.new_cache()
    pieces = [model(ids[:, :length], past_key_values=cache).logits]
    pieces += [
        model(ids[:, at : at + 1], past_key_values=cache).logits
        for at in range(length, ids.shape[1])
    ]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, **CLOSE)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_every_cell_streams_and_continues_with_several_tokens(
    models: Any, cell: str, family: str
) -> None:
    model, ids = models("ahn", cell=cell, family=family), tokens(90)
    whole = logits(model, ids)
    cache = model.new_cache()
    at, pieces = 0, []
    for size in (30, 1, 7, 1, 1, 20, 30):
        pieces.append(model(ids[:, at : at + size], past_key_values=cache).logits)
        at += size
    torch.testing.assert_close(torch.cat(pieces, 1), whole, **CLOSE)


@pytest.mark.parametrize("length", [n for n in LENGTHS if n <= S + W])
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "memory-only"])
def test_what_fits_the_window_equals_stock_qwen2(
    models: Any, stock: Any, variant: str, length: int
) -> None:
    ids = tokens(length, rows=2)
    with torch.no_grad():
        expected = stock(ids).logits
    torch.testing.assert_close(logits(models(variant), ids), expected, **CLOSE)


@pytest.mark.parametrize("length", LENGTHS)
def test_full_equals_stock_qwen2_at_any_length(models: Any, stock: Any, length: int) -> None:
    ids = tokens(length, rows=2)
    with torch.no_grad():
        expected = stock(ids).logits
    torch.testing.assert_close(logits(models("full"), ids, chunk=7), expected, **CLOSE)


@torch.no_grad()
def dense_window_logits(model: Any, ids: Tensor) -> Tensor:
    """Oracle: stock Qwen2 layers with a dense mask, softmax written out."""
    length = ids.shape[1]
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    seen = (key <= query) & ((key < S) | (query - key < W))
    head_dim = model.model.layers[0].self_attn.head_dim

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)

    hidden = model.model.embed_tokens(ids)
    cos, sin = model.model.rotary_emb(hidden, torch.arange(length)[None])
    for layer in model.model.layers:
        attention = layer.self_attn
        h = layer.input_layernorm(hidden)

        q, k = apply_rotary_pos_emb(
            heads(attention.q_proj(h)), heads(attention.k_proj(h)), cos, sin
        )
        k, v = repeat_kv(k, 2), repeat_kv(heads(attention.v_proj(h)), 2)
        scores = (q @ k.transpose(-1, -2) * attention.scaling).masked_fill(~seen, -torch.inf)
        output = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        hidden = hidden + attention.o_proj(output)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(model.model.norm(hidden))


@pytest.mark.parametrize("length", LENGTHS)
def test_window_equals_dense_attention_under_the_mask(models: Any, length: int) -> None:
    model, ids = models("window"), tokens(length)
    expected = dense_window_logits(model, ids)
    for chunk in (None, 1, 5):
        torch.testing.assert_close(logits(model, ids, chunk), expected, **CLOSE)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("length", LENGTHS)
def test_a_fresh_memory_equals_window(models: Any, length: int, cell: str) -> None:
    ids = tokens(length)
    fresh = models("ahn", cell=cell, fresh=True)
    assert torch.equal(logits(fresh, ids), logits(models("window"), ids))


@pytest.mark.parametrize("cell", CELLS)
def test_no_write_equals_window_to_the_bit(models: Any, cell: str) -> None:
    ids = tokens(5 * W)
    for chunk in (None, 1, 9):
        off = logits(models("no-write", cell=cell), ids, chunk)
        assert torch.equal(off, logits(models("window"), ids, chunk))


def test_a_trained_memory_changes_what_lies_beyond_the_window(models: Any) -> None:
    ids = tokens(5 * W)
    difference = (logits(models("ahn"), ids) - logits(models("window"), ids)).abs().amax((0, 2))
    assert not difference[: S + W].any()
    assert (difference[S + W :] > 1e-3).all()


def picked(columns: list[int], step: MemoryStep | None) -> list[int]:
    """The columns that leave; rows that are alike give a slice."""
    if step is None:
        return []
    assert isinstance(step.columns, slice)
    return columns[step.columns]


@pytest.mark.parametrize("sinks,window", [(0, 5), (3, 5), (8, 5), (1, 1), (0, 1), (4, 7)])
@pytest.mark.parametrize("sizes", [[40], [1] * 40, [7, 1, 1, 13, 1, 17], [20, 20], [3, 37]])
def test_every_earlier_position_is_seen_exactly_once(
    sinks: int, window: int, sizes: list[int]
) -> None:
    # by the query's visible columns or by the memory when it is read, never by both
    layout = LayerLayout(window, sinks, "GatedDeltaNet")
    written: list[int] = []
    slots: dict[int, int] = {}  # what the cache holds, by slot, as `LayerCache.store` puts it
    seen = 0
    for size in sizes:
        chunk = Chunk(size, seen, None, torch.device("cpu"))
        plan = chunk.plan(layout)
        turned = [*range(sinks), *range(sinks + plan.ring_offset, sinks + window)]
        turned += range(sinks, sinks + plan.ring_offset)
        order = turned if plan.ring_offset else range(plan.cached)
        columns = [slots[slot] for slot in order] + list(range(seen, seen + size))
        assert plan.keys[0].tolist() == columns
        visible = plan.visible(0, size, slice(None))[0, 0]
        step = plan.memory_step
        leaving = picked(columns, step)
        for t in range(size):
            position = seen + t
            if step is not None and t >= step.first_query:
                written.append(leaving[t - step.first_query])
            attended = [k for k, see in zip(columns, visible[t], strict=True) if see]
            assert sorted(attended + written) == list(range(position + 1))
        target = plan.slot_write
        kept = zip(target.slots.tolist(), target.tokens.tolist(), strict=True)
        slots |= {slot: seen + token for slot, token in kept}
        seen += size


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("sinks,window", [(0, 5), (3, 5), (8, 5), (1, 1), (0, 1), (4, 7)])
@pytest.mark.parametrize("starts", [(1,), (1, 4), (9, 30), (3, 12, 13)])
def test_token_by_token_too_every_position_is_seen_once(
    sinks: int, window: int, starts: tuple[int, ...], fixed: bool
) -> None:
    # rows that have read differently much before; one row alike
    layout = LayerLayout(window, sinks, "GatedDeltaNet")
    slots: list[dict[int, int]] = []
    written: list[list[int]] = []
    for start in starts:
        plan = Chunk(start, 0, None, torch.device("cpu")).plan(layout)
        target, step = plan.slot_write, plan.memory_step
        slots.append(dict(zip(target.slots.tolist(), target.tokens.tolist(), strict=True)))
        written.append(picked(list(range(start)), step))
    seen: int | Tensor = starts[0] if len(starts) == 1 else torch.tensor(starts)
    for _ in range(2 * (sinks + window)):
        chunk = Chunk(1, seen, None, torch.device("cpu"))
        token = TokenStep(chunk, layout, sinks + window, fixed)
        for row in range(len(starts)):
            slot, position = int(token.slots[row]), int(chunk.index[row, 0])
            leaves = token.evicts and (token.leaves is None or bool(token.leaves[row]))
            assert leaves == (position >= sinks + window)
            if leaves:
                written[row].append(slots[row][slot])
            slots[row][slot] = position
            width = sinks + window if token.width is None else token.width
            seen_slots = [
                s
                for s in range(width)
                if token.mask is None or token.mask[row % len(starts), 0, 0, s]
            ]
            attended = [slots[row][s] for s in seen_slots]
            assert sorted(attended + written[row]) == list(range(position + 1))
        seen = chunk.after


@pytest.mark.parametrize("variant", VARIANTS)
def test_long_chunks_in_query_blocks_equal_one_mask(
    models: Any, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = models(variant), tokens(101, rows=2)
    mask = torch.ones_like(ids)
    mask[1, :9] = 0
    plain, padded = logits(model, ids), logits(model, ids, attention_mask=mask)
    monkeypatch.setattr(ahn.models.attention, "_PAIRS", 64)
    monkeypatch.setattr(ahn.models.attention, "_QUERY_BLOCK", 13)
    torch.testing.assert_close(logits(model, ids), plain, **CLOSE)
    torch.testing.assert_close(logits(model, ids, 41), plain, **CLOSE)
    blocks = logits(model, ids, attention_mask=mask)
    torch.testing.assert_close(blocks[1, 9:], padded[1, 9:], **CLOSE)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_padded_row_gets_what_it_gets_alone(models: Any, variant: str, family: str) -> None:
    model = models(variant, family=family)
    lengths = [70, 41, W + S, 5]
    rows = [tokens(n, seed=n) for n in lengths]
    longest = max(lengths)
    ids = torch.cat([F.pad(row, (longest - row.shape[1], 0)) for row in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - n).long() for n in lengths])
    extra = tokens(6, rows=4, seed=9)
    for chunk in (10_000, 11):
        model.prefill_chunk_size = chunk
        cache = model.new_cache()
        together = model(ids, attention_mask=mask, past_key_values=cache).logits
        steps = []
        for at in range(6):
            mask_now = F.pad(mask, (0, at + 1), value=1)
            step = model(extra[:, at : at + 1], attention_mask=mask_now, past_key_values=cache)
            steps.append(step.logits)
        del model.prefill_chunk_size
        for row, n in enumerate(lengths):
            alone = logits(model, torch.cat([rows[row], extra[row : row + 1]], 1))[0]
            torch.testing.assert_close(together[row, longest - n :], alone[:n], **CLOSE)
            torch.testing.assert_close(torch.cat(steps, 1)[row], alone[n:], **CLOSE)


def test_a_mask_with_holes_is_refused(models: Any) -> None:
    mask = torch.tensor([[1, 1, 0, 1, 1]])
    with pytest.raises(ValueError, match="padding between"):
        models("window")(tokens(5), attention_mask=mask)


@torch.no_grad()
def test_embeddings_without_cache_and_interleaved_sequences(models: Any) -> None:
    model, first, second = models("ahn"), tokens(60), tokens(60, seed=5)
    whole = logits(model, first)
    embeds = model.model.embed_tokens(first)
    no_cache = model(inputs_embeds=embeds, use_cache=False)
    assert no_cache.past_key_values is None
    torch.testing.assert_close(no_cache.logits, whole, **CLOSE)
    caches = [model.new_cache(), model.new_cache()]
    pieces: list[list[Tensor]] = [[], []]
    for at in range(0, 60, 10):
        for which, ids in enumerate((first, second)):
            output = model(ids[:, at : at + 10], past_key_values=caches[which])
            pieces[which].append(output.logits)
    torch.testing.assert_close(torch.cat(pieces[0], 1), whole, **CLOSE)
    torch.testing.assert_close(torch.cat(pieces[1], 1), logits(model, second), **CLOSE)


def test_with_gradients_one_pass_equals_streaming() -> None:
    model, ids = variant_model("ahn"), tokens(70)
    streamed = logits(model, ids, 8)
    trained = model(ids, use_cache=False).logits
    assert trained.requires_grad
    torch.testing.assert_close(trained.detach(), streamed, **CLOSE)


def test_a_step_is_moved_with_all_its_tensors_once_for_each_device() -> None:
    seen = torch.tensor([3, 40])
    chunk = Chunk(1, seen, None, torch.device("cpu"))
    step = TokenStep(chunk, LayerLayout(8, 2), 10, fixed=True)
    assert step.to("cpu") is step
    twin = step.to("meta")
    assert twin is step.to("meta") is not step
    for name in ("slots", "leaves", "mask"):
        mine, theirs = getattr(step, name), getattr(twin, name)
        assert mine is not None and mine.device.type == "cpu"
        assert theirs.device.type == "meta" and theirs.shape == mine.shape


@pytest.mark.parametrize("rows", [None, torch.tensor([0, 1])])
def test_where_tokens_go_is_copied_with_tensors_of_its_own(rows: torch.Tensor | None) -> None:
    write = SlotWrite(rows, torch.tensor([4, 5]), torch.tensor([0, 1]))
    again = write.clone()
    assert again.tokens.data_ptr() != write.tokens.data_ptr()
    assert torch.equal(again.tokens, write.tokens) and torch.equal(again.slots, write.slots)
    assert (again.rows is None) == (rows is None)
    if rows is not None:
        assert again.rows is not None and torch.equal(again.rows, rows)
        assert again.rows.data_ptr() != rows.data_ptr()
