"""LongBench v2: the figures that result.py prints, and the six domains.

Source: THUDM/LongBench 2e00731, result.py: 100 times the mean over the examples, to one decimal;
what is not "easy" is hard there, what is neither "short" nor "medium" long.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.longbench_v2.adapter import DOMAINS
from tasks.means import Figure, Scored, Scores, Table

_COLUMNS = {
    "Overall": None,
    "Easy": ("difficulty", "easy"),
    "Hard": ("difficulty", "hard"),
    "Short": ("length_group", "short"),
    "Medium": ("length_group", "medium"),
    "Long": ("length_group", "long"),
}


def tables(scores: Scores) -> list[Table]:
    """result.py's line for each task, and the mean of each domain."""
    rows = tuple(
        (name, tuple(_figure(found, of) for of in _COLUMNS.values()))
        for name, found in scores.items()
    )
    made = [Table("LongBench v2: accuracy", tuple(_COLUMNS), rows)]
    for name, found in scores.items():
        domains = [domain for domain in DOMAINS if _figure(found, ("domain", domain)) is not None]
        if len(domains) > 1:
            means = tuple((domain, (_figure(found, ("domain", domain)),)) for domain in domains)
            made.append(Table(f"LongBench v2: accuracy per domain, {name}", ("score",), means))
    return made


def _figure(found: Sequence[Scored], of: tuple[str, str] | None) -> Figure:
    """The mean of the examples with this attribute; None where none has it."""
    scores = [one.score for one in found if of is None or one.attributes.get(of[0]) == of[1]]
    return round(100 * sum(scores) / len(scores), 1) if scores else None
