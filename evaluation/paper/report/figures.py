"""Figures 3, 4, 5 and 7: drawn from arithmetic and from runs; their numbers stand in tables."""

from __future__ import annotations

from collections.abc import Sequence

from ahn.cost import zoo
from ahn.cost.paper import method_cost
from common.charts import line_chart
from evaluation.paper.costs import printed
from evaluation.paper.report.blocks import Block, NotRun, Picture, Section, Words
from evaluation.paper.report.books import Book, Probed, book_blocks, probe_blocks
from evaluation.paper.report.claims import FULL, GDN, NAMES, SINKS, SWA, part_tasks
from evaluation.paper.report.measured import Asked, Measurements
from evaluation.paper.report.parts import pocket_sweep
from evaluation.paper.report.sections import not_run
from evaluation.paper.report.tried import POCKET
from evaluation.paper.scores import printed_scores
from reports import formats
from reports.over_window import Family, Level, draw
from reports.stats import Interval

_OF_7B = "Qwen2.5-7B-Instruct"
_OF_3B = "Qwen2.5-3B-Instruct"
_LENGTHS = (8_000, 16_000, 32_000, 48_000, 64_000, 96_000, 128_000, 160_000, 192_000, 224_000)
_LONGEST = 250_000
"""Of Figure 3's axis."""

_WINDOWS = {
    "figure4": (("lveval", "infinitebench"), (SWA, GDN)),
    "figure7": (("longbench",), (SWA, "CT-Average", GDN)),
}
_TITLES = {
    "figure3": "Figure 3: FLOPs and cache over length, a book token by token",
    "figure4": "Figure 4: LV-Eval and InfiniteBench over windows",
    "figure5": "Figure 5: gradients at the tokens outside of the window",
    "figure7": "Figure 7: LongBench over lossless positions",
}


def windows_section(name: str, found: Measurements) -> Section:
    """Figure 4 or 7: score over the window."""
    blocks = _over_windows(name, _OF_7B, SINKS, found)
    here = _over_windows(name, POCKET, pocket_sweep(name).sinks, found)
    if here:
        here = [Words("Pocket model, other questions in other lengths: see the tables."), *here]
    return Section(
        name,
        _TITLES[name],
        f"{printed_scores().figures[name]}. Its points are drawn, not printed.",
        tuple(blocks or [not_run(name, _OF_7B)]),
        tuple(
            here or [NotRun(f"run_eval paper {name} --model {POCKET}", "minutes on a processor")]
        ),
    )


def _over_windows(name: str, model: str, sinks: int, found: Measurements) -> list[Block]:
    parts, methods = _WINDOWS[name]
    shown = (*methods, FULL) if name == "figure4" else methods
    made: list[Block] = []
    for part in parts:
        tasks = part_tasks(part, model)
        points: list[tuple[int, list[Interval | None]]] = []
        remarks: dict[str, None] = {}
        for window in found.windows(model, methods, sinks):
            cells = [found.cell(Asked(model, method, window, sinks), tasks) for method in shown]
            if any(cell is not None for cell in cells[: len(methods)]):
                points.append((window, [cell.interval if cell else None for cell in cells]))
                remarks |= dict.fromkeys(text for cell in cells if cell for text in cell.remarks)
        if len(points) < 2:  # one window is a table, not a figure
            continue
        made.append(_window_picture(part, model, sinks, shown, points, len(tasks), list(remarks)))
    return made


