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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from common.commands import INTERRUPTED, Commands, Program, SettingsCommand
from common.errors import InputError
from evaluation.commands.benchmarks import COMMANDS

if TYPE_CHECKING:
    from types import ModuleType

    from evaluation.commands import options as given
    from evaluation.paper.book import PaperBook
    from evaluation.paper.options import GradientsRun, PaperRun
    from evaluation.perplexity.configuration import PerplexityConfiguration
    from evaluation.plan.configuration import RunConfiguration

PROBLEMS = 1
_ENDING = (signal.SIGTERM, signal.SIGHUP)


def _version() -> str:
    import ahn

    return ahn.__version__


def _options() -> ModuleType:
    from evaluation.commands import options

    return options


def _configuration() -> type[RunConfiguration]:
    from evaluation.plan.configuration import RunConfiguration

    return RunConfiguration


app = Program(
    "run_eval",
    "What does a model still know when most of its cache is compressed, and what is saved?",
    _version,
    examples=(
        "run_eval pocket --config demo",
        "run_eval longbench --model Qwen/Qwen2.5-3B-Instruct --window 32k --dry-run",
        "run_eval report runs/demo -o report.html",
    ),
)


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


def _run(benchmark: str, flags: Mapping[str, Any], config: str | None, dry_run: bool) -> None:
    with _tidy_interrupts():
        try:
            from evaluation.commands.run import run

            code = run(benchmark, flags, config, dry_run)
        except KeyboardInterrupt as interrupt:
            click.echo("interrupted: the same command continues where it stopped", err=True)
            sys.exit(_exit_code(interrupt))
    sys.exit(code)


_RUN = (
    click.Option(
        ["--config"],
        metavar="FILE",
        help="YAML file with the same keys as the flags, or a preset; flags win.",
    ),
    click.Option(
        ["--dry-run"], is_flag=True, help="Print the plan; load no weights, write nothing."
    ),
)
for _command in COMMANDS:
    app.add_command(
        SettingsCommand(
            _command.benchmark,
            _configuration,
            partial(_run, _command.benchmark),
            params=_RUN,
            help=_command.summary,
            helps=_command.helps,
            without=("benchmark", *_command.without),
            examples=(f"run_eval {_command.benchmark} {_command.example} --limit 2 --dry-run",),
        )
    )


def _run_any(flags: dict[str, Any], **own: Any) -> None:
    if "benchmark" not in flags:
        raise InputError("name a benchmark: run_eval run BENCHMARK (run_eval tasks lists them)")
    _run(flags.pop("benchmark"), flags, **own)


app.add_command(
    SettingsCommand(
        "run",
        _configuration,
        _run_any,
        params=_RUN,
        help="Run any benchmark that has a folder; `run_eval NAME` of those with a command of "
        "their own is the same.",
        examples=("run_eval run longbench --model pocket --data pocket --limit 2",),
    )
)


def _perplexity_configuration() -> type[PerplexityConfiguration]:
    from evaluation.perplexity.configuration import PerplexityConfiguration

    return PerplexityConfiguration


def _perplexity(flags: Mapping[str, Any], dry_run: bool) -> None:
    """Log perplexity and peak memory by token index, over one long text."""
    with _tidy_interrupts():
        try:
            from common.settings import settings
            from evaluation.commands.perplexity import perplexity

            code = perplexity(settings(_perplexity_configuration(), flags), dry_run)
        except KeyboardInterrupt as interrupt:
            click.echo("interrupted: the same command continues where it stopped", err=True)
            sys.exit(_exit_code(interrupt))
    sys.exit(code)


app.add_command(
    SettingsCommand(
        "perplexity",
        _perplexity_configuration,
        _perplexity,
        params=[_RUN[1]],
        help=_perplexity.__doc__,
        # `evaluation.perplexity.configuration.OF_RUNS`, which takes long to import
        without=(
            *("benchmark", "endpoint", "tasks", "lengths", "essay", "words", "squad", "hotpotqa"),
            *("limit", "protocol", "max_length", "budget", "max_errors", "reuse_prefixes"),
            "in_turns",
        ),
        examples=(
            "run_eval perplexity --model pocket --ahn pocket --data pocket",
            "run_eval perplexity --model Qwen/Qwen2.5-3B-Instruct --ahn WEIGHTS --data book.txt.gz",
        ),
    )
)


@app.settings_command(
    lambda: _options().Report, examples=("run_eval report runs/demo -o runs/demo/report.html",)
)
def report(settings: given.Report) -> None:
    """Build one self-contained HTML page from run folders. Needs no model and no torch."""
    from evaluation.commands.report import write_report

    click.echo(f"report: {write_report(settings.runs, settings.output)}")


