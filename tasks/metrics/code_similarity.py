"""Similarity of one line of code to the line that followed.

Source: THUDM/LongBench 2e00731, LongBench/metrics.py, `code_sim_score`; identical in
ByteDance-Seed/AHN 3d2d174, eval/longbench/metrics.py. Both call `fuzz.ratio` of fuzzywuzzy
0.18.0, which is difflib when python-Levenshtein is absent; the authors' requirements do not
have it, so difflib is the reference. With it, as some published figures were made, scores differ
by up to 0.3: that is the metric `code_similarity_levenshtein`.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import SequenceMatcher

from rapidfuzz.distance import Indel

from tasks.schema import Example


def code_similarity(prediction: str, example: Example) -> float:
    """Whole percents of similarity, divided by 100, of the first line that looks like code.

    Leading newlines are dropped, leading blanks kept; a line with `` ` ``, `#` or `//` is not
    code. A prediction without a code line counts as the empty string.
    """
    return _best(prediction, example, difflib_ratio)


def code_similarity_levenshtein(prediction: str, example: Example) -> float:
    """`code_similarity` as it is where python-Levenshtein is installed."""
    return _best(prediction, example, levenshtein_ratio)


def _best(prediction: str, example: Example, similarity: Callable[[str, str], float]) -> float:
    line = _first_code_line(prediction)
    scores = (ratio(line, answer, similarity) / 100 for answer in example.answers)
    return max(scores, default=0.0)


def _first_code_line(text: str) -> str:
    for line in text.lstrip("\n").split("\n"):
        if "`" not in line and "#" not in line and "//" not in line:
            return line
    return ""


def difflib_ratio(first: str, second: str) -> float:
    """difflib's share of matching characters.

    Its heuristic for long texts (popular characters of a second text of 200 and more are not
    matched first) is on, and the order of the arguments matters.
    """
    return SequenceMatcher(None, first, second).ratio()


def levenshtein_ratio(first: str, second: str) -> float:
    """`Levenshtein.ratio`: 1 less the insertions and deletions per character of both texts."""
    return Indel.normalized_similarity(first, second)


def ratio(first: str, second: str, similarity: Callable[[str, str], float] = difflib_ratio) -> int:
    """fuzzywuzzy's `fuzz.ratio`: 0 to 100.

    Equal strings give 100, also two empty ones; otherwise an empty string gives 0.
    """
    if first == second:
        return 100
    if not first or not second:
        return 0
    return round(100 * similarity(first, second))
