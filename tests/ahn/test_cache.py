"""The cache: written in place, allocated in blocks, copied, picked from, emptied."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ahn.cost import BLOCK
from tests.ahn.conftest import SINKS, WINDOW, tokens


@torch.no_grad()
def test_decoding_writes_in_place(models: Any) -> None:
    model, cache = models("ahn"), models("ahn").new_cache()
    model(tokens(SINKS + WINDOW + 4), past_key_values=cache)
    layer = cache.layers[1]
    buffers = [x.data_ptr() for x in (layer.keys, layer.values, layer.write, layer.log_decay)]
    size = cache.nbytes
    for step in range(2 * WINDOW):
        model(tokens(1, seed=step), past_key_values=cache)
    assert buffers == [
        x.data_ptr() for x in (layer.keys, layer.values, layer.write, layer.log_decay)
    ]
    assert cache.nbytes == size


@torch.no_grad()
def test_slots_are_allocated_in_blocks_until_the_window_is_full(models: Any) -> None:
    model, cache = models("full"), models("full").new_cache()
    model(tokens(10), past_key_values=cache)
    assert cache.layers[0].keys.shape[2] == BLOCK
    model(tokens(BLOCK), past_key_values=cache)
    assert cache.layers[0].keys.shape[2] == 2 * BLOCK
    bounded = models("window").new_cache()
    models("window")(tokens(300), past_key_values=bounded)
    assert bounded.layers[0].keys.shape[2] == SINKS + WINDOW


@torch.no_grad()
def test_a_copy_goes_its_own_way(models: Any) -> None:
    model, cache = models("ahn"), models("ahn").new_cache()
    model(tokens(50), past_key_values=cache)
    fork = cache.copy()
    expected = model(tokens(9, seed=2), past_key_values=cache.copy()).logits
    model(tokens(30, seed=1), past_key_values=fork)
    assert torch.equal(model(tokens(9, seed=2), past_key_values=cache).logits, expected)


@torch.no_grad()
def test_rows_can_be_picked_and_repeated(models: Any) -> None:
    model, ids = models("ahn"), tokens(40, rows=3)
    cache = model.new_cache()
    mask = torch.ones_like(ids)
    mask[2, :11] = 0
    model(ids, attention_mask=mask, past_key_values=cache)
    after = torch.nn.functional.pad(mask, (0, 1), value=1)
    one = tokens(1, rows=3)
    expected = model(one, attention_mask=after, past_key_values=cache.copy()).logits
    order = torch.tensor([2, 0])
    picked = cache.copy()
    picked.reorder_cache(order)
    output = model(one[order], attention_mask=after[order], past_key_values=picked).logits
    torch.testing.assert_close(output, expected[order], rtol=0, atol=1e-5)
    repeated = cache.copy()
    repeated.batch_repeat_interleave(2)
    rows = torch.tensor([0, 0, 1, 1, 2, 2])
    output = model(one[rows], attention_mask=after[rows], past_key_values=repeated).logits
    torch.testing.assert_close(output, expected[rows], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("keep", [[2, 0], torch.tensor([True, False, True])], ids=str)
def test_rows_are_named_or_ticked(models: Any, keep: Any) -> None:
    model, ids, cache = models("ahn"), tokens(40, rows=3), models("ahn").new_cache()
    model(ids, past_key_values=cache)
    cache.batch_select_indices(keep)
    assert cache.batch_size == 2
    following = tokens(3, rows=3)[keep]
    logits = model(following, past_key_values=cache).logits
    whole = model(torch.cat([ids[keep], following], 1)).logits[:, 40:]
    torch.testing.assert_close(logits, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", ["full", "ahn"])
@pytest.mark.parametrize("then", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_a_cache_outlives_inference_mode(models: Any, variant: str, then: Any) -> None:
    model, ids = models(variant), tokens(60)
    with torch.no_grad():
        whole = model(ids).logits
    cache = model.new_cache()
    with torch.inference_mode():
        model(ids[:, :50], past_key_values=cache)
    with then():
        pieces = [model(piece, past_key_values=cache).logits for piece in ids[:, 50:].split(1, 1)]
        found = torch.cat(pieces, 1)
    torch.testing.assert_close(found.detach(), whole[:, 50:], rtol=0, atol=1e-4)
    if then is torch.enable_grad:
        found.sum().backward()
        model.zero_grad()


def test_gradients_flow_through_a_cache(models: Any) -> None:
    model, ids, found = models("ahn"), tokens(60), []
    for sizes in ([60], [30, 1, 1, 20, 8]):
        cache = model.new_cache()
        logits = [model(p, past_key_values=cache).logits for p in ids.split(sizes, 1)]
        model.zero_grad()
        torch.cat(logits, 1).square().mean().backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    for name, expected in found[0].items():
        atol = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(found[1][name], expected, rtol=0, atol=atol)


def test_crop_is_refused_and_reset_empties(models: Any) -> None:
    cache = models("ahn").new_cache()
    with torch.no_grad():
        models("ahn")(tokens(30), past_key_values=cache)
    with pytest.raises(NotImplementedError, match="copy\\(\\) the cache"):
        cache.crop(1)
    cache.reset()
    assert cache.nbytes == 0 and cache.get_seq_length() == 0
