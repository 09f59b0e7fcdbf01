"""The `ahn` command: train memories."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from ahn.config import InputError

app = typer.Typer(
    help="Train memories (AHN) for Qwen2.5 and Qwen3.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _commands() -> None:
    """Train memories (AHN) for Qwen2.5 and Qwen3."""


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe, e.g. configs/train/pocket-gdn.yaml")],
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a recipe option: --set max_steps=10 (repeatable)."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option(help="Start anew instead of continuing the last checkpoint.")
    ] = False,
) -> None:
    """Run a training recipe; the same command again continues an interrupted run."""
    from ahn.distill.recipe import load_recipe

    overrides: dict[str, Any] = {}
    for option in options or []:
        key, separator, value = option.partition("=")
        if not separator:
            raise InputError(f"--set {option}: give it as option=value")
        overrides[key] = yaml.safe_load(value)
    loaded = load_recipe(recipe, overrides)
    from ahn.distill.trainer import train as run

    folder = run(loaded, resume=not fresh)
    typer.echo(f"weights: {folder}\nlog: {folder / 'training.json'}, {folder / 'loss.png'}")


def main() -> None:
    """Entry point: input errors go to stderr with exit code 2, Ctrl-C ends with 130."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        app(standalone_mode=True)
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues from the last checkpoint", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
