"""Pocket tasks: LongBench's schema, evidence outside the window, test facts never trained on."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import example as try_also
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import pocket
from tasks.pocket.documents import KINDS, held_out, make_document, make_facts, max_facts
from tasks.pocket.tokenizer import tokenizer_files
from tasks.pocket.training import PHASES, conversations
from tasks.pocket.vocabulary import FILLERS, WORDS
from tasks.registry import expand, find_task
from tasks.schema import InputError

SINKS, WINDOW = 4, 128


def fact_key(kind: str, text: str) -> tuple[str, str]:
    """Key and value of a fact's sentence, read back from its words."""
    words = text.split()
    if kind == "kv_retrieval":
        return words[0], " ".join(words[2:4])
    if kind == "qa":
        return f"{words[3]}|{words[1]}", words[5]
    if kind == "passage_retrieval":
        return f"{words[4]}|{words[7]}", words[9]
    if kind == "label":
        return words[3], words[6]
    name = words[words.index("of") + 1] if "of" in words else ""
    value = " ".join(words[words.index("is") + 1 : words.index(".")])
    return name, value


@given(
    kind=st.sampled_from(KINDS),
    count=st.integers(1, 40),
    style=st.sampled_from(["prose", "fixed"]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=200, deadline=None)
@try_also(kind="passkey", count=2, style="prose", seed=294)
def test_facts_keep_to_their_split(kind: str, count: int, style: str, seed: int) -> None:
    for split in ("train", "test"):
        facts = make_facts(random.Random(seed), kind, count, style, split)  # type: ignore[arg-type]
        assert len(facts) == count and len({fact.question for fact in facts}) == count
        for fact in facts:
            key, value = fact_key(kind, fact.text)
            assert value == fact.answer
            assert held_out(kind, key, value) == (split == "test")


def test_no_test_fact_stands_in_any_training_conversation() -> None:
    trained = {
        sentence.strip()
        for name in PHASES
        for row in conversations(name, 0.01)
        for sentence in re.split(r"(?<= [.,]) ", row["messages"][0]["content"])
    }
    assert len(trained) > 1000
    for name in pocket.task_names():
        for example in pocket.load_examples(find_task("longbench", name), 12):
            evidence = example.row["evidence"]
            words = example.row["context"].split()
            fact = " ".join(words[evidence["start"] : evidence["end"]])
            assert fact not in trained and fact not in FILLERS


@pytest.mark.parametrize("name", pocket.task_names())
def test_rows_are_longbench_rows_with_evidence_outside_the_window(name: str) -> None:
    task = find_task("longbench", name)
    examples = pocket.load_examples(task, 24)
    assert len({example.example_id for example in examples}) == 24
    for example in examples:
        row = example.row
        assert {"input", "context", "answers", "length", "dataset", "_id"} <= row.keys()
        words = row["context"].split()
        evidence = " ".join(words[row["evidence"]["start"] : row["evidence"]["end"]])
        assert example.answers[0] in evidence
        prompt = task.render(example, "official").split()
        # `<bos>` comes first; the last prompt token sees the WINDOW last ones
        assert row["evidence"]["end"] + 1 <= len(prompt) + 1 - WINDOW
        assert row["evidence"]["start"] + 1 >= SINKS
        assert 400 <= len(prompt) + 1 <= pocket.LENGTH
        # the answer stands nowhere that the window could see
        visible = " ".join(prompt[-WINDOW:])
        assert f" {example.answers[0]} " not in f" {visible} "


def test_rows_are_the_same_each_time_and_a_limit_is_a_beginning() -> None:
    task = find_task("longbench", "pocket_qa@4")
    first, again = pocket.load_examples(task, 30, seed=3), pocket.load_examples(task, 50, seed=3)
    assert [x.row for x in first] == [x.row for x in again[:30]]
    assert [x.row for x in first] != [x.row for x in pocket.load_examples(task, 30, seed=4)]
    assert len(pocket.load_examples(task)) == 200
    assert len({example.document_id for example in first}) == 15  # two questions a document


def test_scores_are_exact_matches_up_to_the_full_stop() -> None:
    task = find_task("longbench", "pocket_number_string@1")
    example = pocket.load_examples(task, 1)[0]
    answer = example.answers[0]
    assert task.score(f" {answer} .", example, "official") == 1
    assert task.score(f"{answer} . the sky", example, "ahn") == 1
    assert task.score(f" {answer} 00 .", example, "official") == 0
    assert task.score("", example, "official") == 0


def test_unknown_tasks_are_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="pocket_qa@4"):
        find_task("longbench", "pocket_qa@5")
    assert [task.name for task in expand("longbench", [], "pocket")] == pocket.task_names()


def test_the_vocabulary_is_closed() -> None:
    known = set(WORDS)
    assert len(known) == len(WORDS) == 576
    for kind in KINDS:
        for style in ("prose", "fixed"):
            document = make_document(
                random.Random(1),
                kind,
                length=400,
                facts=8,
                questions=4,
                style=style,
            )
            asked = " ".join(f"{q.question} {q.answer}" for q in document.questions)
            assert set(f"{document.context} {asked}".split()) <= known
    assert set(tokenizer_files()["tokenizer.json"]["model"]["vocab"].values()) == set(range(576))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        make_document(random.Random(0), "qa", length=64, facts=16, questions=4)
    with pytest.raises(ValueError, match="between 1 and"):
        make_facts(random.Random(0), "label", max_facts("label") + 1)
    with pytest.raises(ValueError, match="unknown pocket kind"):
        make_facts(random.Random(0), "riddle", 1)
