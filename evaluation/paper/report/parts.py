"""What the paper's benchmarks are in miniature: kinds of the pocket suite that stand for them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evaluation.paper.report.measured import Tasks
from evaluation.paper.report.tried import POCKET, Tried

POCKET_WINDOW, POCKET_SINKS = 128, 4

STAND_INS = {
    "lveval": ("confusing_facts",),
    "infinitebench": ("passkey", "number_string", "kv_retrieval"),
    "longbench": ("qa", "two_hop", "passage_retrieval", "classification"),
    "ruler": ("passkey@1", "number_string@1", "kv_retrieval"),
}
"""Kinds, with the number of stored facts where only that one counts, by benchmark."""

_TASK = re.compile(r"pocket_(?P<kind>[a-z_]+)@(?P<facts>\d+)(?:_(?P<length>\d+))?")


def stand_ins(part: str, tried: Sequence[Tried], every: bool = False) -> Tasks:
    """The tasks that stand for a benchmark: those of the longest texts that were answered.

    Args:
        part: the benchmark.
        tried: variants of the pocket model that are shown together.
        every: only tasks that each variant with any of them has.
    """
    had = [
        {
            key.task
            for key in one.column.cells
            if key.benchmark == POCKET and one.column.scored(key) and _stands_for(key.task, part)
        }
        for one in tried
    ]
    had = [names for names in had if names]
    if not had:
        return []
    names = set.intersection(*had) if every else set.union(*had)
    longest = max((_length(name) for name in names), default=0)
    kept = sorted((n for n in names if _length(n) == longest), key=lambda n: _order(n, part))
    return [(POCKET, name) for name in kept]


def short(name: str) -> str:
    """A task without what all of the suite have in common."""
    return name.removeprefix("pocket_")


def _stands_for(name: str, part: str) -> bool:
    found = _TASK.fullmatch(name)
    if found is None:
        return False
    kind = found["kind"]
    return kind in STAND_INS[part] or f"{kind}@{found['facts']}" in STAND_INS[part]


def _length(name: str) -> int:
    found = _TASK.fullmatch(name)
    return int(found["length"] or 0) if found else 0


def _order(name: str, part: str) -> tuple[int, int]:
    found = _TASK.fullmatch(name)
    assert found is not None
    kinds = [kind.partition("@")[0] for kind in STAND_INS[part]]
    return kinds.index(found["kind"]), int(found["facts"])
