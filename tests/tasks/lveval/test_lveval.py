"""LV-Eval: the gate of key words, constants, rows in their layouts, prediction files, averages."""

import json
import random
import zipfile
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge import Rouge

from common.errors import InputError
from tasks.averages import Scored, benchmark_tables
from tasks.lveval.adapter import ADAPTER
from tasks.metrics.chinese import words
from tasks.metrics.lveval import (
    ABANDON_WORDS_EN,
    ABANDON_WORDS_ZH,
    blacklist_rouge_l_zh,
    first_answer_f1,
    first_answer_f1_zh,
    keyword_f1,
    keyword_f1_zh,
    twice_cut,
)
from tasks.metrics.qa_f1 import normalize_zh, qa_f1, qa_f1_zh
from tasks.registry import benchmark_definition, expand, find_task, group_names, task_names
from tasks.schema import Example, scored_example
from tasks.scoring import score_file
from tasks.sources import load_examples

LEVELS = ["16k", "32k", "64k", "128k", "256k"]
# data set: first 16 digits of the template's SHA-256 (one for both protocols), new tokens, metric,
# language, category. Source: infinigence/LVEval 63e7ae9, AHN 3d2d174.
CONSTANTS = {
    "cmrc_mixup": ("5017b8321e45769f", 64, "lveval_keyword_f1_zh", "zh", "single-hop QA"),
    "dureader_mixup": ("5017b8321e45769f", 64, "lveval_rouge_l_zh", "zh", "multi-hop QA"),
    "factrecall_en": ("95b795444370c103", 16, "lveval_f1", "en", "single-hop QA"),
    "factrecall_zh": ("d71ee6028140eeb4", 16, "lveval_f1_zh", "zh", "single-hop QA"),
    "hotpotwikiqa_mixup": ("c8b75e076f014e87", 64, "lveval_keyword_f1", "en", "multi-hop QA"),
    "lic_mixup": ("a546c25719e3ac10", 64, "lveval_keyword_f1_zh", "zh", "multi-hop QA"),
    "loogle_CR_mixup": ("dea26bcf80f439ac", 64, "lveval_keyword_f1", "en", "multi-hop QA"),
    "loogle_MIR_mixup": ("dea26bcf80f439ac", 64, "lveval_keyword_f1", "en", "multi-hop QA"),
    "loogle_SD_mixup": ("dea26bcf80f439ac", 64, "lveval_keyword_f1", "en", "single-hop QA"),
    "multifieldqa_en_mixup": ("dea26bcf80f439ac", 64, "lveval_keyword_f1", "en", "single-hop QA"),
    "multifieldqa_zh_mixup": (
        "7427f4ffbc307206",
        64,
        "lveval_keyword_f1_zh",
        "zh",
        "single-hop QA",
    ),
}
GATED = {keyword_f1: first_answer_f1, keyword_f1_zh: first_answer_f1_zh}


def gold(*answers, keywords=None):
    return scored_example(list(answers), answer_keywords=keywords)


# -- the gate -----------------------------------------------------------------------------------

ENGLISH = ["cat", "sat", "mat", "of", "in", "because", "red"]
CHINESE = ["厦门", "大学", "的", "和", "北京", "预算"]


@pytest.mark.parametrize(
    ("hits", "passes"), [(0, False), (1, True), (2, True)], ids=["0 of 5", "1 of 5", "2 of 5"]
)
def test_an_english_recall_of_one_fifth_passes(hits, passes):
    keywords = ["oak", "elm", "ash", "fir", "yew"]
    text = " ".join(["lamp", *keywords[:hits]])
    score = keyword_f1(text, gold("brass lamp", keywords=" ".join(keywords)))
    assert score == (qa_f1(text, gold("brass lamp")) if passes else 0.0)
    # One more word to be found, and a single hit is too few.
    many = gold("brass lamp", keywords=" ".join([*keywords, "box"]))
    assert (keyword_f1(text, many) > 0) == (hits > 1)


@pytest.mark.parametrize(("hits", "passes"), [(1, False), (2, True)])
def test_a_chinese_recall_of_two_fifths_passes(hits, passes):
    keywords = ["北京", "上海", "厦门", "广州", "南京"]
    text = "，".join(["大学", *keywords[:hits]])
    score = keyword_f1_zh(text, gold("大学", keywords="，".join(keywords)))
    assert score == (qa_f1_zh(text, gold("大学")) if passes else 0.0)


