"""The `ahn` command: use, inspect, merge and train memories. Parses, calls and prints."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text
from typer.core import TyperCommand

from ahn.config import CELLS
from common.errors import InputError, problems_of

_HELP = "Artificial Hippocampus Networks (AHN) for Qwen2.5 and Qwen3: constant-memory long context."

app = typer.Typer(
    help=_HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

_Base = typer.Option(help="Base model: folder or hub id.")
_Force = Annotated[
    bool, typer.Option("--force", help="Replace a model's folder that is already there.")
]
_ShardSize = Annotated[str, typer.Option(help="Largest file, e.g. 5GB or 500MB.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]


@app.callback()
def _commands() -> None:
    pass


_commands.__doc__ = _HELP


@app.command()
def generate(
    model: Annotated[
        str, typer.Option(help="Base or merged model: folder, hub id, or 'pocket' (embedded).")
    ],
    ahn: Annotated[
        str | None,
        typer.Option(help="AHN weights: folder, hub id, or 'pocket'. Not for a merged model."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt.")] = None,
    prompt_file: Annotated[
        str | None, typer.Option(help="A UTF-8 file with the prompt; '-': standard input.")
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(help="full, window, ahn or no-write. Default: ahn where there are weights."),
    ] = None,
    window: Annotated[int | None, typer.Option(help="Sliding window, in tokens.")] = None,
    sinks: Annotated[int | None, typer.Option(help="Attention sinks, in tokens.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="At most so many tokens come out.")] = 256,
    temperature: Annotated[float, typer.Option(help="0: the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the random draws.")] = 0,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--raw", help="Chat template, or the bare text. Default: chat if any."),
    ] = None,
    yarn_factor: Annotated[
        float | None, typer.Option(help="Extend the positions by this factor (YaRN).")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. Default: the model's.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer: folder or hub id. Default: the model's.")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Print as it comes, or at the end.")
    ] = True,
) -> None:
    """Answer a prompt of any length: text on standard output, progress on standard error.

    Examples:

    `ahn generate --model pocket --ahn pocket --prompt-file story.txt`

    `ahn generate --model Qwen/Qwen2.5-3B-Instruct
    --ahn ByteDance-Seed/AHN-GDN-for-Qwen-2.5-Instruct-3B --prompt-file book.txt --device cuda`
    """
    from ahn.commands.generate import answer

    answer(
        model=model,
        ahn=ahn,
        prompt=prompt,
        prompt_file=prompt_file,
        variant=variant,
        window=window,
        sinks=sinks,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        chat=chat,
        yarn_factor=yarn_factor,
        dtype=dtype,
        device=device,
        tokenizer=tokenizer,
        stream=stream,
    )


@app.command()
def info(
    path: Annotated[
        str | None, typer.Argument(help="Folder or hub id (only headers are fetched), or 'pocket'.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model of the zoo, from its shape alone: qwen2.5-7b.")
    ] = None,
    cell: Annotated[
        str | None, typer.Option(help=f"With --model: memory to add; {', '.join(CELLS)}.")
    ] = None,
    window: Annotated[int | None, typer.Option(help="With --model: window, in tokens.")] = None,
    sinks: Annotated[int | None, typer.Option(help="With --model: sinks, in tokens.")] = None,
    list_models: Annotated[
        bool, typer.Option("--list", help="All models of the zoo and their released AHN weights.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """What a checkpoint is: cell, window, sinks, RoPE scaling, parameters by part, sizes.

    Examples:

    `ahn info runs/merged`

    `ahn info ByteDance-Seed/AHN-GDN-for-Qwen-2.5-Instruct-3B --json`

    `ahn info --model qwen2.5-7b --cell GatedDeltaNet`

    `ahn info --list`
    """
    from ahn.checkpoints.names import model_path
    from ahn.commands import info_table
    from ahn.commands.info import checkpoint_info, zoo_info, zoo_table

    if (path is not None) + (model is not None) + list_models != 1:
        raise InputError("give one of PATH, --model NAME and --list")
    if model is None and (cell, window, sinks) != (None, None, None):
        raise InputError("--cell, --window and --sinks go with --model")
    if list_models:
        table = zoo_table()
        if as_json:
            typer.echo(json.dumps(table, indent=1))
        else:
            info_table.print_zoo(table)
        return
    found = zoo_info(model, cell, window, sinks) if model else checkpoint_info(model_path(path))
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
    else:
        info_table.print_info(found)


@app.command()
def merge(
    base: Annotated[str, _Base],
    ahn: Annotated[str, typer.Option(help="AHN weights: folder or hub id.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to make.")],
    window: Annotated[
        int | None, typer.Option(help="Window to record, in tokens. Default: the AHN weights'.")
    ] = None,
    sinks: Annotated[
        int | None, typer.Option(help="Sinks to record, in tokens. Default: the AHN weights'.")
    ] = None,
    yarn_factor: Annotated[
        float | None, typer.Option(help="RoPE scaling to record: YaRN with this factor.")
    ] = None,
    max_shard_size: _ShardSize = "5GB",
    force: _Force = False,
) -> None:
    """Put base and AHN weights into one folder; every key is accounted for, no bit is changed.

    The folder loads with `AutoModelForCausalLM.from_pretrained` after `import ahn`.

    Example:

    `ahn merge --base Qwen/Qwen2.5-3B-Instruct
    --ahn ByteDance-Seed/AHN-GDN-for-Qwen-2.5-Instruct-3B --output merged`
    """
    from ahn.checkpoints.merge import merge_checkpoint
    from ahn.checkpoints.names import ahn_path, model_path

    written = merge_checkpoint(
        model_path(base),
        ahn_path(ahn),
        output,
        window=window,
        sinks=sinks,
        yarn_factor=yarn_factor,
        max_shard_size=max_shard_size,
        force=force,
    )
    _print_written(written)


@app.command()
def split(
    model: Annotated[str, typer.Option(help="Model with AHN weights in it: folder or hub id.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to make.")],
    max_shard_size: _ShardSize = "5GB",
    force: _Force = False,
) -> None:
    """Take the AHN weights out of a merged model, with the key names of released checkpoints.

    Example: `ahn split --model merged --output ahn-only`
    """
    from ahn.checkpoints.merge import split_checkpoint

    _print_written(split_checkpoint(model, output, max_shard_size=max_shard_size, force=force))


@app.command(context_settings={"ignore_unknown_options": True})
def serve(
    model: Annotated[str, typer.Argument(help="Merged model: folder or hub id.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[--option value ...]",
            help="Options of `transformers serve`: --host, --port, --device, --dtype ...",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve a merged model over HTTP (OpenAI's protocol): `transformers serve`, knowing memories.

    Needs `pip install 'ahn-bench[serve]'`.

    Example: `ahn serve merged --port 8000 --device cuda`
    """
    from ahn.checkpoints.names import model_path
    from ahn.commands.serve import serve as run

    run(model_path(model), options or [])


