"""RoPE scaling: it takes effect as in transformers, is recorded, and survives on disk."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import ahn
from ahn.checkpoints.rope import rope_parameters, rope_problems, with_rope
from ahn.commands.info import checkpoint_info
from tests.ahn.checkpoints.makers import base_folder, edit_config, memory_folder
from tests.ahn.conftest import tokens

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("rope") / "base")


def stock_logits(base: Path, scaling: dict[str, Any], folder: Path) -> torch.Tensor:
    """transformers' own model with this scaling written into its config.json."""
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    edit_config(folder, rope_parameters={"rope_theta": 10000.0, **scaling})
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(tokens(60)).logits


@torch.no_grad()
@pytest.mark.parametrize(
    "scaling",
    [YARN, LLAMA3, {"rope_type": "linear", "factor": 2.0}],
    ids=["yarn", "llama3", "linear"],
)
def test_asked_for_at_load_it_equals_the_stock_model(
    tmp_path: Path, base: Path, scaling: dict[str, Any]
) -> None:
    given = copy.deepcopy(scaling)
    expected = stock_logits(base, scaling, tmp_path / "stock")
    model = ahn.load_model(base, "full", rope_scaling=scaling)
    # same kernels on the same numbers; float32 noise of another attention mask
    torch.testing.assert_close(model(tokens(60)).logits, expected, rtol=0, atol=2e-4)
    unscaled = ahn.load_model(base, "full")(tokens(60)).logits
    assert (unscaled - expected).abs().max() > 0.05
    assert scaling == given, "the caller's mapping is left alone"
    assert model.config.rope_parameters["rope_type"] == scaling["rope_type"]


@torch.no_grad()
def test_from_the_checkpoint_in_old_and_new_keys(tmp_path: Path, base: Path) -> None:
    expected = stock_logits(base, YARN, tmp_path / "new")
    old = base_folder(tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    config.pop("rope_parameters")
    config |= {"rope_theta": 10000.0, "rope_scaling": {"type": "yarn", "factor": 4.0}}
    (old / "config.json").write_text(json.dumps(config))
    for folder in (tmp_path / "new", old):
        model = ahn.load_model(folder, "full")
        torch.testing.assert_close(model(tokens(60)).logits, expected, rtol=0, atol=2e-4)
        assert model.config.rope_parameters["factor"] == 4.0
        assert checkpoint_info(folder).rope_scaling == "yarn, factor 4.0, from 2,048 positions"
    short = ahn.load_model(base, "full", yarn_factor=4.0)
    torch.testing.assert_close(short(tokens(60)).logits, expected, rtol=0, atol=2e-4)


@torch.no_grad()
def test_it_reaches_window_and_memory_and_survives_saving(tmp_path: Path, base: Path) -> None:
    memory = memory_folder(tmp_path / "memory", base)
    model = ahn.load_model(base, ahn=memory, yarn_factor=2.0)
    logits = model(tokens(60)).logits
    assert (logits - ahn.load_model(base, ahn=memory)(tokens(60)).logits).abs().max() > 0.05
    model.save_pretrained(tmp_path / "saved")
    ahn.merge_checkpoint(base, memory, tmp_path / "merged", yarn_factor=2.0)
    for name in ("saved", "merged"):
        for again in (
            ahn.load_model(tmp_path / name),
            AutoModelForCausalLM.from_pretrained(tmp_path / name),
        ):
            assert again.config.rope_parameters["factor"] == 2.0
            assert torch.equal(again(tokens(60)).logits, logits)
    # asked for again at load, the newer one wins, from the original positions
    config = ahn.load_model(tmp_path / "merged", yarn_factor=8.0).config.rope_parameters
    assert (config["factor"], config["original_max_position_embeddings"]) == (8.0, 2048)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rope_type": "ntk", "factor": 2.0}, "rope_type 'ntk' is not supported"),
        ({"rope_type": "dynamic", "factor": 2.0}, "depends on the length seen"),
        ({"rope_type": "yarn"}, "yarn needs 'factor'"),
        ({"rope_type": "yarn", "factor": 0.5}, "factor must be a number at least 1"),
        ({"rope_type": "yarn", "factor": "4"}, "factor must be a number at least 1"),
        ({"rope_type": "yarn", "factor": math.nan}, "factor must be a number at least 1"),
        ({"rope_type": "yarn", "factor": math.inf}, "factor must be a number at least 1"),
        ({"rope_type": "yarn", "factor": 1e300}, "at least 1 and at most 1000, not 1e"),
        ({"rope_type": "linear", "factor": 10**400}, "at least 1 and at most 1000, not 1000"),
        ({"rope_type": "yarn", "factor": 2, "beta_fast": 10**400}, "beta_fast must be a number"),
        ({"rope_type": "yarn", "factor": 2.0, "speed": 3}, "unknown key 'speed'"),
        ("yarn", "must be a mapping"),
    ],
)
def test_wrong_scalings_are_refused_before_loading(base: Path, asked: Any, message: str) -> None:
    with pytest.raises(ahn.InputError, match=message):
        ahn.load_model(base, "full", rope_scaling=asked)
    problems = ahn.check_model(base, "full", rope_scaling=asked)
    assert any(message in problem for problem in problems), problems


def test_both_ways_at_once_are_refused(base: Path) -> None:
    with pytest.raises(ahn.InputError, match="not both"):
        ahn.load_model(base, "full", rope_scaling=YARN, yarn_factor=4.0)
    with pytest.raises(ahn.InputError, match="factor must be a number at least 1"):
        ahn.load_model(base, "full", yarn_factor=0)


def test_a_checkpoint_that_cannot_be_streamed_is_refused(tmp_path: Path) -> None:
    folder = base_folder(tmp_path / "base")
    edit_config(folder, rope_parameters={"rope_type": "dynamic", "factor": 2.0})
    with pytest.raises(ahn.InputError, match=r"config\.json: rope_type 'dynamic'"):
        ahn.load_model(folder, "full")


def test_no_scaling_changes_no_configuration() -> None:
    config = {"rope_theta": 1e6, "rope_scaling": None, "max_position_embeddings": 32768}
    assert with_rope(config, None, None) == config
    assert rope_parameters(config) == {"rope_type": "default", "rope_theta": 1e6}
    assert rope_problems(rope_parameters({})) == []
