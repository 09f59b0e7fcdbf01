"""InfiniteBench's metrics: the authors' oddities one by one, and what holds for any text."""

import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tasks.metrics import METRICS
from tasks.metrics.rouge_lsum import rouge_lsum_f
from tasks.schema import Example

NAMES = sorted(name for name in METRICS if name.startswith("infinitebench_"))
CHOICE = ["Walking Georgie", "A"]
BUG = ["repack_carchive", "B"]
KEY = "c14cb8ba-002b-43be-bdc7-8a83f0fe1ac8"


def example(label, **row):
    entries = label if isinstance(label, list) else [label]
    answers = [entry for entry in entries if isinstance(entry, str)]
    return Example("1", row, answers, "", "here", label=label)


def score(metric, prediction, label, **row):
    return METRICS[f"infinitebench_{metric}"](prediction, example(label, **row))


# -- by hand ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "prediction", "label", "expected"),
    [
        ("first_number", "The pass key is 71432. Remember 5", ["71432"], 1.0),
        ("first_number", "71432", 71432, 0.0),  # the label is no text
        ("first_number", "７１４３２", "71432", 0.0),  # only ASCII digits are digits
        ("first_number", "no digits", [], 0.0),
        ("kv_retrieval", f'{{"k": "{KEY}"}}', KEY, 1.0),
        ("kv_retrieval", f"({KEY})", KEY, 0.0),
        ("kv_retrieval", KEY, [KEY], 0.0),  # as the authors': a list is no word
        ("code_run", "24.\n\nThe value", 24, 0.0),
        ("code_run", "The return value is: -17.", [-17], 1.0),
        ("code_run", "4_0", 40, 1.0),
        ("code_run", "4", "4", 0.0),
        ("code_run", "4", [], 0.0),
        ("code_run", "", 0, 0.0),
        ("code_run", "9" * 5000, 9, 0.0),
        ("math_find", "-48.5 or so", [48.5], 1.0),
        ("math_find", "48.50", 48.5, 1.0),
        ("math_find", "88.5", 88, 0.0),  # the authors' code raises here and in the next three
        ("math_find", "88.0", 88, 1.0),
        ("math_find", "88", "88", 1.0),
        ("math_find", "88", "eighty", 0.0),
        ("math_find", "9" * 5000, 9, 0.0),
        ("math_find", "88", [], 0.0),
        ("math_find", "none", 88, 0.0),
        ("math_calc", "[1, 2, 9, 4]", [[1, 2, 3, 4]], 0.5),
        ("math_calc", "-1 -2", [1, 2], 1.0),  # signs are lost
        ("math_calc", "01 02", [1, 2], 1.0),
        ("math_calc", f"1 {'9' * 5000} 3", [1, 2, 3], 1 / 3),
        ("math_calc", "1", [], 0.0),
        ("math_calc", "1", [[]], 0.0),
        ("math_calc", "1", 1, 0.0),
        ("math_calc_gpt4", "5 1 2", [1, 2], 1.0),
        ("code_debug", "B. x", BUG, 1.0),
        ("code_debug", "B", BUG, 0.0),
        ("code_debug", "the answer is:", BUG, 0.0),
        ("code_debug", "It is: B. The answer is: A", BUG, 0.0),  # "answer is:" is looked for first
        ("code_debug", "answer:\n\n**repack_carchive**", BUG, 1.0),
        ("code_debug", "B. x", ["repack_carchive"], 0.0),
        ("code_debug_letter", "B", BUG, 1.0),
        ("code_debug_letter", " **B**\nsince", BUG, 1.0),
        ("code_debug_letter", "B \nsince", BUG, 1.0),
        ("code_debug_letter", "(B) x", BUG, 1.0),
        ("code_debug_letter", "Because", BUG, 0.0),
        ("code_debug_letter", "A function", ["f", "A"], 0.0),
        ("code_debug_letter", "A. x, answer is: B", BUG, 1.0),  # right by the authors' rule
        ("choice", "Certainly not A", ["text", "C"], 1.0),
        ("choice", "I think: AB then A", CHOICE, 0.0),
        ("choice", "I choose A", CHOICE, 1.0),
        ("choice", "the answer is Walking Georgie", CHOICE, 1.0),
        ("choice", "Walking Georgie", CHOICE, 1.0),
        ("choice", "**A**", CHOICE, 0.0),
        ("choice", "so the answer is", CHOICE, 0.0),
        ("dialogue", "(Ace)", ["ACE"], 0.0),
        ("dialogue", "ace.", ["ACE", "SAM"], 1.0),
        ("dialogue", "Sam", ["ACE", "SAM"], 0.0),
        ("dialogue", "Ace Rothstein", ["ACE ROTHSTEIN"], 0.0),
        ("dialogue_any", "Sam", ["ACE", "SAM"], 1.0),
        ("dialogue_any", "It is Ace Rothstein!", ["ACE ROTHSTEIN"], 1.0),
        ("dialogue_any", "Dr. Ace", ["DR. ACE"], 1.0),
        ("dialogue_any", "Aces", ["ACE"], 0.0),
        ("dialogue_any", "anything", ["?"], 0.0),
        ("character_f1", "田归农、商老太", ["田归农, 商老太"], 1.0),
        ("character_f1", "北京大学", ["厦门大学", "北京"], 2 / 3),
        ("character_f1", "", ["x"], 0.0),
        ("rouge_lsum", "Tom leaves.\nShe errs.", ["She errs.\nTom leaves."], 1.0),
        ("rouge_lsum", "Tom leaves. She errs.", ["She errs. Tom leaves."], 0.5),
        ("rouge_lsum", "running", ["run"], 0.0),  # no stemmer
        ("rouge_lsum", "中文", ["中文"], 0.0),
        ("rouge_lsum", "\ud800 a", ["a"], 1.0),
    ],
)
def test_what_each_metric_says_of_a_prediction(metric, prediction, label, expected):
    assert score(metric, prediction, label) == expected


