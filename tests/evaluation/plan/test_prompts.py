"""Render, cut, wrap, tokenise again: by the authors' and AHN's procedures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from evaluation.plan.prompts import (
    apply_chat_template,
    common_prefix,
    contains_answer,
    prepare,
    smallest_max_length,
    truncate,
)
from tasks.registry import benchmark_names, find_task, task_names
from tasks.sources import load_examples
from tests.evaluation.conftest import byte_tokenizer, question


class WordTokenizer:
    """A word is a token; '#' is a special one that every text begins with."""

    chat_template = None

    def __call__(self, text: str, truncation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(input_ids=["#", *text.split()])

    def decode(self, ids: list[str], skip_special_tokens: bool) -> str:
        return " ".join(i for i in ids if not (skip_special_tokens and i == "#"))


WORDS = "a b c d e f g h i"  # ten tokens with the special one
OFFICIAL = find_task("longbench", "hotpotqa").protocols["official"]
AHN = replace(find_task("longbench", "hotpotqa").protocols["ahn"], max_new_tokens=3)


def test_the_protocols_cut_as_their_authors_do():
    assert (OFFICIAL.truncation, OFFICIAL.reserve_generation) == ("middle", False)
    assert (AHN.truncation, AHN.reserve_generation) == ("left", True)


def test_a_prompt_of_exactly_max_length_stays_whole():
    for rules in (OFFICIAL, AHN):
        cut = truncate(WORDS, rules, 10, WordTokenizer())
        assert (cut.text, cut.tokens_before, cut.tokens_cut, cut.side) == (WORDS, 10, 0, "none")


def test_middle_joins_two_decoded_halves_with_nothing_between():
    cut = truncate(WORDS, OFFICIAL, 6, WordTokenizer())
    assert cut.text == "a bg h i"  # the special token counts as one of the first three
    assert (cut.tokens_before, cut.tokens_cut, cut.side) == (10, 4, "middle")


def test_middle_with_an_odd_limit_drops_one_token_more():
    cut = truncate(WORDS, OFFICIAL, 7, WordTokenizer())
    assert (cut.text, cut.tokens_cut) == ("a bg h i", 4)


def test_left_keeps_room_for_the_answer_only_when_it_cuts():
    cut = truncate(WORDS, AHN, 9, WordTokenizer())
    assert (cut.text, cut.tokens_cut, cut.side) == ("d e f g h i", 4, "left")


def test_middle_joined_decodes_once_and_may_keep_the_odd_token_at_the_end():
    rules = replace(OFFICIAL, truncation="middle_joined")
    cut = truncate(WORDS, rules, 7, WordTokenizer())
    assert (cut.text, cut.tokens_cut, cut.side) == ("a b g h i", 4, "middle_joined")
    cut = truncate(WORDS, replace(rules, odd_token_in_tail=True), 7, WordTokenizer())
    assert (cut.text, cut.tokens_cut) == ("a b f g h i", 3)
    assert smallest_max_length(rules) == 2


SPECIAL = "a # b # c"  # six tokens: the one that every text begins with, and two in the text


def test_special_tokens_in_the_text_are_lost_where_it_is_decoded():
    infinitebench = find_task("infinitebench", "passkey").protocols["official"]
    assert infinitebench.decode_uncut
    cut = truncate(SPECIAL, infinitebench, 6, WordTokenizer())
    assert (cut.text, cut.tokens_before, cut.tokens_cut, cut.side) == ("a b c", 6, 0, "none")
    cut = truncate(SPECIAL, infinitebench, 4, WordTokenizer())
    assert (cut.text, cut.tokens_cut, cut.side) == ("a c", 2, "middle_joined")


def test_elsewhere_a_prompt_that_is_not_cut_keeps_its_text():
    protocols = {
        (benchmark, name): rules
        for benchmark in benchmark_names()
        for task in task_names(benchmark)
        for name, rules in find_task(benchmark, task).protocols.items()
    }
    decoded = {key for key, rules in protocols.items() if rules.decode_uncut}
    assert decoded == {("infinitebench", "official")}
    for key, rules in protocols.items():
        if key not in decoded:
            assert truncate(SPECIAL, rules, 6, WordTokenizer()).text == SPECIAL


def test_none_never_cuts():
    cut = truncate(WORDS, replace(OFFICIAL, truncation="none"), 2, WordTokenizer())
    assert (cut.text, cut.tokens_cut) == (WORDS, 0)


def test_smallest_max_length_leaves_a_token_on_each_side():
    assert smallest_max_length(OFFICIAL) == 2
    assert smallest_max_length(AHN) == 4
    assert truncate(WORDS, OFFICIAL, 2, WordTokenizer()).text == "i"  # head: the special token
    assert truncate(WORDS, AHN, 4, WordTokenizer()).text == "i"


@pytest.fixture(scope="module")
def bytes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def load(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def example_of(task_name: str, tmp_path: Path):
    (tmp_path / f"{task_name}.jsonl").write_text(json.dumps(question(2, 3, task_name)) + "\n")
    task = find_task("longbench", task_name)
    return task, load_examples(task, str(tmp_path), None, 0).examples[0]


@pytest.mark.parametrize("protocol", ["official", "ahn"])
@pytest.mark.parametrize(("task_name", "wrapped"), [("hotpotqa", True), ("triviaqa", False)])
def test_chat_template_goes_around_the_text_except_where_the_task_says(
    bytes_folder, tmp_path, protocol, task_name, wrapped
):
    task, example = example_of(task_name, tmp_path)
    tokenizer = load(bytes_folder)
    prompt = prepare(task, example, protocol, tokenizer, 4000)
    text = task.render(example, protocol)
    if wrapped:
        text = f"<|user|>{text}<|end|><|assistant|>"
    assert tokenizer.decode(prompt.ids) == text
    assert prompt.chat_template is wrapped
    assert prompt.tokens_untruncated == len(task.render(example, protocol).encode())
    assert prompt.tokens_cut == 0 and prompt.truncation == "none"
    assert text.endswith(prompt.tail)


def test_truncation_comes_before_the_chat_template(bytes_folder, tmp_path):
    task, example = example_of("hotpotqa", tmp_path)
    text = task.render(example, "official").encode()
    prompt = prepare(task, example, "official", load(bytes_folder), 101)
    cut = text[:50].decode() + text[-50:].decode()
    assert load(bytes_folder).decode(prompt.ids) == f"<|user|>{cut}<|end|><|assistant|>"
    assert prompt.tokens == 103  # on top of max_length
    assert (prompt.tokens_cut, prompt.truncation) == (len(text) - 100, "middle")


def test_a_tokenizer_without_chat_template_gets_the_bare_text(tmp_path):
    tokenizer = load(byte_tokenizer(tmp_path / "bare", chat_template=None))
    task, example = example_of("hotpotqa", tmp_path)
    prompt = prepare(task, example, "official", tokenizer, 4000)
    assert prompt.chat_template is False
    assert tokenizer.decode(prompt.ids) == task.render(example, "official")


def test_only_qwen3_is_asked_not_to_think(tmp_path):
    template = (
        "{{ messages[0]['content'] }}|{{ enable_thinking is defined and not enable_thinking }}"
    )
    tokenizer = load(byte_tokenizer(tmp_path / "think", chat_template=template))
    task, example = example_of("hotpotqa", tmp_path)
    for model_type, expected in (("qwen3", "|True"), ("qwen2", "|False"), (None, "|False")):
        prompt = prepare(task, example, "ahn", tokenizer, 4000, model_type)
        assert prompt.tail.endswith(expected)


def test_whether_the_answer_survived_the_cut_is_noted(bytes_folder, tmp_path):
    task, example = example_of("hotpotqa", tmp_path)
    tokenizer = load(bytes_folder)
    assert prepare(task, example, "official", tokenizer, 4000).answer_in_prompt is True
    wanted = replace(example, answers=["Paragraph 1 of text 3 tells of 3."])
    assert prepare(task, wanted, "official", tokenizer, 4000).answer_in_prompt is True
    assert prepare(task, wanted, "official", tokenizer, 60).answer_in_prompt is False


def test_only_an_answer_that_the_cut_took_counts_as_removed(bytes_folder, tmp_path):
    task, example = example_of("hotpotqa", tmp_path)
    tokenizer = load(bytes_folder)

    def removed(answers: list[str], limit: int) -> bool:
        wanted = replace(example, answers=answers)
        return prepare(task, wanted, "official", tokenizer, limit).answer_removed

    assert removed(["Paragraph 1 of text 3 tells of 3."], 60) is True
    assert removed(["Paragraph 1 of text 3 tells of 3."], 4000) is False, "nothing was cut"
    assert removed(["Paragraph 9 of no text"], 60) is False, "it never stood there"


def test_a_number_is_found_only_whole():
    assert contains_answer("of 48 and 3.4 and 14", ["4"]) is False
    assert contains_answer("it is 4.", ["4"]) is True
    assert contains_answer("is 4.5 here", ["4"]) is False
    assert contains_answer("Paragraph 120", ["Paragraph 12"]) is False
    assert contains_answer("Paragraph 12: a", ["Paragraph 12"]) is True


def test_system_message_and_demonstration_stand_before_the_prompt(tmp_path):
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    tokenizer = load(byte_tokenizer(tmp_path / "turns", chat_template=template))
    text = apply_chat_template("ask", tokenizer, None, "be brief", [("assistant", "yes")])
    assert text == "[system]be brief[assistant]yes[user]ask"
    assert apply_chat_template("ask", tokenizer, None) == "[user]ask"


def test_contains_answer():
    assert contains_answer("在厦门大学举办", ["厦门大学。"]) is True
    assert contains_answer("text", ["other", " "]) is False
    assert contains_answer("text", []) is None
    assert contains_answer("text", ["  ", "."]) is None


def test_common_prefix():
    def ids(*values: int):
        return np.asarray(values, dtype=np.int32)

    assert common_prefix(ids(1, 2, 3), ids(1, 2, 4, 5)) == 2
    assert common_prefix(ids(1, 2), ids(1, 2, 4)) == 2
    assert common_prefix(ids(7), ids(1, 2)) == 0


# -- the real tokenizer on real rows; the expectation is coded from the authors' script ---------

QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


def expected_ids(raw, row: dict, protocol: str, limit: int, new_tokens: int, template: str):
    """pred.py with the `tokenizers` library alone; returns ids and how many were cut."""
    text = template.replace("{context}", row["context"]).replace("{input}", row["input"])
    ids = raw.encode(text).ids
    cut = 0
    if len(ids) > limit:
        if protocol == "official":
            first, last = ids[: limit // 2], ids[len(ids) - limit // 2 :]
            cut = len(ids) - len(first) - len(last)
            text = raw.decode(first, skip_special_tokens=True)
            text += raw.decode(last, skip_special_tokens=True)
        else:
            kept = ids[len(ids) - (limit - new_tokens) :]
            cut = len(ids) - len(kept)
            text = raw.decode(kept, skip_special_tokens=True)
    text = (
        f"<|im_start|>system\n{QWEN_SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    )
    return raw.encode(text).ids, cut


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("protocol", ["official", "ahn"])
@pytest.mark.parametrize("name", ["multifieldqa_zh", "multi_news", "passage_retrieval_zh"])
def test_real_rows_give_the_ids_of_the_authors_procedure(shared, name, protocol):
    from tokenizers import Tokenizer

    folder = shared / "data" / "qwen2.5-tokenizer"
    raw, tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json")), load(folder)
    published = json.loads((shared / "protocol" / "longbench.json").read_text("utf-8"))
    constants = next(t for t in published["tasks"] if t["task"] == name)
    new_tokens = constants["max_new_tokens"][protocol]
    task = find_task("longbench", name)
    examples = load_examples(task, str(shared / "data" / "longbench"), 5, 0).examples
    sides = set()
    for limit in (2001, 3500, 31500):
        for example in examples:
            prompt = prepare(task, example, protocol, tokenizer, limit, "qwen2")
            ids, cut = expected_ids(
                raw, dict(example.row), protocol, limit, new_tokens, constants["prompt"][protocol]
            )
            assert prompt.ids.tolist() == ids
            assert prompt.tokens_cut == cut
            sides.add(prompt.truncation)
    assert sides == {"none", "middle" if protocol == "official" else "left"}
