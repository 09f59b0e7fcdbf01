"""Conversations that the pocket model and its memories are trained on.

Each conversation is one document with several questions: `messages` of role `user` (the context
and the first question, then the further questions) and `assistant` (the answers), the chat JSONL
that `ahn train` reads.  Conversations of one length follow one another, so that a batch has no
padding to speak of.

The phases are what was found to be needed for a model of this size: key matching emerges in the
fixed format at 32 to 64 tokens, carries over to prose, and is then stretched to longer texts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tasks.pocket.documents import make_document
from tasks.pocket.facts import KINDS, Style, make_facts, max_facts


@dataclass(frozen=True)
class Phase:
    """One file of training conversations.

    Attributes:
        style: question style of every document.
        blocks: `(length in tokens, tokens in all)`, written in this order; where `shuffled`, the
            blocks are cut into batches of `batch_tokens` which are mixed.
        question_shares: part of a document that questions and answers may take; one is drawn a
            batch.
        fact_range: least and most stored facts; None: as many as the length holds, down to a
            quarter of that.
        few_share: part of the documents that hold one to four facts instead.
        unnamed_share: part of the documents of `passkey` and `number_string` with one number, which
            then needs no name.
        weights: how much likelier a kind is drawn than the others (1): those that emerge last
            need more than their share.
        seed: of the whole file.
    """

    style: Style
    blocks: tuple[tuple[int, int], ...]
    question_shares: tuple[float, ...] = (0.3, 0.5, 0.6)
    fact_range: tuple[int, int] | None = None
    few_share: float = 0.0
    unnamed_share: float = 0.3
    shuffled: bool = False
    batch_tokens: int = 4096
    weights: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0


PHASES: dict[str, Phase] = {
    "teacher-a": Phase(
        "fixed",
        ((32, 700_000), (64, 1_600_000)),
        weights={"two_hop": 0.0, "confusing_facts": 0.0},
        seed=1,
    ),
    "teacher-b": Phase(
        "prose",
        ((64, 800_000), (128, 1_100_000), (256, 1_000_000), (512, 1_500_000)),
        weights={"passage_retrieval": 1.5, "qa": 1.5, "number_string": 2.0, "two_hop": 1.5},
        seed=2,
    ),
    "teacher-c": Phase(
        "prose",
        ((256, 300_000), (512, 800_000), (1024, 1_100_000), (2048, 1_000_000)),
        few_share=0.25,
        shuffled=True,
        batch_tokens=8192,
        weights={"number_string": 2.5, "passkey": 1.5, "qa": 1.5, "two_hop": 1.5},
        seed=3,
    ),
    "student": Phase(
        "prose",
        ((256, 1_000_000), (512, 1_600_000)),
        question_shares=(0.2, 0.35, 0.5),
        fact_range=(1, 16),
        few_share=0.15,
        unnamed_share=0.4,
        shuffled=True,
        batch_tokens=2048,
        # the base model does not answer questions of two hops
        weights={"two_hop": 0.0, "passkey": 1.5, "number_string": 1.5, "kv_retrieval": 1.5},
        seed=4,
    ),
    # a little written for each word of filler adds up to more than a fact over 2,048 tokens, and
    # to too little to be unlearnt over 512
    "student-long": Phase(
        "prose",
        ((512, 800_000), (1024, 900_000), (2048, 900_000)),
        question_shares=(0.2, 0.35, 0.5),
        fact_range=(1, 16),
        few_share=0.25,
        unnamed_share=0.4,
        shuffled=True,
        batch_tokens=2048,
        weights={"two_hop": 0.0, "passkey": 1.5, "number_string": 1.5, "kv_retrieval": 1.5},
        seed=5,
    ),
}


def _costs(kind: str, style: Style) -> tuple[int, int]:
    """Most words of one fact, and of one question with its answer and stop."""
    facts = make_facts(random.Random(0), kind, 5, style)
    return (
        max(sum(len(text.split()) for text in (*f.texts, *f.confusing)) for f in facts),
        max(len(f.question.split()) + len(f.answer.split()) + 1 for f in facts),
    )


def _conversation(
    rng: random.Random, kind: str, length: int, phase: Phase, share: float
) -> dict[str, list[dict[str, str]]]:
    fact_cost, question_cost = _costs(kind, phase.style)
    most = max(1, min(max_facts(kind), int((length - 8) * (1 - share) / fact_cost)))
    least = most // 4
    if phase.fact_range is not None:
        least, most = phase.fact_range[0], min(phase.fact_range[1], most)
    if kind in ("passkey", "number_string") and rng.random() < phase.unnamed_share:
        facts = 1
    elif rng.random() < phase.few_share:
        facts = rng.randint(1, min(4, most))
    else:
        facts = rng.randint(max(1, least), most)
    questions = max(1, min(facts, int(length * share / question_cost)))
    while True:
        try:
            document = make_document(
                rng, kind, length=length, facts=facts, questions=questions, style=phase.style
            )
            break
        except ValueError:  # the longest names did not fit: one question, then one fact less
            if questions > 1:
                questions -= 1
            elif facts > 1:
                facts -= 1
            else:
                raise
            questions = min(questions, facts)
    messages = []
    for turn, question in enumerate(document.questions):
        text = f"{document.context} {question.question}" if turn == 0 else question.question
        messages += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": question.answer},
        ]
    return {"messages": messages}


def conversations(name: str, tokens: float = 1.0) -> Iterator[dict[str, list[dict[str, str]]]]:
    """The conversations of one phase, the same ones at every call.

    Args:
        name: key of `PHASES`.
        tokens: share of the phase's tokens to produce, for trials.

    Raises:
        KeyError: unknown phase.
    """
    phase = PHASES[name]
    rng = random.Random(phase.seed)
    batches = [
        length
        for length, total in phase.blocks
        for _ in range(max(1, int(total * tokens) // phase.batch_tokens))
    ]
    if phase.shuffled:
        rng.shuffle(batches)
    weights = [phase.weights.get(kind, 1.0) for kind in KINDS]
    for length in batches:
        share = rng.choice(phase.question_shares)
        for _ in range(max(1, phase.batch_tokens // length)):
            kind = rng.choices(KINDS, weights)[0]
            yield _conversation(rng, kind, length, phase, share)
