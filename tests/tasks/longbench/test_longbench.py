"""LongBench's constants, pinned: whoever changes one sees it here, and why it was as it was."""

import pytest

from tasks.registry import find_task, task_names
from tasks.schema import Example

# task: first 16 digits of the template's SHA-256 (one template for both protocols), new tokens
# official and ahn, chat template, metric. Source: THUDM/LongBench 2e00731, AHN 3d2d174.
CONSTANTS = {
    "2wikimqa": ("9ec4ae308865bd0c", 32, 32, True, "qa_f1"),
    "dureader": ("ae53329f51b17908", 128, 128, True, "rouge_l_zh"),
    "gov_report": ("91c25d585b189ced", 512, 500, True, "rouge_l"),
    "hotpotqa": ("9ec4ae308865bd0c", 32, 32, True, "qa_f1"),
    "lcc": ("6a1f24cf0bb83cd9", 64, 64, False, "code_similarity"),
    "lsht": ("f3edabdf7fae53d6", 64, 64, False, "classification"),
    "multi_news": ("2af3f28c40b902e6", 512, 500, True, "rouge_l"),
    "multifieldqa_en": ("20b4666a2de8a1f7", 64, 64, True, "qa_f1"),
    "multifieldqa_zh": ("344b3a4e557cd547", 64, 64, True, "qa_f1_zh"),
    "musique": ("9ec4ae308865bd0c", 32, 32, True, "qa_f1"),
    "narrativeqa": ("aada7ed24b06abac", 128, 128, True, "qa_f1"),
    "passage_count": ("986550b6c61009c6", 32, 32, True, "count"),
    "passage_retrieval_en": ("39b96b7fa52bdd2a", 32, 32, True, "retrieval"),
    "passage_retrieval_zh": ("c1e2346e245eb365", 32, 32, True, "retrieval_zh"),
    "qasper": ("0fbdd123fe7f83d6", 128, 128, True, "qa_f1"),
    "qmsum": ("dca23b678fe0183b", 512, 500, True, "rouge_l"),
    "repobench-p": ("ee9ec182ea5ffeb7", 64, 64, False, "code_similarity"),
    "samsum": ("a68d884234907eef", 128, 128, False, "rouge_l"),
    "trec": ("0eff8bebdba99d91", 64, 64, False, "classification"),
    "triviaqa": ("00a802e6377e72fc", 32, 32, False, "qa_f1"),
    "vcsum": ("3e5d8241bc9b512e", 512, 500, True, "rouge_l_zh"),
}

FIRST_LINE_TASKS = {"trec", "triviaqa", "samsum", "lsht"}
WITHOUT_CHAT_TEMPLATE = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}


def render(task, **fields):
    row = {"context": "CONTEXT", "input": "INPUT", **fields}
    return find_task("longbench", task).render(Example("1", row, [], "", "here"), "official")


def test_there_are_21_tasks_and_no_constant_has_moved():
    found = {}
    for name in task_names("longbench"):
        task = find_task("longbench", name)
        official, ahn = task.protocol("official"), task.protocol("ahn")
        assert official.template == ahn.template and official.metric == ahn.metric
        assert official.chat_template == ahn.chat_template == (name not in WITHOUT_CHAT_TEMPLATE)
        found[name] = (
            task.template_sha256("official")[:16],
            official.max_new_tokens,
            ahn.max_new_tokens,
            official.chat_template,
            official.metric,
        )
    assert found == CONSTANTS and len(found) == 21


def test_every_task_says_where_it_is_from():
    for name in task_names("longbench"):
        task = find_task("longbench", name)
        assert "2e00731" in task.source and "3d2d174" in task.source
        assert len(task.citation) > 20 and task.language in ("en", "zh")


