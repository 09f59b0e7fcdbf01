"""Pocket documents: facts in filler text, with questions about them.

Six kinds, after the retrieval tasks of LongBench and InfiniteBench: `passkey`, `number_string`,
`kv_retrieval`, `qa`, `passage_retrieval` and `label`.  Two styles: `prose` repeats the fact's
beginning in the question (`what is the job of clara ? the job of clara is`); `fixed` keeps the
key at one offset from the value and from the end of the question, the format in which key
matching emerges first when a model is trained from scratch.

A fact is one (kind, key, value) triple.  `held_out` splits all facts by a hash: training
documents use the one part, test documents the other, so that no test fact was ever trained on.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

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
    STOP,
)

Style = Literal["prose", "fixed"]
Split = Literal["train", "test"]

KINDS = ("passkey", "number_string", "kv_retrieval", "qa", "passage_retrieval", "label")
#: One fact in eight is kept for testing.
_HELD_OUT_SHARE = 8
_HEADERS = {
    "passkey": "find the pass key :",
    "number_string": "find the number string :",
    "kv_retrieval": "data pairs :",
    "qa": "read the story :",
    "passage_retrieval": "read the passage :",
    "label": "examples :",
}
_RELATIONS: dict[str, list[str]] = {
    "city": CITIES,
    "job": JOBS,
    "food": FOODS,
    "pet": PETS,
    "color": COLORS,
}


@dataclass(frozen=True)
class Fact:
    """One fact: its sentence, the question that asks for it, and the answer (without stop)."""

    text: str
    question: str
    answer: str


@dataclass(frozen=True)
class Question:
    """A question about a document.

    `evidence_start` and `evidence_end` (exclusive) are word positions in the document, which are
    token positions less the `<bos>` that the tokenizer puts first.
    """

    question: str
    answer: str
    evidence_start: int
    evidence_end: int


@dataclass(frozen=True)
class Document:
    """A context of words, and the questions that may be asked about it."""

    kind: str
    context: str
    questions: list[Question]
    facts: int


def held_out(kind: str, key: str, value: str) -> bool:
    """Whether the fact belongs to the test part (a fixed eighth, by CRC-32 of the triple)."""
    return zlib.crc32(f"{kind}|{key}|{value}".encode()) % _HELD_OUT_SHARE == 0


def max_facts(kind: str) -> int:
    """Distinct facts that one document of this kind can hold."""
    most = {"kv_retrieval": 100, "label": 100, "qa": 50, "passage_retrieval": 50}
    return most.get(kind, 40)


def _draw(kind: str, key: str, split: Split, value: Callable[[], str]) -> str:
    """A value for `key` from the asked split; there must be one (`value` draws from all)."""
    while True:
        drawn = value()
        if held_out(kind, key, drawn) == (split == "test"):
            return drawn


def _numbers(rng: random.Random, count: int) -> Callable[[], str]:
    return lambda: " ".join(rng.choice(NUMBERS) for _ in range(count))


def _named_number(
    rng: random.Random, kind: str, noun: str, digits: int, count: int, style: Style, split: Split
) -> list[Fact]:
    """The facts of `passkey` and `number_string`: one without a name, several with names."""
    if count == 1:
        value = _draw(kind, "", split, _numbers(rng, digits))
        question = f"what is the {noun} ? the {noun} is"
        if style == "fixed":
            question = f"what is the {noun} ? answer :"
        return [Fact(f"the {noun} is {value} . remember it .", question, value)]
    facts = []
    for name in rng.sample(NAMES, count):
        value = _draw(kind, name, split, _numbers(rng, digits))
        question = f"what is the {noun} of {name} ? the {noun} of {name} is"
        if style == "fixed":
            question = f"what is the {noun} of {name} ? answer :"
        facts.append(Fact(f"the {noun} of {name} is {value} .", question, value))
    return facts


def _kv_retrieval(rng: random.Random, count: int, style: Style, split: Split) -> list[Fact]:
    facts = []
    for key in rng.sample(NOUNS, count):
        value = _draw("kv_retrieval", key, split, _numbers(rng, 2))
        question = f"what is {key} ? {key} :" if style == "prose" else f"key {key} value :"
        facts.append(Fact(f"{key} : {value} ,", question, value))
    return facts


def _qa(rng: random.Random, count: int, style: Style, split: Split) -> list[Fact]:
    facts: list[Fact] = []
    for name in rng.sample(NAMES, len(NAMES)):
        if len(facts) == count:
            break
        relation = rng.choice(list(_RELATIONS))
        values = [
            value
            for value in _RELATIONS[relation]
            if held_out("qa", f"{name}|{relation}", value) == (split == "test")
        ]
        if not values:  # this person's relation has no fact in the split
            continue
        value = rng.choice(values)
        question = f"what is the {relation} of {name} ?"
        question += f" the {relation} of {name} is" if style == "prose" else " answer :"
        facts.append(Fact(f"the {relation} of {name} is {value} .", question, value))
    return facts


def _passage_retrieval(rng: random.Random, count: int, style: Style, split: Split) -> list[Fact]:
    words = rng.sample(NOUNS, len(NOUNS))
    free = list(NUMBERS)  # a paragraph number names one paragraph only
    facts: list[Fact] = []
    while len(facts) < count:
        if len(words) < 2:  # the split left too few numbers for these pairs: draw again
            return _passage_retrieval(rng, count, style, split)
        first, second = words.pop(), words.pop()
        key = f"{first}|{second}"
        values = [v for v in free if held_out("passage_retrieval", key, v) == (split == "test")]
        if not values:
            continue
        value = rng.choice(values)
        free.remove(value)
        text = f"the paragraph of the {first} and the {second} is {value} ."
        question = f"which paragraph mentions the {first} and the {second} ? answer :"
        if style == "prose":
            question = (
                f"which paragraph mentions the {first} ? "
                f"the paragraph of the {first} and the {second} is"
            )
        facts.append(Fact(text, question, value))
    return facts


def _label(rng: random.Random, count: int, style: Style, split: Split) -> list[Fact]:
    facts: list[Fact] = []
    for word in rng.sample(NOUNS, len(NOUNS)):
        if len(facts) == count:
            break
        if not any(held_out("label", word, label) == (split == "test") for label in LABELS):
            continue  # this word has no label in the split
        value = _draw("label", word, split, lambda: rng.choice(LABELS))
        text = f"text : the {word} label :"
        facts.append(Fact(f"{text} {value} .", text, value))
    return facts


def make_facts(
    rng: random.Random, kind: str, count: int, style: Style = "prose", split: Split = "train"
) -> list[Fact]:
    """`count` facts of one kind with distinct keys.

    Raises:
        ValueError: unknown kind, or more facts than `max_facts(kind)`.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown pocket kind {kind!r}; one of {', '.join(KINDS)}")
    if not 1 <= count <= max_facts(kind):
        raise ValueError(f"{kind}: facts must be between 1 and {max_facts(kind)}, not {count}")
    if kind == "passkey":
        return _named_number(rng, kind, "pass key", 2, count, style, split)
    if kind == "number_string":
        return _named_number(rng, kind, "number string", 4, count, style, split)
    makers = {
        "kv_retrieval": _kv_retrieval,
        "qa": _qa,
        "passage_retrieval": _passage_retrieval,
        "label": _label,
    }
    return makers[kind](rng, count, style, split)


