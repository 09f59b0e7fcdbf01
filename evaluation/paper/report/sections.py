"""Tables 1 to 9 and figures 3, 4, 5 and 7 as sections of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.paper.costs import paper_table, printed
from evaluation.paper.experiments import POCKET, TRAININGS
from evaluation.paper.report.blocks import (
    Block,
    CostTable,
    DifferenceTable,
    NotRun,
    ScoreCell,
    ScoreTable,
    Section,
    Words,
)
from evaluation.paper.report.claims import GDN, SWA
from evaluation.paper.report.measured import Asked, Measured, Measurements, Tasks
from evaluation.paper.report.parts import effort, pocket_sweep, pocket_tasks, short, stand_in
from evaluation.paper.scores import PrintedScores, expected, printed_scores
from reports.compare import Difference, marked
from reports.stats import Interval

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_METHODS_OF_ROWS = {"Sinks + SWA + RNN": GDN}
_PARTS = {
    "table2": ("lveval", "infinitebench"),
    "table3": ("longbench",),
    "table4": ("longbench",),
    "table5": ("ruler",),
    "table6": ("lveval",),
    "table8": ("lveval", "infinitebench"),
}
_NAMES = {
    "lveval": "LV-Eval",
    "infinitebench": "InfiniteBench",
    "longbench": "LongBench",
    "ruler": "RULER",
}
_BASELINES = {
    "table2": SWA, "table3": SWA, "table4": "", "table5": SWA, "table6": "", "table8": SWA,
}  # fmt: skip
_SHOWS = {
    "table1": "Formulas of a layer's FLOPs, cache and added parameters; no numbers.",
    "table2": "Costs at 128k, and scores of LV-Eval and InfiniteBench.",
    "table3": "Scores of six LongBench tasks at 8,192 lossless positions.",
    "table4": "What the memory's training is worth: the loss, and windows drawn at random.",
    "table5": "Where a memory of constant size does not help: exact recall at 128k.",
    "table6": "LV-Eval, data set by data set: the records of Table 2.",
    "table7": "FLOPs of one training step.",
    "table8": "The memory alone, the window alone, both.",
    "table9": "Parameters, FLOPs and cache at 128k.",
}


@dataclass(frozen=True)
class Row:
    """A row of a table of scores.

    Attributes:
        name: as printed.
        method: by the name in Table 2.
        training: in Table 4.
        seed: of that training; None: all.
    """

    name: str
    method: str
    training: str | None = None
    seed: str | None = None

    def asked(self, model: str, window: int, sinks: int) -> Asked:
        """Its setting."""
        return Asked(model, self.method, window, sinks, self.training, self.seed)


def score_section(name: str, found: Measurements, title: str = "") -> Section:
    """A table of scores (and of costs, where it has both)."""
    table = printed_scores().tables[name]
    blocks: list[Block] = []
    if name == "table2":
        blocks += _cost_blocks(name)
    for model in table.rows:
        blocks += _of_model(name, table, model, found)
    return Section(
        name,
        title or table.title,
        _SHOWS[name],
        tuple(blocks),
        (
            *(_cost_blocks(name, POCKET) if name == "table2" else ()),
            *_miniature(name, table, found),
        ),
        table.notes,
    )


def cost_section(name: str) -> Section:
    """A table of costs alone."""
    table = paper_table(name)
    here = () if name == "table1" else tuple(_cost_blocks(name, POCKET))
    return Section(name, table.title, _SHOWS[name], tuple(_cost_blocks(name)), here, table.notes)


def _cost_blocks(name: str, model: str | None = None) -> list[Block]:
    table = paper_table(name, model)
    return [
        CostTable(
            f"{title}, costs",
            table.columns,
            table.decimals if table.published or model is None else (),
            tuple(
                (
                    method,
                    tuple(
                        (
                            table.published[title][method][i] if table.published else None,
                            cell,
                        )
                        for i, cell in enumerate(cells)
                    ),
                )
                for method, cells in rows.items()
            ),
        )
        for title, rows in table.ours.items()
    ]


def _rows_of(name: str, table: PrintedScores, model: str) -> list[Row]:
    by_title = {title: key for key, title in TRAININGS.items()}
    if name == "table4":
        return [Row(row, GDN, by_title[row]) for row in table.rows[model]]
    return [Row(row, _METHODS_OF_ROWS.get(row, row)) for row in table.rows[model]]


def _of_model(name: str, table: PrintedScores, model: str, found: Measurements) -> list[Block]:
    rows = _rows_of(name, table, model)
    columns = {
        column: [(cell.benchmark, task) for task in cell.tasks]
        for column, cell in table.cells.items()
    }
    span = (table.window, table.sinks)
    cells = {
        row.name: [found.cell(row.asked(model, *span), tasks) for tasks in columns.values()]
        for row in rows
    }
    blocks: list[Block] = [
        _score_table(
            f"{model}, scores",
            tuple(columns),
            cells,
            {row.name: table.rows[model][row.name] for row in rows},
            _protocol(table),
        )
    ]
    missing = sum(cell is None for of_row in cells.values() for cell in of_row)
    if missing:
        every = sum(map(len, cells.values()))
        blocks.append(
            not_run(name, model, f"{missing} of {every} cells" if missing < every else "")
        )
    averages = {
        column: tasks for column, tasks in columns.items() if len(tasks) > 1 or name == "table5"
    }
    if missing < sum(map(len, cells.values())):
        blocks += _differences(
            name, model, rows, averages, span, found,
            {row.name: [table.printed(model, row.name, c) for c in averages] for row in rows},
        )  # fmt: skip
    return blocks


def _protocol(table: PrintedScores) -> str:
    names = dict.fromkeys(cell.benchmark for cell in table.cells.values())
    said = "; ".join(
        f"{_NAMES[name]}: protocol {expected()[name].protocol}, prompts of at most "
        f"{expected()[name].max_length:,} tokens"
        for name in names
    )
    return (
        f"Setting of the paper: {said}; window {table.window:,} after {table.sinks} sinks; greedy; "
        "bfloat16."
    )


def _score_table(
    title: str,
    columns: tuple[str, ...],
    cells: Mapping[str, Sequence[Measured | None]],
    published: Mapping[str, Sequence[float | None]],
    protocol: str,
    decimals: int = 2,
) -> ScoreTable:
    letters: dict[tuple[str, ...], str] = {}
    rows = []
    for name, of_row in cells.items():
        made = []
        for measured, cell in zip(of_row, published[name], strict=True):
            if measured is None:
                made.append(ScoreCell(cell))
                continue
            letter = ""
            if measured.remarks:
                number = len(letters)
                new = _LETTERS[number % 26] * (1 + number // 26)
                letter = letters.setdefault(measured.remarks, new)
            ours = 100 * measured.interval.mean
            difference = None if cell is None else ours - cell
            made.append(ScoreCell(cell, measured.interval, difference, letter, measured.sources))
        rows.append((name, tuple(made)))
    legend = tuple((letter, remarks) for remarks, letter in letters.items())
    return ScoreTable(title, columns, tuple(rows), protocol, legend, decimals)


def _differences(
    name: str,
    model: str,
    rows: Sequence[Row],
    columns: Mapping[str, Tasks],
    span: tuple[int, int],
    found: Measurements,
    published: Mapping[str, Sequence[float | None]],
) -> list[Block]:
    """Paired differences to the table's baseline, over the columns given."""
    if name == "table4":
        first = rows[-1:] if model != POCKET else [r for r in rows if r.training == "kl-random"]
        pairs = [
            (one, other) for one in first for other in rows
            if other.training != one.training and one.seed == other.seed
        ]  # fmt: skip
    else:
        base = [row for row in rows if row.name == _BASELINES[name]]
        pairs = [(row, base[0]) for row in rows if base and row is not base[0]]
    found_ones: list[tuple[str, list[tuple[float | None, Interval | None]]]] = []
    for one, other in pairs:
        cells = []
        for index, tasks in enumerate(columns.values()):
            a, b = published[one.name][index], published[other.name][index]
            interval = found.difference(one.asked(model, *span), other.asked(model, *span), tasks)
            cells.append((None if a is None or b is None else a - b, interval))
        found_ones.append((f"{one.name} \N{MINUS SIGN} {other.name}", cells))
    corrected = iter(marked([i for _, cells in found_ones for _, i in cells]))
    made: list[tuple[str, tuple[tuple[float | None, Difference | None], ...]]] = [
        (title, tuple((printed_one, next(corrected)) for printed_one, _ in cells))
        for title, cells in found_ones
    ]
    kept = tuple(row for row in made if any(ours is not None for _, ours in row[1]))
    if not kept:
        return []
    return [
        DifferenceTable(
            f"{'Pocket' if model == POCKET else model}, paired differences", tuple(columns), kept
        )
    ]


