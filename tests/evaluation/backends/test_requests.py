"""`--variant KIND[:key=value,...]`, from text to options."""

from __future__ import annotations

import pytest

from common.errors import InputError
from evaluation.backends.requests import join_options, parse_request, tokens
from evaluation.plan.configuration import RunConfiguration
from evaluation.plan.variants import variant_requests


@pytest.mark.parametrize(
    ("text", "kind", "options", "name"),
    [
        ("full", "full", {}, "full"),
        ("window:window=64", "window", {"window": "64"}, "window-window64"),
        ("window:window=64,sinks=4,name=w", "window", {"window": "64", "sinks": "4"}, "w"),
        ("server:url=http://a/b?c=d", "server", {"url": "http://a/b?c=d"}, None),
        ("x: a = 1 ", "x", {"a": "1"}, "x-a1"),
        ("kvpress:SnapKV", "kvpress", {"press": "SnapKV"}, "kvpress-SnapKV"),
        ("kvpress:cur,keep=9", "kvpress", {"press": "cur", "keep": "9"}, "kvpress-cur-keep9"),
        ("kvpress:snapkv,name=s", "kvpress", {"press": "snapkv"}, "s"),
        ("kvpress:press=snapkv", "kvpress", {"press": "snapkv"}, "kvpress-snapkv"),
    ],
)
def test_a_text_is_taken_apart(text, kind, options, name):
    found = parse_request(text)
    assert (found.kind, dict(found.options)) == (kind, options)
    if name:
        assert found.name == name
    else:
        assert not set("/:?,") & set(found.name), "it is the name of a folder"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x:", "no options after the colon"),
        ("x:a", "'a' is not key=value"),
        ("x:a=", "'a=' is not key=value"),
        ("x:=1", "'=1' is not key=value"),
        ("x:a=1,,b=2", "'' is not key=value"),
        ("x:a=1,a=2", "a is given twice"),
        ("kvpress:a,b", "'b' is not key=value"),
        ("kvpress:keep=9,snapkv", "'snapkv' is not key=value"),
        ("kvpress:snapkv,press=knorm", "press is given twice"),
        ("kvpress:,keep=1", "'' is not key=value"),
        ("x:name=../up", "name: '../up'"),
        ("x:name=.hidden", "name: '.hidden'"),
    ],
)
def test_what_cannot_be_read_is_refused(text, said):
    with pytest.raises(InputError) as caught:
        parse_request(text)
    assert said in str(caught.value) and text in str(caught.value)


def test_a_request_says_what_was_asked_for():
    text = "kvpress:snapkv,window_size=32,keep=64"
    assert str(parse_request(text)) == text
    assert str(parse_request("kvpress:keep=64,press=snapkv")) == "kvpress:snapkv,keep=64"
    assert parse_request(str(parse_request(text))) == parse_request(text)


def test_options_survive_lists_that_are_cut_at_commas():
    given = ["full,window:window=64,sinks=4,name=w", "window:window=8,sinks=4", "full"]
    assert RunConfiguration(variants=given).variants == [
        "full", "window:window=64,sinks=4,name=w", "window:window=8,sinks=4",
    ]  # fmt: skip
    assert join_options(["a=1", "full", "b=2"]) == ["a=1", "full", "b=2"], "no kind before them"


@pytest.mark.parametrize(
    ("text", "number"), [("64", 64), ("64k", 65536), ("1M", 1 << 20), ("-3", -3)]
)
def test_numbers_of_tokens(text, number):
    assert tokens(text) == number


@pytest.mark.parametrize("text", ["", "4.5", "1e3", "k", "64 k", "9" * 20, "\u0664"])
def test_what_is_no_number_of_tokens(text):
    with pytest.raises(ValueError, match="not a number of tokens"):
        tokens(text)


def test_options_are_read_by_kind_and_all_problems_told():
    request = parse_request("window:window=4k,sinks=x,windw=3")
    with pytest.raises(InputError) as caught:
        request.take(window=tokens, sinks=tokens)
    assert len(caught.value.problems) == 2
    assert "did you mean 'window'" in str(caught.value) and "sinks: 'x'" in str(caught.value)
    assert parse_request("window:window=4k").take(window=tokens) == {"window": 4096}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("full", ["full"]),
        ("ahn", ["ahn-a", "ahn-b"]),
        ("ahn-b", ["ahn-b"]),
        ("no-write-a", ["no-write-a"]),
        ("ahn:window=8,name=x", ["x-a", "x-b"]),
        ("ahn:weights=b,name=x", ["x"]),
    ],
)
def test_a_kind_with_a_memory_stands_for_each_of_several_weights(text, names):
    requests = variant_requests(text, ["a", "b"])
    assert [request.name for request in requests] == names
    weights = [request.options.get("weights") for request in requests]
    assert weights == [None if name == "full" else name[-1].replace("x", "b") for name in names]


def test_an_unknown_kind_is_told_what_there_is():
    with pytest.raises(InputError, match="known: full, window, ahn-a, ahn-b, no-write-a") as caught:
        variant_requests("ahn-c", ["a", "b"])
    assert "did you mean 'ahn-" in str(caught.value)
