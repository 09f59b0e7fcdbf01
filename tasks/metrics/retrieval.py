r"""Counting and retrieval: which share of the numbers in the prediction is the right one.

Source: THUDM/LongBench 2e00731, LongBench/metrics.py, `count_score`, `retrieval_score` and
`retrieval_zh_score`; identical in ByteDance-Seed/AHN 3d2d174, eval/longbench/metrics.py.

A number is a run of Unicode digits (`\d+`), compared as text: "07" is not "7", and neither is
the full-width "７".
"""

from __future__ import annotations

import re

from tasks.schema import Example

_NUMBER = re.compile(r"\d+")
_PARAGRAPH = re.compile(r"Paragraph (\d+)")
_PARAGRAPH_ZH = re.compile(r"段落(\d+)")


def count(prediction: str, example: Example) -> float:
    """Share of the prediction's numbers that equal the answer; 0 when it has none."""
    return max((_share(prediction, answer) for answer in example.answers), default=0.0)


def retrieval(prediction: str, example: Example) -> float:
    """Share of the prediction's numbers that equal the n of the answer `Paragraph n`.

    An answer that names no paragraph scores 0 (the authors' code raises IndexError there):
    there is no number that could be right.
    """
    return _retrieval(prediction, example, _PARAGRAPH)


def retrieval_zh(prediction: str, example: Example) -> float:
    """`retrieval` with answers of the form `段落n`; `段落 n` with a blank names no paragraph."""
    return _retrieval(prediction, example, _PARAGRAPH_ZH)


def _retrieval(prediction: str, example: Example, pattern: re.Pattern[str]) -> float:
    matches = (pattern.search(answer) for answer in example.answers)
    return max((_share(prediction, match[1]) if match else 0.0 for match in matches), default=0.0)


def _share(prediction: str, gold: str) -> float:
    numbers = _NUMBER.findall(prediction)
    return numbers.count(gold) / len(numbers) if numbers else 0.0
