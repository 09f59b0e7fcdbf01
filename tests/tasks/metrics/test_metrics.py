"""Metrics: hand-computed cases, properties, and the package `rouge` as an oracle."""

import re
import subprocess
import sys
import threading
from difflib import SequenceMatcher

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge import Rouge

from tasks.metrics import METRICS
from tasks.metrics.classification import classification
from tasks.metrics.code_similarity import code_similarity, levenshtein_ratio, ratio
from tasks.metrics.exact_match import exact_match
from tasks.metrics.qa_f1 import CHINESE_PUNCTUATION, normalize, normalize_zh, qa_f1, qa_f1_zh
from tasks.metrics.retrieval import count, retrieval, retrieval_zh
from tasks.metrics.rouge import MAX_TRACE_CALLS, MAX_TRACE_CALLS_ZH, rouge_l, rouge_l_f, rouge_l_zh
from tasks.schema import scored_example

# Texts in which everything that the metrics look for comes up often.
TEXT = st.text(
    st.sampled_from("ab theAN.,'-\n `#/1270３段落Paragraph请问：《》“”　\u2028\x85")
    | st.characters(),
    max_size=40,
) | st.lists(
    st.sampled_from(["the", "a.m.", "cat", "sat", "Paragraph 3", "段落3", "北京", "大学", "."]),
    max_size=12,
).map(" ".join)
# The answers are one value together, or only the first counts.
ONE_LABEL = {
    "infinitebench_choice",
    "infinitebench_code_debug",
    "infinitebench_code_debug_letter",
    "infinitebench_code_run",
    "infinitebench_dialogue",
    "infinitebench_first_number",
    "infinitebench_kv_retrieval",
    "infinitebench_math_calc",
    "infinitebench_math_calc_gpt4",
    "infinitebench_math_find",
    "lveval_f1",
    "lveval_f1_zh",
    "lveval_keyword_f1",
    "lveval_keyword_f1_zh",
    "lveval_rouge_l_zh",
    "scbench_all_of",  # as string_match_all, the share of the answers that are named
    "scbench_function_or_key",
    "scbench_key",
    "string_match_all",
}
WORDS = st.lists(st.sampled_from(["cat", "sat", "mat", "hat", "on"]), max_size=8)


def gold(*answers, classes=None):
    return scored_example(list(answers), classes)


# -- all metrics --------------------------------------------------------------------------------


@given(TEXT, st.lists(TEXT, max_size=3), st.none() | st.lists(TEXT, max_size=4))
@settings(max_examples=300, deadline=None)
def test_every_metric_gives_a_score_between_0_and_1_for_any_text(prediction, answers, classes):
    example = scored_example(answers, classes)
    for name, metric in METRICS.items():
        score = metric(prediction, example)
        assert isinstance(score, float) and 0 <= score <= 1, name


@given(TEXT, st.lists(TEXT, min_size=1, max_size=4), st.lists(TEXT, max_size=4))
@settings(max_examples=150, deadline=None)
def test_the_score_is_the_best_over_the_answers_in_any_order(prediction, answers, classes):
    for name, metric in METRICS.items():
        if name in ONE_LABEL:
            continue
        alone = [metric(prediction, scored_example([answer], classes)) for answer in answers]
        assert metric(prediction, scored_example(answers, classes)) == max(alone), name
        assert metric(prediction, scored_example(answers[::-1], classes)) == max(alone), name


@pytest.mark.parametrize("name", sorted(METRICS.keys() - {"longbench_v2_choice_compensated"}))
def test_without_answers_the_score_is_0(name):
    """But for the metric that counts an answer which names no choice as a guess."""
    assert METRICS[name]("Paragraph 1", gold()) == 0.0


# -- F1 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("At 9 a.m., the A-team", "at 9 am ateam"),  # punctuation goes before articles
        ("The  cat\u2028sat\x85down", "cat sat down"),
        ("a an the then", "then"),
        ("“Quoted” – dash’s", "“quoted” – dash’s"),  # Unicode punctuation stays
    ],
)
def test_english_normalisation(text, expected):
    assert normalize(text) == expected


