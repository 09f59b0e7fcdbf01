"""Shares that presses are given, so that as many tokens are kept as fit and none more."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from evaluation.backends.presses.library import INSTALL, read_request
from evaluation.backends.presses.room import Layers, kept_of, target_of
from evaluation.backends.presses.sizes import Room, count_kept, share_to_drop, sized_press
from evaluation.backends.requests import parse_request

if find_spec("kvpress") is None:
    pytest.skip(f"kvpress is not installed: {INSTALL}", allow_module_level=True)

BF16 = 2
QWEN_3B = Layers((None,) * 36, 2, 2 * 128 * BF16)
QWEN_7B = Layers((None,) * 28, 4, 2 * 128 * BF16)
EXACT = ["streamingllm", "snapkv", "knorm", "expectedattention", "tova", "kvzip",
         "kvzip,layerwise=true", "adakv,inner=knorm", "entropygatedchunkkv,inner=knorm",
         "composed,inner=knorm+think,think.key_channel_compression_ratio=0.5"]  # fmt: skip


def made(text: str) -> tuple[Any, Any, Any]:
    spec, size = read_request(parse_request(f"kvpress:{text}"))
    return spec, size, spec.make()


@pytest.mark.parametrize(
    ("layers", "tokens", "first", "last"),
    [
        (QWEN_3B, 33_280, 64_896, 1_664),
        (QWEN_3B, 36_864, 71_885, 1_843),
        (QWEN_7B, 33_216, 64_771, 1_661),
        (QWEN_7B, 36_352, 70_886, 1_818),
    ],
)
def test_bytes_of_ahn_at_128k_are_the_tokens_that_arithmetic_says(layers, tokens, first, last):
    """Qwen2.5 with a window of 32,640, 128 sinks and GatedDeltaNet: its bytes, in tokens."""
    budget = tokens * len(layers.windows) * layers.heads * layers.slot
    for text in EXACT:
        spec, size, _ = made(text)
        kept = kept_of(spec, size, layers, 128_000, budget)
        assert kept is not None and kept.visible == tokens * layers.room(1).per_token, text
    spec, size, press = made("pyramidkv")
    target = target_of(spec, size, layers, 128_000, budget)
    assert target.slots is not None
    press.compression_ratio = share_to_drop(spec, press, layers.room(128_000), target.slots)
    config = SimpleNamespace(num_hidden_layers=len(layers.windows))
    ends = [
        press.get_layer_budget(SimpleNamespace(config=config, layer_idx=number), 128_000)
        for number in (0, len(layers.windows) - 1)
    ]
    assert ends == [first, last]


@pytest.mark.parametrize("text", [*EXACT, "pyramidkv", "pyramidkv,window_size=3", "kvcompose",
                                  "kvcompose,structured=false"])  # fmt: skip
@given(tokens=st.integers(2, 200_000), part=st.floats(0, 1), layers=st.integers(2, 40))
def test_what_is_kept_is_at_most_what_may_be_and_less_than_a_token_below(
    text, tokens, part, layers
):
    spec, _, press = made(text)
    room = Room(tokens, tuple(range(layers)), layers, 2)
    slots = min(room.per_token + int(part * (tokens - 1) * room.per_token), 2 * layers * tokens - 1)
    share = share_to_drop(spec, press, room, slots)
    assert 0 < share < 1
    sized = sized_press(spec, press)
    assert not sized.compression_ratio, "it is left as it was"
    sized.compression_ratio = share
    assert slots - room.per_token < count_kept(spec, press, room) <= slots


def test_without_room_for_what_a_press_always_keeps_it_says_so():
    spec, _, press = made("kvcompose,keep_token_lower_bound=50")
    with pytest.raises(InputError, match="KVComposePress: keeps at least .* more than 10"):
        share_to_drop(spec, press, Room(100, (0, 1, 2), 3, 2), 60)


def test_layers_that_are_not_pressed_are_taken_off_the_budget():
    layers = Layers((31, None, 31, None), 2, 128)
    assert layers.sliding_bytes(100) == 2 * (31 * 2 * 128 + 8)
    assert layers.sliding_bytes(10) == 2 * (10 * 2 * 128 + 8)
    spec, size, _ = made("knorm")
    room = layers.sliding_bytes(100) + 40 * 2 * 2 * 128
    assert target_of(spec, size, layers, 100, room).slots == 160
    assert target_of(spec, size, layers, 100, room - 1).slots == 159
    with pytest.raises(InputError, match="how much may be kept of a document is not said"):
        target_of(spec, size, layers, 100, None)
    with pytest.raises(InputError, match="holds no token"):
        target_of(spec, size, layers, 100, layers.sliding_bytes(100))
