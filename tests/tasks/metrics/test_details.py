"""Details of metrics that neither the stored predictions nor arbitrary text show."""

from __future__ import annotations

import pytest

from tasks.metrics.code_similarity import code_similarity
from tasks.metrics.lveval import blacklist_rouge_l_zh, twice_cut
from tasks.metrics.rouge import MAX_TRACE_CALLS_ZH
from tasks.schema import scored_example


def test_only_newlines_are_dropped_before_a_line_of_code() -> None:
    for line in ("X = 1", "XX_X = f(X)", " x = 1"):
        assert code_similarity(f"\n\n{line}\ny = 2", scored_example([line])) == 1.0


def test_a_blank_follows_each_word_but_the_last_when_words_are_cut_again() -> None:
    """`" ".join(jieba.cut(text))` is cut once more: jieba gives the blanks as words."""
    assert twice_cut("我们喜欢大学") == [("我们", ""), ("喜欢", ""), ("大学",)]
    assert twice_cut("大学") == [("大学",)]
    assert twice_cut("") == []


@pytest.mark.parametrize(
    ("words", "score"),
    [(MAX_TRACE_CALLS_ZH - 2, pytest.approx(1, abs=1e-8)), (MAX_TRACE_CALLS_ZH, 0)],
)
def test_lvevals_rouge_gives_up_where_the_authors_recursion_does(words: int, score: float) -> None:
    text = "大学学生" * (words // 2)
    assert blacklist_rouge_l_zh(text, scored_example([text])) == score