def test_chinese_normalisation_keeps_the_one_bracket_that_the_authors_forgot():
    assert normalize_zh("《红 楼　梦》，“A”。") == "《红楼梦a"
    assert len(set(CHINESE_PUNCTUATION)) == 75 and "《" not in CHINESE_PUNCTUATION


def test_f1_by_hand():
    # 2 of 3 predicted words, 2 of 4 gold words: 2 * (2/3 * 1/2) / (2/3 + 1/2) = 4/7
    assert qa_f1("cat sat up", gold("cat, the cat sat. Down!")) == pytest.approx(4 / 7, abs=1e-15)
    assert qa_f1("cat cat", gold("cat")) == pytest.approx(2 / 3, abs=1e-15)
    assert qa_f1("the", gold("the")) == 0.0  # nothing is left to share


def test_chinese_f1_cuts_words_before_it_normalises():
    assert qa_f1_zh("厦门大学。", gold("厦门大学")) == 1.0
    assert qa_f1_zh("北京大学", gold("厦门大学")) == 0.0  # one word each, not two
    assert qa_f1_zh("在 厦门大学", gold("厦门大学")) == pytest.approx(2 / 3)


@given(WORDS, WORDS)
@settings(deadline=None)
def test_f1_is_symmetric_and_blind_to_order_case_articles_and_punctuation(first, second):
    score = qa_f1(" ".join(first), gold(" ".join(second)))
    assert qa_f1(" ".join(second), gold(" ".join(first))) == pytest.approx(score, abs=1e-15)
    noisy = "The " + ", ".join(first[::-1]).upper() + " an!"
    assert qa_f1(noisy, gold(" ".join(second))) == score


def test_words_added_to_jiebas_shared_dictionary_do_not_change_scores():
    import jieba

    before = qa_f1_zh("我在厦门大学读书", gold("大学读书"))
    jieba.initialize()
    words, total = dict(jieba.dt.FREQ), jieba.dt.total  # del_word would leave another total
    jieba.add_word("大学读书", freq=10**9)
    try:
        assert jieba.lcut("我在厦门大学读书")[-1] == "大学读书"
        assert qa_f1_zh("我在厦门大学读书 ", gold("大学读书 ")) == before
    finally:
        jieba.dt.FREQ, jieba.dt.total = words, total


# -- classification -----------------------------------------------------------------------------


def by_the_authors_rule(prediction, answer, classes):
    """The rule as it is told: a list that is changed while it is walked along."""
    named = [name for name in classes if name in prediction]
    for name in named:
        if name in answer and name != answer:
            named.remove(name)
    return 1 / len(named) if answer in named else 0.0


@given(
    st.text("abcd", max_size=8),
    st.text("abcd", max_size=4),
    st.lists(st.text("abcd", max_size=3), max_size=8),
)
def test_classification_removes_while_it_walks_as_the_authors_do(prediction, answer, classes):
    expected = by_the_authors_rule(prediction, answer, classes)
    assert classification(prediction, gold(answer, classes=classes)) == expected


def test_a_class_after_a_removed_one_is_not_looked_at():
    # "a" is removed, so "ab" is skipped; "abc" is removed: "ab" and "abcd" stay.
    classes = ["a", "ab", "abc", "abcd", "x"]
    assert classification("abcd", gold("abcd", classes=classes)) == 0.5


def test_classification_without_classes_scores_0():
    assert classification("City", gold("City", classes=None)) == 0.0
    assert classification("City", gold("City", classes=[])) == 0.0


# -- count and retrieval ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("There are 5, not 6 or 5.", "5", 2 / 3),
        ("05", "5", 0.0),
        ("５", "5", 0.0),  # a full-width digit is a number, but not this one
        ("none", "5", 0.0),
        ("3.5", "5", 0.5),
    ],
)
def test_count_is_the_share_of_right_numbers(prediction, answer, expected):
    assert count(prediction, gold(answer)) == expected