def not_run(name: str, model: str, what: str = "") -> NotRun:
    """What would have to be run for a table or figure."""
    key = printed().models.get(model, model)
    command = f"run_eval paper {name} --model {key}"
    return NotRun(command, f"{what + ': ' if what else ''}{effort(name, key)}")


def _miniature(name: str, table: PrintedScores, found: Measurements) -> list[Block]:
    """The table with the pocket model: at each of its windows that was run."""
    sweep = pocket_sweep(name)
    made = [
        block
        for window in (sweep.windows if name == "table4" else sweep.windows[:1])
        for block in _pocket_blocks(name, table, window, sweep.sinks, found)
    ]
    if not made:
        return [NotRun(f"run_eval paper {name} --model {POCKET}", "minutes on a processor")]
    parts = [(_NAMES[part], stand_in(part)) for part in _PARTS[name]]
    stands = "; ".join(f"for {title}: {part.title}" for title, part in parts)
    notes = " ".join(dict.fromkeys(part.note for _, part in parts if part.note))
    said = f"Pocket model. What stands for the paper's benchmarks: {stands}. {notes} The published "
    return [Words(f"{said}numbers are no match for these; the claim is."), *made]


def _pocket_blocks(
    name: str, table: PrintedScores, window: int, sinks: int, found: Measurements
) -> list[Block]:
    columns: dict[str, Tasks] = {}
    for part in _PARTS[name]:
        tasks = pocket_tasks(part)
        columns[f"for {_NAMES[part]}: average of {len(tasks)}"] = tasks
        if name != "table4":
            columns |= {short(task): [(benchmark, task)] for benchmark, task in tasks}
    rows = _rows_of(name, table, next(iter(table.rows)))
    if name == "table4":
        rows = [
            Row(f"{row.name}{f', seed {seed}' if seed else ''}", row.method, row.training, seed)
            for seed in _seeds(rows, window, sinks, found)
            for row in rows
        ]
    cells = {
        row.name: [found.cell(row.asked(POCKET, window, sinks), t) for t in columns.values()]
        for row in rows
    }
    if not any(cell for of_row in cells.values() for cell in of_row):
        return []
    nothing = {row.name: [None] * len(columns) for row in rows}
    title = f"Pocket, window {window:,} after {sinks} sinks"
    made: list[Block] = [_score_table(title, tuple(columns), cells, nothing, "", 1)]
    averages = {c: tasks for c, tasks in columns.items() if len(tasks) > 1}
    compared = [*rows, *_over_seeds(rows)]
    nothing |= {row.name: [None] * len(columns) for row in compared}
    made += _differences(name, POCKET, compared, averages, (window, sinks), found, nothing)
    if any(cell is None for of_row in cells.values() for cell in of_row):
        made.append(
            NotRun(f"run_eval paper {name} --model {POCKET}", "the cells that are missing here")
        )
    return made


def _over_seeds(rows: Sequence[Row]) -> list[Row]:
    """Of a table with several seeds, a row for each training over all of them."""
    trainings = dict.fromkeys(row.training for row in rows if row.seed)
    if len({row.seed for row in rows}) < 2:
        return []
    return [Row(f"{TRAININGS[t]}, mean of seeds", GDN, t) for t in trainings if t is not None]


def _seeds(rows: Sequence[Row], window: int, sinks: int, found: Measurements) -> list[str | None]:
    seeds = {s for row in rows for s in found.seeds(row.asked(POCKET, window, sinks))}
    return [*sorted(seeds)] or [None]