@app.settings_command(lambda: _options().Check, examples=("run_eval check runs/demo --repair",))
def check(settings: given.Check) -> None:
    """Check every line of a run: its form, its digests, and its score, which is computed again.

    Exit code 0: nothing is wrong; 1: problems were found, with --repair those that it mended, too;
    2: this is no run folder, or it is in use. Needs no model, no rows and no torch.
    """
    from common.progress import ProgressBar
    from evaluation.commands.check import check_run
    from evaluation.commands.terminal import console

    with ProgressBar(console(stderr=True), "checking") as bar:
        found = check_run(settings.run, settings.repair, settings.workers, bar.update)
    for problem in found.problems:
        click.echo(problem)
    for notice in found.notices:
        click.echo(f"notice: {notice}")
    click.echo(f"{settings.run}: {found.summary(settings.repair)}")
    sys.exit(PROBLEMS if found.problems else 0)


@app.settings_command(
    lambda: _options().Score,
    examples=("run_eval score predictions.jsonl --benchmark longbench --task hotpotqa",),
)
def score(settings: given.Score) -> None:
    """Score a prediction file as the benchmark's authors do. Needs no model and no torch.

    Reads files in the authors' formats and this project's.
    """
    from evaluation.commands.score import score_to

    click.echo(score_to(settings))


@app.settings_command(
    lambda: _options().Export, examples=("run_eval export runs/lveval --format lveval",)
)
def export(settings: given.Export) -> None:
    """Write a run's predictions as files that the benchmark's authors' scripts read."""
    from evaluation.commands.export import export_run

    exported = export_run(settings)
    for warning in exported.warnings:
        click.echo(f"warning: {warning}", err=True)
    for path in exported.files:
        click.echo(path)


@app.settings_command(
    lambda: _options().Cost,
    examples=(
        "run_eval cost --model qwen2.5-3b --length 128k --json",
        "run_eval cost --model qwen2.5-3b --lengths 0..1m --window 8k,32k --plot cost.svg",
    ),
)
def cost(settings: given.Cost) -> None:
    """FLOPs and cache bytes of every variant, from the model's shape alone.

    Then, at the bytes that the variant with a memory holds of a document: what window, presses,
    quantised and compressive caches have room for, and what they cost. With --lengths: FLOPs and
    cache over the length, as tables, JSON and a figure.
    """
    if settings.lengths:
        _cost_over_length(settings)
        return
    from evaluation.commands.cost import cost_table, render

    costs = cost_table(settings)
    if settings.json_:
        _print_json(costs)
    else:
        from evaluation.commands.terminal import console

        console().print(render(costs))


def _cost_over_length(settings: given.Cost) -> None:
    """The tables or JSON, and the figure; nothing is printed where it cannot be written."""
    from evaluation.commands import cost_lengths

    if settings.plot is not None:
        cost_lengths.check_plot(settings.plot)
    found = cost_lengths.costs_over_length(settings)
    if settings.plot is not None:
        cost_lengths.write_plot(settings.plot, found)
    if settings.json_:
        _print_json(found.data)
    else:
        from evaluation.commands.terminal import console

        console().print(cost_lengths.render_lengths(found))
    if settings.plot is not None:
        click.echo(f"figure: {settings.plot}", err=True)


def _list_paper(json_: bool, **asked: Any) -> None:
    if click.get_current_context().invoked_subcommand is not None:
        if json_:
            raise InputError("--json stands behind a table's name: run_eval paper table9 --json")
        for key in (key for key, value in asked.items() if value is not None):
            raise InputError(f"--{key}: belongs to the list, run_eval paper; not to one of it")
        return
    from pathlib import Path

    from evaluation.paper.listing import RUNS, listed, listing

    measured = None
    if asked["estimate"] is not False:
        from evaluation.paper.speed import measured_speed

        measured = measured_speed(asked["device"] or "auto", asked["dtype"] or "auto")
    elif asked["device"] or asked["dtype"]:
        raise InputError(
            "--device and --dtype say what is measured, which --no-estimate leaves out"
        )
    found = listed(Path(asked["output"] or RUNS), measured)
    if json_:
        _print_json(found)
    else:
        from evaluation.commands.terminal import console

        console().print(listing(found))


