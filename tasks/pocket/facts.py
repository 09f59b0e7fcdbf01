"""Pocket facts: what a generated document knows, how it says it, and how it is asked for it.

Eight kinds, after the retrieval tasks of three benchmarks:

- LongBench: `qa` (one fact), `two_hop` (a fact about the person whom another fact names),
  `passage_retrieval`, `classification` (by examples);
- LV-Eval: `confusing_facts` (every fact has a false friend with the same person in it);
- InfiniteBench: `passkey`, `number_string`, `kv_retrieval`.

Two styles: `prose` repeats the fact's beginning in the question (`what is the job of clara ? the
job of clara is`); `fixed` keeps the key at one offset from the value and from the end of the
question, the format in which key matching emerges first when a model is trained from scratch.

Facts are split by a hash of their parts: training documents use the one part, test documents the
other, so that no fact that a test asks for was ever trained on.
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
    FOODS,
    JOBS,
    LABELS,
    NAMES,
    NOUNS,
    NUMBERS,
    PETS,
)

Style = Literal["prose", "fixed"]
Split = Literal["train", "test"]

#: Numbers of two digits in a pass key and in a number string.
PASSKEY_NUMBERS, STRING_NUMBERS = 2, 4
#: One fact in eight is kept for testing.
_HELD_OUT_SHARE = 8
_RELATIONS: dict[str, list[str]] = {
    "city": CITIES,
    "job": JOBS,
    "food": FOODS,
    "pet": PETS,
    "color": COLORS,
}


@dataclass(frozen=True)
class Fact:
    """One thing to know.

    Attributes:
        texts: the sentences that say it, one a hop; they may stand apart.
        question: what asks for it.
        answer: without the stop.
        confusing: sentences that resemble it and say something else; never asked for.
    """

    texts: tuple[str, ...]
    question: str
    answer: str
    confusing: tuple[str, ...] = ()


def held_out(kind: str, key: str, value: str) -> bool:
    """Whether the fact belongs to the test part (a fixed eighth, by CRC-32 of the triple)."""
    return zlib.crc32(f"{kind}|{key}|{value}".encode()) % _HELD_OUT_SHARE == 0


def _allowed(kind: str, key: str, values: list[str], split: Split) -> list[str]:
    """Those of `values` whose fact with `key` belongs to the split."""
    return [value for value in values if held_out(kind, key, value) == (split == "test")]


def _drawn_numbers(rng: random.Random, kind: str, key: str, count: int, split: Split) -> str:
    """`count` two-digit numbers, for `key`, from the split."""
    while True:
        value = " ".join(rng.choice(NUMBERS) for _ in range(count))
        if held_out(kind, key, value) == (split == "test"):
            return value


def _named_number(
    rng: random.Random, kind: str, noun: str, numbers: int, count: int, style: Style, split: Split
) -> list[Fact]:
    """The facts of `passkey` and `number_string`: one without a name, several with names."""
    if count == 1:
        value = _drawn_numbers(rng, kind, "", numbers, split)
        question = f"what is the {noun}"
        question += f" ? the {noun} is" if style == "prose" else " answer :"
        return [Fact((f"the {noun} is {value} . remember it .",), question, value)]
    facts = []
    for name in rng.sample(NAMES, count):
        value = _drawn_numbers(rng, kind, name, numbers, split)
        question = f"what is the {noun} of {name}"
        question += f" ? the {noun} of {name} is" if style == "prose" else " answer :"
        facts.append(Fact((f"the {noun} of {name} is {value} .",), question, value))
    return facts


def _passkey(rng: random.Random, count: int, style: Style, split: Split) -> list[Fact]:
    return _named_number(rng, "passkey", "pass key", PASSKEY_NUMBERS, count, style, split)


def _number_string(rng: random.Random, count: int, style: Style, split: Split) -> list[Fact]:
    return _named_number(rng, "number_string", "number string", STRING_NUMBERS, count, style, split)


def _kv_retrieval(rng: random.Random, count: int, style: Style, split: Split) -> list[Fact]:
    facts = []
    for key in rng.sample(NOUNS, count):
        value = _drawn_numbers(rng, "kv_retrieval", key, 2, split)
        question = f"what is {key} ? {key} :" if style == "prose" else f"key {key} value :"
        facts.append(Fact((f"{key} : {value} ,",), question, value))
    return facts


def _property(rng: random.Random, name: str, split: Split) -> tuple[str, str] | None:
    """A relation of `name` and its value; None where the split has none for the one drawn."""
    relation = rng.choice(list(_RELATIONS))
    values = _allowed("qa", f"{name}|{relation}", _RELATIONS[relation], split)
    return (relation, rng.choice(values)) if values else None


def _qa(rng: random.Random, count: int, style: Style, split: Split) -> list[Fact]:
    facts: list[Fact] = []
    for name in rng.sample(NAMES, len(NAMES)):  # one fact a person
        known = _property(rng, name, split)
        if len(facts) == count:
            break
        if known is None:
            continue
        relation, value = known
        question = f"what is the {relation} of {name}"
        question += f" ? the {relation} of {name} is" if style == "prose" else " answer :"
        facts.append(Fact((f"the {relation} of {name} is {value} .",), question, value))
    return facts


def _confusing_facts(rng: random.Random, count: int, style: Style, split: Split) -> list[Fact]:
    """As `qa`; beside each fact stands one of what is *near* the person, which is not asked."""
    facts = []
    for fact in _qa(rng, count, style, split):
        words = fact.texts[0].split()
        relation, name = words[1], words[3]
        others = [value for value in _RELATIONS[relation] if value != fact.answer]
        confusing = f"the {relation} near {name} is {rng.choice(others)} ."
        facts.append(Fact(fact.texts, fact.question, fact.answer, (confusing,)))
    return facts


def _two_hop(rng: random.Random, count: int, style: Style, split: Split) -> list[Fact]:
    """A friend, and a property of that friend; the answer names both.

    Nobody is in two facts' parts, and the friend's name is not in the question.
    """
    free = rng.sample(NAMES, len(NAMES))
    facts: list[Fact] = []
    while len(facts) < count:
        if len(free) < 2:  # the split left too few friends for these people: draw again
            return _two_hop(rng, count, style, split)
        name = free.pop()
        friends = _allowed("two_hop", name, free, split)
        known = None
        if friends:
            friend = rng.choice(friends)
            known = _property(rng, friend, split)
        if known is None:
            continue
        free.remove(friend)
        relation, value = known
        second = f"the {relation} of {friend} is {value}"
        question = f"what is the {relation} of the friend of {name}"
        question += f" ? the friend of {name} is" if style == "prose" else " answer :"
        facts.append(
            Fact(
                (f"the friend of {name} is {friend} .", f"{second} ."),
                question,
                f"{friend} , {second}",
            )
        )
    return facts


def _passage_retrieval(rng: random.Random, count: int, style: Style, split: Split) -> list[Fact]:
    words = rng.sample(NOUNS, len(NOUNS))
    free = list(NUMBERS)  # a paragraph number names one paragraph only
    facts: list[Fact] = []
    while len(facts) < count:
        if len(words) < 2:  # the split left too few numbers for these pairs: draw again
            return _passage_retrieval(rng, count, style, split)
        first, second = words.pop(), words.pop()
        values = _allowed("passage_retrieval", f"{first}|{second}", free, split)
        if not values:
            continue
        value = rng.choice(values)
        free.remove(value)
        text = f"the paragraph of the {first} and the {second} is {value} ."
        question = f"which paragraph mentions the {first} and the {second} answer :"
        if style == "prose":
            question = (
                f"which paragraph mentions the {first} ? "
                f"the paragraph of the {first} and the {second} is"
            )
        facts.append(Fact((text,), question, value))
    return facts


def _classification(rng: random.Random, count: int, style: Style, split: Split) -> list[Fact]:
    """Labelled examples; in prose the text to be labelled is an example's in another colour."""
    facts: list[Fact] = []
    for word in rng.sample(NOUNS, len(NOUNS)):
        if len(facts) == count:
            break
        labels = _allowed("classification", word, LABELS, split)
        if not labels:
            continue
        value = rng.choice(labels)
        texts = [f"text : the {word} label :", f"text : the {word} answer label :"]
        if style == "prose":
            texts = [f"text : the {color} {word} label :" for color in rng.sample(COLORS, 2)]
        facts.append(Fact((f"{texts[0]} {value} .",), texts[1], value))
    return facts


_MAKERS: dict[str, Callable[[random.Random, int, Style, Split], list[Fact]]] = {
    "passkey": _passkey,
    "number_string": _number_string,
    "kv_retrieval": _kv_retrieval,
    "qa": _qa,
    "two_hop": _two_hop,
    "passage_retrieval": _passage_retrieval,
    "classification": _classification,
    "confusing_facts": _confusing_facts,
}
KINDS = tuple(_MAKERS)
_MOST = {"kv_retrieval": 100, "classification": 100, "qa": 50, "passage_retrieval": 40}


def max_facts(kind: str) -> int:
    """Facts that one document of this kind can hold."""
    return _MOST.get(kind, 20 if kind == "two_hop" else 40)


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
    return _MAKERS[kind](rng, count, style, split)
