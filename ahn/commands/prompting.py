"""From a prompt to text, for `ahn generate`: read in chunks with progress, then decode."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.errors import InputError
from common.files import read_bytes, read_stream

MOST_BYTES = 2**30
"""Longest prompt: a model would read it for days."""


def read_prompt(text: str | None, file: str | None) -> str:
    """The prompt: given as text, in a file, or (`-`) on standard input.

    Raises:
        InputError: neither or both, a file that cannot be read, or nothing in it.
    """
    if (text is None) == (file is None):
        raise InputError("give either --prompt TEXT or --prompt-file FILE ('-': standard input)")
    if file is not None:
        try:
            if file == "-":
                raw = read_stream(sys.stdin.buffer, "standard input", MOST_BYTES)
            else:
                raw = read_bytes(file, MOST_BYTES)
            text = raw.decode("utf-8-sig")  # without the mark that some editors put in front
        except InputError as error:
            raise InputError(f"--prompt-file: {error}") from None
        except UnicodeDecodeError as error:
            raise InputError(f"--prompt-file {file}: not UTF-8 at byte {error.start}") from None
    assert text is not None
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # how Python hands on bad bytes
        raise InputError("--prompt: not UTF-8")
    if not text.strip():
        where = "--prompt" if file is None else f"--prompt-file {file}"
        raise InputError(f"{where}: the prompt is empty")
    return text


def prompt_ids(tokenizer: Any, prompt: str, chat: bool | None) -> list[int]:
    """Token ids of the prompt.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: the user's text.
        chat: through the chat template; None: if the tokenizer has one.

    Raises:
        InputError: a chat is asked for and the tokenizer has no template, or no token comes out.
    """
    template = getattr(tokenizer, "chat_template", None)
    if chat and not template:
        raise InputError("--chat: this tokenizer has no chat template; use --raw")
    if chat is None:
        chat = bool(template)
    if chat:
        messages = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    if not ids:
        raise InputError("the prompt has no tokens")
    return list(ids)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: at most so many come out.
        temperature: 0: the likeliest token (greedy).
        seed: of the random draws.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0


def generate_text(
    model: Any,
    tokenizer: Any,
    ids: list[int],
    sampling: Sampling,
    *,
    on_prefill: Callable[[int], None] | None = None,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """The model's answer.

    Args:
        model: of `ahn.load_model`.
        tokenizer: its tokenizer.
        ids: the prompt.
        sampling: how tokens are chosen.
        on_prefill: called with the number of prompt tokens that were read, chunk by chunk.
        on_text: called with each piece of text as it comes out.
    """
    import torch
    from transformers import TextStreamer

    class Pieces(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if on_text is not None:
                on_text(text)

    inputs = torch.tensor([ids], device=model.device)
    cache = model.new_cache()
    size = model.prefill_chunk_size
    with torch.inference_mode():
        # all but the last token, whose logits start the answer
        for start in range(0, len(ids) - 1, size):
            end = min(start + size, len(ids) - 1)
            model(inputs[:, start:end], past_key_values=cache, logits_to_keep=1)
            if on_prefill is not None:
                on_prefill(end)
        choice: dict[str, Any] = {"do_sample": False, "temperature": None}
        choice |= {"top_p": None, "top_k": None}
        if sampling.temperature > 0:
            choice = {"do_sample": True, "temperature": sampling.temperature}
        if model.generation_config.eos_token_id is None:  # as `run_eval` does
            choice["eos_token_id"] = tokenizer.eos_token_id
        torch.manual_seed(sampling.seed)
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            past_key_values=cache,
            max_new_tokens=sampling.max_new_tokens,
            streamer=Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True),
            pad_token_id=_pad(model, tokenizer),
            **choice,
        )
    return str(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))


def _pad(model: Any, tokenizer: Any) -> int | None:
    """A padding token, so that transformers does not warn: nothing is padded here."""
    for value in (tokenizer.pad_token_id, model.generation_config.eos_token_id):
        if value is not None:
            return int(value[0] if isinstance(value, list) else value)
    return None


def harmless(text: str) -> str:
    """The text without control characters: a model must not steer the reader's terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)
