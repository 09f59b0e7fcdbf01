"""Rows of one cache: joined at different lengths, taken apart, removed and added.

Each row is held against a cache of its own, which went through the same tokens alone.
"""

from __future__ import annotations

import copy
import gc
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import DynamicCache

from ahn import AHNCache, InputError
from ahn.config import CELLS
from ahn.cost.accounting import layer_slots
from tests.ahn.conftest import FAMILIES, SINKS, SIZES, WINDOW, tokens, variant_model

VOCABULARY = SIZES["vocab_size"]
#: in float64, but for transformers' RMSNorm and RoPE, which round to float32
EXACT: dict[str, Any] = {"rtol": 0, "atol": 2e-6}
#: in float32, logits of about 1
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 5e-5}
SMALL = {"num_hidden_layers": 2, "hidden_size": 24, "intermediate_size": 24}

SEEN: list[dict[str, Any]] = [
    {"variant": "full"},
    {"variant": "window"},
    {"variant": "no-write"},
    {"variant": "compressive", "rate": 3, "slots": 4},
    {"variant": "compressive", "rate": 2, "slots": 3, "pooling": "max"},
    *({"variant": "ahn", "cell": cell} for cell in CELLS.builtin),
    *({"variant": "memory-only", "cell": cell} for cell in CELLS.builtin),
]
#: windows and sinks, within and beyond what the rows of the tests have
SPANS = [(1, 0), (5, 2), (8, 0), (4, 7), (16, 3)]


@cache
def model_of(number: int, family: str, span: tuple[int, int], mixed: bool) -> Any:
    """A model in float64; `mixed`: its first layer keeps full attention."""
    window, sinks = span
    own = {"full_attention_layers": [0]} if mixed else {}
    sizes = SMALL | ({"head_dim": 6} if family in ("qwen3", "mistral") else {})
    made = variant_model(
        family=family, options=sizes, window=window, sinks=sinks, **(SEEN[number] | own)
    )
    return made.double()


@st.composite
def models_drawn(draw: Any) -> Any:
    number = draw(st.integers(0, len(SEEN) - 1))
    mixed = SEEN[number]["variant"] not in ("full", "memory-only") and draw(st.booleans())
    return model_of(number, draw(st.sampled_from(FAMILIES)), draw(st.sampled_from(SPANS)), mixed)


def ids_of(length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (1, length), generator=generator)


def read(model: Any, length: int, seed: int, chunk: int = 1024) -> AHNCache:
    """A cache of one row of so many tokens, read `chunk` at a time; of none, one token less."""
    found = model.new_cache()
    for piece in ids_of(max(length, 1), seed).split(chunk, 1):
        model(piece, past_key_values=found)
    return found


def check_sizes(model: Any, joined: AHNCache, alone: list[AHNCache]) -> None:
    """No slot more than the longest row needs, and the same tensors as alone once split."""
    lengths: list[Any] = [one.seen for one in alone]
    assert joined.lengths == lengths and joined.batch_size == len(alone)
    assert joined.get_seq_length() >= max(lengths)
    for layer in joined.layers:
        for name, buffer in layer.slots.items():
            assert buffer.shape[2] == layer_slots(layer.layout, max(lengths)), name
    for one, own in zip(joined.split(), alone, strict=True):
        assert (one.seen, one.get_seq_length()) == (own.seen, own.seen)
        assert one.nbytes == own.nbytes


OPERATIONS = st.sampled_from(["step", "step", "step", "chunk", "add", "take", "drop", "split"])


