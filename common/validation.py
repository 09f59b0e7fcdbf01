"""pydantic's errors in our words: where, what is wrong, and the name that was meant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from common.errors import InputError
from common.suggestions import did_you_mean

Model = TypeVar("Model", bound=BaseModel)


def messages(
    error: ValidationError,
    known: Callable[[tuple[str, ...]], Collection[str]] = lambda place: (),
    noun: str = "key",
) -> Iterator[tuple[tuple[str, ...], str]]:
    """The place, as keys from the outside in, and a message for each of an error's problems.

    Args:
        error: of a pydantic model.
        known: the names that an unknown one may have meant, by the place where it stands.
        noun: what a name is called: `key`, `field`, `option`.
    """
    for problem in error.errors():
        place = tuple(str(part) for part in problem["loc"])
        kind, message = problem["type"], str(problem["msg"])
        if kind == "extra_forbidden":
            name = place[-1] if place else ""
            yield place, f"there is no such {noun}" + did_you_mean(name, known(place), most=1)
        elif kind == "missing":
            yield place, "is missing"
        elif kind in ("value_error", "assertion_error"):
            yield place, message.partition(", ")[2] or message
        else:
            yield place, f"{message[0].lower()}{message[1:]}, not {_shown(problem['input'])}"


def validated(model: type[Model], content: Any, name: str, noun: str = "key") -> Model:
    """`content` as `model`.

    Args:
        model: with `extra="forbid"` where unknown names are to be refused.
        content: keys and values.
        name: of the file or object, for messages.
        noun: what a name is called.

    Raises:
        InputError: one message per problem: `name: place: what is wrong`.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InputError(
            *(
                ": ".join(part for part in (name, ".".join(place), text) if part)
                for place, text in messages(error, lambda _: model.model_fields, noun)
            )
        ) from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:40]}...{text[-20:]}"
