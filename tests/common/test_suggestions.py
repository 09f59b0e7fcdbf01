"""Did you mean ...?"""

from __future__ import annotations

import pytest

from common.suggestions import did_you_mean, nearest

KNOWN = ["hotpotqa", "hotpotqa_e", "GatedDeltaNet", "cmrc_mixup_16k"]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("hotpotqs", ["hotpotqa", "hotpotqa_e"]),
        ("gateddeltanet", ["GatedDeltaNet"]),
        ("cmrc-mixup@16k", ["cmrc_mixup_16k"]),
        ("zzz", []),
        ("", []),
    ],
)
def test_the_nearest_names_come_first_whatever_their_case_and_dashes(
    name: str, found: list[str]
) -> None:
    assert nearest(name, KNOWN) == found


def test_it_is_said_in_words_or_not_at_all() -> None:
    assert did_you_mean("hotpotqs", KNOWN) == "; did you mean 'hotpotqa' or 'hotpotqa_e'?"
    assert did_you_mean("hotpotqs", KNOWN, most=1) == "; did you mean 'hotpotqa'?"
    assert did_you_mean("zzz", KNOWN) == ""
