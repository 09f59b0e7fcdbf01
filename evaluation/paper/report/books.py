"""Figures 3 c, d and 5: folders of `run_eval perplexity` and files of `ahn probe`, in the paper's
terms, and what they show of its claims.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ahn.cost.shapes import ModelShape
from common.errors import InputError
from evaluation.paper.report.blocks import Block, Picture, Tokens, Words
from evaluation.paper.report.claims import FAILS, HOLDS, OPEN, Standing
from evaluation.paper.report.tried import POCKET, method_of, shapes
from reports import formats
from reports.figure_tables import FigureTable
from reports.gradients import Effect, Probe, token_map, token_table
from reports.perplexity import PerplexityRun
from reports.perplexity_page import (
    cache_figure,
    curve_table,
    loss_figure,
    loss_text,
    memory_table,
    peak_figure,
    rolling_tokens,
    summaries,
)
from reports.series_stats import series_mean

_KEPT = (("fact", "filler"), ("recalled", "lost"))
"""Groups of which the first must have the smaller gradients, if small ones mark what is kept."""
_CONSTANT = 1.02
"""Growth up to which bytes count as constant."""


@dataclass(frozen=True)
class Book:
    """A folder of `run_eval perplexity`; `model` by the paper's name, or None."""

    run: PerplexityRun
    model: str | None

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.run.path.name


@dataclass(frozen=True)
class Probed:
    """A file of `ahn probe`; `model` is `pocket` or as it was named."""

    path: Path
    probe: Probe
    model: str

    @property
    def name(self) -> str:
        """Of its folder, with the one above: of one memory there may be several."""
        return "/".join(self.path.absolute().parent.parts[-2:])


def book_of(run: PerplexityRun) -> Book:
    """The model is known by its shape."""
    try:
        shape = ModelShape.from_config(run.info.model_settings)
    except InputError:
        return Book(run, None)
    return Book(run, next((title for title, of in shapes().items() if of == shape), None))


def probed_of(path: Path, probe: Probe) -> Probed:
    """The pocket model is known by its name: a probe records no shape."""
    return Probed(path, probe, POCKET if Path(probe.model).name == POCKET else probe.model)


def book_blocks(book: Book) -> list[Block]:
    """Log perplexity and memory by token index, the numbers, and what differs in setting."""
    run = book.run
    rows = tuple(
        (
            row.name,
            (
                row.text,
                f"{row.tokens:,}",
                loss_text(row.log_perplexity),
                loss_text(row.difference, signed=True),
                formats.size(row.peak_bytes),
                formats.size(row.cache_bytes),
            ),
        )
        for row in summaries(run)
    )
    headings = (
        "variant", "keeps", "tokens", "log perplexity, nats", "difference to full attention",
        "peak memory", "cache at the end",
    )  # fmt: skip
    curves, memory = curve_table(run), memory_table(run)
    made: list[Block] = [
        Words(_settings(book)),
        Picture(
            f"{book.model}, c: log perplexity by token index",
            loss_figure(run),
            f"Rolling mean of {rolling_tokens(run):,} tokens with its 95 % band.",
            headings,
            rows,
        ),
        _numbers(curves),
    ]
    peak = peak_figure(run)
    drawn = peak if peak is not None else cache_figure(run)
    if drawn is not None:
        what = "peak memory" if peak is not None else "cache (the peak was not measured)"
        measured = f" Measured: {run.info.peak}." if run.info.peak else ""
        made.append(
            Picture(
                f"{book.model}, d: {what} by token index",
                drawn,
                f"Weights are not counted.{measured}",
                ("token: peak / cache", *memory.columns),
                _written(memory),
            )
        )
    return made


def _numbers(table: FigureTable) -> Picture:
    """A table that belongs to the picture above it."""
    return Picture(table.title, None, "", ("token", *table.columns), _written(table))


def _written(table: FigureTable) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((row, tuple(formats.figure(cell) for cell in cells)) for row, cells in table.rows)


def _settings(book: Book) -> str:
    info = book.run.info
    data = info.data.get("path") or info.data.get("source") or "unknown"
    types = ", ".join(
        dict.fromkeys(str(of.get("dtype", "unknown")) for of in info.variants.values())
    )
    done = "" if info.status == "finished" else f" The run is {info.status}."
    return (
        f"{book.name}: text {data}, {info.tokens:,} tokens, SHA-256 "
        f"{str(info.data.get('sha256', 'unknown'))[:16]} (paper: the first book of PG19's test "
        f"set, 57K tokens); {types}; blocks of {info.block_tokens:,} tokens.{done}"
    )