@settings(max_examples=40, deadline=None)
@given(
    model=models_drawn(),
    lengths=st.lists(st.integers(1, 26), min_size=1, max_size=3),
    chunk=st.sampled_from([1, 4, 1024]),
    operations=st.lists(OPERATIONS, min_size=2, max_size=6),
    data=st.data(),
)
@torch.no_grad()
@pytest.mark.slow
def test_rows_that_are_joined_and_removed_go_on_as_if_alone(
    model: Any, lengths: list[int], chunk: int, operations: list[str], data: Any
) -> None:
    alone = [read(model, n, seed, chunk) for seed, n in enumerate(lengths)]
    joined, number = AHNCache.stack(alone), len(lengths)
    check_sizes(model, joined, alone)
    for operation in operations:
        rows = range(len(alone))
        if operation == "add":
            alone.append(read(model, data.draw(st.integers(1, 26)), number))
            joined.append(alone[-1])
        elif operation == "take":
            some = data.draw(st.lists(st.sampled_from(rows), min_size=1, max_size=4))
            joined, alone = joined.take(some), [alone[row].copy() for row in some]
        elif operation == "drop":
            stays = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
            stays[data.draw(st.sampled_from(rows))] = True
            joined.batch_select_indices(stays)
            alone = [one for one, stay in zip(alone, stays, strict=True) if stay]
        elif operation == "split":
            joined = AHNCache.stack(reversed(joined.split()))
            alone.reverse()
        else:
            counts = [1] * len(rows)
            if operation == "chunk":
                counts = [data.draw(st.integers(0, 9)) for _ in rows]
            pieces = [ids_of(count, number * 10 + row) for row, count in enumerate(counts)]
            width = max(counts)
            padded = torch.cat([F.pad(piece, (width - piece.shape[1], 0)) for piece in pieces])
            mask = torch.cat([F.pad(torch.ones_like(p), (width - p.shape[1], 0)) for p in pieces])
            if not width:
                continue
            found = model(padded, attention_mask=mask, past_key_values=joined).logits
            for row, (piece, own) in enumerate(zip(pieces, alone, strict=True)):
                if piece.shape[1]:
                    expected = model(piece, past_key_values=own).logits[0]
                    torch.testing.assert_close(found[row, -len(expected) :], expected, **EXACT)
        number += 1
        check_sizes(model, joined, alone)


CASES = [("qwen2", options) for options in SEEN]
CASES += [(family, SEEN[number]) for family in FAMILIES[1:] for number in (0, 3, 5)]


