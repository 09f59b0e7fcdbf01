"""Classification: the gold class must be named, and few others beside it.

Source: THUDM/LongBench 2e00731, LongBench/metrics.py, `classification_score`; identical in
ByteDance-Seed/AHN 3d2d174, eval/longbench/metrics.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from tasks.schema import Example


def classification(prediction: str, example: Example) -> float:
    """1 / (number of classes named) if the gold class is among them, else 0.

    Needs `all_classes` in the row. Where it is null, the authors' code raises TypeError; here
    the score is 0, since without a list of classes none of them can be recognised.
    """
    classes: Sequence[str] = example.row.get("all_classes") or ()
    return max((_score(prediction, answer, classes) for answer in example.answers), default=0.0)


def _score(prediction: str, answer: str, classes: Sequence[str]) -> float:
    named = [name for name in classes if name in prediction]
    # A class whose name is part of the gold class's ("Other" in "Other location") is no second
    # guess and is dropped. The authors remove from the list that they are walking along, so the
    # entry after a dropped one is never looked at: published scores contain this, so we keep it.
    position = 0
    while position < len(named):
        name = named[position]
        if name in answer and name != answer:
            named.remove(name)  # the first of that name, as list.remove does for the authors
        position += 1
    return 1 / len(named) if answer in named else 0.0
