"""`ahn generate`: loads, shows progress on standard error, and prints the answer."""

from __future__ import annotations

import sys
from typing import Any

import click
from rich.console import Console

from ahn.checkpoints.load import check_model, load_model
from ahn.checkpoints.locate import describe_model
from ahn.checkpoints.names import ahn_path, model_path
from ahn.commands.options import Generate
from ahn.commands.prompting import (
    Sampling,
    generate_text,
    harmless,
    load_tokenizer,
    prompt_ids,
    read_prompt,
)
from ahn.config import VARIANTS
from ahn.released import read_ahn_config
from common.errors import InputError
from common.progress import ProgressBar


def answer(asked: Generate) -> None:
    """Print the model's answer.

    Raises:
        InputError: anything that does not fit, before weights are loaded.
    """
    sampling = Sampling(asked.max_new_tokens, asked.temperature, asked.seed)
    text = read_prompt(asked.prompt, asked.prompt_file)
    base = model_path(asked.model)
    memory = None if asked.ahn is None else ahn_path(asked.ahn)
    variant = asked.variant
    if variant is None:
        variant = _default_variant(base, memory is not None, asked.window is not None)
    problems = check_model(
        base, variant, memory, asked.window, asked.sinks, yarn_factor=asked.yarn_factor
    )
    if problems:
        raise InputError(*problems)
    tokenizer_place = base if asked.tokenizer is None else asked.tokenizer
    tokenizer = load_tokenizer(tokenizer_place)
    ids = prompt_ids(tokenizer, text, asked.chat)
    vocabulary = describe_model(base)["vocab_size"]
    if max(ids) >= vocabulary:
        raise InputError(
            f"{tokenizer_place}: the tokenizer gives token {max(ids)}, but {base} has a vocabulary "
            f"of {vocabulary} tokens; pass the model's own (--tokenizer)"
        )
    loaded = load_model(
        base,
        variant,
        memory,
        asked.window,
        asked.sinks,
        asked.dtype,
        asked.device,
        yarn_factor=asked.yarn_factor,
    )
    with ProgressBar(Console(stderr=True), "reading the prompt, tokens") as bar:
        written = generate_text(
            loaded,
            tokenizer,
            ids,
            sampling,
            on_prefill=lambda tokens: bar.update(tokens, len(ids) - 1),
            on_text=_print if asked.stream else None,
        )
    if not asked.stream:
        _print(written)
    click.echo()


def _default_variant(base: Any, has_ahn: bool, has_window: bool) -> str:
    if has_ahn or read_ahn_config(describe_model(base), base) is not None:
        return VARIANTS[2]
    return VARIANTS[1] if has_window else VARIANTS[0]


def _print(text: str) -> None:
    click.echo(harmless(text) if sys.stdout.isatty() else text, nl=False)
