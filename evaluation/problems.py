"""How bad input is reported: every problem at once, one line each, before anything is started."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from common.files import too_long

_WING_MODULES = ("ahn.config", "common.errors", "reports.records")


class InputError(ValueError):
    """What was asked cannot be done. `problems` holds one complete message per problem."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def input_error_types() -> tuple[type[ValueError], ...]:
    """The `InputError` of this package and of each wing that is loaded already.

    A wing's error can only have been raised by a wing that is in `sys.modules`, so none is
    imported for this: `run_eval score` must not pay for torch in order to report an error.
    """
    types: list[type[ValueError]] = [InputError]
    for name in _WING_MODULES:
        module = sys.modules.get(name)
        error = getattr(module, "InputError", None)
        if error is not None:
            types.append(error)
    return tuple(types)


def messages(error: ValueError) -> list[str]:
    """One message per problem: an `InputError` of a wing may hold several, one per line."""
    problems = getattr(error, "problems", None)
    if problems:
        return [str(problem) for problem in problems]
    return [line for line in str(error).splitlines() if line.strip()]


def collect(problems: list[str], step: Callable[[], Any]) -> Any:
    """The result of `step`; None, and its messages in `problems`, if the input was bad."""
    try:
        return step()
    except ValueError as error:
        if not isinstance(error, input_error_types()):
            raise
        problems += [m for m in messages(error) if m not in problems]
        return None
    except OSError as error:
        told = too_long(error)
        if told is None:
            raise
        problems += [told] if told not in problems else []
        return None
