"""Rows and prediction files of LongBench v2.

Rows: zai-org/LongBench-v2 (THUDM/LongBench-v2 before), `data.json`, one list of all rows. From
THUDM/LongBench 2e00731: how a prompt is filled and a prediction is written, pred.py, `get_pred`;
what scores are averaged over, result.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from tasks.metrics.longbench_v2 import chosen_letter
from tasks.rows import FullText, Row, Text, parse
from tasks.schema import Example, RowAdapter, Task, scored_example

Domain = Literal[
    "Single-Document QA",
    "Multi-Document QA",
    "Long In-context Learning",
    "Long-dialogue History Understanding",
    "Code Repository Understanding",
    "Long Structured Data Understanding",
]
Difficulty = Literal["easy", "hard"]
LengthGroup = Literal["short", "medium", "long"]
Letter = Literal["A", "B", "C", "D"]

DOMAINS: tuple[str, ...] = get_args(Domain)
TASK_OF_DOMAIN = dict(
    zip(
        DOMAINS,
        (
            "single_document_qa",
            "multi_document_qa",
            "in_context_learning",
            "dialogue_history",
            "code_repository",
            "structured_data",
        ),
        strict=True,
    )
)
"""The end of the name of the task that asks only a domain's rows."""
_FILLED = {
    "$DOC$": "context",
    "$Q$": "question",
    "$C_A$": "choice_A",
    "$C_B$": "choice_B",
    "$C_C$": "choice_C",
    "$C_D$": "choice_D",
}
"""Marks in the authors' template, in the order in which they are replaced, and what by."""
_ATTRIBUTES = ("domain", "sub_domain", "difficulty", "length_group")


class LongBenchV2Row(BaseModel):
    """The row schema; further fields may be there and are kept."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    id_: FullText = Field(alias="_id")
    domain: Domain
    sub_domain: Text
    difficulty: Difficulty
    length: LengthGroup
    question: FullText
    choice_A: FullText
    choice_B: FullText
    choice_C: FullText
    choice_D: FullText
    answer: Letter
    context: FullText


class Gold(BaseModel):
    """What is scored against, in a line as the authors' script writes it."""

    model_config = ConfigDict(extra="ignore")

    answer: Letter
    domain: Domain | None = None
    sub_domain: Text | None = None
    difficulty: Difficulty | None = None
    length: LengthGroup | None = None


class RecordGold(BaseModel):
    """What is scored against, in our records."""

    model_config = ConfigDict(extra="ignore")

    answers: list[Letter]
    attributes: dict[str, Any] = {}


class LongBenchV2Adapter(RowAdapter):
    """One file of questions of four choices, which `longbench_v2_all` asks and six tasks share."""

    prompt_fields = frozenset(_FILLED.values())
    own_keys = frozenset({"response", "judge"})
    own_columns = frozenset({"_id", "answer", "choice_A", "choice_B", "choice_C", "choice_D"})
    prediction_keys = ("response", "prediction")  # `pred` is the letter, or null

    def check(self, row: Row, task: Task) -> list[str]:
        """See `RowAdapter.check`."""
        return parse(LongBenchV2Row, row)[1]

    def is_of(self, row: Row, task: Task) -> bool:
        """Whether its domain is the task's; the task of all rows has them all."""
        return _has(task, row["domain"])

    def answers(self, row: Row) -> list[str]:
        """The letter."""
        return [row["answer"]]

    def attributes(self, row: Row, task: Task) -> dict[str, Any]:
        """What result.py sorts scores by, and the domain."""
        return {name: row[name if name in row else "length"] for name in _ATTRIBUTES}

    def fields(self, row: Row, task: Task, protocol: str) -> Mapping[str, Any]:
        """The texts, without white space around them.

        The authors fill one mark after another in the whole prompt: a mark that stands in a text
        which was filled in earlier is replaced, too.
        """
        given = {mark: row[key].strip() for mark, key in _FILLED.items()}
        marks = list(_FILLED)
        found = {}
        for place, mark in enumerate(marks):
            text = given[mark]
            for later in marks[place + 1 :]:
                text = text.replace(later, given[later])
            found[_FILLED[mark]] = text
        return found

    def shared_files(self, task: Task) -> list[str]:
        """The list that the authors publish, or the same as lines."""
        return ["data.json", "data.jsonl", "data.parquet"]

    def hub_file(self, task: Task) -> str:
        """The list that the authors publish."""
        return "data.json"

    def gold(self, record: Row, task: Task) -> tuple[Example | None, list[str]]:
        """A line of results/<model>.jsonl, or a record."""
        if "answers" in record:
            kept, problems = parse(RecordGold, record)
            if not isinstance(kept, RecordGold):
                return None, problems
            return scored_example(kept.answers, attributes=kept.attributes), []
        line, problems = parse(Gold, record)
        if not isinstance(line, Gold):
            return None, problems
        if line.domain is not None and not _has(task, line.domain):
            return None, [f"'domain' is {line.domain!r}, but {task.name!r} is being scored"]
        known = line.model_dump(exclude={"answer"}, exclude_none=True)
        if "length" in known:
            known["length_group"] = known.pop("length")
        return scored_example([line.answer], attributes=known), []

    def export(self, record: Row, task: Task) -> dict[str, Any]:
        """A line as pred.py writes it, without the texts of the row; result.py reads no others."""
        response, (answer,) = (record["prediction"] or "").strip(), record["answers"]
        known = dict(record["attributes"])
        letter = chosen_letter(response)
        return {
            "_id": record["example_id"],
            "domain": known.get("domain"),
            "sub_domain": known.get("sub_domain"),
            "difficulty": known.get("difficulty"),
            "length": known.get("length_group"),
            "answer": answer,
            "response": response,
            "pred": letter,
            "judge": letter == answer,
        }

    def export_path(self, task: Task, model: str, protocol: str) -> str:
        """One file a model, which result.py names the model after."""
        return f"results/{model}{'' if protocol == 'official' else '_no_context'}.jsonl"


def _has(task: Task, domain: str) -> bool:
    wanted = task.name.removeprefix(f"{task.benchmark}_")
    return wanted in ("all", TASK_OF_DOMAIN[domain])


ADAPTER = LongBenchV2Adapter()