def test_math_calc_drops_gpt4s_first_number_when_the_row_names_that_model():
    assert score("math_calc", "5 1 2", [1, 2], model="gpt4") == 1.0
    assert score("math_calc", "5 1 2", [1, 2], model="yi-6b-200k") == 0.0
    assert score("math_calc", "5 1 2", [1, 2]) == 0.0


# -- for any text -------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab12. A", max_size=6),
    lambda entries: st.lists(entries, max_size=3),
    max_leaves=6,
)
TEXT = st.text(st.sampled_from("AB. :\n'\"0189４answer is") | st.characters(), max_size=40)
PADDING = st.text(" \n", max_size=3)
INTEGER = st.integers(-(10**6), 10**6)


@given(TEXT, JSON)
@settings(max_examples=300, deadline=None)
def test_no_label_and_no_text_raises(prediction, label):
    for name in NAMES:
        value = METRICS[name](prediction, example(label))
        assert isinstance(value, float) and 0 <= value <= 1, name


@given(st.integers(0, 99999), st.text("ab \n,.", max_size=20), st.text(" ab,.", max_size=20))
def test_a_key_after_words_is_found_and_another_one_is_not(key, before, after):
    text = f"{before}{key:05d}{after}"
    assert score("first_number", text, f"{key:05d}") == 1.0
    assert score("first_number", text, f"{key + 1:05d}") == 0.0


@given(INTEGER, INTEGER, st.sampled_from(["", "f(3) = ", "is:", "`", "so. '"]))
def test_code_run_reads_the_last_word(value, other, before):
    assert score("code_run", f"{other} {before}{value}`\n", value) == 1.0
    assert score("code_run", f"{value} {before}{other}", value) == float(value == other)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=30), st.data())
def test_math_calc_is_the_length_of_the_right_beginning(label, data):
    right = data.draw(st.integers(0, len(label)))
    values = label[:right] + [100] * data.draw(st.integers(0, 3))
    expected = right / len(label)
    assert score("math_calc", json.dumps(values), [label]) == expected
    assert score("math_calc_gpt4", json.dumps([label[0], *values]), label) == expected


