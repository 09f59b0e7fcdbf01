"""Bytes of any cache, against the storages that a forward pass leaves behind."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluation.backends.cache_bytes import held
from tests.evaluation.backends.architectures import MODELS, tiny

TOKENS = 96


def cache_of(output: Any) -> Any:
    for name in ("past_key_values", "cache_params", "state"):
        if (cache := getattr(output, name, None)) is not None:
            return cache
    raise AssertionError(f"no cache in {list(output)}")


def storages() -> dict[int, int]:
    """Every storage that a tensor of this process holds, by its address, with its bytes."""
    gc.collect()
    found = {}
    for value in gc.get_objects():
        if type(value) in (Tensor, torch.nn.Parameter):  # compiled code leaves fake ones
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_it_counts_every_storage_that_a_forward_pass_leaves(name: str) -> None:
    model = tiny(name)
    ids = torch.arange(TOKENS).remainder(60)[None] + 3
    with torch.no_grad():
        model(ids, use_cache=True)  # tables that are made once
        before = storages()
        cache = cache_of(model(ids, use_cache=True))
        left = sum(size for place, size in storages().items() if place not in before)
    found = held(cache)
    assert found.stored == left > 0
    assert 0 < found.used <= found.stored
    assert sum(found.parts.values()) == found.used


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", {"keys_values": 2 * TOKENS * 2 * 16 * 4 * 4}),
        ("mamba2", {"conv", "state"}),
        ("qwen3-next", {"keys_values", "conv", "state"}),
    ],
)
def test_parts_are_named_by_what_they_are(name: str, expected: Any) -> None:
    with torch.no_grad():
        cache = cache_of(tiny(name)(torch.ones(1, TOKENS, dtype=torch.long), use_cache=True))
    parts = {kind: size for kind, size in held(cache).parts.items() if size > 1000}
    assert parts == expected if isinstance(expected, dict) else set(parts) == expected


def test_a_sliding_layer_uses_its_window_and_holds_the_prompt() -> None:
    with torch.no_grad():
        cache = cache_of(
            tiny("mistral-sliding")(torch.ones(1, TOKENS, dtype=torch.long), use_cache=True)
        )
    of_a_token = 2 * 2 * 16 * 4 * 4
    found = held(cache)
    assert found.parts["keys_values"] == 31 * of_a_token
    assert found.stored >= TOKENS * of_a_token


def test_our_own_cache_is_counted_as_it_counts_itself() -> None:
    import ahn

    model = ahn.load_model(ahn.POCKET_PATH, "ahn", ahn.POCKET_PATH / "gdn", window=32, sinks=4)
    cache = model.new_cache()
    with torch.no_grad():
        model(torch.ones(1, 200, dtype=torch.long), past_key_values=cache)
    found = held(cache)
    assert found.used == found.stored == cache.nbytes
    assert set(found.parts) == {"keys_values", "state", "gates"}


class Holder:
    __slots__ = ("rows",)

    def __init__(self, rows: Any) -> None:
        self.rows = rows


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda x: [x, (x, {"a": x}), {"s": {"t": x}}],
        Holder,
        lambda x: Holder([Holder({"x": x[:, :5]}), x[:, 5:]]),
        lambda x: {"a": x, "b": x[:, 2:], "c": x.expand(4, *x.shape)},
    ],
    ids=["nested", "slots", "two views", "overlapping views"],
)
def test_elements_that_are_reached_twice_count_once(wrapped: Callable[[Tensor], Any]) -> None:
    x = torch.zeros(8, 10)
    found = held(wrapped(x))
    assert (found.used, found.stored) == (320, 320)


def test_what_belongs_to_the_model_is_not_counted() -> None:
    holder = Holder({"module": torch.nn.Linear(9, 9), "make": torch.zeros, "mine": torch.zeros(3)})
    assert held(holder).used == 12
    ring: list[Any] = [torch.zeros(2)]
    ring.append(ring)
    assert held(ring).used == 8 and held().used == 0
