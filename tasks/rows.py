"""The form of a benchmark's rows and prediction files, and checks that the forms share.

Every benchmark folder has a module `form` with one `FORM`: what is read, asked and scored of a
row. What is common to all benchmarks asks `form_of` and knows none of them by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
)

from tasks.schema import Example, Task

Row = Mapping[str, Any]
"""A row of a benchmark, or a line of a prediction file: a JSON object."""


@dataclass(frozen=True)
class RowForm:
    """What a benchmark's rows and prediction files look like."""

    prompt_fields: frozenset[str]
    """The names that a prompt template may use: the keys that `fields` gives."""
    check: Callable[[Row, Task], list[str]]
    """A message for each thing that is wrong with a row of a task; none: it can be used."""
    example_id: Callable[[Row, Task, int], str]
    """Identifier of a row, unique in its task, from the row, else from its line (from 1)."""
    answers: Callable[[Row], list[str]]
    """The gold answers as texts."""
    label: Callable[[Row, Task], Any]
    """The gold with its JSON types."""
    context: Callable[[Row], str]
    """The document; rows with the same one form a cluster."""
    fields: Callable[[Row, Task, str], Mapping[str, Any]]
    """(row, task, protocol): what the prompt template is formatted with."""
    folders: Callable[[Task], list[str]]
    """Folders, below the one that a user names, in which files are named after tasks; that one
    itself need not be among them (`tasks.layouts`)."""
    archives: Callable[[Task], list[str]]
    """Names of zip archives that have the rows."""
    member: Callable[[Task], str]
    """File name, without folder, of the rows inside a zip archive."""
    hub_file: Callable[[Task], str]
    """The file on the hub that holds the rows."""
    gold: Callable[[Row, Task], tuple[Example | None, list[str]]]
    """What a line of a prediction file says besides the prediction, as an example that a metric
    can score against; None with the problems of the line."""
    own_keys: frozenset[str]
    """Keys that only this benchmark's prediction files have: they give a mixed-up file away."""
    own_columns: frozenset[str]
    """Likewise for rows."""
    export: Callable[[Row, Task], dict[str, Any]]
    """(a run's record as a dict, task): one line of a prediction file as the authors write it."""
    export_name: Callable[[Task], str]
    """The name that the authors' scoring script expects of that file."""


@cache
def form_of(benchmark: str) -> RowForm:
    """The form of a benchmark's rows."""
    form: RowForm = importlib.import_module(f"tasks.{benchmark}.form").FORM
    return form


# -- what the forms check alike ------------------------------------------------------------------


def is_text(text: str) -> str:
    """The text, if it can be written as UTF-8; ValueError otherwise."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half a surrogate pair at character {error.start}") from None
    return text


def _is_not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


def answer_text(value: Any) -> Any:
    """A number as its text; anything else, booleans too, as it is."""
    return str(value) if type(value) in (int, float) else value


Text = Annotated[StrictStr, AfterValidator(is_text)]
"""A string that can be written as UTF-8."""
FullText = Annotated[Text, AfterValidator(_is_not_blank)]
"""A `Text` that is not blank."""
Answer = Annotated[Text, BeforeValidator(answer_text)]
"""A `Text`; a number is taken as its text, as the authors' scorer of `passage_count` does."""
Count = Annotated[StrictInt, Field(ge=0, lt=2**63)]
"""A number of words, characters or tokens: no boolean, no text, no 4.0."""


def parse(model: type[BaseModel], row: Row) -> tuple[BaseModel | None, list[str]]:
    """A row as `model`, or a message for each of its problems."""
    try:
        return model.model_validate(row), []
    except ValidationError as error:
        return None, [describe(problem) for problem in error.errors()]


def describe(problem: Any) -> str:
    """One of pydantic's problems in words: the field first, then what is the matter."""
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"field '{field}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"'{field}' {message}"
    return f"'{field}': {message[0].lower()}{message[1:]}"


def foreign_keys(
    row: Row, task: Task, benchmarks: Sequence[str], of: Callable[[RowForm], frozenset[str]]
) -> list[str]:
    """A message if `row` has keys that only another benchmark's rows (or predictions) have."""
    own = of(form_of(task.benchmark))
    for benchmark in benchmarks:
        found = sorted((of(form_of(benchmark)) - own) & row.keys())
        if found:
            return [f"{found[0]!r} is a key of {benchmark}, but {task.benchmark} is being read"]
    return []
