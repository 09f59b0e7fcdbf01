"""LongBench v2: the letter that an answer names.

Source: THUDM/LongBench 2e00731, pred.py, `extract_answer`, and result.py.
"""

from __future__ import annotations

import re

from tasks.schema import Example

_IN_BRACKETS = re.compile(r"The correct answer is \(([A-D])\)")
_BARE = re.compile(r"The correct answer is ([A-D])")
_CHOICES = 4


def chosen_letter(prediction: str) -> str | None:
    """The letter after the first "The correct answer is", asterisks taken out; None: no such.

    Wherever in the answer it stands, the form with brackets goes before the bare one.
    """
    text = prediction.strip().replace("*", "")
    found = _IN_BRACKETS.search(text) or _BARE.search(text)
    return found[1] if found else None


def choice(prediction: str, example: Example) -> float:
    """1 if the letter named is the right one, else 0; an answer that names none is wrong."""
    return float(chosen_letter(prediction) in example.answers)


def choice_compensated(prediction: str, example: Example) -> float:
    """`choice`, but an answer that names no letter counts as a guess: 0.25.

    The switch `compensated` of result.py, which is off there; no part of any protocol.
    """
    letter = chosen_letter(prediction)
    return 1 / _CHOICES if letter is None else float(letter in example.answers)
