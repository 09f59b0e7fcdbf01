"""RULER's two metrics: does an answer stand in the prediction, letter case apart?

Source: NVIDIA/RULER c3f5e3b, scripts/eval/synthetic/constants.py; predictions are cleaned before as
in scripts/eval/evaluate.py. A substring is enough: 1 is found in 41, and a prediction that lists
everything finds all.
"""

from __future__ import annotations

import re

from tasks.schema import Example

_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(prediction: str) -> str:
    """A prediction without space around it, its control characters made newlines."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def _found(prediction: str, example: Example) -> list[bool]:
    """For each answer, whether it stands in the prediction."""
    text = cleaned(prediction).lower()
    return [answer.lower() in text for answer in example.answers]


def string_match_all(prediction: str, example: Example) -> float:
    """The share of the answers that stand in the prediction; 0 without answers."""
    found = _found(prediction, example)
    return sum(found) / len(found) if found else 0.0


def string_match_part(prediction: str, example: Example) -> float:
    """1 if any answer stands in the prediction, else 0."""
    return float(any(_found(prediction, example)))
