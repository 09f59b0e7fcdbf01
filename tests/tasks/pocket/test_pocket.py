"""Pocket tasks: three row schemas, evidence outside the window, test facts never trained on."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable
from itertools import islice, pairwise

import pytest
from hypothesis import example as try_also
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from tasks.pocket.documents import make_document
from tasks.pocket.facts import KINDS, held_out, make_facts, max_facts
from tasks.pocket.rows import SHAPES
from tasks.pocket.synthetic import LEAD, MIN_DISTANCE
from tasks.pocket.tokenizer import tokenizer_files
from tasks.pocket.training import PHASES, conversations
from tasks.pocket.vocabulary import (
    CITIES,
    COLORS,
    FILLERS,
    FOODS,
    JOBS,
    LABELS,
    NAMES,
    NOUNS,
    NUMBERS,
    PETS,
    WORDS,
)
from tasks.registry import benchmark_definition, expand, find_task, task_names
from tasks.schema import Example, Task, TaskProtocol, TextCut
from tasks.sources import load_examples

SINKS, WINDOW = 4, 128
LENGTHS = tuple(benchmark_definition("pocket").lengths)
PUBLISHED_FIELDS = {
    "longbench": {
        "input", "context", "answers", "length", "dataset", "language", "all_classes", "_id",
    },
    "lveval": {"input", "context", "answers", "answer_keywords", "confusing_facts", "length"},
    "infinitebench": {"id", "context", "input", "answer", "options"},
}  # fmt: skip


def names_of(
    lengths: tuple[int, ...] = (512,),
    facts: tuple[int, ...] = (1, 4, 16),
    kinds: tuple[str, ...] = KINDS,
) -> list[str]:
    """Names of tasks: by length, then kind, then stored facts."""
    return [
        f"pocket_{kind}@{count}" + (f"_{length}" if length != 512 else "")
        for length in lengths
        for kind in kinds
        for count in facts
    ]


def rows_of(task: Task, limit: int | None = None, seed: int = 0) -> list[Example]:
    return load_examples(task, None, limit, seed).examples


def crc32(data: bytes) -> int:
    """CRC-32 bit by bit from its reflected polynomial (ISO 3309), without zlib."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def kept_for_tests(kind: str, key: str, value: str) -> bool:
    """The split that the shipped memories were trained under: every eighth CRC-32 is a test's."""
    return crc32(f"{kind}|{key}|{value}".encode()) % 8 == 0


def read_back(text: str) -> tuple[str, str, str]:
    """The kind, key and value under which a sentence's fact is split, from its words."""
    words = text.split()
    if words[0] == "text":
        return "classification", words[words.index("label") - 1], words[-2]
    if words[1] == ":":
        return "kv_retrieval", words[0], " ".join(words[2:4])
    if words[1] == "paragraph":
        return "passage_retrieval", f"{words[4]}|{words[7]}", words[9]
    value = " ".join(words[words.index("is") + 1 : words.index(".")])
    if words[1] in ("pass", "number"):
        name = words[words.index("of") + 1] if "of" in words else ""
        return "passkey" if words[1] == "pass" else "number_string", name, value
    if words[1] == "friend":
        return "two_hop", words[3], value
    return "qa", f"{words[3]}|{words[1]}", value


