"""Similarity of one line of code to the line that followed.

Source: THUDM/LongBench 2e00731, LongBench/metrics.py, `code_sim_score`; identical in
ByteDance-Seed/AHN 3d2d174, eval/longbench/metrics.py. Both call `fuzz.ratio` of fuzzywuzzy
0.18.0, which is difflib when python-Levenshtein is absent; the authors' requirements do not
have it, so difflib is the reference (scores with Levenshtein differ by up to 0.3).
"""

from __future__ import annotations

from difflib import SequenceMatcher

from tasks.schema import Example


def code_similarity(prediction: str, example: Example) -> float:
    """Whole percents of similarity, divided by 100, of the first line that looks like code.

    Leading newlines are dropped, leading blanks kept; a line with `` ` ``, `#` or `//` is not
    code. A prediction without a code line counts as the empty string.
    """
    line = _first_code_line(prediction)
    return max((ratio(line, answer) / 100 for answer in example.answers), default=0.0)


def _first_code_line(text: str) -> str:
    for line in text.lstrip("\n").split("\n"):
        if "`" not in line and "#" not in line and "//" not in line:
            return line
    return ""


def ratio(first: str, second: str) -> int:
    """fuzzywuzzy's `fuzz.ratio` without python-Levenshtein: 0 to 100.

    Equal strings give 100, also two empty ones; otherwise an empty string gives 0. difflib's
    heuristic for long texts (popular characters of a second text of 200 and more are not
    matched first) is on, and the order of the arguments matters.
    """
    if first == second:
        return 100
    if not first or not second:
        return 0
    return round(100 * SequenceMatcher(None, first, second).ratio())