def _print_written(written: Any) -> None:
    parts = [f"{written.memory_tensors} of the memory"]
    if written.base_tensors:
        parts.insert(0, f"{written.base_tensors} tensors of the base")
    typer.echo(
        f"{written.folder}: {' and '.join(parts)}, {written.weight_bytes / 1e6:,.1f} MB in "
        f"{len(written.files)} file{'s' if len(written.files) > 1 else ''}"
    )


class _TrainCommand(TyperCommand):
    """Its help ends with the options of a recipe, which are flags, too."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from rich.console import Console
        from rich.table import Table

        from ahn.distill.flags import option_lines

        super().format_help(ctx, formatter)
        shown = Table(title="Options of a recipe", title_justify="left", box=None, pad_edge=False)
        shown.add_column("option", style="cyan", overflow="fold")
        shown.add_column("meaning")
        for flag, meaning in option_lines():
            shown.add_row(Text(flag), Text(meaning))
        Console(width=None if Console().is_terminal else 120).print(shown)


@app.command(cls=_TrainCommand, context_settings={"ignore_unknown_options": True})
def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [--option value ...]",
            help="YAML recipe, e.g. configs/train/pocket-gdn.yaml, and options of recipes that "
            "win over its own. Without a file the options are the recipe.",
            show_default=False,
        ),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--set", help="The same as a flag: --set max_steps=10 (repeatable)."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove earlier checkpoints and start anew.")
    ] = False,
) -> None:
    """Run a training recipe; the same command again continues an interrupted run.

    Examples:

    `ahn train configs/train/pocket-gdn.yaml --max_steps 100 --output_dir runs/short`

    `torchrun --nproc_per_node 8 -m ahn.cli train configs/train/qwen2.5-3b-gdn.yaml`

    `ahn train --model_name_or_path Qwen/Qwen2.5-3B-Instruct --dataset chats.jsonl
    --output_dir runs/mine --sliding_window 1024`
    """
    from ahn.distill.flags import parse_words
    from ahn.distill.recipe import load_recipe

    bare = [option for option in options or [] if "=" not in option]
    if bare:
        raise InputError(*(f"--set {option}: give it as option=value" for option in bare))
    flags = [f"--{option}" for option in options or []]
    recipe, overrides = parse_words([*flags, *(words or [])])
    if recipe is None and not overrides:
        raise InputError(
            "give a recipe (YAML file) or options (ahn train --help); recipes of the paper and of "
            "the pocket model stand in configs/train"
        )
    loaded = load_recipe(recipe, overrides)
    from ahn.distill.run import train as run

    folder = run(loaded, resume=not fresh)
    if os.environ.get("RANK", "0") == "0":  # one process of many speaks
        log, curve = folder / "training.json", folder / "loss.svg"
        typer.echo(f"weights: {folder}\nlog: {log}, {curve}")


def _terminate(number: int, *_: Any) -> None:
    raise SystemExit(128 + number)  # unwinds: nothing half-written stays


def main() -> None:
    """Entry point: input errors go to stderr with exit code 2, Ctrl-C ends with 130."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        signal.signal(signal.SIGHUP, _terminate)
    try:
        app(standalone_mode=True)
    except (InputError, OSError) as error:
        told = problems_of(error)
        if told is None:
            raise
        for problem in told:
            typer.echo(f"error: {problem}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
