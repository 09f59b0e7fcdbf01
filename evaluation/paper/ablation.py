"""Table 4: the trainings' weights are asked, and compared example by example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import InputError
from evaluation.commands.run import DONE
from evaluation.commands.terminal import console
from evaluation.paper.experiments import TRAININGS
from evaluation.paper.options import PaperRun
from evaluation.paper.runs import run_study
from evaluation.paper.scores import printed_scores
from evaluation.paper.study import Study, folder_of, study
from evaluation.paper.training import ROWS, TABLE, Training, trainings, trainings_table, unlike
from evaluation.run.engine import Engine
from reports import formats
from reports.compare import marked
from reports.leaderboard import Column, columns_of, compared_tasks
from reports.matched import matched
from reports.run_folders import read_run
from reports.seeds import mean_difference, mean_score
from reports.stats import Interval

if TYPE_CHECKING:
    from rich.table import Table

WITHOUT = "window"
"""The row of sinks and window alone, which Table 4 does not have and its readers need."""
Seed = int | None
"""Of a training; None: all of a row's."""
Columns = Mapping[str, Mapping[Seed, Column]]
"""By row and seed; that of `WITHOUT` has the seed None."""


@dataclass(frozen=True)
class Difference:
    """One row less another, example by example.

    Attributes:
        row: of the table.
        other: likewise, or `WITHOUT`.
        seed: of both trainings; None: the mean of all seeds that both rows have.
        interval: over the examples.
        adjusted: Holm's p-value among the differences over all seeds; None: it is of one seed.
    """

    row: str
    other: str
    seed: Seed
    interval: Interval
    adjusted: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What the trainings score with one window.

    Attributes:
        window: tokens behind the sinks.
        sinks: tokens.
        tasks: how many were asked.
        scores: by row and seed.
        differences: of every two rows.
    """

    window: int
    sinks: int
    tasks: int
    scores: Mapping[tuple[str, Seed], Interval]
    differences: Sequence[Difference]


def run_table4(asked: PaperRun, engine: Engine | None = None) -> int:
    """Tell what is trained and what is missing, ask the weights that are here, and compare.

    Returns:
        The exit code.

    Raises:
        InputError: everything that is wrong, or no weights are here; nothing is written then.
    """
    planned = study(TABLE, asked)
    model, made = planned.model, trainings(planned.model, asked.ahn)
    out = console()
    out.print(trainings_table(made))
    missing = [training for training in made if not training.weights]
    for training in missing:
        out.print(f"to train {training.name}: {training.command}", markup=False, soft_wrap=True)
    for notice in unlike(made):
        out.print(f"warning: {notice}", markup=False, soft_wrap=True, style="yellow")
    wanted, planned = planned.ahn, with_weights(planned, made)
    if wanted and not planned.ahn:
        nothing = (
            f"{TABLE}: none of the weights that are asked of {model} are here; train them, or give "
            f"--ahn {next(iter(wanted))}=PATH"
        )
        if not asked.dry_run:
            raise InputError(nothing)
        out.print(nothing, markup=False, soft_wrap=True)
        return DONE
    code = run_study(planned, asked, engine)
    if not asked.dry_run:
        for found in outcomes(planned, made, Path(asked.output)):
            out.print(outcome_table(model, found))
    return code


def with_weights(planned: Study, made: Sequence[Training]) -> Study:
    """The study without variants whose weights are missing."""
    missing = {training.name for training in made if not training.weights}
    return replace(
        planned,
        variants=[asked for asked in planned.variants if asked.weights not in missing],
        ahn={name: place for name, place in planned.ahn.items() if name not in missing},
    )


# -- what comes out ------------------------------------------------------------------------------


def outcomes(planned: Study, made: Sequence[Training], output: Path) -> Iterator[Outcome]:
    """What the runs of a study say, window by window; a variant without records is left out."""
    trained = {training.name: training for training in made}
    [part] = planned.parts
    by_window: dict[tuple[int, int], dict[str, dict[Seed, Column]]] = {}
    for asked in planned.variants:
        folder = folder_of(output, planned.model, part, asked.name)
        if not (folder / "run.json").exists():
            continue
        training = trained.get(asked.weights)
        row, seed = (training.row, training.recipe.seed) if training else (WITHOUT, None)
        key = asked.settings["window"], asked.settings["sinks"]
        for column in columns_of([read_run(folder)]):
            by_window.setdefault(key, {}).setdefault(row, {})[seed] = column
    for (window, sinks), columns in by_window.items():
        yield outcome(window, sinks, columns)


def outcome(window: int, sinks: int, columns: Columns) -> Outcome:
    """Compare every two rows, over the examples that all columns answered."""
    every = [column for row in columns.values() for column in row.values()]
    shared, tasks = matched(every), compared_tasks(every)
    scores = {}
    for row, of_row in columns.items():
        groups: dict[Seed, list[Column]] = {seed: [column] for seed, column in of_row.items()}
        if len(of_row) > 1:
            groups[None] = list(of_row.values())
        for seed, group in groups.items():
            if (score := mean_score(group, tasks, shared)) is not None:
                scores[row, seed] = score
    differences = []
    order = [row for row in (*ROWS, WITHOUT) if row in columns]
    for row, other in combinations(order, 2):
        for seed, mine, theirs in _pairs(columns[row], columns[other]):
            if (interval := mean_difference(mine, theirs, tasks, shared)) is not None:
                differences.append(Difference(row, other, seed, interval))
    return Outcome(window, sinks, len(tasks), scores, _adjusted(differences))


def _pairs(
    row: Mapping[Seed, Column], other: Mapping[Seed, Column]
) -> Iterator[tuple[Seed, list[Column], list[Column]]]:
    """Columns of two rows to set against each other: seed by seed, then all seeds of both."""
    if None in other:  # without a memory: every seed's is compared with it
        yield None, list(row.values()), list(other.values())
        return
    seeds = [seed for seed in row if seed in other]
    for seed in seeds:
        yield seed, [row[seed]], [other[seed]]
    if seeds:
        yield None, [row[seed] for seed in seeds], [other[seed] for seed in seeds]


def _adjusted(differences: Sequence[Difference]) -> list[Difference]:
    pooled = marked([d.interval if d.seed is None else None for d in differences])
    return [
        difference if mark is None else replace(difference, adjusted=mark.adjusted)
        for difference, mark in zip(differences, pooled, strict=True)
    ]


def outcome_table(model: str, found: Outcome) -> Table:
    """Scores and differences at one window beside the paper's."""
    from rich import box
    from rich.table import Table

    examples = max((score.n for score in found.scores.values()), default=0)
    table = Table(
        title=f"Table 4 with {model}, window {found.window:,} + {found.sinks:,}: {examples:,} "
        f"examples of {found.tasks} tasks; points of 100 with 95 % intervals",
        caption="published: LongBench's six tasks, Qwen2.5-7B, window 8,064 + 128. Intervals are "
        "over the questions; other seeds may differ by more. p: Holm's, of the differences of all "
        "seeds at this window.",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    seeds = sorted({seed for _, seed in found.scores if seed is not None})
    table.add_column("", overflow="fold")
    for heading in ("published", *(f"seed {seed}" for seed in seeds), "all seeds", "p"):
        table.add_column(heading, justify="right")
    for row in dict.fromkeys(row for row, _ in found.scores):
        of_row = {seed: score for (name, seed), score in found.scores.items() if name == row}
        cells = [_cell(of_row.get(seed)) for seed in seeds]
        pooled = of_row.get(None) or (next(iter(of_row.values())) if len(of_row) == 1 else None)
        table.add_row(_title(row), f"{_printed(row):.2f}", *cells, _cell(pooled), "")
    table.add_section()
    by_pair: dict[tuple[str, str], dict[Seed, Difference]] = {}
    for difference in found.differences:
        by_pair.setdefault((difference.row, difference.other), {})[difference.seed] = difference
    for (row, other), of_pair in by_pair.items():
        cells = [_cell(of_pair[s].interval if s in of_pair else None, True) for s in seeds]
        all_seeds = of_pair[None]
        table.add_row(
            f"{_title(row)} less {_title(other)}",
            f"{_printed(row) - _printed(other):+.2f}",
            *cells,
            _cell(all_seeds.interval, True),
            formats.p_value(all_seeds.adjusted),
        )
    return table


def _title(row: str) -> str:
    return "Sinks + SWA" if row == WITHOUT else TRAININGS[row]


def _printed(row: str) -> float:
    """The mean of LongBench's six tasks; Table 3 has that of sinks and window alone."""
    tables = printed_scores().tables
    [(model, rows)] = tables[TABLE].rows.items()
    return (
        tables["table3"].rows[model]["Sinks + SWA"][-1] if row == WITHOUT else rows[_title(row)][0]
    )


def _cell(interval: Interval | None, signed: bool = False) -> str:
    if interval is None:
        return ""
    points = formats.signed_points if signed else formats.points
    return f"{points(interval.mean)} {formats.between(interval, signed=signed)}"