def test_common_key_words_are_no_hits_but_are_to_be_found():
    # All five stand in the prediction; "of" and "in" do not count, but are in the denominator.
    assert keyword_f1("of in lamp", gold("of in lamp", keywords="of in of in lamp")) == 1.0
    assert keyword_f1("of in lamp", gold("of in lamp", keywords="of in of in of lamp")) == 0.0
    assert keyword_f1_zh("的厦门", gold("的厦门", keywords="的 厦门")) == 1.0
    assert keyword_f1_zh("的厦门", gold("的厦门", keywords="的 和 厦门")) == 0.0


def test_a_key_word_is_found_as_often_as_it_stands_in_both():
    assert keyword_f1("lamp lamp", gold("lamp", keywords="lamp lamp oak elm ash")) > 0
    assert keyword_f1("lamp", gold("lamp", keywords="lamp lamp lamp lamp lamp lamp")) == 0.0


@pytest.mark.parametrize("keywords", [None, "", " ", "a", "the.", "!"])
def test_without_key_words_there_is_no_english_gate(keywords):
    """The authors' code divides by zero where key words are given but hold no word."""
    assert keyword_f1("brass", gold("brass lamp", keywords=keywords)) == 2 / 3


@pytest.mark.parametrize("keywords", [None, "", "。", " ， "])
def test_without_key_words_chinese_asks_for_the_answers_own(keywords):
    answer = "厦门，北京，上海，广州，南京"
    assert keyword_f1_zh("厦门", gold(answer, keywords=keywords)) == 0.0
    assert keyword_f1_zh("厦门北京", gold(answer, keywords=keywords)) == pytest.approx(4 / 7)
    assert qa_f1_zh("厦门", gold(answer)) == pytest.approx(1 / 3)


@given(
    st.lists(st.sampled_from(ENGLISH), max_size=8),
    st.lists(st.sampled_from(ENGLISH), max_size=8),
    st.lists(st.sampled_from(ENGLISH), max_size=8),
)
@settings(deadline=None)
def test_the_gate_is_all_or_nothing_and_what_passes_is_plain_f1(predicted, answer, keywords):
    example = gold(" ".join(answer), keywords=" ".join(keywords))
    score = keyword_f1(" ".join(predicted), example)
    found = sum(
        min(predicted.count(word), keywords.count(word))
        for word in set(keywords) - {"of", "in", "because"}
    )
    closed = bool(keywords) and 5 * found < len(keywords)
    assert score == (0.0 if closed else qa_f1(" ".join(predicted), gold(" ".join(answer))))


@given(
    st.lists(st.sampled_from(CHINESE), max_size=6),
    st.lists(st.sampled_from(CHINESE), max_size=6),
    st.lists(st.sampled_from(CHINESE), max_size=6),
)
@settings(deadline=None)
def test_the_chinese_gate_likewise(predicted, answer, keywords):
    # Commas keep jieba from joining words.
    text, right, asked = ("，".join(parts) for parts in (predicted, answer, keywords))
    wanted = keywords or answer
    found = sum((Counter(w for w in predicted if w not in "的和") & Counter(wanted)).values())
    closed = not wanted or 5 * found < 2 * len(wanted)
    score = keyword_f1_zh(text, gold(right, keywords=asked))
    assert score == (0.0 if closed else qa_f1_zh(text, gold(right)))


@given(st.lists(st.sampled_from(ENGLISH), max_size=6), st.lists(st.sampled_from(ENGLISH)))
@settings(deadline=None)
def test_case_punctuation_articles_and_order_do_not_matter(predicted, answer):
    example = gold(" ".join(answer), keywords="Cat, red!")
    noisy = "The " + ", ".join(predicted[::-1]).upper() + " an."
    for metric in (keyword_f1, first_answer_f1):
        assert metric(noisy, example) == metric(" ".join(predicted), example)


