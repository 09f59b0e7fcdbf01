"""Generated rows of the pocket tasks, the same ones for the same task, seed and length."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

from tasks.pocket.documents import make_document
from tasks.pocket.rows import make_row

ROWS = 200
"""Rows of a task without a limit."""
MIN_DISTANCE = 160
"""Least distance in tokens from the end of the evidence to the end of the context."""
LEAD = 10
"""Words before the first fact."""
QUESTIONS = 2
"""Questions that a document is asked, each of them a row of its own."""

_NAME = re.compile(r"pocket_([a-z_]+)@([0-9]+)(?:_[0-9]+)?")


def row_count(task_name: str, limit: int | None) -> int:
    """How many rows `generate` gives."""
    return ROWS if limit is None else limit


def generate(
    task_name: str, length: int, limit: int | None = None, seed: int = 0
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows of a task; a shorter list is the beginning of a longer one.

    Args:
        task_name: `pocket_<kind>@<stored facts>`, with the length behind it where it is another.
        length: of the document with its questions and answers, in tokens.
        limit: rows; None: `ROWS`.
        seed: of the documents.

    Yields:
        A row with the fields of `rows.make_row`, and what is known of it: `kind`, `facts`, `length`
        (in tokens) and `evidence_distance` (words from the end of the evidence to the end of the
        prompt).
    """
    match = _NAME.fullmatch(task_name)
    assert match is not None
    kind, facts = match[1], int(match[2])
    for index in range(row_count(task_name, limit)):
        number, asked = divmod(index, min(facts, QUESTIONS))
        if asked == 0:
            document = make_document(
                random.Random(f"pocket-test/{task_name}/{seed}/{number}"),
                kind,
                length=length,
                facts=facts,
                questions=min(facts, QUESTIONS),
                split="test",
                min_distance=MIN_DISTANCE,
                lead=LEAD,
            )
        row_id = f"{task_name}/{seed}/{number}/{asked}"
        row = make_row(document, document.questions[asked], task_name, row_id)
        yield (
            row,
            {
                "kind": kind,
                "facts": facts,
                "length": length,
                "evidence_distance": row["evidence"]["distance"],
            },
        )
