"""Exact match, white space apart: for answers of closed vocabulary, as the pocket tasks have."""

from __future__ import annotations

from tasks.schema import Example


def exact_match(prediction: str, example: Example) -> float:
    """1 if the prediction equals any answer after white space is collapsed, else 0.

    Case and punctuation count. An empty prediction equals an empty answer only.
    """
    given = " ".join(prediction.split())
    return float(any(given == " ".join(answer.split()) for answer in example.answers))
