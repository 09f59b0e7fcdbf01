"""`ahn serve`: `transformers serve` for a merged model, with our model types registered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.resolve import resolve_checkpoint
from common.errors import InputError
from common.notices import tell_once


def serve(model: str | Path, options: Sequence[str]) -> None:
    """Serve a model until the process is ended; see `transformers serve --help`.

    Args:
        model: folder or hub id of a model that `ahn merge` wrote.
        options: of `transformers serve`, as at the shell.

    Raises:
        InputError: no such model, one that transformers would load without its memory, or the
            packages of the server are not installed.
    """
    check_servable(model, options)
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise InputError("the server's packages are not installed: pip install 'ahn-bench[serve]'")
    from transformers.cli.transformers import app

    from ahn.models.causal_lm import register

    register()
    app(["serve", str(model), *options], prog_name="ahn")


def check_servable(model: str | Path, options: Sequence[str] = ()) -> None:
    """Refuse what transformers would serve wrongly or not at all; warn about a doubtful window.

    Raises:
        InputError: see `serve`.
    """
    if str(model).startswith("-"):
        raise InputError("name the model first: ahn serve MODEL [options of transformers serve]")
    files = CheckpointFiles(model)
    config = files.config
    if not str(config.get("model_type")).endswith("_ahn"):
        raise InputError(
            f"{model}: config.json: model_type {config.get('model_type')!r}: transformers would "
            "serve it without a memory; write one folder with 'ahn merge' first"
        )
    if any(option.split("=")[0] == "--continuous-batching" for option in options):
        raise InputError(
            "--continuous-batching is not supported: its paged cache keeps every token, and a "
            "memory has a cache of its own"
        )
    for notice in resolve_checkpoint(files, "ahn").notices:
        tell_once(notice)
