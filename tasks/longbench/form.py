"""Rows and prediction files of LongBench and, but for the file names, of LongBench-E.

Rows: THUDM/LongBench, `data.zip`. Prediction files: THUDM/LongBench 2e00731, LongBench/pred.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictStr

from tasks.rows import Answer, Count, FullText, Row, RowForm, Text, answer_text, parse
from tasks.schema import Example, Task, scored_example


class LongBenchRow(BaseModel):
    """The row schema; further fields may be there and are kept."""

    model_config = ConfigDict(extra="allow")

    context: FullText
    input: Text
    """May be empty: some tasks ask the same of every document."""
    answers: Annotated[list[Answer], Field(min_length=1)]
    id_: Text | None = Field(default=None, alias="_id")
    all_classes: list[Text] | None = None
    length: Count | None = None
    """Words (English, code) or characters (Chinese) of the row."""
    dataset: StrictStr | None = None
    language: StrictStr | None = None


class ClassificationRow(LongBenchRow):
    """A row of a task whose answers are classes."""

    all_classes: Annotated[list[Text], Field(min_length=1)]


class Gold(BaseModel):
    """What is scored against, in a line of a prediction file."""

    model_config = ConfigDict(extra="ignore")

    answers: list[Answer]
    """None: the score is 0, as in the authors' script."""
    all_classes: list[StrictStr] | None = None
    length: Count | None = None


class ClassificationGold(Gold):
    """Of a classification task: the classes must be said, or null."""

    all_classes: list[StrictStr] | None


def is_classification(task: Task) -> bool:
    """Whether answers are classes that the row lists."""
    return any(protocol.metric == "classification" for protocol in task.protocols.values())


def check(row: Row, task: Task) -> list[str]:
    """See `RowForm.check`."""
    form = ClassificationRow if is_classification(task) else LongBenchRow
    problems = parse(form, row)[1]
    dataset = row.get("dataset")
    if not problems and dataset not in (None, task.name, task.dataset):
        return [f"'dataset' is {dataset!r}: a row of another task than {task.name!r}"]
    return problems


def example_id(row: Row, task: Task, line: int) -> str:
    """See `RowForm.example_id`."""
    return str(row.get("_id") or f"{task.name}:{line}")


def answers(row: Row) -> list[str]:
    """See `RowForm.answers`."""
    return [answer_text(answer) for answer in row["answers"]]


def context(row: Row) -> str:
    """See `RowForm.context`."""
    return str(row["context"])


def fields(row: Row, task: Task, protocol: str) -> Mapping[str, Any]:
    """The row itself: a template names its fields."""
    return row


def gold(record: Row, task: Task) -> tuple[Example | None, list[str]]:
    """See `RowForm.gold`."""
    parsed, problems = parse(ClassificationGold if is_classification(task) else Gold, record)
    if not isinstance(parsed, Gold):
        return None, problems
    return scored_example(parsed.answers, parsed.all_classes, length=parsed.length), []


def export(record: Row, task: Task) -> dict[str, Any]:
    """A line of pred.py's."""
    return {
        "pred": record["prediction"],
        "answers": record["answers"],
        "all_classes": record.get("all_classes"),
        "length": record.get("length"),
    }


FORM = RowForm(
    prompt_fields=frozenset({"context", "input"}),
    check=check,
    example_id=example_id,
    answers=answers,
    label=lambda row, task: answers(row),
    context=context,
    fields=fields,
    folders=lambda task: ["data"],
    archives=lambda task: ["data.zip"],
    member=lambda task: f"{task.name}.jsonl",
    hub_file=lambda task: "data.zip",
    gold=gold,
    own_keys=frozenset(),
    own_columns=frozenset({"_id"}),
    export=export,
    export_name=lambda task: f"{task.dataset or task.name}.jsonl",
)
