"""InfiniteBench: F1 over Chinese characters, and ROUGE-Lsum of summaries.

Source: OpenBMB/InfiniteBench 88b3daa, src/compute_scores.py, `qa_f1_score_zh` and
`get_score_one_longbook_sum_eng`. The latter calls `rouge` of the package `evaluate`, whose
rougeLsum is that of `rouge_score` without stemmer. En.QA's F1 is `tasks.metrics.qa_f1.qa_f1`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tasks.metrics.qa_f1 import f1, normalize_zh
from tasks.schema import Example


@lru_cache(maxsize=4096)
def _characters(text: str) -> tuple[str, ...]:
    return tuple(normalize_zh(text))


def character_f1(prediction: str, example: Example) -> float:
    """F1 over the single characters of the normalised texts; the best over the answers."""
    predicted = _characters(prediction)
    return max((f1(predicted, _characters(answer)) for answer in example.answers), default=0.0)


def rouge_lsum(prediction: str, example: Example) -> float:
    """ROUGE-Lsum F, sentences being lines and words runs of a-z0-9; the best over the answers.

    0 where a text has no such word. Time and memory grow with the product of the words of the
    longest lines: about 0.3 s for a summary of 700 words against one of 1900.
    """
    scorer = _scorer()
    scores = (scorer.score(answer, prediction) for answer in example.answers)
    return max((float(score["rougeLsum"].fmeasure) for score in scores), default=0.0)


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # takes two seconds, so only when needed

    return RougeScorer(["rougeLsum"], use_stemmer=False, tokenizer=_Words())


class _Words:
    """rouge_score's words; those of a gold summary are kept for the next prediction."""

    @staticmethod
    @lru_cache(maxsize=4096)
    def tokenize(text: str) -> list[str]:
        from rouge_score.tokenize import tokenize

        return tokenize(text, None)
