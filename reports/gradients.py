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
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from common.probes import NAME, Effect, Probe, ProbedDocument, read_probe
from common.token_map import STYLE, token_map, token_table
from reports.figures import differences
from reports.stats import Interval, difference_interval

__all__ = [
    "STYLE",
    "Effect",
    "Probe",
    "ProbedDocument",
    "cliffs_delta",
    "effect",
    "effect_of_recall",
    "effects_chart",
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


def effect(documents: Sequence[ProbedDocument], first: str, second: str) -> Effect | None:
    """How the norms of two groups of tokens differ within documents.

    Each document counts once, however many tokens it has, and the questions about one text are one
    cluster; documents without a token of either group are left out. None: there is none with both.

    Args:
        documents: with groups.
        first: a group; above 0 its norms are larger.
        second: another one.
    """
    pairs = [(norms_of(d, [first]), norms_of(d, [second]), text_of(d)) for d in documents]
    return _effect(f"{first} against {second}", first, second, pairs)


def effect_of_recall(
    documents: Sequence[ProbedDocument], group: str, against: str | None = None
) -> Effect | None:
    """How the norms at what was asked for differ between answers that were right and wrong.

    Only questions about the same text are compared with one another: what counts is a text of which
    some answers are right. None: there is no such text.

    Args:
        documents: of several questions to a text, with `recalled`.
        group: tokens of what was asked for; of each question the geometric mean of their norms.
        against: divide by the geometric mean of this group's norms in the same document.
    """
    found: dict[str, tuple[list[float], list[float]]] = {}
    for document in documents:
        norms = norms_of(document, [group])
        others = norms_of(document, [against]) if against else []
        if document.recalled is None or not norms or (against and not others):
            continue
        size = _mean_log(norms) - (_mean_log(others) if against else 0.0)
        if math.isnan(size):
            continue
        recalled, lost = found.setdefault(text_of(document), ([], []))
        (recalled if document.recalled else lost).append(math.exp(size))
    pairs = [(recalled, lost, text) for text, (recalled, lost) in found.items()]
    relative = f", relative to {against}" if against else ""
    return _effect(f"{group}, recalled against lost{relative}", "recalled", "lost", pairs)


def text_of(document: ProbedDocument) -> str:
    """The text that a document's question is about."""
    return document.id.partition("#")[0]


def _effect(
    title: str, first: str, second: str, given: Sequence[tuple[list[float], list[float], str]]
) -> Effect | None:
    pairs = [(a, b, text) for a, b, text in given if a and b]
    if not pairs:
        return None
    interval = difference_interval(
        [cliffs_delta(a, b) for a, b, _ in pairs], [text for *_, text in pairs]
    )
    logarithms = [_mean_log(a) - _mean_log(b) for a, b, _ in pairs]
    ratio = math.exp(math.fsum(logarithms) / len(logarithms))
    return Effect(
        title=title,
        first=first,
        second=second,
        documents=interval.clusters,
        delta=interval.mean,
        low=interval.low,
        high=interval.high,
        method=interval.method,
        ratio=ratio if math.isfinite(ratio) else None,
    )


def _mean_log(norms: Sequence[float]) -> float:
    """The logarithm of the geometric mean; not a number where a norm is 0."""
    if min(norms) <= 0:
        return math.nan
    return math.fsum(map(math.log, norms)) / len(norms)


def effects_chart(title: str, effects: Sequence[tuple[str, Effect]]) -> Markup:
    """Cliff's deltas, times 100, with their intervals around 0, in the order given."""
    rows = [
        (name, Interval(e.delta, e.low, e.high, e.documents, e.documents, e.method))
        for name, e in effects
    ]
    return differences(title, rows, 2)


def gradient_figure(
    probe: Probe, number: int = 0, groups: Collection[str] = ("asked", "fact")
) -> Markup:
    """The figure of one text, for a page whose style holds `STYLE`: legend, colours, and a table.

    Args:
        probe: as read.
        number: of the document.
        groups: their tokens are underlined, where groups are known.
    """
    document = probe.documents[number]
    return Markup("<figure>{}<details><summary>As a table</summary>{}</details></figure>").format(
        token_map(document, groups), token_table(document)
    )
