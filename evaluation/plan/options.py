"""The flags of `run_eval longbench | lveval | infinitebench | pocket`: one list, four commands.

A command is made from `Command`, which says what is its own: its words of help, its protocols and
what a length means to it. The flags all share stand once, in `_shared`, and each is a key of
`evaluation.plan.configuration.RunConfiguration`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer


@dataclass(frozen=True)
class Command:
    """What one benchmark's command says of itself."""

    benchmark: str
    summary: str
    protocols: str
    max_length: str
    tasks: str
    data: str
    lengths: str | None  # None: the benchmark's texts have the lengths that they have


ANY = "run"
"""The command that takes the name of a benchmark."""
COMMANDS = (
    Command(
        benchmark="longbench",
        summary="Run LongBench or LongBench-E on variants of a model, record and score every "
        "answer.",
        protocols="official (the authors'; default) or ahn.",
        max_length="official, the model's context - 500; ahn, 32000.",
        tasks="Tasks or groups (longbench_paper, longbench_en, longbench_zh, longbench_e), joined "
        "by commas or repeated. Default: the 21 tasks. See run_eval tasks longbench.",
        data="Folder with <task>.jsonl[.gz], Parquet or saved data sets, such a file or data.zip "
        "itself, or 'pocket'. Default: the hub.",
        lengths=None,
    ),
    Command(
        benchmark="lveval",
        summary="Run LV-Eval at its five lengths on variants of a model, record and score every "
        "answer.",
        protocols="official (the authors'; default) or ahn.",
        max_length="official, the model's context - 500; ahn, 256000.",
        tasks="Data sets (hotpotwikiqa_mixup), single tasks (hotpotwikiqa_mixup_16k) or groups, "
        "joined by commas or repeated. Default: all 11. See run_eval tasks lveval.",
        data="Folder with <task>_<length>.jsonl[.gz], Parquet or saved data sets, or a data set's "
        "zip. Default: the hub.",
        lengths="16k, 32k, 64k, 128k, 256k; joined by commas or repeated. Default: all five.",
    ),
    Command(
        benchmark="infinitebench",
        summary="Run InfiniteBench on variants of a model, record and score every answer.",
        protocols="official (the authors' for open models; default), another family of theirs "
        "(official-gpt4 ...), or ahn (book questions only).",
        max_length="the protocol's (official, 131072; ahn, 128000).",
        tasks="Tasks or groups (infinitebench_paper), joined by commas or repeated. Default: all "
        "12. See run_eval tasks infinitebench.",
        data="Folder with <task>.jsonl[.gz], Parquet or saved data sets; 'synthetic' for rows "
        "generated here (passkey, number_string, kv_retrieval, math_find, math_calc, code_run). "
        "Default: the hub.",
        lengths="Of generated rows: 128k, 1m, or a number of tokens.",
    ),
    Command(
        benchmark="pocket",
        summary="Run the pocket suite: small generated tasks, the embedded model by default. "
        "How much does each memory hold, and how fast does it forget? Defaults: the preset "
        "configs/eval/pocket.yaml.",
        protocols="official.",
        max_length="the suite's.",
        tasks="Pocket tasks, joined by commas or repeated. Default: all. See run_eval tasks "
        "pocket.",
        data="'pocket': the rows are generated here.",
        lengths="Tokens of a text (512, 1k ...), joined by commas or repeated.",
    ),
    Command(
        benchmark=ANY,
        summary="Run any benchmark that has a folder: of this package, of another one, or of "
        "--data. `run_eval tasks` lists them.",
        protocols="official, or another that the benchmark has.",
        max_length="the protocol's.",
        tasks="Tasks or groups, joined by commas or repeated. Default: all.",
        data="Folder with the rows, and, of a benchmark that is not installed, its _benchmark.yaml "
        "and task files; no code in it is run.",
        lengths="Levels, or of generated rows tokens.",
    ),
)