def test_retrieval_is_the_share_of_the_gold_paragraphs_number():
    assert retrieval("Paragraph 15 and 3", gold("Paragraph 15")) == 0.5
    assert retrieval("15", gold("Paragraph 15")) == 1.0
    assert retrieval_zh("段落2，段落27", gold("段落27")) == 0.5


@pytest.mark.parametrize(
    ("metric", "answer"),
    [
        (retrieval, "15"),
        (retrieval, "paragraph 15"),
        (retrieval_zh, "15"),
        (retrieval_zh, "段落 15"),
    ],
)
def test_an_answer_that_names_no_paragraph_scores_0(metric, answer):
    assert metric("15", gold(answer)) == 0.0


@given(TEXT, st.integers(0, 99))
def test_more_wrong_numbers_never_raise_a_retrieval_score(prediction, number):
    example = gold(f"Paragraph {number}")
    assert retrieval(prediction + " 1000", example) <= retrieval(prediction, example)


# -- code ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("\n\n    return x", "    return x", 1.0),  # newlines dropped, indentation kept
        ("return x", "    return x", 0.8),
        ("```python\n# why\n// why\nreturn x\nmore", "return x", 1.0),
        ("# only comments", "return x", 0.0),
        ("# only comments", "", 1.0),  # both lines are empty
        ("\n \nreturn x", "return x", 0.22),  # a line of one blank is a code line
    ],
)
def test_the_first_line_that_looks_like_code_is_compared(prediction, answer, expected):
    assert code_similarity(prediction, gold(answer)) == expected


@given(st.text("abc ()=", max_size=30), st.text("abc ()=", max_size=30))
def test_the_levenshtein_variant_counts_insertions_and_deletions(first, second):
    common = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]  # longest common subsequence
    for i, one in enumerate(first, 1):
        for j, other in enumerate(second, 1):
            best = max(common[i - 1][j], common[i][j - 1])
            common[i][j] = common[i - 1][j - 1] + 1 if one == other else best
    both = len(first) + len(second)
    expected = 1 - (both - 2 * common[-1][-1]) / both if both else 1.0
    assert levenshtein_ratio(first, second) == expected


@given(st.text("abc ()=", max_size=30), st.text("abc ()=", max_size=30))
def test_ratio_is_difflibs_in_whole_percents(first, second):
    expected = round(100 * SequenceMatcher(None, first, second).ratio())
    if not first or not second:
        expected = 100 * (first == second)
    assert ratio(first, second) == expected
    assert ratio(first, first) == 100


def test_difflibs_heuristic_for_long_texts_is_on():
    # From 200 characters on, difflib starts no match at the popular ones of the second text.
    short, long = "a" * 100, "b" + "a" * 200
    assert SequenceMatcher(None, short, long, autojunk=False).ratio() > 0.6
    assert ratio(short, long) == 0 and ratio(long, short) == 66


# -- exact match --------------------------------------------------------------------------------


def test_exact_match_collapses_white_space_only():
    assert exact_match(" 72\n 17 ", gold("x", "72 17")) == 1.0
    assert exact_match("72 17 .", gold("72 17")) == 0.0
    assert exact_match("Seven", gold("seven")) == 0.0


# -- ROUGE-L ------------------------------------------------------------------------------------


def by_the_package(prediction, answer):
    try:
        return Rouge().get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]
    except ValueError:
        return 0.0


SENTENCES = st.lists(
    st.sampled_from(["w", "x", "y", "z", "Z", ".", "3.5", "..", "\n", " ", ",", "\u3000", "x."]),
    max_size=25,
)


@given(SENTENCES.map(" ".join), SENTENCES.map(" ".join))
@settings(max_examples=400, deadline=None)
def test_rouge_l_equals_the_package_bit_for_bit(prediction, answer):
    assert rouge_l_f(prediction, answer) == by_the_package(prediction, answer)


@given(SENTENCES.map("".join), TEXT)
@settings(max_examples=200, deadline=None)
def test_rouge_l_equals_the_package_on_any_text(prediction, answer):
    assert rouge_l_f(prediction, answer) == by_the_package(prediction, answer)


