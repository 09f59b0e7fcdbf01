"""Names of `ahn.ops` that come when they are first used."""

from __future__ import annotations

import pytest

import ahn.ops
from ahn.ops import selector


def test_names_are_those_of_their_modules() -> None:
    assert ahn.ops.BACKENDS is selector.BACKENDS
    assert ahn.ops.asked is selector.asked and ahn.ops.check is selector.check
    assert ahn.ops.recurrence.__module__ == "ahn.ops.dispatch"


def test_another_name_is_refused_by_name() -> None:
    with pytest.raises(AttributeError, match=r"^module 'ahn\.ops' has no attribute 'chek'$"):
        _ = ahn.ops.chek