def _shared(
    model: Annotated[
        str | None, typer.Option(help="Base model: folder, hub id, or 'pocket'.")
    ] = None,
    ahn: Annotated[
        list[str] | None,
        typer.Option(
            help="AHN weights: folder, hub id, or 'pocket' ('pocket/dn' ...). To compare several: "
            "gdn=PATH, dn=PATH, giving variants ahn-gdn, ahn-dn; repeatable.",
            metavar="[NAME=]PATH",
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="full, window, ahn (each of several, or ahn-NAME), no-write; repeatable.",
            metavar="NAME",
        ),
    ] = None,
    window: Annotated[int | None, typer.Option(help="Sliding window, in tokens.")] = None,
    sinks: Annotated[int | None, typer.Option(help="Attention sinks, in tokens.")] = None,
    tasks: Annotated[list[str] | None, typer.Option()] = None,
    lengths: Annotated[list[str] | None, typer.Option("--lengths", "--length")] = None,
    data: Annotated[str | None, typer.Option()] = None,
    limit: Annotated[
        int | None, typer.Option(help="Examples per task. A finished run can be raised later.")
    ] = None,
    protocol: Annotated[str | None, typer.Option()] = None,
    max_length: Annotated[int | None, typer.Option()] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16, or auto (the default).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, or auto.")] = None,
    seed: Annotated[int | None, typer.Option(help="Default: the protocol's.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Run folder; continued if it is there.")
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="YAML file with the same keys as the flags, or a preset; flags win."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan; load no weights, write nothing.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of torch on the CPU. Default: 1 for tiny models, else torch's."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer: folder or hub id. Default: the model's.")
    ] = None,
    overwrite: Annotated[
        bool | None,
        typer.Option("--overwrite", help="Delete the records of an earlier run in --output."),
    ] = None,
    allow_overlong: Annotated[
        bool | None,
        typer.Option("--allow-overlong", help="Accept prompts beyond the model's positions."),
    ] = None,
    yarn_factor: Annotated[
        float | None,
        typer.Option(
            help="Stretch the model's positions by YaRN, so many times: 4 makes 32,768 into "
            "131,072. Default: as its config.json has it."
        ),
    ] = None,
    max_errors: Annotated[
        int | None, typer.Option(help="Failed examples per variant before the run stops (20).")
    ] = None,
    reuse_prefixes: Annotated[
        bool | None,
        typer.Option(
            "--reuse-prefixes/--no-reuse-prefixes",
            help="Read a document once for all its questions (default).",
        ),
    ] = None,
    in_turns: Annotated[
        bool | None,
        typer.Option(
            "--in-turns/--one-by-one",
            help="All variants answer a document before the next one: measured times compare "
            "better, and all models are in memory at once. Default: one variant after the other.",
        ),
    ] = None,
    report: Annotated[
        bool | None,
        typer.Option("--report/--no-report", help="Write <output>/report.html (default)."),
    ] = None,
) -> None:
    """The flags, their types and what is the same in every command's help."""


_KEYS = {"variant": "variants"}  # flags whose key in the configuration has another name


def run_command(
    command: Command, run: Callable[[str, dict[str, Any], str | None, bool], None]
) -> Callable[..., None]:
    """A function for typer whose parameters are the flags of `command`.

    It calls ``run(benchmark, flags, config, dry_run)``, flags by configuration key.
    """
    own = {
        "tasks": typer.Option(help=command.tasks, metavar="NAMES"),
        "data": typer.Option(help=command.data),
        "protocol": typer.Option(help=command.protocols),
        "max_length": typer.Option(
            help=f"Longest prompt, in tokens. Default: {command.max_length}"
        ),
        "lengths": typer.Option("--lengths", "--length", help=command.lengths, metavar="LENGTHS"),
    }
    hints = get_type_hints(_shared, include_extras=True)
    parameters = []
    if command.benchmark == ANY:
        argument = Annotated[str, typer.Argument(metavar="BENCHMARK")]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(inspect.Parameter("benchmark", kind, annotation=argument))
    for name, parameter in inspect.signature(_shared).parameters.items():
        if name == "lengths" and command.lengths is None:
            continue
        hint = hints[name]
        if name in own:
            hint = Annotated[hint.__origin__, own[name]]
        parameters.append(parameter.replace(annotation=hint))

    def call(**given: Any) -> None:
        config, dry_run = given.pop("config"), given.pop("dry_run")
        flags = {_KEYS.get(name, name): value for name, value in given.items()}
        run(flags.pop("benchmark", command.benchmark), flags, config, dry_run)

    call.__name__ = command.benchmark
    call.__doc__ = command.summary
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call
