"""Tests of transformers that cannot pass here, each with its reason.

`refused`: our model raises, and says why: it would otherwise compute something else than was asked.
`not applicable`: the test is about something that this model has not.

The list is strict: what is listed must fail with the message that is named, and every failure must
be listed (`verdict`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = ("refused", "not applicable")


@dataclass(frozen=True)
class Expected:
    """One test, or several, that fail for one reason.

    Attributes:
        tests: regular expression for the whole name.
        kind: one of `KINDS`.
        error: regular expression that is found in `Type: message` of what is raised.
        reason: for the reader.
        classes: regular expression for the whole name of the test class.
    """

    tests: str
    kind: str
    error: str
    reason: str
    classes: str = ".*"


EXPECTED: tuple[Expected, ...] = ()


def listed(test: str, owner: str) -> Expected | None:
    """What is expected of a test of a class; None: that it passes or skips itself."""
    for expected in EXPECTED:
        if re.fullmatch(expected.tests, test) and re.fullmatch(expected.classes, owner):
            return expected
    return None


def verdict(expected: Expected, outcome: str, errors: Sequence[str]) -> str | None:
    """What is wrong with a listed test that ended so; None: it failed as it should.

    Args:
        expected: its entry.
        outcome: `passed`, `skipped` or `failed`.
        errors: `Type: message` of what it, or each of its subtests, raised.
    """
    if outcome != "failed":
        return f"listed as {expected.kind}, but {outcome}: take it off the list"
    others = [error for error in errors if not re.search(expected.error, error)]
    if others or not errors:
        raised = "; ".join(others) or "nothing"
        return f"listed as {expected.kind} with {expected.error!r}, but it raised {raised}"
    return None