@given(st.lists(st.sampled_from(CHINESE), max_size=6), st.lists(st.sampled_from(CHINESE)))
@settings(deadline=None)
def test_chinese_punctuation_and_space_do_not_matter(predicted, answer):
    example = gold("，".join(answer))
    for metric in (keyword_f1_zh, first_answer_f1_zh, blacklist_rouge_l_zh):
        plain = metric("，".join(predicted), example)
        assert 0 <= plain <= 1
        if metric is not blacklist_rouge_l_zh:
            assert metric("“" + "。 ".join(predicted) + "！", example) == plain


@pytest.mark.parametrize("metric", [*GATED, *GATED.values(), blacklist_rouge_l_zh])
def test_only_the_first_answer_counts_and_empty_ones_score_0(metric):
    assert metric("北京 lamp", gold("厦门 oak", "北京 lamp")) == 0.0
    assert metric("北京 lamp", gold("北京 lamp", "厦门 oak")) == pytest.approx(1, abs=1e-8)
    assert metric("", gold("北京 lamp", keywords="lamp")) == 0.0
    assert metric("北京 lamp", gold("")) == metric("北京 lamp", gold()) == metric("", gold()) == 0.0


# -- ROUGE without common words -----------------------------------------------------------------


def test_common_words_are_left_out_of_rouge():
    answer = gold("厦门大学的预算")
    assert blacklist_rouge_l_zh("厦门大学和预算", answer) == pytest.approx(1, abs=1e-8)
    assert blacklist_rouge_l_zh("的", answer) == 0.0  # nothing is left: the package raises
    assert blacklist_rouge_l_zh("预算", answer) == pytest.approx(2 / 3, abs=1e-8)


def test_a_full_stop_is_removed_before_it_could_part_sentences():
    assert blacklist_rouge_l_zh("价格3.5万", gold("价格35万")) < 1
    words = Rouge().get_scores(["价格 3.5 万"], ["价格 3.5 万"], avg=True)["rouge-l"]["f"]
    assert blacklist_rouge_l_zh("价格3.5万", gold("价格3.5万")) == words


@given(
    st.text(st.sampled_from("厦门大学的，。 \r\n\t\u3000ab3.5%-_+#") | st.characters(), max_size=30)
)
@settings(deadline=None, max_examples=300)
def test_words_cut_one_by_one_are_those_of_the_joined_text(text):
    joined = tuple(map(normalize_zh, words(" ".join(words(text)))))
    assert tuple(word for once in twice_cut(text) for word in once) == joined


def test_the_lists_of_common_words_have_the_authors_lengths():
    assert (len(ABANDON_WORDS_EN), len(ABANDON_WORDS_ZH)) == (38, 85)
    assert {"and", "does", "which"} <= ABANDON_WORDS_EN and "the" not in ABANDON_WORDS_EN
    assert {"的", "‰", "×", "c", "亿元", "度"} <= ABANDON_WORDS_ZH


# -- tasks --------------------------------------------------------------------------------------


def test_there_are_11_data_sets_at_5_levels_and_no_constant_has_moved():
    found: dict[str, tuple] = {}
    for name in task_names("lveval"):
        task = find_task("lveval", name)
        official, ahn = task.protocol("official"), task.protocol("ahn")
        assert name == f"{task.dataset}_{task.level}"
        assert task.lm_eval_name == f"ahnbench_lveval_{name}"
        assert "63e7ae9" in task.source and "3d2d174" in task.source
        for rules in (official, ahn):
            assert (rules.truncation, rules.reserve_generation, rules.seed) == ("middle", False, 42)
            assert dict(rules.generation) == {"do_sample": False}
            assert rules.chat_template and rules.postprocess == () and rules.stop == ()
        assert (official.template, official.metric) == (ahn.template, ahn.metric)
        assert official.max_new_tokens == ahn.max_new_tokens
        assert (official.default_max_length, ahn.default_max_length) == (None, 256000)
        constants = (
            task.template_sha256("official")[:16],
            official.max_new_tokens,
            official.metric,
            task.language,
            task.category,
        )
        assert found.setdefault(task.dataset, constants) == constants  # the same at each level
    assert found == CONSTANTS and len(task_names("lveval")) == 55


