"""Released checkpoints: their config.json names a window of training, which no evaluation used.

What people report of the released 3B checkpoints is rebuilt here at a small size.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import ahn
from ahn.checkpoints.merge import merge_checkpoint, split_checkpoint
from ahn.checkpoints.resolve import resolve_checkpoint
from ahn.cli import app
from ahn.commands.info import checkpoint_info
from ahn.config import PAPER_SINKS, PAPER_WINDOW
from ahn.released import window_notice
from tests.ahn.checkpoints.makers import (
    base_folder,
    edit_config,
    memory_folder,
    released_folder,
)
from tests.ahn.conftest import SINKS, WINDOW, tokens

#: LV-Eval and InfiniteBench in the paper: 32,768 positions without loss
EVALUATED = (32_640, 128)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return base_folder(tmp_path / "base")


@pytest.fixture
def released(tmp_path: Path, base: Path) -> Path:
    return released_folder(tmp_path / "released", base)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """What the package has logged as warnings."""
    with caplog.at_level(logging.WARNING, logger="ahn"):
        yield lambda: [record.getMessage() for record in caplog.records]


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def spans(model: Any) -> set[tuple[int | None, int]]:
    return {(layer.window, layer.sinks) for layer in model.layout}


def test_the_papers_window_is_used_and_said_once(base: Path, released: Path, said: Any) -> None:
    assert (PAPER_WINDOW, PAPER_SINKS) == EVALUATED
    for variant in ("ahn", "window", "no-write"):
        assert spans(ahn.load_model(base, variant, ahn=released)) == {EVALUATED}
    (notice,) = said()  # three models of one checkpoint
    for part in (str(released), "sliding_window 256", "32640", "128 sinks", "--window"):
        assert part in notice


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window_type": "linear"},  # a share of the length in training
        {"num_attn_sinks": None},
        {"sliding_window": 2048},
    ],
)
def test_whatever_was_no_window_of_inference(
    base: Path, released: Path, said: Any, changes: dict[str, Any]
) -> None:
    edit_config(released, **changes)
    assert spans(ahn.load_model(base, ahn=released)) == {EVALUATED}
    assert len(said()) == 1


def test_nothing_is_told_where_full_attention_or_the_papers_window_is_meant(
    base: Path, released: Path, said: Any
) -> None:
    ahn.load_model(base, "full", ahn=released)
    edit_config(released, sliding_window=32_640)
    assert spans(ahn.load_model(base, ahn=released)) == {EVALUATED}
    edit_config(released, sliding_window=None)
    assert spans(ahn.load_model(base, ahn=released)) == {EVALUATED}
    assert said() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attn_sinks": 4, "sliding_window": 24},  # as our trainer writes it
        {"num_attn_sinks": 0, "sliding_window": 256},
        {"sliding_window_type": "fixed"},
        {"sliding_window_type": None},
    ],
)
def test_windows_that_a_file_means_are_kept(
    base: Path, released: Path, said: Any, changes: dict[str, Any]
) -> None:
    edit_config(released, **changes)
    config = config_of(released)
    wanted = (config["sliding_window"], config.get("num_attn_sinks", 128))
    assert spans(ahn.load_model(base, ahn=released)) == {wanted}
    assert said() == []


def test_the_users_window_and_sinks_always_win(base: Path, released: Path, said: Any) -> None:
    for window, sinks, wanted in ((256, None, (256, 128)), (9, 2, (9, 2))):
        model = ahn.load_model(base, ahn=released, window=window, sinks=sinks)
        assert spans(model) == {wanted}
    assert said() == []
    assert spans(ahn.load_model(base, ahn=released, sinks=64)) == {(32_640, 64)}
    assert "and 64 sinks" in said()[0]


@pytest.mark.parametrize("cell", ["gdn", "dn", "mamba2"])
def test_our_own_memories_keep_their_window(cell: str, said: Any) -> None:
    """They were trained with random windows, too, and name window and sinks."""
    assert config_of(ahn.POCKET_PATH / cell)["sliding_window_type"] == "random"
    checkpoint = resolve_checkpoint(ahn.POCKET_PATH, "ahn", ahn.POCKET_PATH / cell)
    assert (checkpoint.settings.window, checkpoint.settings.sinks) == (128, 4)
    assert checkpoint.notices == ()


class TestMergedAndSplit:
    """`merge` writes down what is used; `split` gives back what was found."""

    def test_a_merged_folder_has_the_papers_window(
        self, tmp_path: Path, base: Path, released: Path, said: Any
    ) -> None:
        merge_checkpoint(base, released, tmp_path / "merged")
        assert len(said()) == 1 and "sliding_window 256" in said()[0]
        written = config_of(tmp_path / "merged")["ahn"]
        assert (written["window"], written["sinks"]) == EVALUATED
        assert spans(ahn.load_model(tmp_path / "merged")) == {EVALUATED}
        assert spans(ahn.load_model(tmp_path / "merged", window=256)) == {(256, 128)}
        assert len(said()) == 1, "the folder says what is meant"

    @pytest.mark.parametrize("stale", [{}, {"dy_num_attn_sinks": 128, "dy_sliding_window": 2048}])
    def test_split_gives_back_every_key_and_no_other(
        self, tmp_path: Path, base: Path, released: Path, stale: dict[str, Any]
    ) -> None:
        edit_config(released, dy_further={"a": [1, None]}, _name_or_path="elsewhere", **stale)
        before = config_of(released)
        assert "num_attn_sinks" not in before and "save_ahn_only" in before
        merge_checkpoint(base, released, tmp_path / "merged")
        split_checkpoint(tmp_path / "merged", tmp_path / "back")
        after = config_of(tmp_path / "back")
        assert list(after.items()) == list(before.items())
        weights = "model.safetensors"
        assert (tmp_path / "back" / weights).read_bytes() == (released / weights).read_bytes()

    @pytest.mark.parametrize(
        "absent", ["use_q_proj", "use_ahn_router", "fa_layer_ids", "loss_type"]
    )
    def test_no_key_is_invented(
        self, tmp_path: Path, base: Path, released: Path, absent: str
    ) -> None:
        config = config_of(released)
        config.pop(absent, None)
        (released / "config.json").write_text(json.dumps(config))
        merge_checkpoint(base, released, tmp_path / "merged")
        split_checkpoint(tmp_path / "merged", tmp_path / "back")
        assert config_of(tmp_path / "back") == config

    def test_the_base_keeps_its_keys(self, tmp_path: Path, base: Path, released: Path) -> None:
        edit_config(base, is_causal=True, further=3)
        merge_checkpoint(base, released, tmp_path / "merged")
        merged = config_of(tmp_path / "merged")
        replaced = ("model_type", "architectures")
        kept = {k: v for k, v in config_of(base).items() if k not in replaced}
        assert kept.items() <= merged.items()
        assert merged.keys() - config_of(base).keys() == {"ahn", "ahn_checkpoint"}

    def test_settings_chosen_at_the_merge_are_written_into_both(
        self, tmp_path: Path, base: Path, released: Path, said: Any
    ) -> None:
        before = config_of(released)
        merge_checkpoint(base, released, tmp_path / "merged", window=256)
        assert spans(ahn.load_model(tmp_path / "merged")) == {(256, 128)}
        split_checkpoint(tmp_path / "merged", tmp_path / "back")
        after = config_of(tmp_path / "back")
        assert after == before | {"sliding_window": 256, "num_attn_sinks": 128}
        assert spans(ahn.load_model(base, ahn=tmp_path / "back")) == {(256, 128)}
        assert said() == []

    def test_settings_edited_in_a_merged_folder_are_split_off(
        self, tmp_path: Path, base: Path, released: Path
    ) -> None:
        config = config_of(released)
        merge_checkpoint(base, released, tmp_path / "merged")
        settings = config_of(tmp_path / "merged")["ahn"]
        edit_config(tmp_path / "merged", ahn=settings | {"window": 40})
        split_checkpoint(tmp_path / "merged", tmp_path / "back")
        after = config_of(tmp_path / "back")
        assert after == config | {"sliding_window": 40, "num_attn_sinks": 128}

    def test_a_merged_folder_with_released_names(
        self, tmp_path: Path, base: Path, released: Path, said: Any
    ) -> None:
        """As the authors' own tool writes it: every rule holds for it, too."""
        merge_checkpoint(base, released, tmp_path / "merged", window=5)
        config = config_of(base) | config_of(released)
        (tmp_path / "merged" / "config.json").write_text(json.dumps(config))
        assert said() == []
        assert spans(ahn.load_model(tmp_path / "merged")) == {EVALUATED}
        assert len(said()) == 1
        split_checkpoint(tmp_path / "merged", tmp_path / "back")
        assert config_of(tmp_path / "back") == config
        assert len(said()) == 1

    def test_a_folder_that_is_no_origin(self, tmp_path: Path, base: Path, released: Path) -> None:
        merge_checkpoint(base, released, tmp_path / "merged")
        for wrong in ("text", {}, {"model_type": "qwen2"}):
            edit_config(tmp_path / "merged", ahn_checkpoint=wrong)
            with pytest.raises(ahn.InputError, match="'ahn_checkpoint' is no configuration"):
                split_checkpoint(tmp_path / "merged", tmp_path / "back")
        assert not (tmp_path / "back").exists()

    @torch.no_grad()
    def test_a_saved_model_still_knows_its_origin(
        self, tmp_path: Path, base: Path, released: Path
    ) -> None:
        from transformers import AutoModelForCausalLM

        merge_checkpoint(base, released, tmp_path / "merged", window=WINDOW, sinks=SINKS)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        model.save_pretrained(tmp_path / "saved")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
        assert torch.equal(model(tokens(40)).logits, again(tokens(40)).logits)
        split_checkpoint(tmp_path / "saved", tmp_path / "back")
        wanted = {"sliding_window": WINDOW, "num_attn_sinks": SINKS}
        assert config_of(tmp_path / "back") == config_of(released) | wanted


