"""JSON that `json.loads` would read in silence is refused; what is whole is read alike."""

import json

import pytest

from common import json as strict


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": 1, "a": 1}', "key 'a' is given twice"),
        ('[{"b": {"a": 1, "c": 2, "a": 3}}]', "key 'a' is given twice"),
        ('{"a": 1, "\\u0061": 2}', "key 'a' is given twice"),
        ("NaN", "NaN is no number"),
        ('{"a": [Infinity]}', "Infinity is no number"),
        ("-Infinity", "-Infinity is no number"),
        ("1e999", "1e999 is out of range"),
        pytest.param("-1" + "0" * 400 + ".0", "is out of range", id="400 digits"),
        pytest.param("1" * 5000, "4300 digits", id="5000 digits"),
    ],
)
def test_what_would_be_misread_is_an_error(text, told):
    with pytest.raises(ValueError, match=told) as caught:
        strict.loads(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1,
        -2.5,
        1e-300,
        10**30,
        "NaN",
        [],
        {},
        {"a": [{"a": 1}, {"a": 2}], "b": {"a": 3}},
    ],
)
def test_the_rest_is_read_as_by_the_standard_library(value):
    assert strict.loads(json.dumps(value)) == value
    assert type(strict.loads(json.dumps(value))) is type(value)


def test_what_is_no_json_is_told_as_by_the_standard_library():
    with pytest.raises(json.JSONDecodeError):
        strict.loads("{")
