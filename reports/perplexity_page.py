"""What a folder of `run_eval perplexity` says: numbers, figures and a page. No torch.

Log perplexity is the mean loss of tokens, in nats; perplexity is its exponential. Variants are
compared on the tokens that all of them have read, differences are paired: both have read the same
tokens, and blocks of the bootstrap are drawn for both together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from common.charts import line_chart
from common.errors import InputError
from common.pages import printable
from common.writing import write_whole
from reports import formats
from reports.figure_tables import FigureTable
from reports.page import page_environment, page_parts
from reports.perplexity import PerplexityRun
from reports.series_stats import DRAWS, SeriesMean, rolling_mean, series_mean
from reports.targets import check_page_target
from reports.variant_text import variant_text

_MOST_POINTS = 400
_ROWS = 16
_MIB = 2**20


@dataclass(frozen=True)
class VariantSummary:
    """One variant's numbers.

    Attributes:
        name: of the variant.
        text: what it keeps of the past, in words.
        tokens: that it has read and scored.
        log_perplexity: over the tokens that all variants have; None: there are none.
        difference: of its log perplexity to the baseline's, paired; None: it is the baseline, or
            there is none.
        peak_bytes: highest of its blocks; None: not measured.
        cache_bytes: at the end; None: not known.
        seconds: for a thousand tokens, median of the blocks; None: not measured.
        failure: why it did not get to the end; None: it did, or is not done.
    """

    name: str
    text: str
    tokens: int
    log_perplexity: SeriesMean | None
    difference: SeriesMean | None
    peak_bytes: int | None
    cache_bytes: int | None
    seconds: float | None
    failure: str | None


def compared_tokens(run: PerplexityRun) -> int:
    """Tokens that all variants have read which have read any."""
    return min((n for name in run.blocks if (n := run.tokens(name))), default=0)


def baseline_of(run: PerplexityRun) -> str | None:
    """The variant that others are compared with: full attention; None: none has been read."""
    for kind in ("full", "hf"):
        for name, described in run.info.variants.items():
            if described.get("variant") == kind and run.tokens(name):
                return name
    return None


def seed_of(run: PerplexityRun) -> int:
    """Seed of the bootstrap: that of the latest start."""
    return int(run.info.configuration.get("seed") or 0)


def rolling_tokens(run: PerplexityRun) -> int:
    """Tokens of the rolling mean: as asked for, else a twentieth of the text."""
    asked = run.info.configuration.get("rolling_tokens")
    return int(asked or max(4 * run.info.block_tokens, run.info.tokens // 20))


def summaries(run: PerplexityRun) -> list[VariantSummary]:
    """The numbers of every variant, in the order of the folder."""
    baseline, common, seed = baseline_of(run), compared_tokens(run), seed_of(run)
    found = []
    for name, described in run.info.variants.items():
        blocks = run.blocks[name]
        shared = [block for block in blocks if block.first + block.tokens <= common]
        mean = difference = None
        if sum(block.scored for block in shared):
            sums, sizes = run.losses(name)[: len(shared)], run.sizes(name)[: len(shared)]
            unit = float(run.info.block_tokens)
            mean = series_mean(sums, sizes, seed, unit=unit, least=0.0)
            if baseline not in (None, name):
                theirs = run.losses(str(baseline))[: len(shared)]
                difference = series_mean(sums - theirs, sizes, seed, unit=unit)
        times = sorted(1000 * b.seconds / b.tokens for b in blocks if b.seconds is not None)
        failure = run.info.failures.get(name)
        found.append(
            VariantSummary(
                name,
                variant_text(described),
                run.tokens(name),
                mean,
                difference,
                max((b.peak_bytes for b in blocks if b.peak_bytes is not None), default=None),
                blocks[-1].cache_bytes if blocks else None,
                times[len(times) // 2] if times else None,
                None if failure is None else str(failure.get("error")),
            )
        )
    return found


@dataclass(frozen=True)
class Curve:
    """Rolling mean of the log perplexity of a variant.

    Attributes:
        points: (token at the end of the window, mean in nats), in order; where no token of a
            window is scored, it has none.
        half: half the width of the band around it; None: no band.
        method: of the band, in words.
    """

    points: Sequence[tuple[int, float]]
    half: float | None
    method: str


def curve(run: PerplexityRun, variant: str) -> Curve | None:
    """Rolling mean of the log perplexity of a variant over token index; None: nothing was read."""
    blocks, unit = run.blocks[variant], run.info.block_tokens
    if not blocks:
        return None
    width = max(1, round(rolling_tokens(run) / unit))
    found = rolling_mean(run.losses(variant), run.sizes(variant), width, float(unit), seed_of(run))
    ends = (blocks[at - 1].first + blocks[at - 1].tokens for at in found.at)
    points = [(end, float(mean)) for end, mean in zip(ends, found.mean, strict=True)]
    return Curve([p for p in points if math.isfinite(p[1])], found.half, found.method)


# -- figures -------------------------------------------------------------------------------------


def loss_figure(run: PerplexityRun) -> Markup:
    """Log perplexity over token index: rolling mean with its band, a line for each variant."""
    series, bands = [], []
    for name in run.blocks:
        found = curve(run, name)
        points = [] if found is None else _thinned(found.points)
        half = None if found is None else found.half
        series.append((name, points))
        bands.append(
            [] if half is None else [(at, max(0.0, y - half), y + half) for at, y in points]
        )
    return line_chart(
        f"Log perplexity over token index, rolling mean of {rolling_tokens(run):,} tokens",
        series,
        "token",
        "log perplexity, nats",
        bands=bands,
        verticals=_places(run),
    )


def peak_figure(run: PerplexityRun) -> Markup | None:
    """Peak memory over token index; None: it was not measured."""
    return _bytes_figure(run, "peak_bytes", "Peak memory over token index", "peak memory, MiB")


def cache_figure(run: PerplexityRun) -> Markup | None:
    """Bytes of the cache over token index; None: they are not known."""
    return _bytes_figure(run, "cache_bytes", "Cache over token index", "cache, MiB")


def _bytes_figure(run: PerplexityRun, key: str, title: str, label: str) -> Markup | None:
    series = []
    for name, blocks in run.blocks.items():
        found = [(b, getattr(b, key)) for b in blocks]
        series.append(
            (name, _thinned([(b.first + b.tokens, v / _MIB) for b, v in found if v is not None]))
        )
    if not any(points for _, points in series):
        return None
    return line_chart(title, series, "token", label, verticals=_places(run))


def _places(run: PerplexityRun) -> list[tuple[float, str]]:
    """Where sinks and window are full, if that is one place, and where the positions end."""
    spans = {
        described["window"] + (described.get("sinks") or 0)
        for described in run.info.variants.values()
        if isinstance(described.get("window"), int)
    }
    found = [(float(span), "window is full") for span in spans] if len(spans) == 1 else []
    if run.info.context is not None and run.info.context < run.info.tokens:
        found.append((float(run.info.context), "positions of the model"))
    return found


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Every so many-th point, first and last among them, where there are too many."""
    step = math.ceil(len(points) / _MOST_POINTS)
    return list(points) if step < 2 else [*points[:-1:step], points[-1]]