@pytest.mark.parametrize(("family", "options"), CASES, ids=str)
@torch.no_grad()
def test_answers_decoded_together_are_those_decoded_alone_token_for_token(
    options: dict[str, Any], family: str
) -> None:
    """In float32, greedily, from windows and sinks that are half full, full, and long overrun."""
    sizes = SMALL | ({"head_dim": 6} if family in ("qwen3", "mistral") else {})
    model = variant_model(family=family, options=sizes, **options)
    lengths = [1, SINKS + 1, WINDOW // 2, SINKS + WINDOW, 70]
    alone = [read(model, n, seed) for seed, n in enumerate(lengths)]
    joined = AHNCache.stack(alone)
    last = torch.cat([ids_of(1, 50 + row) for row in range(len(lengths))])
    of_rows = [last[row : row + 1] for row in range(len(lengths))]
    for _ in range(10):
        found = model(last, past_key_values=joined).logits[:, -1]
        expected = torch.cat(
            [
                model(ids, past_key_values=own).logits[:, -1]
                for ids, own in zip(of_rows, alone, strict=True)
            ]
        )
        torch.testing.assert_close(found, expected, **CLOSE)
        last, next_ids = found.argmax(-1, keepdim=True), expected.argmax(-1, keepdim=True)
        assert torch.equal(last, next_ids)
        of_rows = list(next_ids.split(1))


@torch.no_grad()
def test_stacked_rows_generate_from_prompts_padded_on_the_left(models: Any) -> None:
    model, lengths = models("ahn"), [9, 31, 20]
    prompts = [ids_of(n, seed) for seed, n in enumerate(lengths)]
    joined = AHNCache.stack(read(model, n - 1, 0) for n in lengths)
    for row, (prompt, n) in enumerate(zip(prompts, lengths, strict=True)):
        prompt[:, : n - 1] = ids_of(n - 1, 0)
        expected = model.generate(prompt, max_new_tokens=6, do_sample=False)[0, n:]
        prompts[row] = torch.cat([F.pad(prompt, (31 - n, 0)), expected[None]], 1)
    padded = torch.cat(prompts)
    mask = torch.stack([torch.arange(31) >= 31 - n for n in lengths]).long()
    found = model.generate(
        padded[:, :31],
        attention_mask=mask,
        past_key_values=joined,
        max_new_tokens=6,
        do_sample=False,
    )
    assert torch.equal(found, padded)


@torch.no_grad()
def test_slots_are_given_back_with_the_longest_row(models: Any) -> None:
    model = models("full")
    short, long = read(model, 10, 0), read(model, 700, 1)
    joined = AHNCache.stack([short, long])
    assert joined.nbytes == 2 * long.nbytes
    assert joined.take([0]).nbytes == short.nbytes
    joined.batch_select_indices([0])
    assert joined.nbytes == short.nbytes
    joined.append(long)
    assert joined.nbytes == 2 * long.nbytes and joined.lengths == [10, 700]


@torch.no_grad()
def test_a_selected_cache_can_be_saved_and_read(models: Any, tmp_path: Path) -> None:
    # its file names the slots of its longest row
    model = models("full")
    joined = AHNCache.stack([read(model, 10, 0), read(model, 700, 1)])
    for rows, name in ((joined.take([0]), "taken"), (joined.copy(), "selected")):
        if name == "selected":
            rows.batch_select_indices([0])
        rows.save(tmp_path / name)
        again = AHNCache.load(tmp_path / name, model)
        expected = model(tokens(1), past_key_values=rows).logits
        assert torch.equal(model(tokens(1), past_key_values=again).logits, expected)


@torch.no_grad()
def test_what_lies_in_unused_slots_is_zero(models: Any) -> None:
    # a row that overflowed may have left what no mask takes out of a sum: 0 * inf is NaN
    model = models("full")
    spoilt, other = read(model, 40, 0), read(model, 10, 1)
    for layer in spoilt.layers:
        layer.slots["values"].fill_(torch.inf)
    joined = AHNCache.stack([spoilt, other])
    assert bool(model(tokens(1, rows=2), past_key_values=joined).logits[1].isfinite().all())
    for layer in joined.layers:
        assert not layer.slots["values"][1, :, 11:].any()


@torch.no_grad()
def test_joining_copies_and_empties_nothing(models: Any) -> None:
    model = models("ahn")
    one, two = read(model, 20, 0), read(model, 33, 1)
    expected = [model(tokens(3), past_key_values=each.copy()).logits for each in (one, two)]
    joined = AHNCache.stack([one, two])
    taken = joined.take([1])
    model(tokens(3, rows=2), past_key_values=joined)
    for each, logits in zip((one, two), expected, strict=True):
        assert torch.equal(model(tokens(3), past_key_values=each.copy()).logits, logits)
    assert torch.equal(model(tokens(3), past_key_values=taken).logits, expected[1])


@torch.no_grad()
def test_rows_are_taken_by_number_or_tick_and_none_leaves_an_empty_cache(models: Any) -> None:
    model = models("ahn")
    joined = AHNCache.stack([read(model, n, n) for n in (5, 30, 17)])
    assert joined.take([2, 0, 2]).lengths == [17, 5, 17]
    assert joined.take(torch.tensor([True, False, True])).lengths == [5, 17]
    empty = joined.take([])
    assert empty.batch_size is None and empty.lengths == [] and empty.split() == []
    empty.append(joined.take([1]))
    assert empty.lengths == [30] and empty.seen == 30
    assert model.new_cache().split() == []
    for rows in ([3], [-1], [True, False], [0.5], [[0]], 0):
        with pytest.raises(InputError, match="the cache holds 3; name them by numbers"):
            joined.take(rows)  # type: ignore[arg-type]


@torch.no_grad()
def test_what_cannot_be_joined_is_refused_and_nothing_is_changed(models: Any) -> None:
    model = models("ahn")
    one, two = read(model, 20, 0), read(model, 33, 1)
    before = one.nbytes
    other = variant_model("ahn")
    other.model.layers[2].self_attn.k_proj.weight.mul_(1.01)
    narrow = variant_model("ahn", window=WINDOW - 1)
    spoilt = read(model, 12, 2)
    spoilt.layers[1].slots["keys"] = spoilt.layers[1].slots["keys"][:, :, :-1]
    half = read(model, 12, 2)
    for layer in half.layers:
        layer.restore({name: x.double() for name, x in layer.tensors().items()})
    refused: list[tuple[Any, str]] = [
        (model.new_cache(), "cache 1 of those to join is empty"),
        (one, "cache 1 of those to join is the cache itself"),
        (None, "cache 1 of those to join is no AHNCache but NoneType"),
        (read(narrow, 12, 2), "cache 1 of those to join was made for another layout"),
        (read(other, 12, 2), "made by another model:\n  the weights are others"),
        (spoilt, "cache 1 of those to join: somebody else has changed the slots"),
        (half, "cache 1 of those to join holds .*float64"),
    ]
    for wrong, message in refused:
        with pytest.raises(InputError, match=message):
            one.append(two, wrong)
        assert one.nbytes == before and one.lengths == [20]
    with pytest.raises(InputError, match="no caches to stack"):
        AHNCache.stack([])
    with pytest.raises(
        InputError, match="cache 0 of those to join is no AHNCache but DynamicCache"
    ):
        AHNCache.stack([DynamicCache(), one])
    model(tokens(1), past_key_values=one)


@torch.no_grad()
def test_a_joined_cache_belongs_to_the_model_of_its_rows(models: Any, tmp_path: Path) -> None:
    model, twin = models("ahn"), variant_model("ahn")
    other = variant_model("ahn")
    other.model.layers[2].self_attn.k_proj.weight.mul_(1.01)
    one, two = read(model, 20, 0), read(twin, 33, 1)
    joined = AHNCache.stack([one, two])
    with pytest.raises(InputError, match="made by another model"):
        other(tokens(1, rows=2), past_key_values=joined)
    model(tokens(1, rows=2), past_key_values=joined)
    one.save(tmp_path / "one")
    read(other, 12, 2).save(tmp_path / "other")
    with pytest.raises(InputError, match="hold caches of different models"):
        AHNCache.stack([AHNCache.load(tmp_path / name) for name in ("one", "other")])
    with pytest.raises(InputError, match="other: the cache was made by another model"):
        AHNCache.stack([one, AHNCache.load(tmp_path / "other")])
    loaded = AHNCache.stack([AHNCache.load(tmp_path / "one")] * 2)
    with pytest.raises(InputError, match="made by another model"):
        other(tokens(1, rows=2), past_key_values=loaded)
    model(tokens(1, rows=2), past_key_values=loaded)
    orphan = read(copy.deepcopy(model), 12, 2)
    gc.collect()
    with pytest.raises(InputError, match="belongs to none"):
        AHNCache.stack([orphan])
    with pytest.raises(InputError, match="is gone, and nothing tells"):
        AHNCache.stack([one, orphan])


def test_rows_joined_in_inference_mode_go_on_outside_of_it(models: Any) -> None:
    model = models("ahn")
    with torch.inference_mode():
        joined = AHNCache.stack([read(model, 20, 0), read(model, 33, 1)])
    with torch.no_grad():
        rows = zip(tokens(1, rows=2).split(1), joined.split(), strict=True)
        expected = [model(ids, past_key_values=one).logits for ids, one in rows]
        found = model(tokens(1, rows=2), past_key_values=joined).logits
    torch.testing.assert_close(found, torch.cat(expected), **CLOSE)


def test_gradients_flow_through_joined_rows(models: Any) -> None:
    model = models("ahn")
    gradients = []
    for together in (False, True):
        model.zero_grad()
        parts = [read(model, 20, 0), read(model, 33, 1)]
        if together:
            loss = model(tokens(4, rows=2), past_key_values=AHNCache.stack(parts)).logits
        else:
            rows = zip(tokens(4, rows=2).split(1), parts, strict=True)
            loss = torch.cat([model(ids, past_key_values=part).logits for ids, part in rows])
        loss.square().sum().backward()
        gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )
    model.zero_grad()
    for name, expected in gradients[0].items():
        atol = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(gradients[1][name], expected, rtol=0, atol=atol)