def test_groups_and_names():
    assert benchmark_definition("lveval").levels == LEVELS
    for level in LEVELS:
        group = expand("lveval", [f"lveval_{level}"], None)
        assert {task.level for task in group} == {level}
        assert {task.dataset for task in group} == set(CONSTANTS) and len(group) == 11
    assert {t.name for t in expand("lveval", ["lveval"], None)} == set(task_names("lveval"))
    assert group_names("lveval")[0] == "lveval"
    assert group_names("lveval")[-5:] == [f"lveval_{level}" for level in LEVELS], "by length"
    five = expand("lveval", ["cmrc_mixup"], None)
    assert [task.level for task in five] == LEVELS
    assert find_task("lveval", "cmrc_mixup@128k") == find_task("lveval", "lveval_cmrc_mixup_128k")
    with pytest.raises(InputError, match="did you mean .*cmrc_mixup_128k"):
        find_task("lveval", "cmrc_mixup_120k")


@pytest.mark.parametrize(
    ("dataset", "start", "end"),
    [
        ("hotpotwikiqa_mixup", "Answer the question based", "Question: Q?\nAnswer:"),
        ("factrecall_en", "Please answer the following questions based", "Question: Q?\nAnswer:"),
        ("factrecall_zh", "请基于给定的文章", "下面的问题。\n\n问题：Q?\n回答："),
        ("lic_mixup", "请根据下面给定的文章", "一篇文章有关。\n\n问题：Q?\n回答："),
    ],
)  # fmt: skip
def test_prompts_end_in_the_cue_of_their_language(dataset, start, end):
    example = Example("1", {"context": "TEXT", "input": "Q?"}, [], "", "here")
    prompt = find_task("lveval", f"{dataset}_16k").render(example, "official")
    assert prompt.startswith(start) and prompt.endswith(end) and "TEXT" in prompt


# -- rows ---------------------------------------------------------------------------------------

ROW = {
    "input": "What lit the hall?",
    "context": "### Passage 1\nThe hall was lit by a brass lamp.\u2028\x85### Passage 2\nRain.",
    "answers": ["a brass lamp", "a lamp"],
    "length": 15,
    "dataset": "hotpotwikiqa_mixup",
    "language": "en",
    "answer_keywords": "brass lamp",
    "confusing_facts": ["The hall was lit by an oil lamp."],
}
NAME = "hotpotwikiqa_mixup_16k"


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def load(folder, name=NAME):
    return load_examples(find_task("lveval", name), str(folder), None, 0)


@pytest.mark.parametrize(
    "layout",
    [
        f"{NAME}.jsonl",
        f"hotpotwikiqa_mixup/{NAME}.jsonl",
        f"data/{NAME}.jsonl",
        f"data/hotpotwikiqa_mixup/{NAME}.jsonl",
    ],
)
def test_rows_are_read_in_each_layout(tmp_path, layout):
    path = tmp_path / layout
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lines(ROW, ROW | {"answer_keywords": None, "confusing_facts": None}))
    first, second = load(tmp_path).examples
    assert first.row == ROW and first.answers == first.label == ROW["answers"]
    assert (first.example_id, second.example_id) == (f"{NAME}:1", f"{NAME}:2")
    assert first.document_id == second.document_id
    task = find_task("lveval", NAME)
    assert task.score("By a brass lamp.", first, "official") == qa_f1(
        "by brass lamp", gold("brass lamp")
    )
    assert task.score("a hall", first, "ahn") == 0.0


@pytest.mark.parametrize("member", [f"hotpotwikiqa_mixup/{NAME}.jsonl", f"{NAME}.jsonl"])
def test_rows_are_read_from_the_authors_zip(tmp_path, member):
    with zipfile.ZipFile(tmp_path / "hotpotwikiqa_mixup.zip", "w") as archive:
        archive.writestr(member.replace("16k", "32k"), lines(ROW, ROW))
        archive.writestr(member, lines(ROW))
    assert [example.row for example in load(tmp_path).examples] == [ROW]
    with pytest.raises(InputError, match="hotpotwikiqa_mixup_64k.jsonl"):
        load(tmp_path, "hotpotwikiqa_mixup_64k")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": []}, "'answers'"),
        ({"answers": "a lamp"}, "'answers'"),
        ({"answer_keywords": ["brass"]}, "'answer_keywords'"),
        ({"input": ""}, "'input' is empty"),
        ({"length": "long"}, "'length'"),
        ({"dataset": "cmrc_mixup"}, "a row of another task"),
        ({"dataset": "loogle-SD-mixup"}, "a row of another task"),
        ({"dataset": "hotpotwikiqa_mixup_32k"}, "a row of another task"),
        ({"dataset": "hotpotqa", "_id": "x"}, "'_id' is a key of longbench"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path, change, message):
    (tmp_path / f"{NAME}.jsonl").write_bytes(lines(ROW, ROW | change))
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path}/{NAME}.jsonl:2: ") and message in problem


