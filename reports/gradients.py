"""Probes of gradients on pages: read, drawn, and compared by groups of tokens. No torch.

The paper's figure 5 colours each token outside of the window by the norm of the gradient of
KL(teacher || student) at its embedding, and reads small ones as what the memory has kept. Where
it is known what a token belongs to (generated documents: facts and filler), `effect` says how two
groups differ: Cliff's delta within each document, and the mean over documents with the interval
that scores have (`reports.stats`).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from common.probes import NAME, Effect, Probe, ProbedDocument, read_probe
from common.token_map import STYLE, token_map, token_table
from reports.stats import difference_interval

__all__ = [
    "STYLE",
    "Effect",
    "Probe",
    "ProbedDocument",
    "cliffs_delta",
    "effect",
    "find_probes",
    "gradient_figure",
    "read_probe",
    "token_map",
    "token_table",
]


def find_probes(folder: str | Path) -> Iterator[Path]:
    """Files of the name `probe.json` in a folder and below it, sorted."""
    yield from sorted(Path(folder).rglob(NAME))


def cliffs_delta(first: Sequence[float], second: Sequence[float]) -> float:
    """The share of pairs in which `first` is larger, less that in which it is smaller.

    Raises:
        ValueError: one of them is empty.
    """
    if not first or not second:
        raise ValueError("Cliff's delta needs values on both sides")
    ordered, balance = sorted(second), 0
    for value in first:
        below = bisect_left(ordered, value)
        balance += below - (len(ordered) - bisect_right(ordered, value))
    return balance / (len(first) * len(second))


def norms_of(document: ProbedDocument, groups: Iterable[str]) -> list[float]:
    """The norms of a document's tokens outside of the window that belong to one of `groups`."""
    wanted = set(groups)
    return [t.norm for t in document.tokens if t.place == "outside" and t.group in wanted]


def effect(
    documents: Sequence[ProbedDocument], first: str, second: str, title: str | None = None
) -> Effect | None:
    """How the norms of two groups of tokens differ within documents.

    Each document counts once, however many tokens it has; those without a token of either group
    are left out. None: there is none with both.

    Args:
        documents: with groups.
        first: a group; above 0 its norms are larger.
        second: another one.
        title: default: both names.
    """
    pairs = [(norms_of(d, [first]), norms_of(d, [second])) for d in documents]
    pairs = [(a, b) for a, b in pairs if a and b]
    if not pairs:
        return None
    deltas = [cliffs_delta(a, b) for a, b in pairs]
    interval = difference_interval(deltas)
    logarithms = [_mean_log(a) - _mean_log(b) for a, b in pairs]
    ratio = math.exp(math.fsum(logarithms) / len(logarithms))
    return Effect(
        title=title or f"{first} against {second}",
        first=first,
        second=second,
        documents=len(pairs),
        delta=interval.mean,
        low=interval.low,
        high=interval.high,
        method=interval.method,
        ratio=ratio if math.isfinite(ratio) else None,
    )


def _mean_log(norms: Sequence[float]) -> float:
    if min(norms) <= 0:
        return math.nan
    return math.fsum(map(math.log, norms)) / len(norms)


def gradient_figure(probe: Probe, number: int = 0, group: str | None = "fact") -> Markup:
    """The figure of one text, for a page whose style holds `STYLE`: legend, colours, and a table.

    Args:
        probe: as read.
        number: of the document.
        group: its tokens are underlined, where groups are known.
    """
    document = probe.documents[number]
    return Markup("<figure>{}<details><summary>As a table</summary>{}</details></figure>").format(
        token_map(document, group), token_table(document)
    )
