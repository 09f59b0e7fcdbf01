"""Rows and prediction files of InfiniteBench.

Rows: xinrongzhang2022/InfiniteBench, `<task>.jsonl`. From OpenBMB/InfiniteBench 88b3daa: prompt
fields and labels, src/eval_utils.py, `create_prompt` and `get_answer`; prediction files (`id`,
`prediction`, `ground_truth`), src/eval_yarn_mistral.py. Those of the AHN evaluation have
LongBench's schema.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
)
from pydantic import ValidationError as Invalid

from tasks.rows import Answer, FullText, Row, Text, is_text, parse
from tasks.schema import Example, RowAdapter, Task, scored_example

CHOICE_TASKS = frozenset({"code_debug", "longbook_choice_eng"})
NUMBER_TASKS = frozenset({"code_run", "math_find"})
LETTERS = "ABCD"
_CALL = re.compile(r"func_[0-9]+\(\-?[0-9]+\)")
_TARGET = re.compile("The .+ of")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


def _is_identifier(value: Any) -> Any:
    if isinstance(value, str):
        return is_text(value)
    if type(value) is not int:
        raise ValueError("must be a text or a whole number")
    return value


class InfiniteBenchRow(BaseModel):
    """The row schema; further fields may be there and are kept."""

    model_config = ConfigDict(extra="allow")

    id: Annotated[Any, AfterValidator(_is_identifier)] = None
    """A text or a whole number, where the row has one."""
    context: FullText
    input: Text
    """May be empty: some tasks ask the same of every document."""
    answer: Any
    """By task, see `_ANSWERS`; files of 2023 have a bare value where today's have a list of one."""
    options: list[Text] = []


_Values = Annotated[list[StrictInt], Field(min_length=1)]
_Number = StrictInt | StrictFloat | Annotated[StrictStr, Field(pattern=rf"^{_NUMBER.pattern}$")]
_ANSWERS: Mapping[str, TypeAdapter[Any]] = {
    "text": TypeAdapter(Text | Annotated[list[Text], Field(min_length=1)]),
    "number": TypeAdapter(_Number | Annotated[list[_Number], Field(min_length=1, max_length=1)]),
    "values": TypeAdapter(_Values | Annotated[list[_Values], Field(min_length=1, max_length=1)]),
}
_ANSWER_KINDS = {
    "text": "a text, or a list of texts",
    "number": "a number, or a list of one",
    "values": "a list of integers, or a list of one such list",
}


def _answer_kind(task: Task) -> str:
    if task.name == "math_calc":
        return "values"
    return "number" if task.name in NUMBER_TASKS else "text"


def _fits(value: Any, kind: TypeAdapter[Any]) -> bool:
    try:
        kind.validate_python(value)
    except Invalid:
        return False
    return True


def _check_choice(row: Row) -> list[str]:
    options, answer = row.get("options") or [], _listed(row["answer"])
    if len(options) != len(LETTERS):
        return [f"'options' has {len(options)} entries, not 4"]
    if len(answer) == 1 and answer[0] not in options:
        return [f"'answer' {answer[0]!r} is none of the options"]
    if len(answer) > 2 or (len(answer) == 2 and answer[1] not in list(LETTERS)):
        return ["'answer' should be an option, or an option and its letter"]
    return []


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _texts(gold: Any) -> list[str]:
    entries = _listed(gold)
    if any(not isinstance(entry, str) for entry in entries) and len(entries) > 1:
        return []
    return [str(entry) for entry in entries if not isinstance(entry, list)]


def _as_number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return float(value) if "." in value else int(value)


class Gold(BaseModel):
    """What is scored against, in our records and in files of LongBench's schema."""

    model_config = ConfigDict(extra="ignore")

    answers: list[Answer]
    label: Any = None


def _not_gold(value: Any) -> str | None:
    """What in a gold value is neither text nor number, in the words of JSON; None: nothing.

    A boolean would equal 0 or 1.
    """
    if isinstance(value, list):
        return next((odd for odd in map(_not_gold, value) if odd), None)
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return None if isinstance(value, str | int | float) else "an object"