def test_rouge_l_traces_the_same_one_of_several_longest_subsequences():
    # Both "a b" and "b a" are longest in each pair; which is taken decides the union.
    assert rouge_l_f("b a. c a", "a b. a c") == by_the_package("b a. c a", "a b. a c")


@pytest.mark.parametrize("text", ["", ".", "...", " . "])
def test_a_text_without_sentences_scores_0_where_the_package_raises(text):
    if text.strip(".") == "":
        with pytest.raises(ValueError, match="empty"):
            Rouge().get_scores([text], ["a"], avg=True)
    assert rouge_l(text, gold("a")) == 0.0


def test_rouge_l_zh_compares_jiebas_words():
    assert rouge_l_zh("厦门大学", gold("厦门 大学")) == 0.0
    assert rouge_l_zh("我在厦门大学", gold("他在厦门大学")) == pytest.approx(2 / 3, abs=1e-8)


AUTHORS_CALLS = """
from rouge import Rouge

def rouge_score(prediction, ground_truth, **kwargs):
    rouge = Rouge()
    try:
        scores = rouge.get_scores([prediction], [ground_truth], avg=True)
    except RecursionError:
        return "raised"
    return "scored"

def rouge_zh_score(prediction, ground_truth, **kwargs):
    return rouge_score(prediction, ground_truth)

def scorer(metric, prediction, ground_truth):
    return metric(prediction, ground_truth, all_classes=None)

for metric, calls in ((rouge_score, {en}), (rouge_zh_score, {zh})):
    for steps in (calls - 1, calls):
        print(scorer(metric, " ".join(f"a{{i}}" for i in range(steps)), "b"))
"""


def test_the_longest_traces_are_those_that_the_authors_call_depth_allows():
    # A trace against one other word takes a step, so a call, for each word, and the first call.
    script = AUTHORS_CALLS.format(en=MAX_TRACE_CALLS, zh=MAX_TRACE_CALLS_ZH)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["scored", "raised", "scored", "raised"]


def sentence(length):
    return " ".join(f"w{i}" for i in range(length))


def test_a_trace_that_is_too_long_scores_0():
    longest = sentence(MAX_TRACE_CALLS - 1)
    too_long = sentence(MAX_TRACE_CALLS)
    assert rouge_l(longest, gold(longest)) == pytest.approx(1, abs=1e-8)
    assert rouge_l(too_long, gold(too_long)) == 0.0
    assert rouge_l_f(too_long, too_long, max_trace_calls=None) == pytest.approx(1, abs=1e-8)
    # Full stops part it into short sentences; another answer can still be scored.
    parted = re.sub(r"(w\d*0)\b", r"\1.", too_long)
    assert rouge_l(parted, gold(parted)) == pytest.approx(1, abs=1e-8)
    assert rouge_l(too_long, gold(too_long, "w5 w6")) > 0


def test_the_chinese_limit_is_one_call_lower():
    words = ["大学", "的"] * MAX_TRACE_CALLS_ZH
    longest, too_long = ("".join(words[:n]) for n in (MAX_TRACE_CALLS_ZH - 1, MAX_TRACE_CALLS_ZH))
    assert rouge_l_zh(longest, gold(longest)) == pytest.approx(1, abs=1e-8)
    assert rouge_l_zh(too_long, gold(too_long)) == 0.0


def test_the_score_does_not_depend_on_the_callers_depth_or_thread():
    text = sentence(MAX_TRACE_CALLS - 1)
    expected = rouge_l(text, gold(text))

    def at_depth(depth):
        return at_depth(depth - 1) if depth else rouge_l(text, gold(text))

    assert at_depth(sys.getrecursionlimit() // 2) == expected
    scores = []
    thread = threading.Thread(target=lambda: scores.append(at_depth(100)))
    thread.start()
    thread.join()
    assert scores == [expected]


def test_a_very_long_text_is_scored_in_bounded_time_and_memory():
    long = sentence(50_000)  # a table of all pairs would hold 2.5 thousand million cells
    assert rouge_l(long, gold(long)) == 0.0
    assert rouge_l(long, gold("w1 w2")) == 0.0
