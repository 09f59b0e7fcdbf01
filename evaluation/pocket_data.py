"""`run_eval pocket-data`: write the pocket training data and tokenizer for `ahn train`.

This stands under the roof because the trainer must not know the benchmarks: it reads files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def write_pocket_data(output: Path, share: float = 1.0) -> dict[str, int]:
    """Write `tokenizer/` and one chat JSONL per training phase into `output`.

    Args:
        output: folder, made when absent.
        share: part of each phase's tokens, for trials.

    Returns:
        Conversations written, per file name.
    """
    from tasks.pocket.tokenizer import write_tokenizer
    from tasks.pocket.training import PHASES, conversations

    write_tokenizer(output / "tokenizer")
    written = {}
    for name in PHASES:
        path = output / f"{name}.jsonl"
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            count = 0
            for conversation in conversations(name, share):
                file.write(json.dumps(conversation) + "\n")
                count += 1
        partial.replace(path)
        written[path.name] = count
    return written


def app_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for tokenizer and data.")
    ] = Path("runs/pocket/data"),
    share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Part of each phase's tokens.")
    ] = 1.0,
) -> None:
    """Write the pocket training data and tokenizer that configs/train/pocket-*.yaml name."""
    for name, count in write_pocket_data(output, share).items():
        typer.echo(f"{output / name}: {count:,} conversations")
