"""What is alive at any moment of prefill and decode, watched operation by operation."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.ahn.conftest import SINKS, WINDOW, tokens

CHUNK = 32


class Watch(TorchDispatchMode):
    """Every tensor that an operation makes: the largest, and the most bytes alive at once.

    An output that lies in the storage of an input is a view or was written in place, not made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.alive = self.peak = 0
        self._storages: set[int] = set()

    def _gone(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.alive -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            x.untyped_storage()._cdata
            for x in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(x, torch.Tensor)
        }
        output = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(output):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in given or key in self._storages:
                continue
            self._storages.add(key)
            self.alive += size
            self.peak = max(self.peak, self.alive)
            self.largest = max(self.largest, tensor.numel())
            weakref.finalize(storage, self._gone, key, size)
        return output


@contextmanager
def watched(model: Any) -> Iterator[Watch]:
    """Small chunks, and no cycle collector: what waits for it is not constant memory."""
    model.prefill_chunk_size = CHUNK
    gc.collect()
    gc.disable()
    try:
        with Watch() as watch:
            yield watch
    finally:
        gc.enable()
        del model.prefill_chunk_size


@torch.no_grad()
def forward(model: Any, length: int, **options: Any) -> Watch:
    ids, cache = tokens(length), model.new_cache()
    with watched(model) as watch:
        model(ids, past_key_values=cache, logits_to_keep=1, **options)
        for step in range(3):
            model(tokens(1, seed=step), past_key_values=cache)
    return watch


def generate(model: Any, length: int, rows: int = 1, **options: Any) -> Watch:
    ids = tokens(length, rows=rows)
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[1, : length // 2] = 0
    with watched(model) as watch:
        model.generate(
            ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0, **options
        )
    return watch


@pytest.mark.parametrize("variant", ["window", "ahn", "no-write"])
def test_nothing_alive_grows_with_the_context(models: Any, variant: str) -> None:
    short, long = forward(models(variant), 160), forward(models(variant), 800)
    assert long.largest == short.largest
    # the prompt's token ids are 8 bytes each
    assert long.peak - short.peak <= 8 * (800 - 160)


@pytest.mark.parametrize("rows", [1, 2], ids=["alone", "left-padded"])
@pytest.mark.parametrize("variant", ["window", "ahn"])
@pytest.mark.slow
def test_generate_makes_nothing_as_long_as_the_prompt_but_ids_and_mask(
    models: Any, variant: str, rows: int
) -> None:
    short, long = (generate(models(variant), n, rows) for n in (160, 800))
    # the vectors of generate() itself: ids, mask, positions, and what it computes of them, one
    # number a token each, never heads or hidden states beside them
    grown = (long.peak - short.peak) / (rows * (800 - 160))
    assert grown <= 8 * 8
    assert long.largest <= max(short.largest, rows * (800 + 4))


@pytest.mark.parametrize(("asked", "count"), [(True, 4), ([-1], 1), ([1, 2], 2)], ids=str)
@pytest.mark.parametrize("variant", ["window", "ahn"])
@pytest.mark.slow
def test_hidden_states_cost_what_they_hold(
    models: Any, variant: str, asked: Any, count: int
) -> None:
    # short prompts are chunks that are returned as they are, so both here are streamed
    short, long = (
        forward(models(variant), length, output_hidden_states=asked) for length in (160, 800)
    )
    # 48 numbers of 4 bytes a token and state, and its id
    assert long.peak - short.peak <= (count * 48 * 4 + 8) * (800 - 160)


def test_full_attention_does_grow(models: Any) -> None:
    # so that the tests above are known to see growth
    short, long = forward(models("full"), 160), forward(models("full"), 800)
    assert long.largest > 3 * short.largest and long.peak > 3 * short.peak


@pytest.mark.parametrize("variant", ["window", "ahn"])
def test_logits_are_computed_for_the_last_position_only(models: Any, variant: str) -> None:
    model = models(variant)
    seen: list[int] = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
    generate(model, 300)
    hook.remove()
    assert seen == [1] * 4


@pytest.mark.parametrize("variant", ["full", "window", "ahn"])
@torch.no_grad()
def test_a_decode_step_copies_no_keys_and_builds_no_mask(models: Any, variant: str) -> None:
    model = models(variant, window=200)
    cache = model.new_cache()
    model(tokens(300), past_key_values=cache)
    with Watch() as watch:
        model(tokens(1), past_key_values=cache)
    held = cache.layers[0].keys.numel()
    assert watch.largest < held / 2
    assert watch.largest <= max(101, 64, 4 * 12 * 12)  # vocabulary, MLP, a state


def test_what_is_watched_is_what_lives() -> None:
    with Watch() as watch:
        first = torch.zeros(1000)
        first.add_(1)
        first[:10].mul_(2)
        assert watch.alive == 4000 and watch.largest == 1000
        del first
        torch.zeros(10)
    assert watch.peak == 4000 and watch.alive == 0


def test_cached_positions_are_sinks_and_window_only(models: Any) -> None:
    cache = models("ahn").new_cache()
    with torch.no_grad():
        models("ahn")(tokens(500), past_key_values=cache)
    assert {layer.keys.shape[2] for layer in cache.layers} == {SINKS + WINDOW}
