"""`run_eval`: parses, calls, prints. What takes long to import is imported by its command.

Exit codes: 0 done; 1 some examples failed, or `check` found problems; 2 bad input, one line per
problem on stderr; 130 interrupted (the run folder is whole; the same command continues); 143
terminated and 129 hung up, likewise.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from evaluation.commands.pocket_data import write_pocket_data
from evaluation.plan.options import COMMANDS, run_command

app = typer.Typer(
    name="run_eval",
    help="What does a model still know when most of its cache is compressed, and what is saved?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its panels leave the words of help 18 columns of 80, and cut them
)

PROBLEMS, BAD_INPUT, INTERRUPTED = 1, 2, 130
_ENDING = (signal.SIGTERM, signal.SIGHUP)


class _Stopped(KeyboardInterrupt):
    """A signal: each ends a run as tidily as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number


def _interrupt(number: int, frame: object) -> None:
    if number in _ENDING:
        # Whoever ends a process may say so twice, and a closing terminal does.
        for other in _ENDING:
            signal.signal(other, signal.SIG_IGN)
    if number == signal.SIGHUP:
        _leave_terminal()
    raise _Stopped(number)


def _leave_terminal() -> None:
    """From now on nothing is written to a terminal: it is going, and writing would fail."""
    with suppress(OSError):  # it is gone
        os.write(2, b"\nhung up: the same command continues\n")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextmanager
def _tidy_interrupts() -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into exceptions.

    SIGINT also where the shell had it ignored; SIGHUP not where `nohup` had.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, *_ENDING)}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _exit_code(interrupt: KeyboardInterrupt) -> int:
    return interrupt.exit_code if isinstance(interrupt, _Stopped) else INTERRUPTED


@contextmanager
def _input_errors() -> Iterator[None]:
    """End with exit code 2 and one line per problem when the input was bad."""
    from common.errors import InputError, problems_of

    try:
        yield
    except (InputError, OSError) as error:
        told = problems_of(error)
        if told is None:
            raise
        for message in told:
            typer.echo(f"error: {message}", err=True)
        raise typer.Exit(BAD_INPUT) from None


def _run(benchmark: str, flags: dict[str, Any], config: str | None, dry_run: bool) -> None:
    with _tidy_interrupts(), _input_errors():
        try:
            from evaluation.commands.run import run

            code = run(benchmark, flags, config, dry_run)
        except KeyboardInterrupt as interrupt:
            typer.echo("interrupted: the same command continues where it stopped", err=True)
            raise typer.Exit(_exit_code(interrupt)) from None
    raise typer.Exit(code)


for _command in COMMANDS:
    app.command(_command.benchmark)(run_command(_command, _run))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The HTML file to write.")
    ],
) -> None:
    """Build one self-contained HTML page from run folders. Needs no model and no torch."""
    with _input_errors():
        from evaluation.commands.report import write_report

        written = write_report(runs, output)
    typer.echo(f"report: {written}")


@app.command()
def check(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Move bad lines to <task>.jsonl.rejected; the next start of the run answers "
            "their examples anew. Not while the run is being written.",
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: as many as are worth it.")
    ] = None,
) -> None:
    """Check every line of a run: its form, its digests, and its score, which is computed again.

    Exit code 0: nothing is wrong; 1: problems were found, with --repair those that it mended, too;
    2: this is no run folder, or it is in use. Needs no model, no rows and no torch.
    """
    with _input_errors():
        from common.progress import ProgressBar
        from evaluation.commands.check import check_run
        from evaluation.commands.terminal import console

        with ProgressBar(console(stderr=True), "checking") as bar:
            found = check_run(run, repair, workers, bar.update)
    for problem in found.problems:
        typer.echo(problem)
    for notice in found.notices:
        typer.echo(f"notice: {notice}")
    typer.echo(f"{run}: {found.summary(repair)}")
    raise typer.Exit(PROBLEMS if found.problems else 0)


