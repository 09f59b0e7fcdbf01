"""ROUGE-Lsum as Google's `rouge_score` 0.1.2 counts it, but faster.

Source: OpenBMB/InfiniteBench 88b3daa, src/compute_scores.py, `get_score_one_longbook_sum_eng`,
which calls `rouge` of the package `evaluate`, whose rougeLsum is that of
`RougeScorer(["rougeLsum"], use_stemmer=False)`. That fills a table in Python for each pair of
sentences; here it is `tasks.metrics.common_subsequence`. The words are rouge_score's own.

Sentences are lines, words runs of a-z0-9 in lower case. For each gold sentence the places of its
words in one longest common subsequence with each predicted sentence are joined; a word so found is
a hit as long as both texts have not used up as many of it as they hold:

    recall = hits / gold words,  precision = hits / predicted words,  F = 2 p r / (p + r)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache

from rouge_score.tokenize import tokenize

from tasks.metrics.common_subsequence import places_of, table_rows
from tasks.schema import Example


def rouge_lsum(prediction: str, example: Example) -> float:
    """Best F over the answers; 0 where a text has no such word."""
    return max((rouge_lsum_f(prediction, answer) for answer in example.answers), default=0.0)


def rouge_lsum_f(prediction: str, answer: str) -> float:
    """F of one prediction against one answer, in [0, 1]."""
    predicted, gold = _sentences(prediction), _sentences(answer)
    left_in_predicted = Counter(word for sentence in predicted for word in sentence)
    left_in_gold = Counter(word for sentence in gold for word in sentence)
    if not left_in_predicted or not left_in_gold:
        return 0.0
    of_predicted, of_gold = left_in_predicted.total(), left_in_gold.total()
    hits = 0
    for sentence in gold:
        places = places_of(sentence, left_in_predicted)
        found: set[int] = set()
        for other in predicted:
            found.update(_traced(sentence, places, other))
        for place in sorted(found):
            word = sentence[place]
            if left_in_predicted[word] > 0 and left_in_gold[word] > 0:
                hits += 1
                left_in_predicted[word] -= 1
                left_in_gold[word] -= 1
    if not hits:
        return 0.0
    recall, precision = hits / of_gold, hits / of_predicted
    return 2 * precision * recall / (precision + recall)


@lru_cache(maxsize=4096)
def _sentences(text: str) -> tuple[list[str], ...]:
    return tuple(tokenize(line, None) for line in text.split("\n") if line)


def _traced(gold: Sequence[str], places: Mapping[str, int], predicted: Sequence[str]) -> list[int]:
    """Places in `gold` of one longest common subsequence, the one that rouge_score traces.

    From the ends back: one step in both where the words are equal; else a step in `predicted` if
    one in `gold` would lose length; else a step in `gold`. `places` are those of the words in
    `gold`, whose words are the columns of the table here.
    """
    table = table_rows(predicted, places, len(gold))
    found = []
    i, j = len(gold), len(predicted)
    while i and j:
        if gold[i - 1] == predicted[j - 1]:
            found.append(i - 1)
            i, j = i - 1, j - 1
        elif table[j] >> (i - 1) & 1:
            i -= 1  # as long without gold[i - 1]
        else:
            j -= 1
    return found
