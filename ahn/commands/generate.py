"""`ahn generate`: loads, shows progress on standard error, and prints the answer."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console

from ahn.checkpoints.load import load_resolved
from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.resolve import ResolvedCheckpoint, default_variant, resolve_checkpoint
from ahn.checkpoints.tokenizer import load_tokenizer
from ahn.commands.options import Generate, Prompted
from ahn.commands.prompting import (
    Sampling,
    generate_text,
    harmless,
    prompt_ids,
    read_prompt,
)
from common.errors import InputError
from common.notices import tell_once
from common.progress import ProgressBar


@dataclass(frozen=True)
class Prepared:
    """A model before its weights are loaded, and what it will read.

    Attributes:
        checkpoint: the model.
        tokenizer: its tokenizer.
        ids: of the prompt.
    """

    checkpoint: ResolvedCheckpoint
    tokenizer: Any
    ids: list[int]


def prepared(asked: Prompted) -> Prepared:
    """The model and the prompt that are asked for.

    Raises:
        InputError: anything that does not fit; no weights are loaded.
    """
    text = read_prompt(asked.prompt, asked.prompt_file)
    base = CheckpointFiles(asked.model)
    variant = asked.variant
    if variant is None:
        variant = default_variant(base, asked.ahn is not None, asked.window is not None)
    checkpoint = resolve_checkpoint(
        base,
        variant,
        asked.ahn,
        asked.window,
        asked.sinks,
        asked.dtype,
        asked.device,
        yarn_factor=asked.yarn_factor,
        rate=asked.rate,
        pooling=asked.pooling,
        slots=asked.slots,
    )
    tokenizer_place = base if asked.tokenizer is None else asked.tokenizer
    try:
        tokenizer = load_tokenizer(tokenizer_place)
    except InputError as error:
        raise error.prefixed("--tokenizer: ") from None
    ids = prompt_ids(tokenizer, text, asked.chat)
    vocabulary = checkpoint.shape.vocab_size
    if max(ids) >= vocabulary:
        raise InputError(
            f"{tokenizer_place}: the tokenizer gives token {max(ids)}, but {base} has a vocabulary "
            f"of {vocabulary} tokens; pass the model's own (--tokenizer)"
        )
    return Prepared(checkpoint, tokenizer, ids)


def answer(asked: Generate) -> None:
    """Print the model's answer.

    Raises:
        InputError: anything that does not fit, before weights are loaded.
    """
    sampling = Sampling(asked.max_new_tokens, asked.temperature, asked.seed)
    given = prepared(asked)
    for notice in given.checkpoint.notices:
        tell_once(notice)
    loaded = load_resolved(given.checkpoint)
    with ProgressBar(Console(stderr=True), "reading the prompt, tokens") as bar:
        written = generate_text(
            loaded,
            given.tokenizer,
            given.ids,
            sampling,
            on_prefill=lambda tokens: bar.update(tokens, len(given.ids) - 1),
            on_text=_print if asked.stream else None,
        )
    if not asked.stream:
        _print(written)
    click.echo()


def _print(text: str) -> None:
    click.echo(harmless(text) if sys.stdout.isatty() else text, nl=False)
