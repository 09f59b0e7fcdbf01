"""SCBench: the figures that compute_scores.py prints, of each task and of each of its turns.

Source: microsoft/MInference fb56c91, scbench/compute_scores.py: 100 times the mean, to three
decimals; of a task that mixes two kinds of question, one figure for each. Where a turn asked no
question of a kind the authors print 0; here there is no figure.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.means import Figure, Scored, Scores, Table
from tasks.scbench.adapter import PARTS


def tables(scores: Scores) -> list[Table]:
    """The mean of each task, and of each turn of it."""
    rows: dict[str, Sequence[Scored]] = {}
    for name, found in scores.items():
        parts = PARTS.get(name)
        if parts is None:
            rows[name] = found
        for part in parts or ():
            rows[f"{name}: {part}"] = [one for one in found if one.attributes.get("part") == part]
    turns = sorted({_turn(one) for found in rows.values() for one in found} - {0})
    made = [
        Table(
            "SCBench: score per task",
            ("score",),
            tuple((name, (_figure(found),)) for name, found in rows.items()),
        )
    ]
    if turns:
        made.append(
            Table(
                "SCBench: score per turn",
                tuple(f"turn {turn}" for turn in turns),
                tuple(
                    (name, tuple(_figure([o for o in found if _turn(o) == t]) for t in turns))
                    for name, found in rows.items()
                ),
            )
        )
    return made


def _turn(one: Scored) -> int:
    """From 1; 0: it is not said."""
    turn = one.attributes.get("turn")
    return turn if isinstance(turn, int) else 0


def _figure(found: Sequence[Scored]) -> Figure:
    return round(100 * sum(one.score for one in found) / len(found), 3) if found else None