@pytest.mark.parametrize("name", ["hotpotwikiqa_mixup", NAME, "hotpotwikiqa-mixup", "2wikimqa"])
def test_the_data_set_may_be_named_in_several_ways(tmp_path, name):
    (tmp_path / f"{NAME}.jsonl").write_bytes(lines(ROW | {"dataset": name}))
    assert len(load(tmp_path).examples) == 1


# -- prediction files ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hotpotwikiqa_mixup", NAME, f"lveval_{NAME}"])
def test_what_is_exported_is_scored_as_it_was_with_or_without_a_level(tmp_path, name):
    record = {"prediction": "a lamp of brass", "answers": ["lamp"], "gold_ans": "oak", "length": 9}
    task = find_task("lveval", NAME)
    rows = [ADAPTER.export(record | change, task) for change in ({}, {"gold_ans": None})]
    assert list(rows[0]) == ["pred", "answers", "gold_ans", "all_classes", "length"]
    assert ADAPTER.export_name(task) == f"{NAME}.jsonl"
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(lines(*rows))
    assert score_file(path, "lveval", name, "official") == [0.0, 0.5]
    assert score_file(path, "lveval", name, "ahn") == [0.0, 0.5]


def test_key_words_that_are_no_text_are_an_error(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(lines({"pred": "a", "answers": ["a"], "gold_ans": ["a"], "length": 1}))
    with pytest.raises(InputError, match=f"{path}:1: 'gold_ans'"):
        score_file(path, "lveval", NAME, "official")


# -- averages -----------------------------------------------------------------------------------


def test_level_and_data_set_scores_are_means_of_rounded_figures():
    names = [task.name for task in expand("lveval", ["lveval_16k", "lveval_32k"], None)]
    scores = {name: [Scored(0.123456), Scored(index / 50)] for index, name in enumerate(names)}
    (table,) = benchmark_tables("lveval", scores)
    assert table.columns == ("16k", "32k", "average") and table.note == ""
    rows = dict(table.rows)
    assert len(rows) == 12 and list(rows)[-1] == "average"
    assert rows["hotpotwikiqa_mixup"] == (6.17, 17.17, None)  # two of five levels are no mean
    cells = [round(100 * (0.123456 + index / 50) / 2, 2) for index in range(11)]
    assert rows["average"][0] == round(sum(cells) / 11, 2) and rows["average"][2] is None


def test_the_average_over_all_is_of_rounded_averages():
    names = [task.name for task in expand("lveval", [], None)]
    draw = random.Random(0)
    scores = {name: [Scored(draw.random()) for _ in range(3)] for name in names}
    (table,) = benchmark_tables("lveval", scores)
    cells = {n: round(100 * sum(x.score for x in found) / 3, 2) for n, found in scores.items()}
    rows = dict(table.rows)
    of_level = [
        round(sum(cells[n] for n in names if n.endswith(f"_{level}")) / 11, 2) for level in LEVELS
    ]
    assert rows["average"] == (*of_level, round(sum(of_level) / 5, 2))
    for name, row in table.rows[:-1]:
        whole = [cells[f"{name}_{level}"] for level in LEVELS]
        assert row == (*whole, round(sum(whole) / 5, 2))


def test_a_level_without_all_data_sets_has_no_score_and_says_what_is_missing():
    (table,) = benchmark_tables(
        "lveval", {f"cmrc_mixup_{level}": [Scored(0.5)] for level in LEVELS}
    )
    assert dict(table.rows) == {"cmrc_mixup": (50.0,) * 6, "average": (None,) * 6}
    assert "lic_mixup_16k" in table.note and "cmrc" not in table.note


def test_scores_of_no_level_stand_alone():
    (table,) = benchmark_tables("lveval", {"cmrc_mixup": [Scored(0.5), Scored(0.0)]})
    assert table.rows == (("cmrc_mixup", (25.0,)),)