def book_standings(books: Sequence[Book]) -> Iterator[Standing]:
    """Figure 3's claims: perplexity beyond the model's positions, memory behind the window."""
    for book in books:
        if book.model is None:
            continue
        memory, full = _variant(book, "AHN-GDN"), _variant(book, "Full Attn")
        if memory is None or full is None:
            continue
        yield from _beyond(book, memory, full)
        yield from _memory(book, memory, full)


def _variant(book: Book, method: str) -> str | None:
    for name, described in book.run.info.variants.items():
        if method_of(described, str(described.get("variant"))) == method and book.run.blocks[name]:
            return name
    return None


def _beyond(book: Book, memory: str, full: str) -> Iterator[Standing]:
    run, context = book.run, book.run.info.context
    common = min(len(run.blocks[memory]), len(run.blocks[full]))
    first = [block.first for block in run.blocks[memory][:common]]
    beyond = [i for i, at in enumerate(first) if context is not None and at >= context]
    index = np.array(beyond, dtype=int)
    if not run.sizes(memory)[index].sum():
        return
    sums = run.losses(memory)[:common][index] - run.losses(full)[:common][index]
    unit = float(run.info.block_tokens)
    mean = series_mean(sums, run.sizes(memory)[:common][index], unit=unit)
    verdict = OPEN if not mean.excludes_zero() else HOLDS if mean.mean < 0 else FAILS
    yield Standing(
        f"Beyond the model's {context:,} positions AHN-GDN's log perplexity is below full "
        "attention's",
        "figure3",
        str(book.model),
        None,
        None,
        verdict,
        "not corrected for other claims",
        f"{loss_text(mean, signed=True)} nats, over {round(mean.tokens):,} tokens",
    )


def _memory(book: Book, memory: str, full: str) -> Iterator[Standing]:
    described = book.run.info.variants[memory]
    span = (described.get("window") or 0) + (described.get("sinks") or 0)
    grown = {}
    for name in (memory, full):
        sizes = [b.cache_bytes for b in book.run.blocks[name] if b.first >= span and b.cache_bytes]
        if len(sizes) < 2:
            return
        grown[name] = sizes[-1] / sizes[0]
    holds = grown[memory] <= _CONSTANT < grown[full]
    yield Standing(
        "Once the window is full, AHN-GDN's cache no longer grows, and full attention's does",
        "figure3",
        str(book.model),
        None,
        None,
        HOLDS if holds else FAILS,
        "measured",
        f"times {grown[memory]:.3f}, full attention times {grown[full]:.2f}",
    )


def probe_blocks(probed: Probed, drawn: bool) -> list[Block]:
    """What was probed, and the effects over all texts; `drawn`: with the first text's tokens."""
    probe = probed.probe
    document = probe.documents[0]
    weights = f" with {Path(probe.ahn).name}" if probe.ahn else ""
    made: list[Block] = [
        Words(
            f"{probed.name}: {Path(probe.model).name}{weights}, {probe.variant}, window "
            f"{probe.window:,} after {probe.sinks:,} sinks, {probe.dtype}; compared positions: "
            f"{probe.compared}; {len(probe.documents):,} texts, the first of {document.length:,} "
            "tokens (paper: one of 811 tokens, window 512). " + " ".join(probe.notes)
        )
    ]
    if probe.effects:
        made.append(
            Picture(
                f"{probed.name}: groups of tokens",
                None,
                "Cliff's delta: the share of pairs of tokens in which the first group's norm is "
                "larger, less that in which it is smaller; mean over texts.",
                ("compared", "texts", "Cliff's delta, 95 %", "ratio of norms"),
                tuple((effect.title, _effect_cells(effect)) for effect in probe.effects),
            )
        )
    if drawn:
        made.append(
            Tokens(
                f"{probed.name}: the first text, the darker the larger the gradient",
                token_map(document, ("fact", "asked")),
                token_table(document),
            )
        )
    return made


def _effect_cells(effect: Effect) -> tuple[str, ...]:
    return (
        f"{effect.documents:,}",
        f"{effect.delta:+.3f} [{effect.low:+.3f}, {effect.high:+.3f}]".replace(
            "-", "\N{MINUS SIGN}"
        ),
        "–" if effect.ratio is None else f"{effect.ratio:.3g}",
    )


def probe_standings(probes: Sequence[Probed]) -> Iterator[Standing]:
    """Figure 5's claim, where it is known which tokens a memory must keep."""
    for one in probes:
        for effect in one.probe.effects:
            if (effect.first, effect.second) not in _KEPT:
                continue
            clear = effect.low > 0 or effect.high < 0
            verdict = OPEN if not clear else HOLDS if effect.delta < 0 else FAILS
            yield Standing(
                f"Small gradients mark what the memory has kept: {effect.title} ({one.name})",
                "figure5",
                one.model,
                None,
                None,
                verdict,
                f"{effect.documents:,} texts; not corrected for other claims",
                f"Cliff's delta {_effect_cells(effect)[1]}",
            )