def _window_picture(
    part: str,
    model: str,
    sinks: int,
    methods: Sequence[str],
    points: Sequence[tuple[int, list[Interval | None]]],
    tasks: int,
    remarks: Sequence[str],
) -> Picture:
    families, levels = [], []
    for index, method in enumerate(methods):
        scores = {window + sinks: cells[index] for window, cells in points}
        known = tuple((window, score) for window, score in scores.items() if score is not None)
        if method == FULL and known:
            levels.append(Level(method, known[0][1]))
        elif known:
            families.append(Family(method, known))
    what = f"lossless positions: window and {sinks} sinks"
    who = "pocket" if model == POCKET else model
    title = f"{who}: {NAMES[part]}{_stand_ins(model)}, average of {tasks}"
    drawn = draw(families, levels, title, f"{what} (log scale)")
    return Picture(
        title,
        drawn.picture,
        "Points of 100 with 95 % intervals."
        + (" Full attention has no window: a line across." if levels else "")
        + (f" Setting differs at some points: {'; '.join(remarks)}." if remarks else ""),
        (what, *drawn.table.columns),
        tuple(
            (row, tuple(formats.figure(cell) for cell in cells)) for row, cells in drawn.table.rows
        ),
    )


def _stand_ins(model: str) -> str:
    return "'s stand-ins" if model == POCKET else ""


def length_blocks() -> list[Block]:
    """Figure 3 a and b: FLOPs and cache over length, computed in the accounting of Table 1."""
    shape = zoo.find(printed().models[_OF_3B]).shape
    lengths = [*_LENGTHS, _LONGEST]
    costs = {
        method: [method_cost(shape, method, n, window=32_640, sinks=SINKS) for n in lengths]
        for method in (FULL, GDN)
    }
    charts = (
        (
            "a: FLOPs of the model",
            "FLOPs, 1e15",
            [[cost.model_flops / 1e15 for cost in of] for of in costs.values()],
        ),
        (
            "b: memory cache",
            "cache, GB (4 bytes an element)",
            [[cost.cache_bytes / 1e9 for cost in of] for of in costs.values()],
        ),
    )
    made: list[Block] = []
    for title, axis, values in charts:
        series = [
            (method, [(n / 1000, y) for n, y in zip(lengths, of, strict=True)])
            for method, of in zip(costs, values, strict=True)
        ]
        made.append(
            Picture(
                f"{_OF_3B}, {title}",
                line_chart(title, series, "tokens, thousands", axis),
                "Computed by the paper's formula; no run is needed. The paper's curve has no "
                "printed points to set beside it, but for those at 128k in Table 9.",
                ("tokens", *costs),
                tuple(
                    (f"{n:,}", tuple(f"{of[i]:.2f}" for of in values))
                    for i, n in enumerate(lengths)
                ),
            )
        )
    return made


def figure_3(books: Sequence[Book]) -> Section:
    """Figure 3: costs over length, and what a text showed, token by token."""
    own = [block for book in books if book.model == _OF_3B for block in book_blocks(book)]
    here = [block for book in books if book.model == POCKET for block in book_blocks(book)]
    missing = not_run("figure3", _OF_3B, "c and d, log perplexity and peak memory")
    return Section(
        "figure3",
        _TITLES["figure3"],
        f"{printed_scores().figures['figure3']}.",
        (*length_blocks(), *(own or [missing])),
        tuple(here or [_pocket("figure3")]),
    )


def figure_5(probes: Sequence[Probed]) -> Section:
    """Figure 5: gradients by token."""
    own = _probes([one for one in probes if one.model != POCKET])
    here = _probes([one for one in probes if one.model == POCKET])
    missing = NotRun(
        "ahn probe --model Qwen/Qwen2.5-3B-Instruct --ahn WEIGHTS --window 512 --prompt-file FILE",
        "a text of about 811 tokens: one pass with full attention, one forward and back with the "
        "memory",
    )
    return Section(
        "figure5",
        _TITLES["figure5"],
        f"{printed_scores().figures['figure5']}.",
        tuple(own or [missing]),
        tuple(here or [_pocket("figure5")]),
    )


def _probes(probes: Sequence[Probed]) -> list[Block]:
    """The tokens of the first probe alone are drawn: those of many would fill the page."""
    return [block for i, one in enumerate(probes) for block in probe_blocks(one, drawn=i == 0)]


def _pocket(name: str) -> NotRun:
    return NotRun(f"run_eval paper {name} --model {POCKET}", "minutes on a processor")
