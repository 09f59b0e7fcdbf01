"""Windows and sinks in training: which are drawn, and what is told about them before a run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ahn
from ahn.distill.recipe import Recipe
from ahn.distill.run import train
from ahn.distill.student import draw_span
from ahn.distill.windows import check_windows, notices_of_data, notices_of_recipe
from tests.ahn.distill.recipes import pocket_options, write_conversations


def recipe(**options: Any) -> Recipe:
    return Recipe(model_name_or_path="x", output_dir="x", dataset="x", **options)


RANDOM: dict[str, Any] = {
    "sliding_window_type": "random",
    "ahn_position": "random",
    "sliding_window": 64,
}
sizes = st.lists(st.integers(1, 5000), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(
    windows=sizes,
    sinks=st.lists(st.integers(0, 3000), min_size=1, max_size=6),
    length=st.integers(1, 20_000),
    seed=st.integers(0, 9),
)
def test_drawn_windows_and_sinks_keep_to_the_rule(
    windows: list[int], sinks: list[int], length: int, seed: int
) -> None:
    """L/8 < W_total < L, and S <= W_total/2: at most half of the lossless part is sinks."""
    drawn = recipe(sliding_window_choices=windows, num_attn_sinks_choices=sinks, **RANDOM)
    span = draw_span(drawn, length, random.Random(seed))
    fitting = [w for w in windows if length < 8 * w and w < length]
    if not fitting:
        assert span is None
        return
    assert span is not None
    total, chosen = span
    assert total in fitting
    half = [s for s in sinks if 2 * s <= total]
    assert chosen in half if half else chosen == 0


@pytest.mark.parametrize(("total", "allowed"), [(64, {0, 32}), (63, {0}), (65, {0, 32})])
def test_sinks_may_take_just_half_of_a_window(total: int, allowed: set[int]) -> None:
    drawn = recipe(sliding_window_choices=[total], num_attn_sinks_choices=[0, 32, 33], **RANDOM)
    spans = {draw_span(drawn, 200, random.Random(seed)) for seed in range(60)}
    assert spans == {(total, sinks) for sinks in allowed}


def test_every_window_and_number_of_sinks_that_fits_is_drawn() -> None:
    drawn = recipe(
        sliding_window_choices=[50, 60, 100, 800], num_attn_sinks_choices=[0, 4, 40, 50], **RANDOM
    )
    spans = {draw_span(drawn, 400, random.Random(seed)) for seed in range(400)}
    # 50 is an eighth of 400, 800 is longer than it
    assert spans == {(60, 0), (60, 4), *((100, sinks) for sinks in (0, 4, 40, 50))}


@pytest.mark.parametrize("kind", ["fixed", "random", "linear"])
def test_prefix_means_no_sinks(kind: Any) -> None:
    """Sinks that a recipe saves for inference are not trained with."""
    prefix = recipe(
        sliding_window_type=kind,
        ahn_position="prefix",
        sliding_window=600,
        sliding_window_choices=[600],
        num_attn_sinks=128,
    )
    assert {draw_span(prefix, 2000, random.Random(seed)) for seed in range(9)} == {
        (600 if kind != "linear" else 512, 0)
    }
    (notice,) = notices_of_recipe(prefix)
    assert "prefix trains without sinks" in notice and "saved for 128" in notice
    assert not notices_of_recipe(recipe(ahn_position="prefix", sliding_window=600))


def test_a_window_that_is_not_given_is_told() -> None:
    (notice,) = notices_of_recipe(recipe())
    assert "sliding_window is not given" in notice and "32 lossless tokens" in notice
    assert "trained with it" in notice
    (notice,) = notices_of_recipe(recipe(sliding_window_type="random"))
    assert "32 lossless tokens" in notice and "trained with it" not in notice
    assert not notices_of_recipe(recipe(sliding_window=32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sliding_window": 500, "cutoff_len": 500}, "sliding_window 500 can never fit"),
        ({"sliding_window": 32_768}, "sliding_window 32768 can never fit.*cutoff_len \\(24576\\)"),
        ({"sliding_window_type": "linear", "cutoff_len": 512}, "max\\(L/4, 512\\).*never fit"),
        (
            {"sliding_window_type": "random", "sliding_window_choices": [32], "filter_len": 255},
            "\\[32\\] can never fit.*larger than an eighth",
        ),
        (
            {"sliding_window_type": "random", "sliding_window_choices": [512], "cutoff_len": 512},
            "never fit",
        ),
        ({"filter_len": 600, "cutoff_len": 600}, "filter_len: samples of at most 600"),
    ],
)
def test_windows_that_can_never_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ahn.InputError, match=message):
        check_windows(recipe(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"sliding_window": 499, "cutoff_len": 500},
        {"sliding_window_type": "linear", "cutoff_len": 513},
        {"sliding_window_type": "random", "sliding_window_choices": [32], "filter_len": 254},
        {"sliding_window_type": "random", "sliding_window_choices": [512], "cutoff_len": 513},
    ],
)
def test_windows_that_just_fit_are_not(options: dict[str, Any]) -> None:
    check_windows(recipe(**options))


def test_what_never_fits_these_data_is_told() -> None:
    drawn = recipe(
        sliding_window_choices=[10, 32, 64, 512], num_attn_sinks_choices=[0, 32, 64], **RANDOM
    )
    lengths = np.array([20, 100, 300, 300, 600])
    found = notices_of_data(drawn, lengths, "chats")
    # 20: 10 fits; 100: 32, 64; 300: 64; 600: 512
    assert not found
    found = notices_of_data(drawn, np.array([9, 100, 300, 300]), "chats")
    assert len(found) == 3
    assert found[0].startswith("chats: 1 of 4 samples fit no window")
    assert "never drawn for chats: 10, 512" in found[1] and "9 to 300 tokens" in found[1]
    assert "num_attn_sinks_choices: never drawn for chats: 64" in found[2]
    with pytest.raises(ahn.InputError, match="chats: no sample is longer than the window"):
        notices_of_data(drawn, np.array([5, 9]), ["chats"])


def test_samples_of_which_all_are_too_long_for_the_windows_are_refused() -> None:
    """More than eight times the largest window: each batch would be skipped, in silence."""
    drawn = recipe(sliding_window_choices=[32], **RANDOM)
    with pytest.raises(ahn.InputError, match="larger than an eighth.*256 to 900 tokens"):
        notices_of_data(drawn, np.array([256, 900]), "chats")


def test_a_run_says_it_before_it_begins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_conversations(tmp_path / "data.jsonl")
    options = pocket_options(data, tmp_path / "out", sliding_window_choices=[32, 48, 4096])
    options |= {"ahn_position": "prefix", "max_steps": 1}
    del options["sliding_window"]
    train(Recipe(**options))
    said = [record.message for record in caplog.records if "distill" in record.name]
    for text in ("sliding_window is not given", "prefix trains without", "never drawn for"):
        assert any(text in line for line in said), text
    assert any("4096" in line for line in said)
    options = pocket_options(tmp_path / "absent", tmp_path / "no", cutoff_len=32)
    with pytest.raises(ahn.InputError, match="can never fit"):  # before the data are looked for
        train(Recipe(**options))
    assert not (tmp_path / "no").exists()
