"""LV-Eval: F1 behind a gate of key words, and ROUGE-L without common words.

Source: infinigence/LVEval 63e7ae9, metrics.py, `qa_f1_score_with_gold_ans`,
`qa_f1_zh_score_with_gold_ans`, `qa_f1_score`, `qa_f1_zh_score`, `rouge_zh_score_blacklist`,
`ABANDON_WORDS_EN` and `ABANDON_WORDS_ZH`; evaluation.py, which scores against the first answer
only; identical in ByteDance-Seed/AHN 3d2d174, eval/lveval/metrics.py and eval.py.

The authors' README says that common words are left out of the F1 as well; their code, and so the
scores that they published, leaves them out of the gate's hits only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from functools import lru_cache

from tasks.metrics.chinese import words
from tasks.metrics.qa_f1 import f1, normalize_zh, words_en, words_zh
from tasks.metrics.rouge import MAX_TRACE_CALLS_ZH, rouge_l_f
from tasks.schema import Example

MIN_RECALL_EN = 0.2
MIN_RECALL_ZH = 0.4

_COMMON_EN = """
and to of in her was with for it from is that his he by she they or at because be on are their
what as had were about being this who but have has when which does
"""
_COMMON_ZH = """
的 和 是 等 在 年 可以 为 与 ‰ 了 或 一种 月 c 至 日 有 进行 于 不 中 × 根据 小 由 亩 也 要
指 法 会 元 主要 以及 通过 首先 对 然后 号 以 所 后 丁 包括 无 将 用 能 形 方面 因素 位于
而 从 到 一定 用于 但 使用 让 具有 并 亿元 万元 上 类 基于 才 来 地 片 其他 个 或者 变得 时
给 你 使 条 受 已经 带 度
"""
ABANDON_WORDS_EN = frozenset(_COMMON_EN.split())
ABANDON_WORDS_ZH = frozenset(_COMMON_ZH.split())


def keyword_f1(prediction: str, example: Example) -> float:
    """F1 over English words, or 0 where too few of the key words are in the prediction.

    The gate is for rows with `answer_keywords`: the recall of their words must be at least 0.2.
    A common word of theirs is no hit, but still one to be found. Key words without any word
    ("a", "."), at which the authors' code divides by zero, are as none: no gate.
    """
    predicted, answer = words_en(prediction), words_en(_answer(example))
    keywords = words_en(_keywords(example))
    if keywords and _recall(predicted, keywords, ABANDON_WORDS_EN) < MIN_RECALL_EN:
        return 0.0
    return f1(predicted, answer)


def keyword_f1_zh(prediction: str, example: Example) -> float:
    """F1 over jieba's words, or 0 where too few of the key words are in the prediction.

    As `keyword_f1`, but the recall must be at least 0.4, and without key words the answer's own
    words are asked for. With neither the score is 0.
    """
    predicted, answer = words_zh(prediction), words_zh(_answer(example))
    keywords = words_zh(_keywords(example)) or answer
    if not keywords or _recall(predicted, keywords, ABANDON_WORDS_ZH) < MIN_RECALL_ZH:
        return 0.0
    return f1(predicted, answer)


def first_answer_f1(prediction: str, example: Example) -> float:
    """F1 over English words, against the first answer; there is no gate."""
    return f1(words_en(prediction), words_en(_answer(example)))


def first_answer_f1_zh(prediction: str, example: Example) -> float:
    """F1 over jieba's words, against the first answer; there is no gate."""
    return f1(words_zh(prediction), words_zh(_answer(example)))


def blacklist_rouge_l_zh(prediction: str, example: Example) -> float:
    """ROUGE-L F of Chinese words without the common ones, against the first answer.

    0 where nothing else is left of a text, as wherever `tasks.metrics.rouge.rouge_l_f` gives 0.
    """
    return rouge_l_f(_uncommon(prediction), _uncommon(_answer(example)), MAX_TRACE_CALLS_ZH)


def _answer(example: Example) -> str:
    return example.answers[0] if example.answers else ""


def _keywords(example: Example) -> str:
    return example.row.get("answer_keywords") or ""


def _recall(predicted: tuple[str, ...], keywords: tuple[str, ...], common: Set[str]) -> float:
    found = Counter(predicted) & Counter(keywords)
    hits = sum(count for word, count in found.items() if word not in common)
    return hits / len(keywords)


@lru_cache(maxsize=4096)
def _uncommon(text: str) -> str:
    """A text's words, cut twice as the authors do, normalised, the common ones left out."""
    # Words of punctuation are empty now, but still parted by blanks: two texts of nothing but
    # "的，" are blank, which `rouge` takes for the same empty word in both.
    twice = (word for once in twice_cut(text) for word in once)
    return " ".join(word for word in twice if word not in ABANDON_WORDS_ZH)


def twice_cut(text: str) -> list[tuple[str, ...]]:
    """What jieba makes, normalised, of its own words joined by blanks: a tuple for each of them.

    jieba cuts between blanks, so each word is cut by itself; a blank in between is an empty word.
    """
    once = words(text)
    last = len(once) - 1
    return [_again(word) + (("",) if i < last else ()) for i, word in enumerate(once)]


@lru_cache(maxsize=65536)
def _again(word: str) -> tuple[str, ...]:
    return tuple(map(normalize_zh, words(word)))