@torch.no_grad()
def test_a_join_that_is_interrupted_leaves_a_cache_that_is_refused(
    models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models("ahn")
    one, two = read(model, 20, 0), read(model, 33, 1)
    monkeypatch.setattr(
        type(one.layers[1]), "join", _fails(type(one.layers[1]).join, one.layers[1])
    )
    with pytest.raises(MemoryError):
        one.append(two)
    with pytest.raises(InputError, match="rows were joined and not all layers got them"):
        model(tokens(1), past_key_values=one)


def _fails(join: Any, at: Any) -> Any:
    def failing(self: Any, *arguments: Any) -> None:
        if self is at:
            raise MemoryError
        join(self, *arguments)

    return failing


@torch.no_grad()
def test_a_row_without_tokens_is_a_row(models: Any) -> None:
    model, cache_ = models("ahn"), models("ahn").new_cache()
    ids, mask = tokens(6, rows=2), torch.tensor([[0] * 6, [1] * 6])
    model(ids, attention_mask=mask, past_key_values=cache_)
    nothing, six = cache_.split()
    assert (nothing.lengths, six.lengths) == ([0], [6])
    again = AHNCache.stack([six, nothing])
    found = model(tokens(1, rows=2), past_key_values=again).logits
    expected = [model(tokens(1, rows=2)[:1], past_key_values=six).logits]
    expected.append(model(tokens(1, rows=2)[1:]).logits)
    torch.testing.assert_close(found, torch.cat(expected), **CLOSE)
