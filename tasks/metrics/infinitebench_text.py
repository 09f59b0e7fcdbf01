"""InfiniteBench: F1 over Chinese characters.

Source: OpenBMB/InfiniteBench 88b3daa, src/compute_scores.py, `qa_f1_score_zh`. En.QA's F1 is
`tasks.metrics.qa_f1.qa_f1`, En.Sum's ROUGE `tasks.metrics.rouge_lsum`.
"""

from __future__ import annotations

from functools import lru_cache

from tasks.metrics.qa_f1 import f1, normalize_zh
from tasks.schema import Example


@lru_cache(maxsize=4096)
def _characters(text: str) -> tuple[str, ...]:
    return tuple(normalize_zh(text))


def character_f1(prediction: str, example: Example) -> float:
    """F1 over the single characters of the normalised texts; the best over the answers."""
    predicted = _characters(prediction)
    return max((f1(predicted, _characters(answer)) for answer in example.answers), default=0.0)
