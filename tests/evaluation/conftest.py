"""A tiny random Qwen2 with a byte tokenizer, rows for it, and `run_eval` in and out of process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
WINDOW, SINKS = 48, 4

CHAT_TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Save a tokenizer with one token per byte, and `<|end|>` as its end token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(
        [AddedToken(t, special=True) for t in ("<|end|>", "<|user|>", "<|assistant|>")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>")
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_qwen2(
    folder: Path,
    vocab_size: int = 259,
    context: int = 2048,
    generation: dict[str, Any] | None = None,
    seed: int = 0,
    hidden_size: int = 32,
) -> Path:
    """Save a random Qwen2 of two layers, and its generation settings."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        eos_token_id=256,
        bos_token_id=None,
        initializer_range=0.3,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=256, **(generation or {}))
    model.save_pretrained(folder)
    return folder


def save_tiny_memory(folder: Path, model: Path, seed: int = 2) -> Path:
    """Save random GatedDeltaNet weights for `model`, with a read-out that is not zero."""
    import torch

    from ahn.checkpoints.load import build_model, describe_model, save_memory
    from ahn.config import AHNConfig

    config = describe_model(model)
    settings = AHNConfig(window=WINDOW, sinks=SINKS)
    torch.manual_seed(seed)
    built = build_model(model, "qwen2", config, settings, torch.float32)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if name.endswith("ahn.fn.o_proj.weight"):
                parameter.normal_(std=0.5)
    save_memory(built, folder, config)
    return folder


def question(i: int, document: int, task: str = "hotpotqa") -> dict[str, Any]:
    """A row in LongBench's schema; rows of one document have the same context."""
    context = " ".join(
        f"Paragraph {n} of text {document} tells of {n * document}." for n in range(4)
    )
    return {
        "input": f"What does paragraph {i} tell of?",
        "context": context,
        "answers": [str(i * document)],
        "length": len(context.split()),
        "dataset": task,
        "language": "en",
        "all_classes": None,
        "_id": f"row{i}",
    }


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model with its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_qwen2(folder, generation={"repetition_penalty": 1.3})
    return byte_tokenizer(folder)


@pytest.fixture(scope="session")
def memory(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of AHN weights for the tiny model."""
    return save_tiny_memory(tmp_path_factory.mktemp("memory"), tiny)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of two tasks: hotpotqa, eight questions on three documents; samsum, two."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "hotpotqa.jsonl", [question(i, 1 + i // 3) for i in range(8)])
    write_rows(folder / "samsum.jsonl", [question(i, 7 + i, "samsum") for i in range(2)])
    return folder


@pytest.fixture(scope="session")
def run_eval() -> Callable[..., Any]:
    """`run_eval ARGUMENTS` in this process; a click `Result`."""
    from click.testing import CliRunner

    from evaluation.cli import app

    def run(*arguments: str | Path | int) -> Any:
        return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)

    return run


def start_process(*arguments: str | Path | int, code: str | None = None) -> subprocess.Popen[str]:
    """`run_eval ARGUMENTS`, or Python `code`, in a process of its own."""
    command = ["-c", code] if code else ["-m", "evaluation"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *command, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


OF_ONE_START = (
    "prefill_seconds", "decode_seconds", "reused_prefix_tokens", "start", "record_sha256",
)  # fmt: skip
"""Fields of a record in which two runs of the same command may differ."""


def records_of(run: Path) -> list[dict[str, Any]]:
    """All records of a run, by variant, task and id, without what differs from run to run."""
    found = []
    for path in sorted(run.glob("*/*.jsonl")):
        for line in path.read_bytes().split(b"\n")[:-1]:
            record = json.loads(line)
            for key in OF_ONE_START:
                record.pop(key)
            found.append(record)
    return sorted(found, key=lambda r: (r["variant"], r["task"], r["example_id"]))
