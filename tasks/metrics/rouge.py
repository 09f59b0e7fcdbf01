"""ROUGE-L as the python package `rouge` 1.0.1 counts it, without its recursion.

Source: THUDM/LongBench 2e00731, LongBench/metrics.py, `rouge_score` and `rouge_zh_score`
(identical in ByteDance-Seed/AHN 3d2d174, eval/longbench/metrics.py), which call
`Rouge().get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]` and turn every exception
into 0.

It is not the ROUGE-L of Google's `rouge_score`. Sentences end at every "." (also inside 3.5),
words at white space; case and punctuation stay; words are counted as *sets*. For each pair of
a gold and a predicted sentence one longest common subsequence is traced, and the union of all
those words, U, is what matched:

    recall = |U| / |gold words|,  precision = |U| / |predicted words|,  F = 2 p r / (p + r + 1e-8)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from tasks.metrics.chinese import words
from tasks.metrics.common_subsequence import places_of, table_rows
from tasks.schema import Example

# When a pair of sentences is too long, the authors' score is 0. The package traces back from the
# ends by a function that calls itself once a step, and Python (limit 1000) raises RecursionError
# when that becomes too deep. How deep is too deep depends on the caller, so we fix the caller: the
# authors' eval.py, in which nine frames stand below the first call of the trace (module, scorer,
# rouge_score, get_scores, _get_avg_scores, a lambda, rouge_l_summary_level, _union_lcs,
# _recon_lcs), and a tenth, rouge_zh_score, for Chinese. Measured with CPython 3.11.
MAX_TRACE_CALLS = 991
MAX_TRACE_CALLS_ZH = 990


def rouge_l(prediction: str, example: Example) -> float:
    """Best F over the answers; see the head of this file."""
    return max((rouge_l_f(prediction, answer) for answer in example.answers), default=0.0)


def rouge_l_zh(prediction: str, example: Example) -> float:
    """`rouge_l` with jieba's words, joined by blanks, in place of the texts."""
    predicted = _spaced(prediction)
    return max(
        (rouge_l_f(predicted, _spaced(answer), MAX_TRACE_CALLS_ZH) for answer in example.answers),
        default=0.0,
    )


@lru_cache(maxsize=4096)
def _spaced(text: str) -> str:
    return " ".join(words(text))


def _sentences(text: str) -> list[list[str]]:
    # A sentence of white space only has one word, the empty one: the package splits on " ".
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def rouge_l_f(prediction: str, answer: str, max_trace_calls: int | None = MAX_TRACE_CALLS) -> float:
    """F of one prediction against one answer, in [0, 1).

    0 where the authors' code raises, as there: when either text has no sentence (it is empty
    or only dots), and when tracing any pair of sentences takes more than `max_trace_calls`
    calls. None for that is the score without Python's recursion limit.
    """
    predicted, gold = _sentences(prediction), _sentences(answer)
    if not predicted or not gold:
        return 0.0
    gold_words = {word for sentence in gold for word in sentence}
    places = [places_of(sentence, gold_words) for sentence in predicted]
    union: set[str] = set()
    for gold_sentence in gold:
        for predicted_sentence, its_places in zip(predicted, places, strict=True):
            common = trace_common(gold_sentence, predicted_sentence, its_places, max_trace_calls)
            if common is None:
                return 0.0
            union |= common
    recall = len(union) / len(gold_words)
    precision = len(union) / len({word for sentence in predicted for word in sentence})
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def trace_common(
    x: Sequence[str], y: Sequence[str], places: Mapping[str, int], max_calls: int | None
) -> set[str] | None:
    """Words of one longest common subsequence; None if its trace takes over `max_calls` calls.

    `places` are those in `y`. Among the subsequences of greatest length, the one that the package
    traces: from the ends back, one step in both where the words are equal; else a step in `x` if
    only a step in `y` would lose length; else a step in `y`. Each position visited, the first and
    the last too, is one call.
    """
    if max_calls is not None and min(len(x), len(y)) >= max_calls:
        return None  # no trace is shorter than the shorter sentence
    rows = table_rows(x, places, len(y))
    common: set[str] = set()
    i, j, calls = len(x), len(y), 1
    while i and j:
        if calls == max_calls:
            return None
        if x[i - 1] == y[j - 1]:
            common.add(x[i - 1])
            i, j = i - 1, j - 1
        elif rows[i] >> (j - 1) & 1:
            j -= 1  # as long without y[j - 1]
        else:
            i -= 1
        calls += 1
    return common
