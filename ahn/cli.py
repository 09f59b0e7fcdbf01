"""The `ahn` command: use, inspect, merge and train memories. Parses, calls and prints."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from common.commands import INTERRUPTED, Program, SettingsCommand
from common.errors import InputError

if TYPE_CHECKING:
    from types import ModuleType

    from ahn.commands import options as given
    from ahn.distill.recipe import Recipe

_AHN = "ByteDance-Seed/AHN-GDN-for-Qwen-2.5-Instruct-3B"


def _version() -> str:
    import ahn

    return ahn.__version__


def _options() -> ModuleType:
    from ahn.commands import options

    return options


app = Program(
    "ahn",
    "Artificial Hippocampus Networks (AHN): constant-memory long context. Qwen, Llama and Mistral.",
    _version,
    examples=(
        "ahn generate --model pocket --ahn pocket --prompt 'the key of carbon is 72 .'",
        "ahn info --list",
        "ahn train configs/train/pocket-gdn.yaml --output-dir runs/mine",
    ),
)


@app.settings_command(
    lambda: _options().Generate,
    examples=(
        "ahn generate --model pocket --ahn pocket --prompt-file story.txt",
        f"ahn generate --model Qwen/Qwen2.5-3B-Instruct --ahn {_AHN} \\\n"
        "    --prompt-file book.txt --device cuda",
    ),
)
def generate(settings: given.Generate) -> None:
    """Answer a prompt of any length: text on standard output, progress on standard error."""
    from ahn.commands.generate import answer

    answer(settings)


@app.settings_command(
    lambda: _options().ProbeSettings,
    examples=(
        "ahn probe --model pocket --ahn pocket --prompt-file story.txt --window 128",
        f"ahn probe --model Qwen/Qwen2.5-3B-Instruct --ahn {_AHN} \\\n"
        "    --prompt-file text.txt --window 512 --sinks 128 --device cuda -o runs/probe",
    ),
)
def probe(settings: given.ProbeSettings) -> None:
    """Which tokens a memory has kept: gradients of KL(full || student), as coloured text.

    The norm of the gradient at the embedding of each token outside of the window (the paper's
    figure 5), in a page, a file and a table.
    """
    from ahn.commands.probe import show
    from ahn.distill.probe import probe_text

    show(settings, probe_text)


@app.settings_command(
    lambda: _options().Info,
    examples=(
        "ahn info runs/merged",
        f"ahn info {_AHN} --json",
        "ahn info --model qwen2.5-7b --cell GatedDeltaNet",
        "ahn info --list",
    ),
)
def info(settings: given.Info) -> None:
    """What a checkpoint is: cell, window, sinks, RoPE scaling, parameters by part, sizes."""
    from ahn.checkpoints.names import model_path
    from ahn.commands import info_table
    from ahn.commands.info import checkpoint_info, zoo_info, zoo_table

    if settings.list_:
        table = zoo_table()
        if settings.json_:
            click.echo(json.dumps(table, indent=1))
        else:
            info_table.print_zoo(table)
        return
    if settings.model is not None:
        found = zoo_info(settings.model, settings.cell, settings.window, settings.sinks)
    else:
        found = checkpoint_info(model_path(settings.path))
    if settings.json_:
        click.echo(json.dumps(asdict(found), indent=1))
    else:
        info_table.print_info(found)


@app.settings_command(
    lambda: _options().Merge,
    examples=(f"ahn merge --base Qwen/Qwen2.5-3B-Instruct --ahn {_AHN} \\\n    --output merged",),
)
def merge(settings: given.Merge) -> None:
    """Put base and AHN weights into one folder; every key is accounted for, no bit is changed.

    The folder loads with `ahn.load_model`, and with transformers' `AutoModelForCausalLM` and
    pipelines after `import ahn`; `ahn serve` serves it.
    """
    from ahn.checkpoints.merge import merge_checkpoint
    from ahn.checkpoints.names import ahn_path, model_path

    written = merge_checkpoint(
        model_path(settings.base),
        ahn_path(settings.ahn),
        settings.output,
        **settings.model_dump(exclude={"base", "ahn", "output"}),
    )
    _print_written(written)


@app.settings_command(
    lambda: _options().Split, examples=("ahn split --model merged --output ahn-only",)
)
def split(settings: given.Split) -> None:
    """Take the AHN weights out of a merged model, with the key names of released checkpoints."""
    from ahn.checkpoints.merge import split_checkpoint

    _print_written(split_checkpoint(**settings.model_dump()))


def _print_written(written: Any) -> None:
    parts = [f"{written.memory_tensors} of the memory"]
    if written.base_tensors:
        parts.insert(0, f"{written.base_tensors} tensors of the base")
    click.echo(
        f"{written.folder}: {' and '.join(parts)}, {written.weight_bytes / 1e6:,.1f} MB in "
        f"{len(written.files)} file{'s' if len(written.files) > 1 else ''}"
    )


@app.command(context_settings={"ignore_unknown_options": True})
@click.argument("model")
@click.argument("options", nargs=-1, type=str, metavar="[--option value ...]")
def serve(model: str, options: Sequence[str]) -> None:
    """Serve a merged model over HTTP (OpenAI's protocol): `transformers serve`, knowing memories.

    MODEL is a folder or hub id; the options are those of `transformers serve`: --host, --port,
    --device, --dtype ... Needs `pip install 'ahn-bench[serve]'`.

    Example: ahn serve merged --port 8000 --device cuda
    """
    from ahn.checkpoints.names import model_path
    from ahn.commands.serve import serve as run

    run(model_path(model), options)


def _recipe() -> type[Recipe]:
    from ahn.distill.recipe import Recipe

    return Recipe


class _TrainCommand(SettingsCommand):
    """Takes `--set option=value`, the same as a flag, too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `SettingsCommand`."""
        return super().parse_args(ctx, list(_without_set(args)))


def _without_set(args: Sequence[str]) -> Iterator[str]:
    words = iter(args)
    for word in words:
        flag, equals, option = word.partition("=")
        if flag != "--set":
            yield word
            continue
        option = option if equals else next(words, "")
        if "=" not in option:
            raise InputError(f"--set {option}: give it as option=value")
        yield f"--{option}"


def _train(flags: Mapping[str, Any], recipe: str | None, fresh: bool) -> None:
    from ahn.distill.recipe import load_recipe

    if recipe is None and not flags:
        raise InputError(
            "give a recipe (YAML file) or options (ahn train --help); recipes of the paper and of "
            "the pocket model stand in configs/train"
        )
    loaded = load_recipe(recipe, flags)
    from ahn.distill.run import train as run

    folder = run(loaded, resume=not fresh)
    if os.environ.get("RANK", "0") == "0":  # one process of many speaks
        log, curve = folder / "training.json", folder / "loss.svg"
        click.echo(f"weights: {folder}\nlog: {log}, {curve}")


app.add_command(
    _TrainCommand(
        "train",
        _recipe,
        _train,
        params=(
            click.Argument(
                ["recipe"], required=False, help="YAML file: configs/train/pocket-gdn.yaml."
            ),
            click.Option(
                ["--fresh"], is_flag=True, help="Remove earlier checkpoints and start anew."
            ),
        ),
        help="Run a training recipe; the same command again continues an interrupted run.\n\n"
        "The keys of a recipe are the options below, which win over it: --max-steps is max_steps "
        "(and --max_steps is understood). Without a recipe the options are all of it.",
        examples=(
            "ahn train configs/train/pocket-gdn.yaml --max-steps 100 --output-dir runs/short",
            "torchrun --nproc_per_node 8 -m ahn.cli train configs/train/qwen2.5-3b-gdn.yaml",
            "ahn train --model-name-or-path Qwen/Qwen2.5-3B-Instruct --dataset chats.jsonl \\\n"
            "    --output-dir runs/mine --sliding-window 1024",
        ),
    )
)


def _terminate(number: int, *_: Any) -> None:
    raise SystemExit(128 + number)  # unwinds: nothing half-written stays


def main() -> None:
    """Entry point: input errors go to stderr with exit code 2, Ctrl-C ends with 130."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        signal.signal(signal.SIGHUP, _terminate)
    try:
        app.main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
