"""SCBench's prompts: turns tokenised one by one, the first one cut, the end of the document."""

from __future__ import annotations

import json
from typing import Any

import pytest

from common.errors import InputError
from evaluation.plan.prompts import prepare, shared_tokens
from tasks.registry import find_task
from tasks.sources import load_examples
from tests.evaluation.conftest import byte_tokenizer
from tests.tasks.scbench.rows import row

# Turns with their roles; a beginning of its own; an answer is opened by its role.
TEMPLATE = (
    "<s>{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        byte_tokenizer(tmp_path_factory.mktemp("tokenizer"), TEMPLATE)
    )


def examples(tmp_path, name, made):
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(made) + "\n", "utf-8")
    return load_examples(find_task("scbench", name), str(tmp_path), None, 0).examples


def prepared(tmp_path, name, made, tokenizer, protocol="official", length=131_072, **more: Any):
    task = find_task("scbench", name)
    found = examples(tmp_path, name, made)
    return [prepare(task, e, protocol, tokenizer, length, "qwen2", **more) for e in found]


def said(prompt, tokenizer):
    return tokenizer.decode(prompt.ids)


def test_further_questions_follow_the_reference_answer_in_the_chat(tmp_path, tokenizer):
    made = row("scbench_kv", 0)
    context = made["context"]
    first = (
        "<s><user>Extract the value corresponding to the specified key in the JSON object below."
        f"\n\n{context}\n\nQuestion 0: what is key k0?<|end|><assistant>"
    )
    second = f"{first}value-0<|end|><user>Question 1: what is key k1?<|end|><assistant>"
    third = f"{second}value-1<|end|><user>Question 2: what is key k2?<|end|><assistant>"
    found = prepared(tmp_path, "scbench_kv", made, tokenizer)
    assert [said(p, tokenizer) for p in found] == [first, second, third]
    assert all(p.chat_template and not p.tokens_cut for p in found)
    # The document is read once: all turns begin alike, up to the first answer.
    assert shared_tokens(found) == found[0].tokens - 1