@pytest.mark.parametrize(
    ("task", "part"),
    [
        ("narrativeqa", "Answer the question asconcisely as you can"),
        ("narrativeqa", "based on the story asconcisely as you can"),
        ("qasper", "CONTEXT\n\n Answer the question based on the above article"),
        ("multi_news", "summary of all news. \n\nNews:\nCONTEXT"),
        ("lcc", "Please complete the code given below. \nCONTEXTNext line of code:\n"),
        ("repobench-p", "given below. \nCONTEXTINPUTNext line of code:\n"),
        ("passage_retrieval_zh", '"段落1"，"段落2"等格式\n\n答案是：'),
    ],
)
def test_what_looks_like_a_slip_in_a_prompt_is_kept(task, part):
    assert part in render(task)


@pytest.mark.parametrize(
    ("task", "end"),
    [
        ("passage_count", "The final answer is: "),
        ("passage_retrieval_en", "The answer is: "),
        ("passage_retrieval_zh", "答案是："),
        ("lcc", "Next line of code:\n"),
        ("hotpotqa", "Question: INPUT\nAnswer:"),
        ("narrativeqa", "Question: INPUT\n\nAnswer:"),
        ("trec", "CONTEXT\nINPUT"),
        ("triviaqa", "CONTEXT\n\nINPUT"),
    ],
)
def test_prompts_end_as_the_authors_do_blanks_included(task, end):
    assert render(task).endswith(end)


def test_braces_in_a_document_are_not_a_template():
    assert "x = {input} {0}" in render("lcc", context="x = {input} {0}")


def test_the_two_protocols_truncate_and_reserve_differently():
    for name in task_names("longbench"):
        task = find_task("longbench", name)
        official, ahn = task.protocol("official"), task.protocol("ahn")
        assert (official.truncation, official.reserve_generation) == ("middle", False)
        assert (ahn.truncation, ahn.reserve_generation) == ("left", True)
        assert (official.default_max_length, ahn.default_max_length) == (None, 32000)
        assert (official.seed, ahn.seed) == (42, 0)


def test_only_the_official_samsum_ends_at_a_newline():
    greedy = {"num_beams": 1, "do_sample": False, "temperature": 1.0}
    for name in task_names("longbench"):
        for protocol in ("official", "ahn"):
            special = (name, protocol) == ("samsum", "official")
            expected = greedy | ({"newline_eos": True, "min_new_tokens": 1} if special else {})
            assert dict(find_task("longbench", name).protocol(protocol).generation) == expected


@pytest.mark.parametrize("name", sorted(CONSTANTS))
def test_official_cleaning_takes_the_first_line_of_four_tasks_and_nothing_else(name):
    text = "\n\n first line \nsecond\n\nQuestion: next.assistant"
    expected = " first line " if name in FIRST_LINE_TASKS else text
    assert find_task("longbench", name).postprocess(text, "official") == expected


@pytest.mark.parametrize(
    ("task", "text", "expected"),
    [
        ("hotpotqa", " Paris.assistant\nIt is", "Paris"),
        ("hotpotqa", "Paris\n\nQuestion: and", "Paris"),
        ("hotpotqa", "Paris</s>x", "Paris"),
        ("hotpotqa", "Paris (Document 3)", "Paris"),
        ("hotpotqa", "Paris\n\nAnswer: x", "Paris"),
        ("hotpotqa", "Paris (Passage 3)", "Paris"),
        ("hotpotqa", "Paris\nQuestion: x", "Paris\nQuestion: x"),
        ("lcc", "    return x", "return x"),  # code loses its indentation
        ("trec", "\n City\nmore", "City"),
        ("multifieldqa_zh", "厦门 问题：", "厦门"),
        ("dureader", "厦门 问题：", "厦门"),
        ("hotpotqa", "厦门 问题：", "厦门 问题："),
        ("lsht", "体育 新闻内容：", "体育"),
        ("passage_retrieval_zh", "段落3 请问 段落4", "段落3"),
        ("passage_retrieval_zh", "段落3 提示 段落4", "段落3"),
    ],
)
def test_ahn_cleaning_cuts_where_a_model_went_on_talking(task, text, expected):
    assert find_task("longbench", task).postprocess(text, "ahn") == expected