class InfiniteBenchAdapter(RowAdapter):
    """The authors' row schema, and the fields that their prompts are made of."""

    prompt_fields = frozenset(
        {"context", "input", "question", "func", "func_call", "prefix"}
        | {f"OPTION_{letter}" for letter in LETTERS}
    )
    own_keys = frozenset({"ground_truth"})
    own_columns = frozenset({"answer", "options"})

    def check(self, row: Row, task: Task) -> list[str]:
        """See `RowAdapter.check`."""
        problems = parse(InfiniteBenchRow, row)[1]
        kind = _answer_kind(task)
        if "answer" in row and not _fits(row["answer"], _ANSWERS[kind]):
            problems.append(f"'answer' should be {_ANSWER_KINDS[kind]}")
        if problems:
            return problems
        if task.name in CHOICE_TASKS:
            return _check_choice(row)
        if task.name == "code_run" and not _CALL.search(row["input"]):
            return ["'input' names no call such as func_1(2)"]
        if task.name == "math_find" and not _TARGET.search(row["input"]):
            return ["'input' asks for no 'The ... of' the list"]
        return []

    def example_id(self, row: Row, task: Task, line: int) -> str:
        """The row's number and 6 digits of a hash of its question and document.

        The number alone may come again in a file that was put together from several.
        """
        if row.get("id") is None:
            return f"{task.name}:{line}"
        text = f"{row['input']}\n{row['context']}".encode("utf-8", "surrogatepass")
        return f"{row['id']}-{hashlib.sha1(text).hexdigest()[:6]}"

    def answers(self, row: Row) -> list[str]:
        """The gold answers as texts; none for running values, which are no text of an answer."""
        return _texts(row["answer"])

    def label(self, row: Row, task: Task) -> Any:
        """What the authors' scorer is given: `get_answer`, with three repairs of today's files.

        A choice is [option, letter]. The value of a key is a text, since the scorer does not unwrap
        a list; numbers that `datasets` made texts are numbers again.
        """
        gold = _listed(row["answer"])
        if task.name in CHOICE_TASKS and len(gold) == 1:
            return [gold[0], LETTERS[row["options"].index(gold[0])]]
        if task.name == "kv_retrieval" and len(gold) == 1:
            return gold[0]
        if task.name in NUMBER_TASKS:
            return [_as_number(entry) for entry in gold]
        return gold

    def fields(self, row: Row, task: Task, protocol: str) -> Mapping[str, Any]:
        """What `create_prompt` gives to a template; of a row that has been checked."""
        question = row["input"]
        found: dict[str, Any] = {"context": row["context"], "input": question, "question": question}
        for letter, option in zip(LETTERS, row.get("options") or (), strict=False):
            found[f"OPTION_{letter}"] = option
        if task.name == "code_run" and (call := _CALL.search(question)):
            found["func_call"] = call[0]
            found["func"] = call[0].split("(")[0]
        if task.name == "math_find" and (target := _TARGET.search(question)):
            found["prefix"] = f"What is {target[0].lower()[:-3]} in the following list?"
        return found

    def gold(self, record: Row, task: Task) -> tuple[Example | None, list[str]]:
        """`ground_truth` is taken as it is, list or bare value."""
        model = record.get("model")
        if "ground_truth" in record:
            value = record["ground_truth"]
            if value is None or isinstance(value, Mapping):
                what = "null" if value is None else "an object"
                return None, [f"'ground_truth' should be a text, a number or a list, is {what}"]
            if odd := _not_gold(value):
                return None, [f"'ground_truth' holds {odd}, and no text or number"]
            return scored_example(_texts(value), label=value, model=model), []
        if "answers" not in record:
            return None, ["field 'ground_truth' (or 'answers') is missing"]
        parsed, problems = parse(Gold, record)
        if not isinstance(parsed, Gold):
            return None, problems
        if parsed.label is not None and (odd := _not_gold(parsed.label)):
            return None, [f"'label' holds {odd}, and no text or number"]
        return scored_example(parsed.answers, label=parsed.label, model=model), []

    def export(self, record: Row, task: Task) -> dict[str, Any]:
        """A line as eval_yarn_mistral.py writes it; one that failed has an empty prediction."""
        number = str(record["example_id"]).split("-")[0]
        label = record.get("label")
        return {
            "id": int(number) if number.isdecimal() else record["example_id"],
            "prediction": record["prediction"] or "",
            "ground_truth": record["answers"] if label is None else label,
        }

    def export_folder(self, task: Task) -> str:
        """See `RowAdapter.export_folder`."""
        return "results"

    def export_name(self, task: Task) -> str:
        """The name that compute_scores.py looks for."""
        return f"preds_{task.name}.jsonl"


ADAPTER = InfiniteBenchAdapter()
