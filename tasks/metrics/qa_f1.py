"""Overlap of an answer's words with the gold answer's: F1.

Source: THUDM/LongBench 2e00731, LongBench/metrics.py, `normalize_answer`,
`normalize_zh_answer`, `f1_score`, `qa_f1_score` and `qa_f1_zh_score`; identical in
ByteDance-Seed/AHN 3d2d174, eval/longbench/metrics.py. The English normalisation is SQuAD's.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from tasks.metrics.chinese import words
from tasks.schema import Example

# The authors' set: it has no "《" (but "》"), and it has the curly quotes.
CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】"
    "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NO_CHINESE_PUNCTUATION = str.maketrans("", "", string.punctuation + CHINESE_PUNCTUATION)


def normalize(text: str) -> str:
    """Lower case; no ASCII punctuation; no articles; single blanks - in this order.

    The order matters: "a.m." becomes "am", and "A-team" "ateam".
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def normalize_zh(text: str) -> str:
    """Lower case; neither ASCII nor Chinese punctuation; no white space at all."""
    return "".join(text.lower().translate(_NO_CHINESE_PUNCTUATION).split())


def f1(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of two bags of words; 0 when none is shared."""
    shared = (Counter(predicted) & Counter(gold)).total()
    if shared == 0:
        return 0.0
    precision = shared / len(predicted)
    recall = shared / len(gold)
    return 2 * precision * recall / (precision + recall)


@lru_cache(maxsize=4096)
def words_en(text: str) -> tuple[str, ...]:
    """The words of an English text, normalised."""
    return tuple(normalize(text).split())


@lru_cache(maxsize=4096)
def words_zh(text: str) -> tuple[str, ...]:
    """jieba's words of a Chinese text, normalised, without empty ones."""
    return tuple(word for word in map(normalize_zh, words(text)) if word)


def qa_f1(prediction: str, example: Example) -> float:
    """F1 over the words, parted by white space, of the normalised texts."""
    predicted = words_en(prediction)
    return max((f1(predicted, words_en(answer)) for answer in example.answers), default=0.0)


def qa_f1_zh(prediction: str, example: Example) -> float:
    """F1 over jieba's words; each is normalised after the cut, and empty ones are dropped."""
    predicted = words_zh(prediction)
    return max((f1(predicted, words_zh(answer)) for answer in example.answers), default=0.0)
