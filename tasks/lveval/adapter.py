"""Rows and prediction files of LV-Eval.

Rows: Infinigence/LVEval, one zip a data set with `<task>/<task>_<level>.jsonl`. Prediction files:
infinigence/LVEval 63e7ae9, prediction.py, read by evaluation.py.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictStr

from tasks.rows import Answer, Count, FullText, Row, Text, parse
from tasks.schema import Example, RowAdapter, Task, scored_example


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


class LVEvalAdapter(RowAdapter):
    """What differs from the standard rows."""

    own_keys = frozenset({"gold_ans"})
    own_columns = frozenset({"answer_keywords", "confusing_facts"})

    def check(self, row: Row, task: Task) -> list[str]:
        """The question must be there: every task has one for each row."""
        return parse(LVEvalRow, row)[1]

    def allows_unknown_dataset(self, row: Row) -> bool:
        """The name may be that of what a row was mixed from, unless it is a row of LongBench.

        LongBench's rows, from which some were, have an identifier, and LV-Eval's have none.
        """
        return "_id" not in row

    def example_id(self, row: Row, task: Task, line: int) -> str:
        """The line: rows have no number of their own."""
        return f"{task.name}:{line}"

    def folders(self, task: Task) -> list[str]:
        """The archive of each data set has a folder."""
        return [task.dataset, "data", f"data/{task.dataset}"]

    def archives(self, task: Task) -> list[str]:
        """One for each data set, with all its levels."""
        return [f"{task.dataset}.zip"]

    def hub_file(self, task: Task) -> str:
        """The same on the hub."""
        return f"{task.dataset}.zip"

    def gold(self, record: Row, task: Task) -> tuple[Example | None, list[str]]:
        """Without `gold_ans` there are no key words, as where it is null."""
        parsed, problems = parse(Gold, record)
        if not isinstance(parsed, Gold):
            return None, problems
        words = parsed.gold_ans
        return scored_example(parsed.answers, answer_keywords=words, length=parsed.length), []

    def export(self, record: Row, task: Task) -> dict[str, Any]:
        """A line of prediction.py's."""
        return {
            "pred": record["prediction"],
            "answers": record["answers"],
            "gold_ans": record.get("gold_ans"),
            "all_classes": None,
            "length": record.get("length"),
        }

    def export_folder(self, task: Task) -> str:
        """See `RowAdapter.export_folder`."""
        return "outputs"


ADAPTER = LVEvalAdapter()