@given(st.integers(0, 99), st.integers(0, 99))
def test_math_find_compares_values(number, label):
    for text in (f"{number}", f"{number}.0", f"is {number}. Or {label}"):
        assert score("math_find", text, label) == float(number == label)
        assert score("math_find", text, float(label)) == float(number == label)


@given(st.sampled_from("ABCD"), st.sampled_from("ABCD"), PADDING)
def test_a_letter_decides_a_choice(said, right, padding):
    for form in ("{}", "{}. text", "the answer is: {}", "the answer is {}", "I say, {}"):
        text = padding + form.format(said)
        assert score("choice", text, ["option", right]) == float(said == right)
    for form in ("{}.", "{}: f", "answer is: {}", "answer:\n{}"):
        text = padding + form.format(said)
        assert score("code_debug", text, ["name", right]) == float(said == right)
        assert score("code_debug_letter", text, ["name", right]) == float(said == right)
    assert score("code_debug_letter", padding + said, ["name", right]) == float(said == right)


@given(TEXT, st.text("ABab.' ", max_size=8))
def test_a_repaired_metric_never_scores_below_the_authors(prediction, name):
    bug = ["name", "B"]
    assert score("code_debug_letter", prediction, bug) >= score("code_debug", prediction, bug)
    if name.strip(" .'"):
        names = [name.upper()]
        assert score("dialogue_any", prediction, names) >= score("dialogue", prediction, names)


@given(st.text("天地玄黄 ，a", max_size=12), st.text("天地玄黄", max_size=12))
def test_character_f1_is_symmetric_and_blind_to_order_and_punctuation(first, second):
    value = score("character_f1", first, [second])
    assert score("character_f1", second, [first]) == pytest.approx(value, abs=1e-15)
    assert score("character_f1", f"“{first[::-1].upper()}”。 ", [second]) == value


@st.composite
def summaries(draw) -> tuple[str, str]:
    """Two texts of few different words, so that they have much in common, on several lines."""
    words = [f"W{number}" for number in range(draw(st.integers(1, 12)))]
    piece = st.sampled_from([*words, "it's", "…"]).flatmap(
        lambda word: st.sampled_from([" ", "\n", ". ", "\n\n"]).map(lambda end: word + end)
    )
    text = st.lists(piece, max_size=40).map("".join)
    return draw(text), draw(text)


@given(summaries())
@settings(deadline=None, max_examples=400)
@pytest.mark.slow
def test_rouge_lsum_is_rouge_scores_to_the_last_bit(texts):
    gold, prediction = texts
    expected = RougeScorer(["rougeLsum"], use_stemmer=False).score(gold, prediction)
    assert rouge_lsum_f(prediction, gold) == expected["rougeLsum"].fmeasure


def test_rouge_lsum_of_long_lines_is_rouge_scores_and_takes_no_time():
    draw = random.Random(3)
    gold, prediction = (" ".join(f"w{draw.randrange(99)}" for _ in range(n)) for n in (900, 500))
    started = time.process_time()
    expected = RougeScorer(["rougeLsum"], use_stemmer=False).score(gold, prediction)
    middle = time.process_time()
    assert rouge_lsum_f(prediction, gold) == expected["rougeLsum"].fmeasure
    assert time.process_time() - middle < (middle - started) / 5  # a fiftieth, alone


SUMMARY = st.lists(st.lists(st.sampled_from(["cat", "sat", "on", "mat"])).map(" ".join)).map(
    "\n".join
)


@given(SUMMARY, SUMMARY)
@settings(deadline=None)
def test_rouge_lsum_of_a_text_with_itself_is_1_and_blind_to_case_and_punctuation(first, second):
    value = score("rouge_lsum", first, [second])
    assert score("rouge_lsum", first.upper().replace(" ", ", "), [second]) == value
    assert score("rouge_lsum", first, ["", second]) == value
    assert score("rouge_lsum", first, [first]) == float(bool(first.strip()))
