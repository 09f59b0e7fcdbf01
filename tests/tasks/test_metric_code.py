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


BEFORE = {
    "classification": "346737bacc2f53f5",
    "code_similarity": "e3feab74c666284f",
    "code_similarity_levenshtein": "79937359171450b0",
    "count": "1b17c6dc673b521e",
    "exact_match": "920bf6cc3b5cd2d6",
    "infinitebench_character_f1": "12392f60746e2d2c",
    "infinitebench_choice": "a80108701ad91a68",
    "infinitebench_code_debug": "78da3b01f31711c7",
    "infinitebench_code_debug_letter": "b7f138298d987e75",
    "infinitebench_code_run": "5cb948fe50b6e886",
    "infinitebench_dialogue": "d1dfaf7377c89378",
    "infinitebench_dialogue_any": "c7caa018d98331d8",
    "infinitebench_first_number": "ea245859ef522dc6",
    "infinitebench_kv_retrieval": "4ffdaa2404bb3537",
    "infinitebench_math_calc": "bd67d835e5bd1af0",
    "infinitebench_math_calc_gpt4": "e740bc32f6724bb1",
    "infinitebench_math_find": "6bf99f00689d47d8",
    "infinitebench_rouge_lsum": "4e78c17d7cb3185f",
    "lveval_f1": "5d5f852032865c04",
    "lveval_f1_zh": "b624af288e1aec13",
    "lveval_keyword_f1": "724c39d87dd29e86",
    "lveval_keyword_f1_zh": "0044390a67920edf",
    "lveval_rouge_l_zh": "c2ee879760b95086",
    "qa_f1": "72dfb233829f4de7",
    "qa_f1_zh": "885ddb68df45b9be",
    "retrieval": "75a71d49c9be27ca",
    "retrieval_zh": "d323e81366bf7057",
    "rouge_l": "254e9904015a4850",
    "rouge_l_zh": "ea4d0203901c9ffc",
}
"""First digits of each digest as the code before metrics could be registered gave them. A changed
one is another metric: runs that were begun with it are not continued."""


SINCE = {
    "longbench_v2_choice": "7a62e0349fdbb0ee",
    "longbench_v2_choice_compensated": "22c992e3386f2a91",
    "scbench_all_of": "01e61e9272d871f6",
    "scbench_any_of": "166b021918a4fbc3",
    "scbench_any_of_texts": "9f23257a61c24cfb",
    "scbench_characters": "fbbda601de68aeb8",
    "scbench_function": "92666213cc0a66ec",
    "scbench_function_or_key": "482550f11e5bf710",
    "scbench_key": "660db1565591fde3",
    "scbench_number": "eced802b0c5cc1eb",
    "scbench_summary_passkey": "cd922741ad34a274",
    "string_match_all": "65aa7e2d2154567b",
    "string_match_part": "ca4f8ad37c1849b7",
}
"""The metrics that came later, by the digest they came with."""


def test_digests_are_those_of_runs_that_were_begun_before():
    assert {name: (metric_sha256(name) or "")[:16] for name in METRICS} == BEFORE | SINCE


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
