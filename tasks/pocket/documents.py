"""Pocket documents: facts among filler sentences, and questions about them, at any length."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tasks.pocket.facts import Fact, Split, Style, make_facts
from tasks.pocket.vocabulary import FILLERS, STOP

_HEADERS = {
    "passkey": "find the pass key :",
    "number_string": "find the number string :",
    "kv_retrieval": "data pairs :",
    "qa": "read the story :",
    "two_hop": "read the story :",
    "passage_retrieval": "read the passage :",
    "classification": "examples :",
    "confusing_facts": "read the story :",
}
_FILLERS = [sentence.split() for sentence in FILLERS]


@dataclass(frozen=True)
class Question:
    """A question about a document.

    Attributes:
        question: the text that asks.
        answer: with its stop.
        evidence: start and end (exclusive) of each sentence that answers it, in reading order, as
            word positions in the document, which are token positions less the `<bos>` that the
            tokenizer puts first.
        confusing: sentences of the document that resemble the evidence.
    """

    question: str
    answer: str
    evidence: tuple[tuple[int, int], ...]
    confusing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """A context of words, and the questions that may be asked about it."""

    kind: str
    context: str
    questions: list[Question]
    facts: int


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

    The sentences of the facts stand in random order at random places among filler sentences; each
    asked fact is asked once.

    Args:
        rng: source of all randomness.
        kind: one of `facts.KINDS`.
        length: tokens of `<bos>`, context, questions, answers and stops together.
        facts: number of stored facts.
        questions: number of questions (at most `facts`).
        style: `prose` or `fixed` (see `tasks.pocket.facts`).
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


def _fill(rng: random.Random, least: int) -> list[list[str]]:
    """Filler sentences of `least` words or a few more."""
    sentences: list[list[str]] = []
    words = 0
    while words < least:
        sentences.append(rng.choice(_FILLERS))
        words += len(sentences[-1])
    return sentences


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
    # (fact, sentence), None for a sentence that is no evidence
    texts: list[tuple[int | None, list[str]]] = []
    for number, fact in enumerate(stored):
        texts += [(number, text.split()) for text in fact.texts]
        texts += [(None, text.split()) for text in fact.confusing]
    rng.shuffle(texts)
    questions = min(questions, len(stored))
    # the longest questions must fit, whichever facts will be asked
    costs = sorted(
        (len(f.question.split()) + len(f.answer.split()) + 1 for f in stored), reverse=True
    )
    first, last = _fill(rng, lead - len(header)), _fill(rng, min_distance)
    used = 1 + len(header) + sum(len(sentence) for sentence in first + last)
    room = length - used - sum(len(text) for _, text in texts) - sum(costs[:questions])
    if room < 0:
        return None
    middle: list[list[str]] = []
    while len(sentence := rng.choice(_FILLERS)) <= room:
        middle.append(sentence)
        room -= len(sentence)
    # every text gets a place of its own choice among the filler
    places = sorted(rng.randint(0, len(middle)) for _ in texts)
    words = [*header, *(word for sentence in first for word in sentence)]
    spans: dict[int, list[tuple[int, int]]] = {}
    done = 0
    for place, (owner, text) in zip(places, texts, strict=True):
        words += [word for sentence in middle[done:place] for word in sentence]
        done = place
        if owner is not None:
            spans.setdefault(owner, []).append((len(words), len(words) + len(text)))
        words += text
    words += [word for sentence in middle[done:] + last for word in sentence]
    asked = rng.sample(range(len(stored)), questions)
    return Document(
        kind=kind,
        context=" ".join(words),
        questions=[
            Question(
                stored[number].question,
                f"{stored[number].answer} {STOP}",
                tuple(spans[number]),
                stored[number].confusing,
            )
            for number in asked
        ],
        facts=len(stored),
    )