paper = Commands(
    "paper",
    callback=_list_paper,
    invoke_without_command=True,
    help="The AHN paper: every table and figure. Without a name: what each needs, what of it is "
    "here, and what was run. Tables of costs are arithmetic; the others run what they need of "
    "--model, into run folders that they share.",
    params=[
        click.Option(["--json", "json_"], is_flag=True, help="Print the list as JSON."),
        click.Option(
            ["--output", "-o"], metavar="DIR", help="Folder of the runs. [default: runs/paper]"
        ),
        click.Option(
            ["--estimate/--no-estimate"],
            default=None,
            help="Measure this device for a second (matrix products), for hours of what was never "
            "run here. [default: yes]",
        ),
        click.Option(["--device"], metavar="TEXT", help="Device to measure. [default: auto]"),
        click.Option(
            ["--dtype"],
            type=click.Choice(["float32", "bfloat16", "float16"]),
            help="Type to measure in. [default: bfloat16 on cuda, float32 elsewhere]",
        ),
    ],
    context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 100},
)
paper.examples = (
    "run_eval paper",
    "run_eval paper table9 --model qwen2.5-3b",
    "run_eval paper table2 --model pocket --limit 2",
    "run_eval paper table3 --model qwen2.5-7b --data longbench=DIR --dry-run",
)
app.add_command(paper)


def _show_paper_table(name: str, model: str | None, json_: bool) -> None:
    from evaluation.paper.costs import as_json, paper_table, render

    table = paper_table(name, model)
    if json_:
        _print_json(as_json(table))
    else:
        from evaluation.commands.terminal import console

        console().print(render(table))


_PAPER_EXAMPLE = ("run_eval paper {0} --model qwen2.5-3b", "run_eval paper {0} --json")


def _paper_table(name: str, text: str) -> None:
    def show(settings: given.PaperTable) -> None:
        _show_paper_table(name, settings.model, settings.json_)

    show.__doc__ = text
    paper.settings_command(
        lambda: _options().PaperTable,
        name,
        examples=[example.format(name) for example in _PAPER_EXAMPLE],
    )(show)


def _paper_options() -> ModuleType:
    from evaluation.paper import options

    return options


def _paper_scores(name: str, text: str, example: str, costs: bool = False) -> None:
    """A command for what needs answers of a model; with `costs` it prints them first."""

    def show(settings: PaperRun) -> None:
        if costs:
            from evaluation.paper.study import is_run

            runs = is_run(name, settings)
            _show_paper_table(name, settings.model, settings.json_)
            if not runs:
                return
        with _tidy_interrupts():
            try:
                if name == "table4":
                    from evaluation.paper.ablation import run_table4

                    code = run_table4(settings)
                else:
                    from evaluation.paper.runs import run_experiment

                    code = run_experiment(name, settings)
            except KeyboardInterrupt as interrupt:
                click.echo("interrupted: the same command continues where it stopped", err=True)
                sys.exit(_exit_code(interrupt))
        sys.exit(code)

    show.__doc__ = text
    paper.settings_command(
        lambda: _paper_options().PaperRun,
        name,
        without=() if costs else ("costs_only", "json_"),
        examples=(f"run_eval paper {name} --model pocket", f"run_eval paper {name} {example}"),
    )(show)


_DRY = "--model qwen2.5-7b --dry-run"
_paper_table("table1", "FLOPs, cache and parameters of a layer: the formulas, and their values.")
_paper_scores(
    "table2",
    "The costs at 128k in percent; with --model also the scores of LV-Eval and InfiniteBench, "
    "planned and run.",
    "--model qwen2.5-3b --costs-only",
    costs=True,
)
_paper_scores("table3", "Six tasks of LongBench, planned and run.", _DRY)
_paper_scores(
    "table4",
    "The memory's training: what is trained and what is missing; the weights that are here, run "
    "and compared.",
    f"{_DRY} --ahn kl-random=DIR",
)
_paper_scores("table5", "RULER's needles at 128k, planned and run.", f"{_DRY} --essay FILE")
_paper_scores("table6", "LV-Eval at 128k, every data set, planned and run.", _DRY)
_paper_table("table7", "FLOPs of one training step.")
_paper_scores("table8", "The memory alone beside the window and both, planned and run.", _DRY)
_paper_table("table9", "Parameters, FLOPs and cache at 128k: published, ours, difference.")
_paper_scores("figure4", "LV-Eval and InfiniteBench over windows, planned and run.", _DRY)


@paper.settings_command(
    lambda: _paper_options().GradientsRun,
    "figure5",
    examples=(
        "run_eval paper figure5 --model pocket",
        "run_eval paper figure5 --model pocket --ahn gdn,dn --limit 10",
    ),
)
def paper_figure5(settings: GradientsRun) -> None:
    """Gradients at tokens outside of the window: of facts and filler, over generated documents."""
    from evaluation.paper.gradients import show

    with _tidy_interrupts():
        try:
            show(settings)
        except KeyboardInterrupt as interrupt:
            click.echo("interrupted: what is whole was written", err=True)
            sys.exit(_exit_code(interrupt))


_paper_scores("figure7", "LongBench over windows, planned and run.", _DRY)


