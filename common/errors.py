"""The error for what a user gave."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used; the text says what and where.

    Takes one message per problem, so that all of them are reported at once; `problems` holds
    them, and `str()` is one line for each.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: tuple[str, ...] = problems

    def __reduce__(self) -> tuple[type[InputError], tuple[str, ...]]:
        return type(self), self.problems  # keeps `problems` across process borders
