"""Problems of several steps, collected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common.errors import InputError, problems_of


def collect(problems: list[str], step: Callable[[], Any]) -> Any:
    """The result of `step`; None, and its messages in `problems`, if the input was bad."""
    try:
        return step()
    except (InputError, OSError) as error:
        told = problems_of(error)
        if told is None:
            raise
        problems += [message for message in told if message not in problems]
        return None
