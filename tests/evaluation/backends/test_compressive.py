"""`--variant compressive`: its options, sizes, costs and identity, and a run with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ahn
from ahn.config import LayerLayout
from ahn.cost import layout_bytes
from common.errors import InputError
from evaluation.backends.base import RunSettings
from evaluation.backends.requests import parse_request, whole
from evaluation.backends.streaming import StreamingBackend, kept_tokens, make_variant
from tests.evaluation.conftest import SINKS, WINDOW, records_of

RUN = RunSettings(model="pocket", window=128, sinks=4, dtype="float32", device="cpu")
SLOT = 2 * 4 * 64 * 4 * 3  # bytes of a slot of the pocket model, of all its layers


def made(text: str = "compressive", **changes: Any) -> StreamingBackend:
    return make_variant(parse_request(text), replace(RUN, **changes, _made={}))


def layout(backend: StreamingBackend, *given: Any) -> LayerLayout:
    (found,) = set(backend.layouts(*(given or (480, None))))
    return found


def test_the_papers_numbers_are_what_is_not_said() -> None:
    backend = made()
    assert layout(backend) == LayerLayout(128, 4, rate=4, slots=32, pooling="mean")
    assert backend.name == "compressive" and not backend.sizable
    other = made("compressive:pooling=max,rate=2,slots=9,window=16,sinks=1")
    assert layout(other) == LayerLayout(16, 1, rate=2, slots=9, pooling="max")
    assert other.name == "compressive-poolingmax-rate2-slots9-window16-sinks1"
    assert made("compressive:name=ct,pooling=max").name == "ct"


def test_every_option_is_part_of_the_identity_and_the_description() -> None:
    texts = [
        "compressive", "compressive:pooling=max", "compressive:rate=3", "compressive:slots=31",
        "compressive:window=127", "compressive:sinks=3",
    ]  # fmt: skip
    identities = [dict(made(text).identity()) for text in texts]
    assert len({json.dumps(identity, sort_keys=True) for identity in identities}) == len(texts)
    pooled = {"rate": 4, "pooling": "mean", "slots": 32}
    for found in (identities[0], made().describe()):
        assert {name: found[name] for name in pooled} == pooled and found["cell"] is None
    # what does not pool says nothing of it: folders of older runs stay theirs
    assert not pooled.keys() & make_variant(parse_request("window"), RUN).identity().keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("compressive:rate=0", "--variant compressive:rate=0: rate must be at least 1"),
        ("compressive:rate=2000000", "rate must be at most 1,000,000"),
        ("compressive:slots=0", "slots must be at least 1"),
        ("compressive:slots=4k", "slots: '4k' is not a whole number"),
        ("compressive:slots=1.5", "slots: '1.5' is not a whole number"),
        ("compressive:pooling=median", "pooling 'median' is unknown; one of mean, max"),
        ("compressive:pool=max", "did you mean 'pooling'"),
        ("compressive:window=0", "--window: must be at least 1"),
        ("compressive:weights=a", "has no option 'weights'"),
        ("window:rate=4", "window has no option 'rate'"),
    ],
)
def test_what_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        made(text)
    assert said in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        made("compressive:rate=0,slots=0,pooling=none")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("budget", [1_020_288, 3_000_000, 235_000])
@pytest.mark.parametrize("tokens", [300, 480, 5000])
def test_a_budget_chooses_the_window_or_the_slots(budget: int, tokens: int) -> None:
    shape = made().checkpoint.shape
    sized = {
        "window": made(budget="x"),
        "slots": made("compressive:window=16", budget="x"),
        "wide": made("compressive:slots=3,rate=2", budget="x"),
    }
    for name, backend in sized.items():
        assert backend.sizable and backend.document_bytes(tokens) is None
        if name == "window" and budget == 235_000:
            with pytest.raises(InputError, match="32 pooled slots and a window of one"):
                backend.kept(tokens, budget)
            continue
        found = layout(backend, tokens, budget)
        held = layout_bytes(shape, [found] * 3, tokens, dtype_bytes=4).total
        most = layout_bytes(shape, [LayerLayout()] * 3, tokens, dtype_bytes=4).total
        assert held <= budget
        if budget < tokens * SLOT and (name != "slots" or found.slots < found.groups(tokens)):
            assert held > budget - SLOT
        if budget > most:
            assert found.lossless(tokens) == tokens or name == "slots"
        kept = 4 + found.window + (tokens - 4 - found.window) % found.rate  # type: ignore[operator]
        assert backend.kept(tokens, budget) == min(tokens, kept)
        cost = backend.cost(tokens + 20, 5, tokens, budget)
        after = layout_bytes(shape, [found] * 3, tokens + 24, dtype_bytes=4).total
        assert cost.cache_bytes == after
    assert not made("compressive:window=16,slots=3", budget="x").sizable


def test_what_a_budget_chooses_is_not_part_of_the_identity() -> None:
    assert made(budget="x").identity()["window"] is None
    assert made(budget="x").identity()["slots"] == 32
    other = made("compressive:window=16", budget="x").identity()
    assert other["window"] == 16 and other["slots"] is None
    assert made(window=None, sinks=None, budget="x").checkpoint.settings.window == 1


def test_a_short_text_has_the_papers_slots_where_they_cost_nothing() -> None:
    backend = made("compressive:window=128", budget="x")
    assert layout(backend, 100, 135 * SLOT).slots == 32
    assert layout(backend, 500, 150 * SLOT).slots == 150 - 4 - 128 - 3


def test_kept_tokens_are_those_that_are_seen_as_they_are() -> None:
    layouts = [LayerLayout(8, 2, rate=4, slots=3), LayerLayout(8, 2), LayerLayout()]
    assert kept_tokens(33, layouts) == (2 + 8 + 3 + 10 + 33) / 3
    assert kept_tokens(9, layouts) == 9


def test_whole_numbers() -> None:
    assert (whole("12"), whole("-3")) == (12, -3)
    for text in ("", "4k", "1.0", "9" * 20, "\u0664"):
        with pytest.raises(ValueError, match="not a whole number"):
            whole(text)


@pytest.mark.slow
def test_a_run_compares_both_poolings_and_measures_what_arithmetic_says(
    run_eval: Any, tiny: Path, data: Path, tmp_path: Path
) -> None:
    arguments = [
        "longbench", "--model", tiny, "--data", data, "--tasks", "hotpotqa", "--limit", 2,
        "--max-length", 200, "--no-report", "--dtype", "float32", "--device", "cpu",
        "--window", WINDOW, "--sinks", SINKS,
    ]  # fmt: skip
    variants = ["window", "compressive", "compressive:pooling=max,rate=2,name=ct-max"]
    chosen = [part for variant in variants for part in ("--variant", variant)]
    result = run_eval(*arguments, *chosen, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    found = records_of(tmp_path / "run")
    assert {record["variant"] for record in found} == {"window", "compressive", "ct-max"}
    for record in found:
        assert record["prompt_tokens"] > SINKS + WINDOW
        assert record["cache_bytes_measured"] == record["cache_bytes_analytic"]
    models = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["models"]
    assert models["ct-max"]["layout"][0] == {
        "window": WINDOW, "sinks": SINKS, "cell": None, "rate": 2, "slots": 8, "pooling": "max",
    }  # fmt: skip
    refused = run_eval(*arguments, "--variant", "compressive:rate=0", "--output", tmp_path / "no")
    assert refused.exit_code == 2 and "rate must be at least 1" in refused.stderr
    assert not (tmp_path / "no").exists()
    again = [part for variant in variants[:2] for part in ("--variant", variant)]
    other = run_eval(
        *arguments, *again, "--variant", "compressive:pooling=max,rate=3,name=ct-max",
        "--output", tmp_path / "run",
    )  # fmt: skip
    assert other.exit_code == 2 and "variants.ct-max.rate 2 there, 3 here" in other.stderr


@pytest.mark.slow
def test_a_run_sizes_it_to_what_a_memory_holds(
    run_eval: Any, tiny: Path, memory: Path, data: Path, tmp_path: Path
) -> None:
    result = run_eval(
        "longbench", "--model", tiny, "--ahn", memory, "--data", data, "--tasks", "hotpotqa",
        "--limit", 2, "--no-report", "--dtype", "float32", "--device", "cpu",
        "--variant", "ahn", "--variant", "compressive:slots=4",
        "--variant", f"compressive:window={WINDOW},name=slots",
        "--budget", "ahn", "--output", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = records_of(tmp_path / "run")
    slot = 2 * 2 * 8 * 4 * 2
    for record in found:
        assert (
            0 <= record["budget_bytes"] - record["document_bytes"] < slot
            if (record["variant"] != "ahn")
            else True
        )
        assert record["cache_bytes_measured"] == record["cache_bytes_analytic"]
    assert ahn.VARIANTS[-1] == "compressive"
