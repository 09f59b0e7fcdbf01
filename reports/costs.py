"""What examples cost: means, shares of full attention, times with quartiles, by length.

A share of full attention can be formed in two ways, and both are given. The ratio of the means
says what was saved in all, and the longest examples decide it. The mean of the examples' own
ratios says what was saved on an example, and all count alike. Either is over the examples for
which both columns have the figure.

Times are those of whole prefills: an example whose beginning was already in the cache, because an
earlier one had the same document, took less time for no merit of its own. Median and quartiles,
for a machine's times have outliers on one side.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import quantiles

from reports.bins import edges_of, short_tokens
from reports.records import ExampleRecord

AMOUNTS = (
    "flops",
    "cache_bytes_analytic",
    "cache_bytes_measured",
    "prompt_tokens",
    "generated_tokens",
    "document_tokens",
    "budget_bytes",
    "kept_tokens",
    "document_bytes",
    "cache_bytes_stored",
    "peak_bytes",
)
TIMES = ("prefill_seconds", "decode_seconds")


@dataclass(frozen=True)
class Amount:
    """A quantity of a column, per example."""

    mean: float | None = None
    of_total: float | None = None
    """Mean over full attention's mean."""
    of_each: float | None = None
    """Mean of the examples' own ratios to full attention."""


@dataclass(frozen=True)
class Times:
    """Seconds per example."""

    median: float | None = None
    lower: float | None = None
    """First quartile."""
    upper: float | None = None
    """Third quartile."""
    examples: int = 0
    """How many were clocked."""
    of_each: float | None = None
    """Median of the examples' own ratios to full attention."""


@dataclass(frozen=True)
class Reuse:
    """How much of the prompts came from an earlier example's cache."""

    whole: int = 0
    """Examples that were prefilled whole."""
    partly: int = 0
    """Examples whose beginning was reused."""
    unknown: int = 0
    """Examples of which it was not recorded; they are not among the whole ones."""
    share: float | None = None
    """Tokens reused, of all prompt tokens of the examples where it is known."""


@dataclass(frozen=True)
class Kept:
    """What was kept of documents, beside the means."""

    deviation: float | None = None
    """Bytes after the document beyond the budget, as a share of it, in the example that is
    furthest from its budget; negative: below it."""
    largest_peak: int | None = None
    """Bytes."""
    peaks: int = 0
    """Examples whose peak was measured."""
    examples: int = 0


@dataclass(frozen=True)
class Cost:
    """What a column cost over a set of tasks."""

    amounts: dict[str, Amount] = field(default_factory=dict)
    times: dict[str, Times] = field(default_factory=dict)
    reuse: Reuse = Reuse()
    kept: Kept = Kept()


Pair = tuple[ExampleRecord, ExampleRecord | None]
"""An example as the column answered it, and as full attention did."""


def reused_tokens(record: ExampleRecord) -> int | None:
    """Prompt tokens that were taken from an earlier example's cache; None: not recorded."""
    if "reused_prefix_tokens" not in record.model_fields_set:
        return None
    return record.reused_prefix_tokens


def cost_of(pairs: Sequence[Pair], timed_in_one_run: bool = True) -> Cost:
    """Costs of a column over examples that did not fail.

    Args:
        pairs: each record with full attention's of the same example, or None.
        timed_in_one_run: whether full attention ran in the same run; times are related to it only
            then.
    """
    amounts = {name: _amount(pairs, name) for name in AMOUNTS}
    whole = [
        (r, None if other is None or reused_tokens(other) != 0 else other)
        for r, other in pairs
        if reused_tokens(r) == 0
    ]
    known = [r for r, _ in pairs if reused_tokens(r) is not None]
    tokens = sum(r.prompt_tokens or 0 for r in known)
    reused = sum(reused_tokens(r) or 0 for r in known)
    reuse = Reuse(
        whole=len(whole),
        partly=len(known) - len(whole),
        unknown=len(pairs) - len(known),
        share=reused / tokens if tokens else None,
    )
    times = {
        "prefill_seconds": _times(whole, "prefill_seconds", timed_in_one_run),
        "decode_seconds": _times(pairs, "decode_seconds", timed_in_one_run),
    }
    return Cost(amounts, times, reuse, _kept([record for record, _ in pairs]))


def _kept(records: Sequence[ExampleRecord]) -> Kept:
    off = [
        r.document_bytes / r.budget_bytes - 1
        for r in records
        if r.document_bytes is not None and r.budget_bytes
    ]
    peaks = [r.peak_bytes for r in records if r.peak_bytes is not None]
    return Kept(
        deviation=max(off, key=abs, default=None),
        largest_peak=max(peaks, default=None),
        peaks=len(peaks),
        examples=len(records),
    )


def _amount(pairs: Sequence[Pair], name: str) -> Amount:
    values = [value for r, _ in pairs if (value := getattr(r, name)) is not None]
    both = _both(pairs, name)
    return Amount(
        mean=sum(values) / len(values) if values else None,
        of_total=sum(a for a, _ in both) / sum(b for _, b in both) if both else None,
        of_each=sum(a / b for a, b in both) / len(both) if both else None,
    )


def _both(pairs: Sequence[Pair], name: str) -> list[tuple[float, float]]:
    """The figure of the column and of full attention, where both have it and a ratio exists."""
    return [
        (a, b)
        for r, other in pairs
        if other is not None and (a := getattr(r, name)) is not None and (b := getattr(other, name))
    ]


def _times(pairs: Sequence[Pair], name: str, related: bool) -> Times:
    values = sorted(value for r, _ in pairs if (value := getattr(r, name)) is not None)
    if not values:
        return Times()
    lower, median, upper = _quartiles(values)
    ratios = sorted(a / b for a, b in _both(pairs, name)) if related else []
    return Times(median, lower, upper, len(values), _quartiles(ratios)[1] if ratios else None)


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, median, upper = quantiles(values, n=4, method="inclusive")
    return lower, median, upper


@dataclass(frozen=True)
class ByLength:
    """Shares of full attention in examples of like length: means of the examples' ratios."""

    prompts: str
    """Prompt tokens, as '1k-2k'."""
    examples: int
    shares: list[dict[str, float | None]]
    """Per column, by the name of the amount; None where there is nothing to relate it to."""


def by_length(pairs: Sequence[Sequence[Pair]], names: Sequence[str]) -> list[ByLength]:
    """The shares of the amounts `names` by the length of the prompt; empty for one length.

    Args:
        pairs: per column, its examples beside full attention's.
        names: of `AMOUNTS`.
    """
    placed = [
        [(r, other, other.prompt_tokens) for r, other in of_column if other and other.prompt_tokens]
        for of_column in pairs
    ]
    tokens = [count for of_column in placed for _, _, count in of_column]
    if not tokens:
        return []
    edges = edges_of(min(tokens), max(tokens))
    found = []
    for i, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        inside: list[list[Pair]] = [
            [(r, other) for r, other, count in of_column if bisect_right(edges, count) - 1 == i]
            for of_column in placed
        ]
        if any(inside):
            found.append(
                ByLength(
                    prompts=f"{short_tokens(low)}–{short_tokens(high)}",
                    examples=max(map(len, inside)),
                    shares=[
                        {name: _amount(of_bin, name).of_each for name in names} for of_bin in inside
                    ],
                )
            )
    return found if len(found) > 1 else []
