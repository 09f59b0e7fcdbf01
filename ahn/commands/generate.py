"""`ahn generate`: loads, shows progress on standard error, and prints the answer."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ahn.checkpoints.load import load_resolved
from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.resolve import default_variant, resolve_checkpoint
from ahn.checkpoints.tokenizer import load_tokenizer
from ahn.commands.prompting import (
    Sampling,
    generate_text,
    harmless,
    prompt_ids,
    read_prompt,
)
from common.errors import InputError
from common.notices import tell_once


def answer(
    *,
    model: str,
    ahn: str | None,
    prompt: str | None,
    prompt_file: str | None,
    variant: str | None,
    window: int | None,
    sinks: int | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    chat: bool | None,
    yarn_factor: float | None,
    dtype: str | None,
    device: str,
    tokenizer: str | None,
    stream: bool,
) -> None:
    """Print the model's answer; the arguments are the command's options.

    Raises:
        InputError: anything that does not fit, before weights are loaded.
    """
    sampling = Sampling(max_new_tokens, temperature, seed)
    text = read_prompt(prompt, prompt_file)
    base = CheckpointFiles(model)
    if variant is None:
        variant = default_variant(base, ahn is not None, window is not None)
    checkpoint = resolve_checkpoint(
        base, variant, ahn, window, sinks, dtype, device, yarn_factor=yarn_factor
    )
    try:
        words = load_tokenizer(base if tokenizer is None else tokenizer)
    except InputError as error:
        raise error.prefixed("--tokenizer: ") from None
    ids = prompt_ids(words, text, chat)
    known = checkpoint.shape.vocab_size
    if max(ids) >= known:
        raise InputError(
            f"{base if tokenizer is None else tokenizer}: the tokenizer gives token {max(ids)}, "
            f"and {base} knows {known}; pass the model's own (--tokenizer)"
        )
    for notice in checkpoint.notices:
        tell_once(notice)
    loaded = load_resolved(checkpoint)
    with _progress() as progress:
        task = progress.add_task("reading", total=len(ids) - 1, visible=len(ids) > 1)

        def read(tokens: int) -> None:
            progress.update(task, completed=tokens)
            if tokens == len(ids) - 1:
                progress.stop()

        written = generate_text(
            loaded,
            words,
            ids,
            sampling,
            on_prefill=read,
            on_text=_print if stream else None,
        )
    if not stream:
        _print(written)
    typer.echo()


def _print(text: str) -> None:
    typer.echo(harmless(text) if sys.stdout.isatty() else text, nl=False)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