def make_document(
    rng: random.Random,
    kind: str,
    *,
    length: int,
    facts: int,
    questions: int,
    style: Style = "prose",
    split: Split = "train",
    min_distance: int = 0,
    lead: int = 0,
) -> Document:
    """A document of about `length` tokens, all its questions and answers counted in.

    The facts stand in random order among filler sentences; each asked fact is asked once.

    Args:
        rng: source of all randomness.
        kind: one of `KINDS`.
        length: tokens of `<bos>`, context, questions, answers and stops together.
        facts: number of stored facts.
        questions: number of questions (at most `facts`).
        style: `prose` or `fixed` (see the module).
        split: which part of the facts to draw from.
        min_distance: tokens of filler between the last fact's end and the end of the context; a
            test sets it beyond the window.
        lead: words of context (header counted) that must precede the first fact, so that no
            fact stands among the attention sinks.

    Raises:
        ValueError: the facts and questions do not fit the length.
    """
    for _ in range(200):
        stored = make_facts(rng, kind, facts, style, split)
        document = _place(rng, kind, stored, length, questions, min_distance, lead)
        if document is not None:
            return document
    raise ValueError(
        f"{kind}: {facts} facts and {questions} questions at distance {min_distance} do not fit "
        f"into {length} tokens"
    )


def _place(
    rng: random.Random,
    kind: str,
    stored: list[Fact],
    length: int,
    questions: int,
    min_distance: int,
    lead: int,
) -> Document | None:
    header = _HEADERS[kind].split()
    texts = [fact.text.split() for fact in stored]
    used = 1 + len(header) + sum(map(len, texts))
    questions = min(questions, len(stored))
    # the longest questions must fit, whichever facts will be asked
    costs = sorted(
        (len(f.question.split()) + len(f.answer.split()) + 1 for f in stored), reverse=True
    )
    room = length - used - sum(costs[:questions])
    if room < 0:
        return None
    slots: list[list[str]] = [[] for _ in range(len(stored) + 1)]
    while len(header) + len(slots[0]) < lead:
        slots[0] += rng.choice(FILLERS).split()
    while len(slots[-1]) < min_distance:
        slots[-1] += rng.choice(FILLERS).split()
    room -= len(slots[0]) + len(slots[-1])
    while True:
        filler = rng.choice(FILLERS).split()
        if len(filler) > room:
            break
        room -= len(filler)
        slots[rng.randrange(len(slots))] += filler
    if room < 0:
        return None
    words = list(header)
    spans: list[tuple[int, int]] = []
    for slot, text in zip(slots, texts, strict=False):
        words += slot
        spans.append((len(words), len(words) + len(text)))
        words += text
    words += slots[-1]
    asked = rng.sample(range(len(stored)), questions)
    return Document(
        kind=kind,
        context=" ".join(words),
        questions=[
            Question(stored[i].question, f"{stored[i].answer} {STOP}", *spans[i]) for i in asked
        ],
        facts=len(stored),
    )
