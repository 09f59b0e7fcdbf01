"""The keys of a row and what is checked of them, for all benchmarks.

A row is a JSON object. `StandardRow` and `Gold` are LongBench's schema of rows and of lines of a
prediction file, which is also that of a benchmark without an adapter of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictInt,
    StrictStr,
    ValidationError,
)

Row = Mapping[str, Any]
"""A row of a benchmark, or a line of a prediction file: a JSON object."""


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


class StandardRow(BaseModel):
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


class ClassificationRow(StandardRow):
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