class TestMergedBefore:
    """Folders of earlier versions, whose `merge` wrote the leftover down as the window."""

    @pytest.fixture
    def merged(self, tmp_path: Path, base: Path, released: Path) -> Path:
        merge_checkpoint(base, released, tmp_path / "merged", window=256)
        config = config_of(tmp_path / "merged")
        del config["ahn_checkpoint"]
        training = {"sliding_window_type": "random", "ahn_position": "random"}
        text = json.dumps(config | {"ahn_training": training})
        (tmp_path / "merged" / "config.json").write_text(text)
        return tmp_path / "merged"

    def test_they_load_as_before_and_it_is_said(self, merged: Path, said: Any) -> None:
        assert spans(ahn.load_model(merged)) == {(256, 128)}
        ahn.load_model(merged)
        (notice,) = said()
        for part in (str(merged), "window 256", "32640", "merge again", "--window"):
            assert part in notice
        assert spans(ahn.load_model(merged, window=8)) == {(8, 128)}
        assert checkpoint_info(merged).window_notice == notice

    def test_auto_classes_say_it_too(self, merged: Path, said: Any) -> None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(merged)
        assert spans(model) == {(256, 128)}
        (notice,) = said()
        assert "window 256" in notice and str(merged) in notice

    @pytest.mark.parametrize(
        ("settings", "training"),
        [
            ({"window": 128, "sinks": 4}, {"sliding_window_type": "random"}),
            ({"window": 32_640}, {"sliding_window_type": "random"}),
            ({"window": 8_064}, {"sliding_window_type": "random"}),
            ({}, {"sliding_window_type": "fixed"}),
            ({}, {}),
        ],
    )
    def test_only_what_may_be_a_leftover(
        self, merged: Path, settings: dict[str, Any], training: dict[str, Any]
    ) -> None:
        config = config_of(merged)
        edit_config(merged, ahn=config["ahn"] | settings, ahn_training=training)
        assert window_notice(config_of(merged), merged) is None

    def test_split_hands_on_how_it_was_trained(
        self, tmp_path: Path, base: Path, merged: Path, said: Any
    ) -> None:
        split_checkpoint(merged, tmp_path / "back")
        after = config_of(tmp_path / "back")
        assert after["sliding_window_type"] == after["ahn_position"] == "random"
        assert (after["sliding_window"], after["num_attn_sinks"]) == (256, 128)
        assert "ahn_training" not in after and "ahn" not in after
        assert len(said()) == 1