@given(
    kind=st.sampled_from(KINDS),
    count=st.integers(1, 40),
    style=st.sampled_from(["prose", "fixed"]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=200, deadline=None)
@try_also(kind="passkey", count=2, style="prose", seed=294)
def test_facts_keep_to_their_split(kind: str, count: int, style: str, seed: int) -> None:
    count = min(count, max_facts(kind))
    for split in ("train", "test"):
        facts = make_facts(random.Random(seed), kind, count, style, split)  # type: ignore[arg-type]
        assert len(facts) == count and len({fact.question for fact in facts}) == count
        for fact in facts:
            for text in fact.texts:
                owner, key, value = read_back(text)
                assert kept_for_tests(owner, key, value) == (split == "test")
            assert fact.answer.endswith(read_back(fact.texts[-1])[2])


def test_the_split_of_facts_is_the_one_that_the_shipped_memories_were_trained_under() -> None:
    assert crc32(b"123456789") == 0xCBF43926  # the check value of CRC-32 in catalogues
    triples = [("qa", f"{name}|city", city) for name in NAMES for city in CITIES]
    triples += [("passkey", name, f"{a} {b}") for name in NAMES for a, b in pairwise(NUMBERS)]
    parts = [held_out(*triple) for triple in triples]
    assert parts == [kept_for_tests(*triple) for triple in triples]
    # an eighth of them, within four standard deviations
    expected, spread = len(parts) / 8, (len(parts) * 7 / 64) ** 0.5
    assert abs(sum(parts) - expected) < 4 * spread


def test_no_test_fact_stands_in_any_training_conversation() -> None:
    trained = {
        sentence.strip()
        for name in PHASES
        for row in conversations(name, 0.02)
        for message in row["messages"]
        for sentence in re.split(r"(?<= [.,]) ", message["content"])
    }
    assert len(trained) > 1000
    # the same fact in other words: a classification with another colour
    stated = re.compile(
        r"text : the .* label : \w+ \.|the \w+ of .* is .* \.|the .* (key|string) is .*"
    )
    facts = {read_back(sentence) for sentence in trained if stated.fullmatch(sentence)}
    assert len(facts) > 1000
    assert not [fact for fact in facts if kept_for_tests(*fact)]
    for name in names_of(LENGTHS[:2], kinds=KINDS):
        for example in rows_of(find_task("longbench", name), 8):
            words = example.row["context"].split()
            for start, end in example.row["evidence"]["spans"]:
                fact = " ".join(words[start:end]).removesuffix(" remember it .")
                assert fact not in trained and fact not in FILLERS
                assert read_back(fact) not in facts


@pytest.mark.parametrize("name", names_of(facts=(1, 16), kinds=KINDS))
def test_rows_are_the_benchmarks_rows_with_evidence_outside_the_window(name: str) -> None:
    task = find_task("longbench", name)
    examples = rows_of(task, 24)
    assert len({example.example_id for example in examples}) == 24
    kind = name.removeprefix("pocket_").split("@")[0]
    for example in examples:
        row, evidence = example.row, example.row["evidence"]
        assert row.keys() - {"facts", "evidence"} >= PUBLISHED_FIELDS[SHAPES[kind]]
        assert example.answers == row.get("answers", row.get("answer"))
        assert row.get("language", "en") == "en" and row.get("options", []) == []
        if SHAPES[kind] != "infinitebench":
            assert row["dataset"] == name
            assert row["length"] == len(f"{row['context']} {row['input']}".split())
            assert row["all_classes"] == (LABELS if kind == "classification" else None)
        words = row["context"].split()
        said = " ".join(" ".join(words[start:end]) for start, end in evidence["spans"])
        assert example.answers[0].split()[-1] in said
        assert evidence["start"] == evidence["spans"][0][0]
        assert evidence["end"] == evidence["spans"][-1][1]
        prompt = task.render(example, "official").split()
        assert evidence["distance"] == len(prompt) - evidence["end"]
        assert example.attributes == {
            "kind": kind,
            "facts": row["facts"],
            "length": LENGTHS[0],
            "evidence_distance": evidence["distance"],
        }
        # `<bos>` comes first; the last prompt token sees the WINDOW last ones
        assert evidence["end"] + 1 <= len(prompt) + 1 - WINDOW
        assert evidence["start"] + 1 >= SINKS
        assert 400 <= len(prompt) + 1 <= LENGTHS[0]
        # the answer stands nowhere that the window could see
        visible = " ".join(prompt[-WINDOW:])
        assert f" {example.answers[0].split()[-1]} " not in f" {visible} "


@pytest.mark.parametrize("length", LENGTHS)
def test_a_task_may_ask_for_a_length(length: int) -> None:
    for kind in KINDS:
        (name,) = names_of((length,), (16,), (kind,))
        task = find_task("longbench", name)
        for example in rows_of(task, 4):
            tokens = len(task.render(example, "official").split()) + 1
            assert length - 60 <= tokens <= length
            assert example.attributes["length"] == length
        assert (task.protocol("official").default_max_length or 0) >= length


N, V, PAIR = r"(?P<n>\w+)", r"(?P<v>\w+)", r"(?P<v>\d\d \d\d)"
WORDING = {
    "passkey": (
        rf"the pass key of {N} is {PAIR} \.",
        "what is the pass key of {n} ? the pass key of {n} is",
        "what is the pass key of {n} answer :",
    ),
    "number_string": (
        rf"the number string of {N} is (?P<v>\d\d \d\d \d\d \d\d) \.",
        "what is the number string of {n} ? the number string of {n} is",
        "what is the number string of {n} answer :",
    ),
    "kv_retrieval": (rf"{N} : {PAIR} ,", "what is {n} ? {n} :", "key {n} value :"),
    "qa": (
        rf"the (?P<r>\w+) of {N} is {V} \.",
        "what is the {r} of {n} ? the {r} of {n} is",
        "what is the {r} of {n} answer :",
    ),
    "two_hop": (
        rf"the friend of {N} is (?P<f>\w+) \. the (?P<r>\w+) of (?P=f) is (?P<p>\w+) \.",
        "what is the {r} of the friend of {n} ? the friend of {n} is",
        "what is the {r} of the friend of {n} answer :",
    ),
    "passage_retrieval": (
        rf"the paragraph of the {N} and the (?P<m>\w+) is (?P<v>\d\d) \.",
        "which paragraph mentions the {n} ? the paragraph of the {n} and the {m} is",
        "which paragraph mentions the {n} and the {m} answer :",
    ),
    "classification": (
        rf"text : the ((?P<c>\w+) )?{N} label : {V} \.",
        r"text : the (?P<d>\w+) {n} label :",
        "text : the {n} answer label :",
    ),
}
WORDING["confusing_facts"] = WORDING["qa"]
"""What a fact's sentences look like, and what asks for it in prose and in the fixed form: as the
shipped model read them in training."""
OF_THINGS = ("kv_retrieval", "passage_retrieval", "classification")
VALUES = {"city": CITIES, "job": JOBS, "food": FOODS, "pet": PETS, "color": COLORS}


@pytest.mark.parametrize("style", ["prose", "fixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_facts_are_worded_as_the_shipped_model_learnt_them(kind: str, style: str) -> None:
    said, prose, fixed = WORDING[kind]
    relations = set()
    for fact in make_facts(random.Random(3), kind, 20, style):  # type: ignore[arg-type]
        match = re.fullmatch(said, " ".join(fact.texts))
        assert match, fact.texts
        parts = {key: part or "" for key, part in match.groupdict().items()}
        question = (prose if style == "prose" else fixed).format(**parts)
        answer = "{f} , the {r} of {f} is {p}" if kind == "two_hop" else "{v}"
        assert fact.answer == answer.format(**parts)
        if kind != "classification":
            assert fact.question == question
        else:
            asked = re.fullmatch(question, fact.question)
            assert asked and bool(parts["c"]) == (style == "prose")
            assert {parts["c"], asked.groupdict().get("d", "")} <= {*COLORS, ""}
            assert style == "fixed" or parts["c"] != asked["d"]
        assert parts["n"] in (NOUNS if kind in OF_THINGS else NAMES)
        if "r" in parts:
            relations.add(parts["r"])
            assert (parts.get("p") or parts["v"]) in VALUES[parts["r"]]
        if kind == "confusing_facts":
            (other,) = fact.confusing
            lie = re.fullmatch(r"the (\w+) near (\w+) is (\w+) \.", other)
            assert lie and lie.group(1, 2) == (parts["r"], parts["n"])
            assert lie[3] in VALUES[parts["r"]] and lie[3] != parts["v"]
        else:
            assert fact.confusing == ()
    assert not relations or relations == set(VALUES)


def test_a_single_number_needs_no_name() -> None:
    for kind, noun, count in (("passkey", "pass key", 2), ("number_string", "number string", 4)):
        for style, end in (("prose", f" ? the {noun} is"), ("fixed", " answer :")):
            (fact,) = make_facts(random.Random(3), kind, 1, style)  # type: ignore[arg-type]
            assert re.fullmatch(rf"\d\d( \d\d){{{count - 1}}}", fact.answer)
            assert fact.texts == (f"the {noun} is {fact.answer} . remember it .",)
            assert fact.question == f"what is the {noun}{end}"


def test_evidence_stands_everywhere_between_sinks_and_window() -> None:
    task = find_task("longbench", "pocket_qa@1_1024")
    distances = [e.attributes["evidence_distance"] for e in rows_of(task, 400)]
    room = (MIN_DISTANCE, 1024 - LEAD)
    thirds = [room[0] + (room[1] - room[0]) * part / 3 for part in range(4)]
    for low, high in zip(thirds, thirds[1:], strict=False):
        # a third of 400, within four standard deviations
        assert 95 <= sum(low <= distance < high + 1 for distance in distances) <= 171


def test_rows_are_the_same_each_time_and_a_limit_is_a_beginning() -> None:
    task = find_task("longbench", "pocket_qa@4")
    first, again = rows_of(task, 30, seed=3), rows_of(task, 50, seed=3)
    assert [x.row for x in first] == [x.row for x in again[:30]]
    assert [x.row for x in first] != [x.row for x in rows_of(task, 30, seed=4)]
    assert len(rows_of(task)) == 200
    assert len({example.document_id for example in first}) == 15  # two questions a document


SHIPPED = {
    "passkey": "977b0d5121407995",
    "number_string": "49f312523d100f88",
    "kv_retrieval": "890ffcbbff7e6e77",
    "qa": "7d5bf0e57f4cbf31",
    "two_hop": "4bf733f14af2f7ae",
    "passage_retrieval": "ab73ee519b2a051e",
    "classification": "d5c44b2167fbccdd",
    "confusing_facts": "a10297714bd75ae7",
    "teacher-a": "1f8764f1746dbc68",
    "teacher-b": "7ec91476410d16d9",
    "teacher-c": "427ae516889be481",
    "student": "469ef1079fa20ce7",
    "student-long": "30e1a8b06c88683f",
}
"""SHA-256 of first rows of each kind and first conversations of each phase. Other rows make the
pocket scores in docs/ untrue and runs impossible to continue; other conversations, the recipes of
the shipped models: such a change needs new figures, and new models."""


@pytest.mark.parametrize("name", SHIPPED)
def test_rows_and_conversations_are_those_of_published_scores_and_shipped_models(name: str) -> None:
    made: Iterable[object]
    if name in PHASES:
        made = islice(conversations(name), 64)
    else:
        names = names_of((512,), (1, 4), (name,)) + [f"pocket_{name}@16_1024"]
        tasks = [find_task("longbench", task) for task in names]
        made = [example.row for task in tasks for example in rows_of(task, 6)]
    text = "\n".join(json.dumps(one, sort_keys=True) for one in made)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == SHIPPED[name]


def test_a_second_hop_asks_for_somebody_whom_the_question_does_not_name() -> None:
    task = find_task("longbench", "pocket_two_hop@4")
    for example in rows_of(task, 40):
        friend, value = example.answers[0].split()[0], example.answers[0].split()[-1]
        assert friend not in example.row["input"].split()
        words, spans = example.row["context"].split(), example.row["evidence"]["spans"]
        hops = sorted(read_back(" ".join(words[start:end])) for start, end in spans)
        assert [hop[0] for hop in hops] == ["qa", "two_hop"]
        assert hops[1][2] == friend and hops[0][1].split("|")[0] == friend
        assert hops[0][2] == value


def test_confusing_facts_name_the_same_person_and_another_value() -> None:
    task = find_task("longbench", "pocket_confusing_facts@4")
    for example in rows_of(task, 40):
        (confusing,) = example.row["confusing_facts"]
        assert confusing in example.row["context"]
        name = example.row["input"].split()[-2]
        assert confusing.split()[3] == name and confusing.split()[5] != example.answers[0]
        assert example.row["answer_keywords"] == example.answers[0]


def test_scores_are_exact_matches_up_to_the_full_stop() -> None:
    task = find_task("longbench", "pocket_number_string@1")
    example = rows_of(task, 1)[0]
    answer = example.answers[0]
    assert task.score(f" {answer} .", example, "official") == 1
    assert task.score(f"{answer} . the sky", example, "ahn") == 1
    assert task.score(f" {answer} 00 .", example, "official") == 0
    assert task.score("", example, "official") == 0


@pytest.mark.parametrize("name", names_of(facts=(1, 16), kinds=KINDS))
def test_answers_fit_the_generation_limit(name: str) -> None:
    task = find_task("longbench", name)
    longest = max(len(e.answers[0].split()) + 1 for e in rows_of(task, 10))
    assert longest <= task.protocol("official").max_new_tokens


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("pocket_qa@5", "pocket_qa@4"),
        ("pocket_qa@4_600", "pocket_qa@4"),
        ("pocket_kv@4", "pocket_"),
        ("pocket_qa", "pocket_qa@4"),
        ("pocket_qa@4_2048x", "pocket_qa@4_2048"),
    ],
)
def test_unknown_tasks_are_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError, match=near):
        find_task("longbench", name)


