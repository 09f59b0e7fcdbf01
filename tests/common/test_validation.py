"""pydantic's errors in our words."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from common.errors import InputError
from common.validation import validated


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = Field(gt=0)


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    window: int = Field(ge=1)
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None

    @field_validator("window")
    @classmethod
    def _even(cls, window: int) -> int:
        if window % 2:
            raise ValueError("must be even")
        return window


def test_what_is_right_comes_back() -> None:
    assert validated(Settings, {"window": 4}, "x.yaml") == Settings(window=4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, ["x.yaml: window: is missing"]),
        ({"window": 3}, ["x.yaml: window: must be even"]),
        (
            {"window": 4, "windw": 3},
            ["x.yaml: windw: there is no such key; did you mean 'window'?"],
        ),
        ({"window": 0, "kind": "c"}, ["x.yaml: window: input should be greater", "not 'c'"]),
        ({"window": 4, "inner": {"size": "big"}}, ["x.yaml: inner.size: ", "not 'big'"]),
        ("text", ["x.yaml: input should be", "not 'text'"]),
    ],
)
def test_each_problem_names_the_file_the_place_and_what_was_given(
    content: object, said: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        validated(Settings, content, "x.yaml")
    for part in said:
        assert part in str(caught.value)


def test_a_long_value_is_shortened() -> None:
    with pytest.raises(InputError) as caught:
        validated(Settings, {"window": "9" * 5000 + "x"}, "x.yaml")
    assert len(str(caught.value)) < 300
