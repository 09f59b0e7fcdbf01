"""Rows and prediction files of RULER.

Rows: `input` (a document and its question in one text), `outputs`, `answer_prefix`, `length`, as
NVIDIA/RULER c3f5e3b, `scripts/data/synthetic/*.py` writes them, to `<task>/validation.jsonl`.
Prediction files: `scripts/pred/call_api.py` (`pred`, `outputs`, ...), read by
`scripts/eval/evaluate.py` from `<length>/pred/<task>.jsonl`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from tasks.rows import Answer, Count, FullText, Row, Text, parse
from tasks.schema import Example, RowAdapter, Task, scored_example

_QUESTIONS = (
    "\nWhat are all the special magic ",
    "\nWhat is the special magic ",
    "\nQuestion: ",
)
"""How a task's question begins. Its last occurrence ends the document."""


class RulerRow(BaseModel):
    """The row schema; further fields may be there and are kept."""

    model_config = ConfigDict(extra="allow")

    input: FullText
    outputs: Annotated[list[Answer], Field(min_length=1)]
    answer_prefix: Text = ""
    """Missing in files of earlier versions, where `input` ends with it."""
    length: Count | None = None
    """Tokens of prompt and answer."""
    token_position_answer: Count | None = None
    """Of a needle task: tokens before the first answer."""


class RulerGold(BaseModel):
    """What is scored against, in a line of a prediction file or a record of ours."""

    model_config = ConfigDict(extra="ignore")

    outputs: list[Answer]
    length: Count | None = None


def document_of(text: str) -> str:
    """A row's `input` up to the question: the instruction and the document.

    All of it where it does not end with a question as the authors word it.
    """
    place = max(text.rfind(question) for question in _QUESTIONS)
    return text if place < 0 else text[:place]


class RulerAdapter(RowAdapter):
    """The authors' row schema and prediction files."""

    prompt_fields = frozenset({"context", "question", "answer_prefix"})
    own_keys = frozenset({"outputs"})
    own_columns = frozenset({"outputs", "answer_prefix"})
    splits = ("validation", "test")

    def check(self, row: Row, task: Task) -> list[str]:
        """See `RowAdapter.check`; a row that is longer than its task says is refused."""
        parsed, problems = parse(RulerRow, row)
        if isinstance(parsed, RulerRow) and task.length and (parsed.length or 0) > task.length:
            problems = [
                f"'length' is {parsed.length}, more than the {task.length} tokens asked for"
            ]
        return problems

    def example_id(self, row: Row, task: Task, line: int) -> str:
        """Task and line: the rows' `index` is the place of an answer in some tasks."""
        return f"{task.name}:{line}"

    def answers(self, row: Row) -> list[str]:
        """The gold answers as texts."""
        return [str(answer) for answer in row["outputs"]]

    def attributes(self, row: Row, task: Task) -> dict[str, Any]:
        """Length asked for; of a single needle, its distance from the end of the prompt."""
        found = {} if task.length is None else {"length": task.length}
        place, length = row.get("token_position_answer"), row.get("length")
        if place is not None and length is not None and len(row["outputs"]) == 1:
            room = task.protocols["official"].max_new_tokens
            found["evidence_distance"] = length - room - place
        return found

    def context(self, row: Row) -> str:
        """The document, with the instruction before it."""
        return document_of(str(row["input"]))

    def fields(self, row: Row, task: Task, protocol: str) -> Mapping[str, Any]:
        """`input` in two parts, and the answer prefix."""
        context = self.context(row)
        return {
            "context": context,
            "question": row["input"][len(context) :],
            "answer_prefix": row.get("answer_prefix", ""),
        }

    def gold(self, record: Row, task: Task) -> tuple[Example | None, list[str]]:
        """`outputs` of the authors' files, `answers` of ours."""
        key = "outputs" if "outputs" in record else "answers"
        if key not in record:
            return None, ["field 'outputs' (or 'answers') is missing"]
        length = record.get("length")
        own = {"outputs": record[key], "length": None if length == -1 else length}  # -1: not known
        parsed, problems = parse(RulerGold, own)
        if not isinstance(parsed, RulerGold):
            return None, [problem.replace("'outputs", f"'{key}", 1) for problem in problems]
        return scored_example(parsed.outputs, length=parsed.length), []

    def export(self, record: Row, task: Task) -> dict[str, Any]:
        """A line as call_api.py writes it; of `input`, which is only shown, what a record has."""
        number = str(record["example_id"]).rpartition(":")[2]
        length = record.get("length")
        return {
            "index": int(number) - 1 if number.isdecimal() else record["example_id"],
            "pred": record["prediction"] or "",
            "input": record["prompt_tail"],
            "outputs": record["answers"],
            "others": {"id": record["example_id"]},
            "truncation": -1,
            "length": -1 if length is None else length,
        }

    def export_folder(self, task: Task) -> str:
        """The folder of a length, as run.sh names it, and `pred` in it."""
        return "pred" if task.length is None else f"{task.length}/pred"

    def export_name(self, task: Task) -> str:
        """evaluate.py looks for the task's name, without a length."""
        return f"{task.dataset}.jsonl"


ADAPTER = RulerAdapter()
