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


def test_crop_is_refused_and_reset_empties(models: Any) -> None:
    cache = models("ahn").new_cache()
    with torch.no_grad():
        models("ahn")(tokens(30), past_key_values=cache)
    with pytest.raises(NotImplementedError, match="copy\\(\\) the cache"):
        cache.crop(1)
    cache.reset()
    assert cache.nbytes == 0 and cache.get_seq_length() == 0
