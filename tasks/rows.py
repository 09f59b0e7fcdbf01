"""What a benchmark's row must hold to be asked and scored."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictStr, ValidationError

from tasks.schema import Task


def _is_text(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half a surrogate pair at character {error.start}") from None
    return text


def _is_not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return text


Text = Annotated[StrictStr, AfterValidator(_is_text)]
FullText = Annotated[Text, AfterValidator(_is_not_blank)]


class Row(BaseModel):
    """The LongBench row schema; further fields may be there and are kept."""

    model_config = ConfigDict(extra="allow")

    context: FullText
    input: Text
    """May be empty: some tasks ask the same of every document."""
    answers: Annotated[list[Text], Field(min_length=1)]
    id_: StrictStr | None = Field(default=None, alias="_id")
    all_classes: list[Text] | None = None
    length: int | None = None
    """Words (English, code) or characters (Chinese) of the row."""
    dataset: StrictStr | None = None
    language: StrictStr | None = None


class ClassificationRow(Row):
    """A row of a task whose answers are classes."""

    all_classes: Annotated[list[Text], Field(min_length=1)]


def check_row(row: dict[str, Any], task: Task) -> list[str]:
    """A message for each thing that is wrong with a row of `task`; none: it can be used."""
    try:
        checked = _model(task).model_validate(row)
    except ValidationError as error:
        return [describe(problem) for problem in error.errors()]
    if checked.dataset is not None and checked.dataset != task.name:
        return [f"'dataset' is {checked.dataset!r}: a row of another task than {task.name!r}"]
    return []


def _model(task: Task) -> type[Row]:
    needs_classes = any(p.metric == "classification" for p in task.protocols.values())
    return ClassificationRow if needs_classes else Row


def describe(problem: Any) -> str:
    """One of pydantic's problems in words: the field first, then what is the matter."""
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"field '{field}' is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"'{field}' {message}"
    return f"'{field}': {message[0].lower()}{message[1:]}"
