"""Tokens and number types as people write them mean the same wherever they are taken."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from ahn.checkpoints.placement import resolve_dtype
from ahn.distill.recipe import load_recipe
from common.errors import InputError
from common.quantities import dtype_name, token_count
from evaluation.cli import app
from evaluation.plan.configuration import resolve_configuration
from tasks.infinitebench.synthetic import parse_length


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("128k", 131_072), ("1K", 1024), ("1m", 1_048_576), (" 2 k ", 2048), ("0k", 0)],
)
def test_k_and_m_are_powers_of_two(text: str, tokens: int) -> None:
    assert token_count(text) == tokens
    if tokens:
        assert parse_length(text) == tokens


@pytest.mark.parametrize("value", ["128", "k", "1.5k", "-1k", "1g", "", "1e3", 128, None])
def test_anything_else_is_left_as_it_is(value: Any) -> None:
    assert token_count(value) is value


def test_short_names_of_types() -> None:
    assert dtype_name("bf16") == dtype_name("BF16") == dtype_name("bfloat16") == "bfloat16"
    assert [dtype_name(name) for name in ("fp16", "half", "fp32")] == [
        "float16", "float16", "float32",
    ]  # fmt: skip
    assert dtype_name("int4") == "int4" and dtype_name(None) is None
    assert str(resolve_dtype("bf16", {}, "F32")) == "bfloat16"


def test_a_file_and_a_flag_take_them_alike(tmp_path: Any) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("window: 32k\nmax-length: 1m\ndtype: bf16\n")
    found, problems = resolve_configuration({"sinks": "1k"}, str(path))
    assert problems == []
    assert (found.window, found.max_length, found.sinks) == (32_768, 1_048_576, 1024)
    assert found.dtype == "bfloat16"
    path.write_text("model_name_or_path: x\ndataset: x\noutput_dir: x\ncutoff_len: 128k\n")
    recipe = load_recipe(path, {"sliding_window": "1k", "sliding_window_choices": ["1k", 2]})
    assert (recipe.cutoff_len, recipe.sliding_window) == (131_072, 1024)
    assert recipe.sliding_window_choices == [1024, 2]
    for bad in ("32kb", "1.5k", "-1k"):
        with pytest.raises(InputError, match="--sliding-window: input should be a valid integer"):
            load_recipe(path, {"sliding_window": bad})


def test_costs_take_them() -> None:
    words = ["cost", "--model", "qwen2.5-3b", "--json", "--window", "32k", "--dtype"]
    short = CliRunner().invoke(app, [*words, "bf16", "--length", "128k"])
    full = CliRunner().invoke(app, [*words, "bfloat16", "--length", "131072"])
    assert short.exit_code == 0 and json.loads(short.stdout) == json.loads(full.stdout)
    assert json.loads(short.stdout)["window"] == 32_768