# -- tables --------------------------------------------------------------------------------------


def curve_table(run: PerplexityRun) -> FigureTable:
    """The rolling means of all variants at some places, and the peaks there."""
    names = [name for name in run.blocks if run.blocks[name]]
    curves = {name: found for name in names if (found := curve(run, name)) is not None}
    longest = max(curves.values(), key=lambda found: len(found.points), default=None)
    rows = []
    for at in [] if longest is None else _some([place for place, _ in longest.points]):
        cells: list[float | str | None] = []
        for found in curves.values():
            places = {float(place): mean for place, mean in found.points}
            mean = places.get(float(at))
            cells.append(None if mean is None else f"{mean:.4f}")
        rows.append((f"{at:,.0f}", tuple(cells)))
    return FigureTable(
        f"Log perplexity at the end of the last {rolling_tokens(run):,} tokens",
        tuple(curves),
        tuple(rows),
        (),
    )


def memory_table(run: PerplexityRun) -> FigureTable:
    """Peak and cache of all variants at some places."""
    names = [name for name in run.blocks if run.blocks[name]]
    ends = sorted(
        {b.first + b.tokens for name in names for b in run.blocks[name] if b.peak_bytes is not None}
        or {b.first + b.tokens for name in names for b in run.blocks[name]}
    )
    by_end = {name: {b.first + b.tokens: b for b in run.blocks[name]} for name in names}
    rows = []
    for end in _some(ends):
        cells: list[float | str | None] = []
        for name in names:
            block = by_end[name].get(int(end))
            both = (None, None) if block is None else (block.peak_bytes, block.cache_bytes)
            cells.append(" / ".join(formats.size(value) for value in both))
        rows.append((f"{end:,.0f}", tuple(cells)))
    return FigureTable("Peak memory / cache at a token", tuple(names), tuple(rows), ())


def _some(places: Sequence[float]) -> list[float]:
    step = max(1, math.ceil(len(places) / _ROWS))
    return [*places[:-1:step], *places[-1:]]


def as_data(run: PerplexityRun) -> dict[str, Any]:
    """The results as plain data, unrounded."""
    info = run.info

    def numbers(mean: SeriesMean | None) -> dict[str, Any] | None:
        return None if mean is None else {
            "mean": mean.mean, "low": mean.low, "high": mean.high, "tokens": mean.tokens,
            "bootstrap_block_tokens": mean.block_tokens, "method": mean.method,
        }  # fmt: skip

    return {
        "folder": str(run.path),
        "status": info.status,
        "model": info.model,
        "data": info.data,
        "tokens": info.tokens,
        "compared_tokens": compared_tokens(run),
        "prefix": info.prefix,
        "baseline": baseline_of(run),
        "peak": info.peak,
        "variants": {
            found.name: {
                "tokens": found.tokens,
                "log_perplexity": numbers(found.log_perplexity),
                "perplexity": None
                if found.log_perplexity is None
                else math.exp(min(found.log_perplexity.mean, 700)),
                "difference": numbers(found.difference),
                "peak_bytes": found.peak_bytes,
                "cache_bytes": found.cache_bytes,
                "seconds_per_1000_tokens": found.seconds,
                "failure": found.failure,
            }
            for found in summaries(run)
        },
    }