def test_without_a_chat_template_the_plain_templates_are_used(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    made = row("scbench_choice_eng", 0, 2)
    *_, last = prepared(tmp_path, "scbench_choice_eng", made, tokenizer)
    options = "A. oak\nB. elm\nC. ash\nD. value-{}\n\n"
    assert said(last, tokenizer) == (
        f"Read the book and answer the question.\n\n{made['context']}\n\n"
        f"Question: Question 0: what is key k0?\n{options.format(0)}The the correct answer is"
        f"value-0\n\nQuestion: Question 1: what is key k1?\n{options.format(1)}"
        "The letter of the correct answer is"
    )
    assert not last.chat_template
    (_, example) = examples(tmp_path, "scbench_choice_eng", made)
    task = find_task("scbench", "scbench_choice_eng")
    assert task.render(example, "official") == said(last, tokenizer)


def test_each_question_stands_alone_behind_the_context(tmp_path, tokenizer):
    made = row("scbench_qa_eng", 0)
    found = prepared(tmp_path, "scbench_qa_eng", made, tokenizer, "official-scdq")
    document = (
        "<s><user>Read the book and answer the question. Be very concise in your answer."
        f"\n\n{made['context']}"
    )
    for number, prompt in enumerate(found):
        question = f"Question: Question {number}: what is key k{number}?\nAnswer:"
        assert said(prompt, tokenizer) == f"{document}{question}<|end|><assistant>"


def test_math_find_asks_in_its_own_ways(tmp_path, tokenizer, monkeypatch):
    """In a chat every further question is put in the words of the last; scdq begins with the
    first question itself."""
    made = row("scbench_mf", 0)
    *_, last = prepared(tmp_path, "scbench_mf", made, tokenizer)
    text = said(last, tokenizer)
    assert text.startswith("<s><user>What is the largest number?\n\n[0, 12, 7, 19]\n\nFind it. ")
    asked = "<user>What is the third largest number?\n\nFind it. The"
    assert f"10<|end|>{asked} smallest number is<|end|>" in text
    assert f"11<|end|>{asked} third largest number is<|end|>" in text
    alone = prepared(tmp_path, "scbench_mf", made, tokenizer, "official-scdq")[1]
    assert said(alone, tokenizer) == (
        "<s><user>Find it. The largest number is\n\n[0, 12, 7, 19]What is the smallest number?"
        "\n\nFind it. The smallest number is<|end|><assistant>"
    )
    monkeypatch.setattr(tokenizer, "chat_template", None)
    *_, plain = prepared(tmp_path, "scbench_mf", made, tokenizer)
    assert "10\n\nWhat is the smallest number?\n\nFind it." in said(plain, tokenizer)


def test_further_summaries_are_begun(tmp_path, tokenizer):
    first, *further = prepared(tmp_path, "scbench_summary", row("scbench_summary", 0), tokenizer)
    assert said(first, tokenizer).endswith("<assistant>")
    assert all(said(p, tokenizer).endswith("<assistant>This paper") for p in further)


@pytest.mark.parametrize(
    ("name", "turns", "protocol", "reserved"),
    [
        ("scbench_kv", 3, "official", 450),
        ("scbench_kv", 7, "official", 750),
        ("scbench_kv", 3, "official-scdq", 1450),
        ("scbench_summary_with_needles", 3, "official", 815 * 3 // 2),
        ("scbench_summary_with_needles", 3, "official-scdq", 815 * 3 // 2 + 1000),
    ],
)
def test_the_first_turn_is_cut_in_its_middle_to_what_answers_leave(
    tmp_path, tokenizer, name, turns, protocol, reserved
):
    made = row(name, 0, turns)
    whole = prepared(tmp_path, name, made, tokenizer, protocol)
    cut = prepared(tmp_path, name, made, tokenizer, protocol, reserved + 41)
    begun = whole[0].tokens
    if protocol == "official-scdq":
        question = tokenizer(f"{made['multi_turns'][0]['input']}<|end|><assistant>").input_ids
        begun -= len(question)
    for full, short in zip(whole, cut, strict=True):
        ids = full.ids.tolist()
        assert short.ids.tolist() == [*ids[:20], *ids[begun - 20 : begun], *ids[begun:]]
        assert (short.tokens_cut, short.tokens_untruncated) == (begun - 40, full.tokens)
        assert short.truncation == "middle" and full.truncation == "none"
    same = prepared(tmp_path, name, made, tokenizer, protocol, reserved + begun)
    assert [p.tokens_cut for p in same] == [0] * len(same)
    with pytest.raises(InputError, match="too small"):
        prepared(tmp_path, name, made, tokenizer, protocol, reserved + 1)


def test_the_end_of_the_document_is_known(tmp_path, tokenizer):
    made = row("scbench_kv", 0)
    ends = {"official": f"{made['context'].rstrip()}", "official-scdq": made["context"]}
    for protocol, end in ends.items():
        for prompt in prepared(
            tmp_path, "scbench_kv", made, tokenizer, protocol, with_boundary=True
        ):
            assert tokenizer.decode(prompt.ids[: prompt.document_tokens]).rstrip() == (
                "<s><user>Extract the value corresponding to the specified key in the JSON object "
                f"below.\n\n{end}".rstrip()
            )  # fmt: skip
    assert prepared(tmp_path, "scbench_kv", made, tokenizer)[0].document_tokens is None


def test_the_end_of_the_document_is_known_where_its_middle_is_cut(tmp_path, tokenizer):
    made = row("scbench_kv", 0)
    arguments = (tmp_path, "scbench_kv", made, tokenizer, "official")
    whole = prepared(*arguments, with_boundary=True)
    question = whole[0].tokens - whole[0].document_tokens
    longest = 450 + 2 * question
    cut = prepared(*arguments, longest + 10, with_boundary=True)
    for prompt in cut:
        assert prompt.tokens_cut and prompt.document_tokens == 2 * question + 10 - question
        rest = tokenizer.decode(prompt.ids[prompt.document_tokens :])
        assert rest.lstrip().startswith("Question 0: what is key k0?<|end|>")
    with pytest.raises(InputError, match="the question behind it was cut"):
        prepared(*arguments, longest - 10, with_boundary=True)
    # scdq cuts the document alone
    alone = prepared(*arguments[:-1], "official-scdq", 1450 + 40, with_boundary=True)
    assert {prompt.document_tokens for prompt in alone} == {40}


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
         "{% endif %}{{ m['content'] }}{% endfor %}", "no system"),
        ("{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
         "{% if add_generation_prompt %}<model>{% endif %}", "no beginning of a conversation"),
    ],
)  # fmt: skip
def test_a_chat_template_that_cannot_go_on_is_refused(
    tmp_path, tokenizer, monkeypatch, template, said
):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(InputError, match=said) as caught:
        prepared(tmp_path, "scbench_kv", row("scbench_kv", 0), tokenizer)
    assert "scbench_kv.jsonl:1" in str(caught.value)


@pytest.mark.shared
def test_qwens_chat_template_goes_on(tmp_path, shared):
    from transformers import AutoTokenizer

    qwen = AutoTokenizer.from_pretrained(shared / "data" / "qwen2.5-tokenizer")
    *_, last = prepared(tmp_path, "scbench_kv", row("scbench_kv", 0), qwen)
    text = said(last, qwen)
    assert text.count("<|im_start|>system") == 1 and text.count("<|im_start|>user") == 3
    assert "<|im_start|>assistant\nvalue-1<|im_end|>\n<|im_start|>user\nQuestion 2" in text