def _paper_book_settings() -> type[PaperBook]:
    from evaluation.paper.book import PaperBook

    return PaperBook


@paper.settings_command(
    _paper_book_settings,
    "figure3",
    examples=(
        "run_eval paper figure3 --model pocket",
        "run_eval paper figure3 --model qwen2.5-3b --data 10146.txt",
    ),
)
def paper_figure3(settings: PaperBook) -> None:
    """Log perplexity and peak memory by token index over one book, planned and run.

    Its costs over length: run_eval cost --lengths.
    """
    with _tidy_interrupts():
        try:
            from evaluation.paper.book import run_book

            code = run_book(settings)
        except KeyboardInterrupt as interrupt:
            click.echo("interrupted: the same command continues where it stopped", err=True)
            sys.exit(_exit_code(interrupt))
    sys.exit(code)


@paper.settings_command(
    lambda: _options().PaperReport,
    "report",
    examples=(
        "run_eval paper report runs/paper -o paper.html",
        "run_eval paper report runs/paper --json",
    ),
)
def paper_report(settings: given.PaperReport) -> None:
    """Build a page with every table and figure of the paper: published, ours, difference, interval.

    Looks for run folders at and below RUN. What was not run is named, with the command.
    """
    from evaluation.paper.report.page import paper_report_json, write_paper_report

    if settings.output is None and not settings.json_:
        raise InputError("name the page with --output FILE, or ask for --json")
    if settings.output is not None:
        page = write_paper_report(settings.runs, settings.output)
        click.echo(f"report: {page}", err=settings.json_)
    if settings.json_:
        _print_json(paper_report_json(settings.runs))


@app.settings_command(
    lambda: _options().TrainingStep,
    "training-step",
    examples=("run_eval training-step --model qwen2.5-3b --length 24000 --window 8064",),
)
def training_step(settings: given.TrainingStep) -> None:
    """FLOPs of one training step, as the paper's Table 7 counts them: twice the forward pass."""
    from evaluation.paper.costs import render_step, step_costs

    costs = step_costs(settings)
    if settings.json_:
        _print_json(costs)
    else:
        from evaluation.commands.terminal import console

        console().print(render_step(costs))


@app.settings_command(lambda: _options().Tasks, examples=("run_eval tasks lveval --json",))
def tasks(settings: given.Tasks) -> None:
    """List the tasks that can be asked for, and where their rows are. Downloads nothing."""
    from evaluation.commands.tasks import describe_tasks, task_tables

    described = describe_tasks(settings.benchmark, settings.data)
    if settings.json_:
        _print_json(described)
    else:
        from evaluation.commands.terminal import console

        terminal = console()
        terminal.print(task_tables(described, terminal.width))


def _print_json(content: Any) -> None:
    import json

    click.echo(json.dumps(content, indent=1, ensure_ascii=False))


@app.command(
    "lm-eval",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
@click.pass_context
def lm_eval(context: click.Context) -> None:
    """Run lm-evaluation-harness with the model `ahn` and these tasks; takes lm-eval's own flags.

    `run_eval lm-eval --model ahn --model_args pretrained=MODEL,ahn=WEIGHTS,variant=ahn
    --tasks ahnbench_lveval_128k`; `run_eval lm-eval --help` shows lm-eval's help.
    """
    with _tidy_interrupts():
        try:
            from evaluation.commands.lm_eval import run as run_harness

            code = run_harness(context.args)
        except KeyboardInterrupt as interrupt:
            click.echo("interrupted", err=True)
            sys.exit(_exit_code(interrupt))
    sys.exit(code)


@app.settings_command(
    lambda: _options().PocketData,
    "pocket-data",
    examples=("run_eval pocket-data -o data --share 0.01",),
)
def pocket_data(settings: given.PocketData) -> None:
    """Write the pocket training data and tokenizer that configs/train/pocket-*.yaml name."""
    from evaluation.commands.pocket_data import write_pocket_data

    for name, count in write_pocket_data(settings.output, settings.share).items():
        click.echo(f"{settings.output / name}: {count:,} conversations")


@app.settings_command(
    lambda: _options().Rows,
    examples=(
        "run_eval rows ruler --tasks niah_single_1,vt --length 4k --tokenizer MODEL -o rows",
        "run_eval rows infinitebench --tasks passkey --length 128k --limit 10 -o rows",
    ),
)
def rows(settings: given.Rows) -> None:
    """Write generated rows as files, in the format of the benchmark's authors."""
    from evaluation.commands.rows import write_rows

    for path, count in write_rows(settings).items():
        click.echo(f"{path}: {count} rows")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `run_eval` command."""
    try:
        app.main(arguments)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