def perplexity_text(mean: SeriesMean | None) -> str:
    """`8.12 [7.90, 8.35]`: perplexity with its interval; a dash without any."""
    if mean is None:
        return formats.MISSING
    text = _exp(mean.mean)
    return text if mean.low is None or mean.high is None else (
        f"{text} [{_exp(mean.low)}, {_exp(mean.high)}]"
    )  # fmt: skip


def _exp(value: float) -> str:
    found = math.exp(min(value, 700))
    return f"{found:.4g}" if found < 1e4 else f"{found:,.0f}" if found < 1e9 else f"{found:.2e}"


def loss_text(mean: SeriesMean | None, signed: bool = False) -> str:
    """`2.0943 [2.0669, 2.1211]`: a mean loss, or difference of such, in nats."""
    if mean is None:
        return formats.MISSING
    form = "+.4f" if signed else ".4f"

    def write(value: float) -> str:
        return format(value, form).replace("-", "\N{MINUS SIGN}")

    ends = "" if mean.low is None or mean.high is None else (
        f" [{write(mean.low)}, {write(mean.high)}]"
    )  # fmt: skip
    return write(mean.mean) + ends


def notices(run: PerplexityRun) -> list[str]:
    """What a reader must know before the numbers."""
    info, common = run.info, compared_tokens(run)
    found = [*run.warnings, *info.warnings]
    for name, failure in info.failures.items():
        found.append(
            f"{name} stopped at token {failure.get('token', 0):,} of {info.tokens:,}: "
            f"{failure.get('error')}"
        )
    if scored := info.data.get("scored"):
        found.append(
            f"of the text the {scored} alone are scored: the pocket model was trained to predict "
            "nothing else. All tokens are read"
        )
    unread = [name for name in run.blocks if not run.tokens(name) and name not in info.failures]
    if unread:
        found.append(f"not read yet: {', '.join(unread)}")
    if common and any(run.tokens(name) not in (0, common) for name in run.blocks):
        read = ", ".join(f"{name} {run.tokens(name):,}" for name in run.blocks)
        found.append(
            f"the variants have not read the same tokens ({read}): perplexities and differences "
            f"are over the first {common:,}, which all have"
        )
    return list(dict.fromkeys(found))


def build_perplexity_page(run: PerplexityRun, output: str | Path) -> Path:
    """Write the page on a folder to `output` and return its path.

    Raises:
        InputError: it cannot be written, or would replace something that is no page.
    """
    output = Path(output)
    check_page_target(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror})") from error
    write_whole(output, printable(render(run)))
    return output


def render(run: PerplexityRun) -> str:
    """The page as text."""
    environment = page_environment()
    environment.filters.update(loss=loss_text, perplexity=perplexity_text)
    rows = summaries(run)
    return environment.get_template("perplexity.html.j2").render(
        **page_parts(environment),
        name=run.path.name,
        run=run,
        info=run.info,
        rows=rows,
        baseline=baseline_of(run),
        common=compared_tokens(run),
        window=rolling_tokens(run),
        answer=_answer(run, rows),
        draws=DRAWS,
        seed=seed_of(run),
        first=next((name for name in run.blocks if run.blocks[name]), ""),
        band=next((found.method for name in run.blocks if (found := curve(run, name))), ""),
        notices=notices(run),
        loss=loss_figure(run),
        peak=peak_figure(run),
        cache=cache_figure(run),
        tables=[curve_table(run), memory_table(run)],
        data=as_data(run),
    )


def _answer(run: PerplexityRun, rows: Sequence[VariantSummary]) -> str:
    """The page's first sentence."""
    known = [row for row in rows if row.log_perplexity is not None]
    if not known:
        return "Perplexity: nothing was read yet."
    parts = []
    for row in known:
        assert row.log_perplexity is not None
        said = f"{row.name} {_exp(row.log_perplexity.mean)}"
        if row.difference is not None:
            clear = "" if row.difference.excludes_zero() else ", within chance"
            said += f" (\N{MULTIPLICATION SIGN} {_exp(row.difference.mean)}{clear})"
        parts.append(said)
    baseline = baseline_of(run)
    against = "" if baseline is None or len(parts) == 1 else f", and as a multiple of {baseline}'s"
    return f"Perplexity over {compared_tokens(run):,} tokens{against}: {', '.join(parts)}."
