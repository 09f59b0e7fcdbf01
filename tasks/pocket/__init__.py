"""The pocket suite: small, generated tasks in LongBench's row schema, for any machine.

Task names are `pocket_<kind>@<facts>`: `pocket_qa@4` asks about one of four stored facts.  All
evidence stands at least `MIN_DISTANCE` tokens before the question and behind the first `LEAD`
words, so a window of 128 tokens with 4 sinks cannot see it.
"""

from __future__ import annotations

import difflib
import random
import re

from tasks.pocket.documents import KINDS, make_document
from tasks.pocket.vocabulary import STOP
from tasks.schema import Example, InputError, Task, TaskProtocol, TextCut, document_id_of

FACTS = (1, 4, 16)
#: Tokens of a prompt with its answer.
LENGTH = 512
#: Least distance in tokens from the end of the evidence to the end of the context.
MIN_DISTANCE = 160
#: Words before the first fact.
LEAD = 10
#: Questions a document is asked, each of them a row of its own.
QUESTIONS = 2

#: Text begins with a space: each word of the pocket tokenizer carries the one before it.
_TEMPLATE = " {context} {input}"
_CATEGORIES = {
    "passkey": "synthetic",
    "number_string": "synthetic",
    "kv_retrieval": "synthetic",
    "qa": "single-doc QA",
    "passage_retrieval": "synthetic",
    "label": "few-shot learning",
}
_NAME = re.compile(r"^pocket_(\w+)@(\d+)$")


def task_names() -> list[str]:
    """All pocket tasks, by kind, then by stored facts."""
    return [f"pocket_{kind}@{facts}" for kind in KINDS for facts in FACTS]


def find_task(name: str) -> Task:
    """The pocket task of this name.

    Raises:
        InputError: no such task; the message gives the nearest names.
    """
    if name not in task_names():
        near = difflib.get_close_matches(name, task_names(), 3) or task_names()[:3]
        raise InputError(f"unknown pocket task {name!r}; did you mean {', '.join(near)}?")
    kind = name.removeprefix("pocket_").split("@")[0]
    protocol = TaskProtocol(
        template=_TEMPLATE,
        max_new_tokens=8,
        chat_template=False,
        truncation="none",
        reserve_generation=False,
        metric="exact_match",
        generation={"do_sample": False, "num_beams": 1},
        seed=0,
        default_max_length=2048,
        postprocess=(TextCut(keep_before=f" {STOP}", strip=True),),
    )
    return Task(
        name=name,
        benchmark="longbench",
        language="en",
        category=_CATEGORIES[kind],
        citation="AHN-Bench, pocket suite",
        source="tasks/pocket/documents.py",
        protocols={"official": protocol, "ahn": protocol},
    )


def load_examples(task: Task, limit: int | None = None, seed: int = 0) -> list[Example]:
    """The rows of a pocket task, the same ones for the same seed.

    Args:
        task: from `find_task`.
        limit: rows; default 200. A shorter list is the beginning of a longer one.
        seed: of the documents.

    Returns:
        Examples whose rows have LongBench's fields, and `facts` and `evidence` (start and end of
        the fact in words of the context, and its distance to the end of the prompt in tokens).
    """
    match = _NAME.match(task.name)
    if match is None:
        raise InputError(f"{task.name!r} is not a pocket task")
    kind, facts = match.group(1), int(match.group(2))
    wanted = 200 if limit is None else limit
    examples: list[Example] = []
    document_number = 0
    while len(examples) < wanted:
        rng = random.Random(f"pocket-test/{task.name}/{seed}/{document_number}")
        document = make_document(
            rng,
            kind,
            length=LENGTH,
            facts=facts,
            questions=min(facts, QUESTIONS),
            split="test",
            min_distance=MIN_DISTANCE,
            lead=LEAD,
        )
        for number, question in enumerate(document.questions):
            answer = question.answer.removesuffix(f" {STOP}")
            words = len(document.context.split()) + len(question.question.split())
            evidence = {
                "start": question.evidence_start,
                "end": question.evidence_end,
                "distance": words - question.evidence_end,
            }
            row = {
                "input": question.question,
                "context": document.context,
                "answers": [answer],
                "length": words,
                "dataset": task.name,
                "language": "en",
                "all_classes": None,
                "_id": f"{task.name}/{seed}/{document_number}/{number}",
                "facts": facts,
                "evidence": evidence,
            }
            examples.append(
                Example(
                    example_id=str(row["_id"]),
                    row=row,
                    answers=[answer],
                    document_id=document_id_of(document.context),
                    where="generated",
                    attributes={"facts": facts, "evidence_distance": evidence["distance"]},
                )
            )
        document_number += 1
    return examples[:wanted]
