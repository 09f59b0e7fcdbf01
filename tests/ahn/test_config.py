"""What a layout may be, is written as, and is refused for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ahn.config import AHNConfig, LayerLayout
from common.errors import InputError

OWN: dict[int, dict[str, Any]] = {
    0: {"window": 8},
    2: {"sinks": 0, "cell": "Mamba2"},
    3: {"cell": None},
}
CONFIG = AHNConfig(window=20, sinks=4, full_attention_layers=(1,), layers=OWN)


def test_single_layers_differ_in_window_sinks_and_cell() -> None:
    assert CONFIG.layouts(5) == (
        LayerLayout(8, 4, "GatedDeltaNet"),
        LayerLayout(),
        LayerLayout(20, 0, "Mamba2"),
        LayerLayout(20, 4, None),
        LayerLayout(20, 4, "GatedDeltaNet"),
    )
    assert CONFIG.cells(5) == ["GatedDeltaNet", "Mamba2"]


def test_variants_look_at_what_they_need_of_single_layers() -> None:
    def of(variant: str) -> tuple[LayerLayout, ...]:
        return AHNConfig(window=20, sinks=4, variant=variant, layers=OWN).layouts(4)

    assert of("full") == (LayerLayout(),) * 4
    assert of("window") == (
        LayerLayout(8, 4),
        LayerLayout(20, 4),
        LayerLayout(20, 0),
        LayerLayout(20, 4),
    )
    never = of("no-write")
    assert [layout.write for layout in never] == [False, False, False, True]  # the last has none
    assert [layout.cell for layout in never] == [layout.cell for layout in of("ahn")]


def test_layers_that_are_alike_share_one_layout() -> None:
    first, *others = AHNConfig().layouts(4)
    assert all(other is first for other in others)


def test_a_configuration_is_read_as_it_is_written_and_old_ones_are_written_as_ever() -> None:
    written = json.loads(json.dumps(CONFIG.to_dict()))
    assert written["layers"]["2"] == {"sinks": 0, "cell": "Mamba2"}
    assert AHNConfig(**written) == CONFIG
    assert AHNConfig(window=20).to_dict() == {
        "cell": "GatedDeltaNet",
        "window": 20,
        "sinks": 128,
        "full_attention_layers": (),
        "variant": "ahn",
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cell": "GateDeltaNet"}, "cell 'GateDeltaNet' is unknown; one of .*did you mean"),
        ({"cell": 3}, "cell 3 is unknown"),
        ({"variant": "windows"}, "variant 'windows' is unknown; .*did you mean 'window'"),
        ({"layers": [8, 8]}, "layers must be settings by number"),
        ({"layers": {"a": {}}}, "layers: 'a' is not the number of a layer"),
        ({"layers": {True: {}}}, "layers: True is not the number of a layer"),
        ({"layers": {-1: {}}}, "layers: the model has no layer -1"),
        ({"layers": {0: {}, "0": {}}}, "layers: layer 0 is set twice"),
        ({"layers": {0: 8}}, "layers, 0: must be a mapping of window, sinks, cell, not 8"),
        ({"layers": {0: {"windw": 8}}}, "layers, 0: 'windw' is unknown.*did you mean 'window'"),
        ({"layers": {0: {"window": None}}}, "layers, 0: window must be a number of tokens"),
        ({"layers": {0: {"sinks": -1}}}, "layers, 0: sinks must be at least 0, not -1"),
        ({"layers": {0: {"cell": "X"}}}, "layers, 0: cell 'X' is unknown"),
        (
            {"layers": {"1": {"window": 8}}, "full_attention_layers": [1]},
            "layer 1 keeps full attention",
        ),
    ],
)
def test_impossible_layouts_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AHNConfig(**wrong)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(InputError) as error:
        AHNConfig(window=0, sinks=-1, layers={0: {"window": 0, "cell": "X"}}, backend="slow")
    assert len(error.value.problems) == 5


def test_layers_that_a_model_does_not_have_are_refused() -> None:
    with pytest.raises(InputError, match="layers: the model has no layer 3"):
        CONFIG.layouts(3)
    with pytest.raises(InputError, match="full_attention_layers: the model has no layer 1"):
        AHNConfig(full_attention_layers=(1,)).layouts(1)


def test_a_memory_needs_a_window() -> None:
    with pytest.raises(InputError, match="nothing leaves a layer without a window"):
        LayerLayout(None, 0, "Mamba2")
    with pytest.raises(InputError, match="window must be at least 1, not 0"):
        LayerLayout(0)


def test_one_window_does_not_replace_those_of_single_layers() -> None:
    assert CONFIG.with_span(20, None) == CONFIG.with_span(None, 4) == CONFIG
    with pytest.raises(InputError, match="window 30: layers 0 have window of their own"):
        CONFIG.with_span(30, None)
    with pytest.raises(InputError, match="sinks 9: layers 2 have sinks of their own"):
        CONFIG.with_span(None, 9)
    plain = AHNConfig(window=20, layers={0: {"cell": "Mamba2"}}).with_span(30, 1)
    assert plain.layouts(1) == (LayerLayout(30, 1, "Mamba2"),)


def test_pooled_slots_are_settings_that_round_trip_and_have_the_papers_default():
    plain = AHNConfig(variant="compressive", window=8)
    assert not {"rate", "pooling", "slots"} & plain.to_dict().keys()
    with pytest.raises(InputError, match="needs their number"):
        plain.layer(0)
    sized = plain.with_default_slots(heads=16, key_heads=2, head_dim=128)
    assert sized.slots == 512 and sized.with_default_slots(1, 1, 2) is sized
    assert AHNConfig(**sized.to_dict()) == sized
    own = AHNConfig(
        variant="compressive", window=8, rate=3, pooling="max", slots=5, layers={1: {"window": 4}}
    )
    assert AHNConfig(**own.to_dict()) == own
    assert [own.layer(n) for n in (0, 1)] == [
        LayerLayout(window, 128, rate=3, slots=5, pooling="max") for window in (8, 4)
    ]
    window = AHNConfig(variant="window", window=8)
    assert window.with_default_slots(16, 2, 128) is window
    assert window.layer(0).pooled == {}