def test_pocket_stands_for_the_default_tasks() -> None:
    suite = names_of(kinds=tuple(kind for kind in KINDS if kind != "two_hop"))
    assert task_names("pocket") == suite and len(suite) == 21
    for benchmark, data in (("pocket", None), ("pocket", "pocket"), ("longbench", "pocket")):
        assert [task.name for task in expand(benchmark, [], data)] == suite
    with pytest.raises(InputError, match="pocket_qa@3"):
        expand("pocket", ["pocket_qa@3"], None)


@pytest.mark.parametrize(
    ("name", "new_tokens", "longest"),
    [("pocket_qa@4", 8, 2048), ("pocket_two_hop@2_1024", 10, 2048), ("pocket_qa@8_4096", 8, 4096)],
)
def test_a_task_is_asked_as_in_runs_from_before_the_suite_had_a_folder(
    name: str, new_tokens: int, longest: int
) -> None:
    task = find_task("pocket", name)
    assert (
        task.protocols["official"]
        == task.protocols["ahn"]
        == TaskProtocol(
            template=" {context} {input}",
            max_new_tokens=new_tokens,
            chat_template=False,
            truncation="none",
            reserve_generation=False,
            metric="exact_match",
            generation={"do_sample": False, "num_beams": 1},
            seed=0,
            default_max_length=longest,
            postprocess=(TextCut(keep_before=" .", strip=True),),
        )
    )
    (example,) = rows_of(task, 1)
    assert example.label is None and example.example_id == f"{name}/0/0/0"


def test_the_vocabulary_is_closed() -> None:
    known = set(WORDS)
    assert len(known) == len(WORDS) == 576
    for kind in KINDS:
        for style in ("prose", "fixed"):
            document = make_document(
                random.Random(1),
                kind,
                length=600,
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
        make_facts(random.Random(0), "classification", max_facts("classification") + 1)
    with pytest.raises(ValueError, match="unknown pocket kind"):
        make_facts(random.Random(0), "riddle", 1)
