"""The error for what a user gave, and how several of them are collected.

A function that finds something wrong raises one `InputError` with all it found. A caller that wants
to go on looking runs it in `Problems.collecting()`, and raises everything at the end.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_LONGEST_SHOWN = 200


def shown(path: str | os.PathLike[str]) -> str:
    """A path as a message shows it: the middle of a very long one is left out."""
    text = os.fspath(path)
    if len(text) <= _LONGEST_SHOWN:
        return text
    half = _LONGEST_SHOWN // 2
    return f"{text[:half]}...{text[-half:]} ({len(text):,} characters)"


class InputError(ValueError):
    """Something the user gave cannot be used; the text says what, where, and what to do.

    Takes one message per problem, so that all of them are reported at once.

    Attributes:
        problems: the messages; `str()` is one line for each.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: tuple[str, ...] = problems

    def __reduce__(self) -> tuple[type[InputError], tuple[str, ...]]:
        return type(self), self.problems  # keeps `problems` across process borders

    def prefixed(self, prefix: str) -> InputError:
        """The same problems, each with `prefix` before it."""
        return type(self)(*(f"{prefix}{problem}" for problem in self.problems))


def problems_of(error: BaseException) -> tuple[str, ...] | None:
    """One message per problem where an error is bad input, as too long a path is; else None."""
    if isinstance(error, InputError):
        return error.problems
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        name = shown(str(error.filename)) if error.filename else "a path"
        return (f"{name}: there can be no file of so long a name",)
    return None


class Problems:
    """What is wrong so far, each message once.

    problems = Problems()
    with problems.collecting():
        tasks = resolve_tasks(names)  # raises InputError
    problems.add("--window: ...")
    problems.check()                  # raises one InputError if there is anything
    """

    def __init__(self, found: Iterable[str] = ()) -> None:
        self._found: dict[str, None] = dict.fromkeys(found)

    def add(self, *messages: str) -> None:
        """Add messages that are not there yet."""
        self._found |= dict.fromkeys(messages)

    @contextmanager
    def collecting(self, prefix: str = "") -> Iterator[None]:
        """Keep the problems of an `InputError` raised in the block, which ends there."""
        try:
            yield
        except (InputError, OSError) as error:
            found = problems_of(error)
            if found is None:
                raise
            self.add(*(f"{prefix}{problem}" for problem in found))

    def check(self) -> None:
        """Raise what was collected.

        Raises:
            InputError: anything was.
        """
        if self._found:
            raise InputError(*self._found)

    def __bool__(self) -> bool:
        return bool(self._found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
