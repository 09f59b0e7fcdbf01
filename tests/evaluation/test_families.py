"""Llama and Mistral from training to a score: `ahn train`, `run_eval`, `ahn generate`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoConfig, AutoModelForCausalLM

import ahn
from ahn.checkpoints.tokenizer import load_tokenizer
from ahn.cli import app
from ahn.distill.recipe import Recipe
from ahn.distill.run import train
from tests.ahn.distill.recipes import pocket_options, write_conversations


def base_of(folder: Path, family: str) -> Path:
    """A random model of two layers with the embedded model's tokenizer."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": ahn.describe_model(ahn.POCKET_PATH)["vocab_size"], "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048,
    }  # fmt: skip
    extra = {"sliding_window": None} if family == "mistral" else {}
    config = AutoConfig.for_model(family, **sizes, **extra)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ahn.POCKET_PATH / file, folder)
    return folder


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.slow
def test_a_memory_is_trained_merged_and_asked(
    tmp_path: Path, family: str, data: Path, run_eval: Callable[..., Any]
) -> None:
    base = base_of(tmp_path / "base", family)
    chats = write_conversations(tmp_path / "chats.jsonl")
    options = pocket_options(
        chats, tmp_path / "memory", model_name_or_path=str(base), ahn_implementation="DeltaNet"
    )
    memory = train(Recipe(**options))
    config = ahn.describe_model(memory)
    assert config["_layer_implementation"] == f"{family.title()}MemDecoderLayer"
    assert json.loads((memory / "training.json").read_text())["steps"] == 2
    merged = tmp_path / "merged"
    ahn.merge_checkpoint(base, memory, merged, window=64, sinks=4)

    asked = ["longbench", "--model", merged, "--variant", "full", "--variant", "ahn"]
    asked += ["--data", data, "--tasks", "hotpotqa", "--limit", "1"]
    planned = run_eval(*asked, "--output", tmp_path / "run", "--dry-run")
    assert planned.exit_code == 0, planned.output
    done = run_eval(*asked, "--output", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert run_eval("check", tmp_path / "run").exit_code == 0

    said = CliRunner().invoke(
        app, ["generate", "--model", str(merged), "--prompt", "the key of", "--max-new-tokens", "2"]
    )
    assert said.exit_code == 0, said.output


@pytest.mark.parametrize("family", ["qwen2", "mistral"])
def test_a_merged_folders_tokenizer_is_its_bases(
    tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers chooses it by the model type, and merged folders have one of ours."""
    base = base_of(tmp_path / "base", family)
    of_base = load_tokenizer(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"model_type": f"{family}_ahn"}))
    of_merged = load_tokenizer(base)
    assert type(of_merged) is type(of_base) and of_merged.get_vocab() == of_base.get_vocab()
    assert "You are using a model of type" not in caplog.text
