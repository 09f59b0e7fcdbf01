"""`ahn generate`: loads, shows progress on standard error, and prints the answer."""

from __future__ import annotations

import sys
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ahn.checkpoints.load import check_model, load_model
from ahn.checkpoints.locate import describe_model
from ahn.checkpoints.names import ahn_path, model_path
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
    base = model_path(model)
    memory = None if ahn is None else ahn_path(ahn)
    if variant is None:
        variant = _default_variant(base, memory is not None, window is not None)
    problems = check_model(base, variant, memory, window, sinks, yarn_factor=yarn_factor)
    if problems:
        raise InputError(*problems)
    words = load_tokenizer(base if tokenizer is None else tokenizer)
    ids = prompt_ids(words, text, chat)
    known = describe_model(base)["vocab_size"]
    if max(ids) >= known:
        raise InputError(
            f"{base if tokenizer is None else tokenizer}: the tokenizer gives token {max(ids)}, "
            f"and {base} knows {known}; pass the model's own (--tokenizer)"
        )
    loaded = load_model(
        base,
        variant,
        memory,
        window,
        sinks,
        dtype,
        device,
        yarn_factor=yarn_factor,
    )
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


def _default_variant(base: Any, has_ahn: bool, has_window: bool) -> str:
    if has_ahn or read_ahn_config(describe_model(base), base) is not None:
        return VARIANTS[2]
    return VARIANTS[1] if has_window else VARIANTS[0]


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
