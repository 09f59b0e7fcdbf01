"""Rows and prediction files of LV-Eval.

Rows: Infinigence/LVEval, one zip a data set with `<task>/<task>_<level>.jsonl`. Prediction files:
infinigence/LVEval 63e7ae9, prediction.py, read by evaluation.py.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictStr

from common.errors import InputError
from tasks.rows import Answer, Count, FullText, Row, RowForm, Text, answer_text, parse
from tasks.schema import Example, Task, scored_example


class LVEvalRow(BaseModel):
    """The row schema; further fields (`confusing_facts`, ...) may be there and are kept."""

    model_config = ConfigDict(extra="allow")

    context: FullText
    input: FullText
    answers: Annotated[list[Answer], Field(min_length=1)]
    """Only the first is scored against."""
    answer_keywords: Text | None = None
    """What a prediction must mention to score at all; factrecall, cmrc and dureader have none."""
    length: Count | None = None
    """Words (English) or characters (Chinese)."""
    dataset: StrictStr | None = None
    language: StrictStr | None = None


class Gold(BaseModel):
    """What is scored against, in a line of a prediction file."""

    model_config = ConfigDict(extra="ignore")

    answers: list[Answer]
    """None: the score is 0."""
    gold_ans: StrictStr | None = None
    """The row's `answer_keywords`."""
    length: Count | None = None


def check(row: Row, task: Task) -> list[str]:
    """See `RowForm.check`."""
    problems = parse(LVEvalRow, row)[1]
    if problems:
        return problems
    dataset = row.get("dataset")
    if dataset is not None and _is_another(dataset, "_id" in row, task):
        return [f"'dataset' is {dataset!r}: a row of another task than {task.name!r}"]
    return []


def _is_another(name: str, has_id: bool, task: Task) -> bool:
    """Whether a row's data set is another of LV-Eval's, the same at another level, or LongBench's.

    A name that is none of LV-Eval's may be that of what a row was mixed from; but LongBench's rows,
    from which some were, have an identifier, and LV-Eval's have none.
    """
    from tasks.registry import find_task

    try:
        meant = find_task(task.benchmark, name.replace("-", "_"))
    except InputError:
        return has_id
    return meant.dataset != task.dataset or meant.level not in (None, task.level)


def example_id(row: Row, task: Task, line: int) -> str:
    """The line: rows have no number of their own."""
    return f"{task.name}:{line}"


def answers(row: Row) -> list[str]:
    """See `RowForm.answers`."""
    return [answer_text(answer) for answer in row["answers"]]


def gold(record: Row, task: Task) -> tuple[Example | None, list[str]]:
    """See `RowForm.gold`. Without `gold_ans` there are no key words, as where it is null."""
    parsed, problems = parse(Gold, record)
    if not isinstance(parsed, Gold):
        return None, problems
    return scored_example(parsed.answers, answer_keywords=parsed.gold_ans, length=parsed.length), []


def export(record: Row, task: Task) -> dict[str, Any]:
    """A line of prediction.py's."""
    return {
        "pred": record["prediction"],
        "answers": record["answers"],
        "gold_ans": record.get("gold_ans"),
        "all_classes": None,
        "length": record.get("length"),
    }


FORM = RowForm(
    prompt_fields=frozenset({"context", "input"}),
    check=check,
    example_id=example_id,
    answers=answers,
    label=lambda row, task: answers(row),
    context=lambda row: str(row["context"]),
    fields=lambda row, task, protocol: row,
    folders=lambda task: [task.dataset, "data", f"data/{task.dataset}"],
    archives=lambda task: [f"{task.dataset}.zip"],
    member=lambda task: f"{task.name}.jsonl",
    hub_file=lambda task: f"{task.dataset}.zip",
    gold=gold,
    own_keys=frozenset({"gold_ans"}),
    own_columns=frozenset({"answer_keywords", "confusing_facts"}),
    export=export,
    export_name=lambda task: f"{task.name}.jsonl",
)
