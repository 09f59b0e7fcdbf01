"""Which single examples a page shows: a bounded, fair and fixed choice.

A page must stay small whatever the run's size, so it shows a sample. Every task gets its turn.
Within a task three of four places go to examples that went wrong (those with errors first,
then the lowest scores of the column the page is about), the fourth to one that went well, so
that what works can be read too. Nothing is drawn by chance: the same run gives the same page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from markupsafe import escape

from reports.formats import clipped
from reports.leaderboard import Column, TaskKey
from reports.records import ExampleRecord

MOST_EXAMPLES = 160
PROMPT_TAIL_CHARACTERS = 700
PREDICTION_CHARACTERS = 600
ANSWER_CHARACTERS = 300
_MOST_ANSWERS = 4
_MARKUP_BYTES_PER_RECORD = 260  # what the table adds around one variant's row

OUTCOMES = {
    "error": "with an error",
    "differ": "variants differ",
    "zero": "all variants at 0",
    "full": "all variants at 100",
    "same": "all variants at one score between",
}


@dataclass(frozen=True)
class JoinedExample:
    """One example and what each column made of it (None: the column has no record of it)."""

    task: TaskKey
    example_id: str
    records: tuple[ExampleRecord | None, ...]

    @property
    def first(self) -> ExampleRecord:
        """A record to read the prompt and the answers from, one without error if there is."""
        present = [r for r in self.records if r is not None]
        return next((r for r in present if r.error is None), present[0])

    @property
    def prompts_differ(self) -> bool:
        """Whether the variants were given differently ending or differently long prompts."""
        seen = {
            (r.prompt_tail, r.prompt_tokens)
            for r in self.records
            if r is not None and r.error is None
        }
        return len(seen) > 1

    @property
    def outcome(self) -> str:
        """One key of `OUTCOMES`."""
        present = [r for r in self.records if r is not None]
        scores = {r.score for r in present}
        if any(r.error is not None for r in present):
            return "error"
        if len(scores) > 1:
            return "differ"
        return {0.0: "zero", 1.0: "full"}.get(scores.pop() or 0.0, "same")

    @property
    def prompt_tail(self) -> str:
        """The end of the prompt, cut at its start."""
        return clipped(self.first.prompt_tail, PROMPT_TAIL_CHARACTERS, keep="tail")

    @property
    def answers(self) -> list[str]:
        """The reference answers, cut and few."""
        answers = [clipped(a, ANSWER_CHARACTERS) for a in self.first.answers[:_MOST_ANSWERS]]
        left_out = len(self.first.answers) - len(answers)
        return answers + ([f"[… {left_out} more answers]"] if left_out else [])

    def bytes_on_page(self) -> int:
        """About how much of the page this example takes, in bytes."""
        texts = [self.prompt_tail, *self.answers, self.task.task, self.example_id]
        for record in self.records:
            if record is not None:
                texts.append(clipped(record.prediction, PREDICTION_CHARACTERS))
                texts.append(clipped(record.error or "", PREDICTION_CHARACTERS))
        own = sum(len(escape(text).encode()) for text in texts)
        return own + _MARKUP_BYTES_PER_RECORD * (len(self.records) + 2)


def join(columns: Sequence[Column]) -> list[JoinedExample]:
    """All examples of all columns, each once, with the columns' records side by side."""
    found: dict[tuple[TaskKey, str, str], list[ExampleRecord | None]] = {}
    for index, column in enumerate(columns):
        for task, records in column.cells.items():
            for record in records:
                key = (task, record.example_id, record.document_id)
                found.setdefault(key, [None] * len(columns))[index] = record
    return [JoinedExample(task, name, tuple(records)) for (task, name, _), records in found.items()]


def choose(
    examples: Sequence[JoinedExample],
    subject: int,
    most: int = MOST_EXAMPLES,
    most_bytes: int = 10**6,
) -> list[JoinedExample]:
    """At most `most` examples of at most `most_bytes` on the page; see the module's docstring.

    `subject` is the number of the column whose failures come first. The result is ordered by
    task, in the order the tasks came.
    """
    by_task: dict[TaskKey, list[JoinedExample]] = {}
    for example in examples:
        by_task.setdefault(example.task, []).append(example)
    turns = zip_longest(*(_ranked(of_task, subject) for of_task in by_task.values()))
    chosen: list[JoinedExample] = []
    room = most_bytes
    for example in (e for turn in turns for e in turn if e is not None):
        if len(chosen) == most:
            break
        room -= example.bytes_on_page()
        if room < 0:
            break
        chosen.append(example)
    order = {task: i for i, task in enumerate(by_task)}
    return sorted(chosen, key=lambda e: order[e.task])


def _ranked(examples: Sequence[JoinedExample], subject: int) -> Iterator[JoinedExample]:
    """One task's examples: three that went wrong, one that went well, and so on."""

    def badness(example: JoinedExample) -> tuple[bool, float, bool]:
        record = example.records[subject] if subject < len(example.records) else None
        score = record.score if record is not None and record.score is not None else 0.0
        return (example.outcome != "error", score, example.outcome != "differ")

    wrong: list[JoinedExample] = []
    well: list[JoinedExample] = []
    for example in sorted(examples, key=badness):
        no_error, score, _ = badness(example)
        (well if no_error and score == 1 else wrong).append(example)
    for turn in range(max(len(wrong) // 3, len(well)) + 1):
        yield from wrong[3 * turn : 3 * turn + 3]
        yield from well[turn : turn + 1]