class TestCommands:
    """Every command says it: once, and on standard error where it is no table."""

    def test_info_shows_what_is_used_and_why(self, released: Path) -> None:
        info = checkpoint_info(released)
        assert (info.window, info.sinks) == EVALUATED
        shown = CliRunner().invoke(app, ["info", str(released)]).output
        flat = " ".join(shown.split())
        assert "32,640 tokens" in flat and "sliding_window 256 is a leftover" in flat
        told = json.loads(CliRunner().invoke(app, ["info", str(released), "--json"]).stdout)
        assert told["window"] == 32_640 and "sliding_window 256" in told["window_notice"]

    def test_other_folders_have_no_notice(self, base: Path, tmp_path: Path) -> None:
        for folder in (base, memory_folder(tmp_path / "memory", base)):
            assert checkpoint_info(folder).window_notice is None
            assert "notice" not in CliRunner().invoke(app, ["info", str(folder)]).output

    def test_merge_says_it_once(self, tmp_path: Path, base: Path, released: Path) -> None:
        command = ["merge", "--base", str(base), "--ahn", str(released)]
        done = self.run(*command, "--output", str(tmp_path / "merged"))
        assert done.stderr.count("leftover of training") == 1
        assert len(done.stderr.splitlines()) == 1
        done = self.run(*command, "--output", str(tmp_path / "mine"), "--window", "300")
        assert done.stderr == ""

    @pytest.mark.slow
    def test_generate_says_it_once(self, tmp_path: Path) -> None:
        memory = pocket_released(tmp_path / "released")
        words = ["generate", "--model", "pocket", "--ahn", str(memory), "--prompt", "a"]
        done = self.run(*words, "--max-new-tokens", "2")
        assert done.stderr.count("leftover of training") == 1
        done = self.run(*words, "--max-new-tokens", "2", "--window", "32")
        assert "leftover" not in done.stderr

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ahn.cli", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True)


def pocket_released(folder: Path) -> Path:
    """The embedded memory, with the config.json of a released one."""
    folder.mkdir()
    source = ahn.POCKET_PATH / "gdn"
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    config = config_of(source) | {"sliding_window": 256}
    del config["num_attn_sinks"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder
