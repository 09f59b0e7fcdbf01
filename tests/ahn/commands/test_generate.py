"""`ahn generate` on the embedded model: text on stdout, the rest on stderr."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import Qwen2Config, Qwen2ForCausalLM

import ahn
from ahn.checkpoints.tokenizer import load_tokenizer
from ahn.cli import app
from ahn.commands.prompting import (
    Sampling,
    generate_text,
    harmless,
    prompt_ids,
    read_prompt,
)

POCKET = ["generate", "--model", "pocket", "--ahn", "pocket", "--max-new-tokens", "6"]


def run(*arguments: str, input: str | None = None) -> Any:
    result = CliRunner().invoke(app, [*POCKET, *arguments], input=input)
    assert result.exit_code == 0, result.output
    return result


@torch.no_grad()
def test_the_text_is_what_the_model_generates(tmp_path: Path) -> None:
    story = "the key of carbon is 72 17 . " * 60
    (tmp_path / "story.txt").write_text(story)
    model = ahn.load_model(ahn.POCKET_PATH, ahn=ahn.POCKET_PATH / "gdn", window=64, sinks=2)
    tokenizer = load_tokenizer(ahn.POCKET_PATH)
    ids = torch.tensor([prompt_ids(tokenizer, story, False)])
    assert ids.shape[1] > 64, "something leaves the window"
    output = model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    expected = tokenizer.decode(output, skip_special_tokens=True).strip()
    options = ["--raw", "--window", "64", "--sinks", "2"]
    for more in (
        ["--prompt", story],
        ["--prompt-file", str(tmp_path / "story.txt"), "--no-stream"],
    ):
        assert run(*options, *more).stdout.strip() == expected
    assert run(*options, "--prompt-file", "-", input=story).stdout.strip() == expected


def test_sampling_follows_the_seed() -> None:
    options = ["--prompt", "what is the key ?", "--temperature", "5", "--max-new-tokens", "12"]
    first = run(*options, "--seed", "1").stdout
    assert run(*options, "--seed", "1").stdout == first
    assert run(*options, "--seed", "2").stdout != first


def test_long_prompts_are_read_in_chunks_with_progress() -> None:
    model = ahn.load_model(ahn.POCKET_PATH, "window", window=16, sinks=2)
    tokenizer = load_tokenizer(ahn.POCKET_PATH)
    model.prefill_chunk_size = 8
    ids = list(range(10, 31))
    told: list[int] = []
    pieces: list[str] = []
    text = generate_text(
        model, tokenizer, ids, Sampling(5), on_prefill=told.append, on_text=pieces.append
    )
    assert told == [8, 16, 20]  # the last token starts the answer
    assert "".join(pieces).strip() == text.strip() != ""
    assert generate_text(model, tokenizer, [10], Sampling(5)) != ""  # nothing to read ahead


@pytest.mark.slow
def test_streams_apart() -> None:
    command = [sys.executable, "-m", "ahn.cli", *POCKET, "--prompt", "hello"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == run("--prompt", "hello").stdout.strip()


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert harmless("a\x1b[2Jb\n\tc\x07\x9b") == "a\ufffd[2Jb\n\tc\ufffd\ufffd"


def test_prompts_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("ümlaut".encode())))
    assert read_prompt(None, "-") == "ümlaut"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b" \n")))
    with pytest.raises(ahn.InputError, match="--prompt-file -: the prompt is empty"):
        read_prompt(None, "-")


def test_prompts_of_odd_encodings(tmp_path: Path) -> None:
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbfhello")
    assert read_prompt(None, str(tmp_path / "marked")) == "hello"
    (tmp_path / "utf16").write_bytes("hello".encode("utf-16"))
    with pytest.raises(ahn.InputError, match="utf16: not UTF-8 at byte 0"):
        read_prompt(None, str(tmp_path / "utf16"))
    with pytest.raises(ahn.InputError, match="--prompt: not UTF-8"):
        read_prompt("a\udcffb", None)


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    small = Qwen2Config(
        vocab_size=40, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    Qwen2ForCausalLM(small).save_pretrained(tmp_path)
    options = ["generate", "--model", str(tmp_path), "--tokenizer", str(ahn.POCKET_PATH)]
    result = CliRunner().invoke(app, [*options, "--prompt", "the key of carbon is 72"])
    assert result.exit_code == 2 and "the tokenizer gives token" in result.stderr


def test_a_chat_needs_a_template() -> None:
    tokenizer = load_tokenizer(ahn.POCKET_PATH)
    assert prompt_ids(tokenizer, "hello", None) == prompt_ids(tokenizer, "hello", True)
    tokenizer.chat_template = None
    assert prompt_ids(tokenizer, "hello", None) == tokenizer("hello")["input_ids"]
    with pytest.raises(ahn.InputError, match="--chat: this tokenizer has no chat template"):
        prompt_ids(tokenizer, "hello", True)


@pytest.mark.parametrize("command", ["generate", "info", "merge", "split", "train"])
def test_help_has_text_and_examples(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0 and "Other options:" in result.output
    assert f"Examples:\n  ahn {command} " in result.output
