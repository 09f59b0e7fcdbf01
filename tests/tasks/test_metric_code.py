"""A metric's digest follows what it computes, and not how that is written down."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from tasks import metric_code
from tasks.metric_code import metric_sha256
from tasks.metrics import METRICS


def test_every_metric_has_a_digest_of_its_own():
    digests = {name: metric_sha256(name) for name in METRICS}
    assert all(digest is not None and len(digest) == 64 for digest in digests.values())
    assert len(set(digests.values())) == len(METRICS)


@pytest.fixture
def edited(monkeypatch):
    """`edit(module, old, new)`: the digests as if this had been changed in its source."""
    sources: dict[str, str] = {}
    getsource = metric_code.inspect.getsource

    def source(thing: object) -> str:
        if isinstance(thing, ModuleType):
            return sources.get(thing.__name__, getsource(thing))
        return getsource(thing)  # type: ignore[arg-type]

    monkeypatch.setattr(metric_code.inspect, "getsource", source)

    def edit(module: str, old: str, new: str) -> None:
        text = getsource(sys.modules[module])
        assert text.count(old) >= 1
        sources[module] = text.replace(old, new)

    return edit


def test_changed_code_is_another_metric(edited):
    before = metric_sha256("exact_match")
    edited("tasks.metrics.exact_match", 'return float(any(', 'return float(all(')  # fmt: skip
    assert metric_sha256("exact_match") != before


def test_changed_code_that_a_metric_uses_is_another_metric(edited):
    names = ("qa_f1_zh", "lveval_f1_zh", "rouge_l_zh", "qa_f1", "exact_match", "count")
    before = {name: metric_sha256(name) for name in names}
    edited("tasks.metrics.chinese", "cut_all=False))", "cut_all=True))")
    changed = {name for name in names if metric_sha256(name) != before[name]}
    assert changed == {"qa_f1_zh", "lveval_f1_zh", "rouge_l_zh", "qa_f1"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n\nfrom tasks.schema", "\n\n# A word.\nfrom tasks.schema"),
        ('"""1 if the prediction equals', '"""One if the prediction equals'),
        ("    given = ", "\n    given = "),
        ('" ".join(prediction.split())', "(' '.join(prediction.split()))"),
    ],
)
def test_comments_docstrings_and_layout_do_not_count(edited, old, new):
    before = metric_sha256("exact_match")
    edited("tasks.metrics.exact_match", old, new)
    assert metric_sha256("exact_match") == before


class OtherTextCut:
    """Cleans in another way."""


def test_how_a_prediction_is_cleaned_is_part_of_every_metric(monkeypatch):
    before = metric_sha256("count")
    monkeypatch.setattr(metric_code, "TextCut", OtherTextCut)
    assert metric_sha256("count") != before


def test_without_source_there_is_no_digest(monkeypatch):
    def none(thing: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr(metric_code.inspect, "getsource", none)
    assert metric_sha256("count") is None
