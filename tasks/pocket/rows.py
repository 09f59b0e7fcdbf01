"""Pocket rows: a question about a document, in the row schema of a benchmark."""

from __future__ import annotations

from typing import Any

from tasks.pocket.documents import Document, Question
from tasks.pocket.vocabulary import LABELS, STOP

#: The benchmark whose rows a kind's rows look like.
SHAPES = {
    "passkey": "infinitebench",
    "number_string": "infinitebench",
    "kv_retrieval": "infinitebench",
    "qa": "longbench",
    "two_hop": "longbench",
    "passage_retrieval": "longbench",
    "classification": "longbench",
    "confusing_facts": "lveval",
}


def make_row(document: Document, question: Question, name: str, row_id: str) -> dict[str, Any]:
    """The published fields of a row, and what only a generator knows of it.

    LongBench: `input`, `context`, `answers`, `length` (words), `dataset`, `language`,
    `all_classes`, `_id`. LV-Eval: the same, `answer_keywords` and `confusing_facts`.
    InfiniteBench: `id`, `context`, `input`, `answer`, `options`.

    In every row `facts`, and `evidence`: `spans`, start and end (exclusive) of each sentence that
    answers the question, in words of the context; `start` of the first and `end` of the last;
    `distance`, words from that end to the end of the prompt.
    """
    answer = question.answer.removesuffix(f" {STOP}")
    words = len(document.context.split()) + len(question.question.split())
    shape = SHAPES[document.kind]
    row: dict[str, Any]
    if shape == "infinitebench":
        row = {
            "id": row_id,
            "context": document.context,
            "input": question.question,
            "answer": [answer],
            "options": [],
        }
    else:
        row = {
            "input": question.question,
            "context": document.context,
            "answers": [answer],
            "length": words,
            "dataset": name,
            "language": "en",
            "all_classes": list(LABELS) if document.kind == "classification" else None,
            "_id": row_id,
        }
    if shape == "lveval":
        row["answer_keywords"] = answer
        row["confusing_facts"] = list(question.confusing)
    start, end = question.evidence[0][0], question.evidence[-1][1]
    evidence = {
        "spans": [list(span) for span in question.evidence],
        "start": start,
        "end": end,
        "distance": words - end,
    }
    return {**row, "facts": document.facts, "evidence": evidence}