@app.command()
def score(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Predictions, one JSON object per line.")
    ],
    benchmark: Annotated[
        str,
        typer.Option(help="Of the predictions: longbench, longbench_e, lveval, infinitebench."),
    ],
    task: Annotated[str, typer.Option(help="Task that the predictions are of.")],
    protocol: Annotated[
        str, typer.Option(help="official, ahn, or another that the task has.")
    ] = "official",
    per_example: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help='Write {"score": ...} per line of FILE, in order.'),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Folder with the rows: FILE must have a prediction for each of them."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: as many as are worth it.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Another metric than the protocol's, as code_similarity_levenshtein.",
        ),
    ] = None,
) -> None:
    """Score a prediction file as the benchmark's authors do. Needs no model and no torch.

    Reads files in the authors' formats and this project's.
    """
    with _input_errors():
        from evaluation.commands.score import score_to

        line = score_to(file, benchmark, task, protocol, per_example, data, workers, metric)
    typer.echo(line)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    form: Annotated[str, typer.Option("--format", help="longbench, lveval or infinitebench.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder. Default: RUN/export."),
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this variant; repeatable.")
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option(help="Folder of the predictions. Default: the model's name and the variant."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write a run's predictions as files that the benchmark's authors' scripts read."""
    with _input_errors():
        from evaluation.commands.export import export_run

        exported = export_run(run, form, output, variant or (), model_name, force)
    for warning in exported.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for path in exported.files:
        typer.echo(path)


@app.command()
def cost(
    model: Annotated[str, typer.Option(help="Name in the model zoo, folder, hub id or 'pocket'.")],
    length: Annotated[int, typer.Option(help="Prompt, in tokens.")] = 128_000,
    generate: Annotated[int, typer.Option(help="Generated tokens.")] = 0,
    window: Annotated[int, typer.Option(help="Sliding window, in tokens.")] = 32_640,
    sinks: Annotated[int, typer.Option(help="Attention sinks, in tokens.")] = 128,
    cell: Annotated[str, typer.Option(help="Memory cell.")] = "GatedDeltaNet",
    dtype: Annotated[str, typer.Option(help="Type of keys and values.")] = "bfloat16",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, exact numbers.")] = False,
) -> None:
    """FLOPs and cache bytes of every variant, from the model's shape alone."""
    import json

    with _input_errors():
        from evaluation.commands.cost import cost_table, render

        costs = cost_table(model, length, generate, window, sinks, cell, dtype)
    if as_json:
        typer.echo(json.dumps(costs, indent=1))
    else:
        from evaluation.commands.terminal import console

        console().print(render(costs))


@app.command()
def tasks(
    benchmark: Annotated[
        str | None,
        typer.Argument(metavar="[BENCHMARK]", help="longbench, longbench_e, lveval ... or pocket."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder to look for rows in, instead of the hub's cache.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the tasks that can be asked for, and where their rows are. Downloads nothing."""
    import json

    with _input_errors():
        from evaluation.commands.tasks import describe_tasks, task_tables

        described = describe_tasks(benchmark, data)
    if as_json:
        typer.echo(json.dumps(described, indent=1, ensure_ascii=False))
    else:
        from evaluation.commands.terminal import console

        terminal = console()
        terminal.print(task_tables(described, terminal.width))


@app.command(
    "lm-eval",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness with the model `ahn` and these tasks; takes lm-eval's own flags.

    `run_eval lm-eval --model ahn --model_args pretrained=MODEL,ahn=WEIGHTS,variant=ahn
    --tasks ahnbench_lveval_128k`; `run_eval lm-eval --help` shows lm-eval's help.
    """
    with _tidy_interrupts(), _input_errors():
        try:
            from evaluation.commands.lm_eval import run as run_harness

            code = run_harness(context.args)
        except KeyboardInterrupt as interrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(_exit_code(interrupt)) from None
    raise typer.Exit(code)


@app.command("pocket-data")
def pocket_data_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for tokenizer and data.")
    ] = Path("runs/pocket/data"),
    share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Part of each phase's tokens.")
    ] = 1.0,
) -> None:
    """Write the pocket training data and tokenizer that configs/train/pocket-*.yaml name."""
    with _input_errors():
        written = write_pocket_data(output, share)
    for name, count in written.items():
        typer.echo(f"{output / name}: {count:,} conversations")


def main() -> None:
    """Entry point of the `run_eval` command."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
