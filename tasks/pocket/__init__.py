"""The pocket suite: small, generated tasks in the row schemas of three benchmarks.

Task names are `pocket_<kind>@<facts>`, with the length where it is not 512 tokens:
`pocket_qa@4` asks about one of four stored facts, `pocket_qa@4_2048` in a prompt of 2,048 tokens.
All evidence stands at least `MIN_DISTANCE` tokens before the question and behind the first `LEAD`
words, so a window of 128 tokens with 4 sinks cannot see it.
"""

from __future__ import annotations

import difflib
import random
import re

from common.errors import InputError
from tasks.pocket.documents import make_document
from tasks.pocket.facts import KINDS
from tasks.pocket.rows import make_row
from tasks.pocket.vocabulary import STOP
from tasks.schema import Example, Task, TaskProtocol, TextCut, document_id_of

#: Kinds of the default tasks: those that the embedded base model answers with full attention. It
#: never learnt to find a friend among several, the first step of `two_hop` (see docs/log.md).
DEFAULT_KINDS = tuple(kind for kind in KINDS if kind != "two_hop")
#: Stored facts of the default tasks, and others that a name may ask for.
FACTS = (1, 4, 16)
ALL_FACTS = (1, 2, 4, 8, 16)
#: Tokens of a prompt with its answer: the default, and all that a name may ask for.
LENGTH = 512
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
#: Longest documents that the embedded base model was trained on.
TRAINED_LENGTH = 2048
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
    "two_hop": "multi-doc QA",
    "passage_retrieval": "synthetic",
    "classification": "few-shot learning",
    "confusing_facts": "factual recall",
}
#: Longest answer and stop, in tokens; one more, so that an answer which does not stop is seen.
_MAX_NEW_TOKENS = {"two_hop": 10}
_NAME = re.compile(r"pocket_([a-z_]+)@([0-9]+)(?:_([0-9]+))?")


def task_names(
    lengths: tuple[int, ...] = (LENGTH,),
    facts: tuple[int, ...] = FACTS,
    kinds: tuple[str, ...] = DEFAULT_KINDS,
) -> list[str]:
    """Pocket tasks by length, then by kind, then by stored facts; the default table's if not told.

    Raises:
        InputError: a kind, number of facts or length that no task has.
    """
    names = []
    for length in lengths:
        for kind in kinds:
            for count in facts:
                names.append(f"pocket_{kind}@{count}" + ("" if length == LENGTH else f"_{length}"))
    problems = [name for name in names if _parts(name) is None]
    if problems:
        raise InputError(*(_unknown(name) for name in problems))
    return names


def _parts(name: str) -> tuple[str, int, int] | None:
    """Kind, stored facts and length of a task name; None for a name that no task has."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    kind, facts, length = match.group(1), int(match.group(2)), int(match.group(3) or LENGTH)
    known = kind in KINDS and facts in ALL_FACTS and length in LENGTHS
    return (kind, facts, length) if known else None


def _unknown(name: str) -> str:
    known = task_names(LENGTHS, ALL_FACTS, KINDS)
    near = difflib.get_close_matches(name, known, 3) or known[:3]
    return (
        f"unknown pocket task {name!r}; did you mean {', '.join(near)}? "
        f"(facts {', '.join(map(str, ALL_FACTS))}; lengths {', '.join(map(str, LENGTHS))})"
    )


def find_task(name: str) -> Task:
    """The pocket task of this name.

    Raises:
        InputError: no such task; the message gives the nearest names.
    """
    parts = _parts(name)
    if parts is None:
        raise InputError(_unknown(name))
    kind, _, length = parts
    protocol = TaskProtocol(
        template=_TEMPLATE,
        max_new_tokens=_MAX_NEW_TOKENS.get(kind, 8),
        chat_template=False,
        truncation="none",
        reserve_generation=False,
        metric="exact_match",
        generation={"do_sample": False, "num_beams": 1},
        seed=0,
        default_max_length=max(TRAINED_LENGTH, length),
        postprocess=(TextCut(keep_before=f" {STOP}", strip=True),),
    )
    return Task(
        name=name,
        benchmark="longbench",
        language="en",
        category=_CATEGORIES[kind],
        citation="AHN-Bench, pocket suite",
        source="tasks/pocket/facts.py",
        protocols={"official": protocol, "ahn": protocol},
    )


def load_examples(task: Task, limit: int | None = None, seed: int = 0) -> list[Example]:
    """The rows of a pocket task, the same ones for the same seed.

    Args:
        task: from `find_task`.
        limit: rows; default 200. A shorter list is the beginning of a longer one.
        seed: of the documents.

    Returns:
        Examples whose rows have the fields of `rows.make_row`; attributes `kind`, `facts`,
        `length` (of the task, in tokens) and `evidence_distance` (words from the end of the
        evidence to the end of the prompt).
    """
    parts = _parts(task.name)
    if parts is None:
        raise InputError(_unknown(task.name))
    kind, facts, length = parts
    wanted = 200 if limit is None else limit
    examples: list[Example] = []
    document_number = 0
    while len(examples) < wanted:
        rng = random.Random(f"pocket-test/{task.name}/{seed}/{document_number}")
        document = make_document(
            rng,
            kind,
            length=length,
            facts=facts,
            questions=min(facts, QUESTIONS),
            split="test",
            min_distance=MIN_DISTANCE,
            lead=LEAD,
        )
        for number, question in enumerate(document.questions):
            row = make_row(
                document, question, task.name, f"{task.name}/{seed}/{document_number}/{number}"
            )
            examples.append(
                Example(
                    example_id=str(row.get("_id") or row["id"]),
                    row=row,
                    answers=list(row.get("answers") or row["answer"]),
                    document_id=document_id_of(document.context),
                    where="generated",
                    attributes={
                        "kind": kind,
                        "facts": facts,
                        "length": length,
                        "evidence_distance": row["evidence"]["distance"],
                    },
                )
            )
        document_number += 1
    return examples[:wanted]
