"""Costs: shares formed in two ways, whole prefills, quartiles, by length."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reports.compare import shares_by_length, summary_rows
from reports.costs import by_length, cost_of, reused_tokens
from reports.frames import leaderboard
from reports.leaderboard import columns_of
from reports.page import render
from reports.records import ExampleRecord
from reports.run_folders import read_run

MakeRun = Callable[..., Path]
MakeRecord = Callable[..., ExampleRecord]


def long_and_short(make_run: MakeRun, **changes: Any) -> Path:
    """Nine examples of 1,000 tokens and one of 91,000; the window keeps 500."""

    def record(variant: str, task: str, i: int) -> dict[str, Any]:
        tokens = 91_000 if i == 9 else 1_000
        size = tokens if variant == "full" else 500
        return {
            "prompt_tokens": tokens,
            "cache_bytes_measured": size,
            "cache_bytes_analytic": size,
            "flops": size * 10,
            **changes,
        }

    scores = {variant: {"qa": [1.0] * 10} for variant in ("full", "window")}
    return make_run("run", scores, record=record)


def test_shares_are_given_in_all_and_per_example(make_run: MakeRun) -> None:
    rows = summary_rows(columns_of([read_run(long_and_short(make_run))]))
    cache = rows[1].cost.amounts["cache_bytes_measured"]
    assert cache.mean == 500
    assert cache.of_total == pytest.approx(500 / 10_000)
    assert cache.of_each == pytest.approx((9 * 0.5 + 500 / 91_000) / 10)
    assert rows[0].cost.amounts["flops"].of_each == rows[0].cost.amounts["flops"].of_total == 1


def test_shares_are_given_by_length(make_run: MakeRun) -> None:
    run = read_run(long_and_short(make_run))
    found = shares_by_length(summary_rows(columns_of([run])))
    assert [(row.prompts, row.examples) for row in found] == [("512–1k", 9), ("64k–128k", 1)]
    assert [row.shares[1]["cache_bytes_measured"] for row in found] == pytest.approx(
        [0.5, 500 / 91_000]
    )
    text = " ".join(render([run]).split())
    assert "Share of full attention by length" in text
    assert "45.1 %<br>5.0 % in all" in text


def test_one_length_needs_no_table(make_run: MakeRun) -> None:
    text = render([read_run(long_and_short(make_run, prompt_tokens=700))])
    assert "Share of full attention by length" not in text


def test_shares_are_over_the_examples_of_which_both_have_the_figure(
    make_record: MakeRecord,
) -> None:
    pairs = [
        (make_record(cache_bytes_measured=10), make_record(cache_bytes_measured=100)),
        (make_record(cache_bytes_measured=50), make_record(cache_bytes_measured=None)),
        (make_record(cache_bytes_measured=90), None),
        (make_record(cache_bytes_measured=5), make_record(cache_bytes_measured=0)),
    ]
    amount = cost_of(pairs).amounts["cache_bytes_measured"]
    assert (amount.of_each, amount.of_total) == (0.1, 0.1)
    assert amount.mean == (10 + 50 + 90 + 5) / 4
    nothing = cost_of([]).amounts["cache_bytes_measured"]
    assert (nothing.mean, nothing.of_each, nothing.of_total) == (None, None, None)
    assert by_length([[], []], ["flops"]) == []


def test_prefills_that_reused_a_prefix_are_counted_apart(make_record: MakeRecord) -> None:
    whole = [
        (make_record(prefill_seconds=s, prompt_tokens=100, reused_prefix_tokens=0), None)
        for s in (1.0, 2.0, 3.0, 10.0)
    ]
    partly = [(make_record(prefill_seconds=0.01, prompt_tokens=100, reused_prefix_tokens=60), None)]
    cost = cost_of(whole + partly * 4)
    times = cost.times["prefill_seconds"]
    assert (times.lower, times.median, times.upper, times.examples) == (1.75, 2.5, 4.75, 4)
    assert (cost.reuse.whole, cost.reuse.partly, cost.reuse.unknown) == (4, 4, 0)
    assert cost.reuse.share == pytest.approx(240 / 800)
    assert cost.times["decode_seconds"].examples == 8


def test_times_are_related_to_whole_prefills_of_the_same_examples(
    make_record: MakeRecord,
) -> None:
    def timed(seconds: float, reused: int) -> ExampleRecord:
        return make_record(prefill_seconds=seconds, reused_prefix_tokens=reused)

    pairs = [(timed(1.0, 0), timed(2.0, 0)), (timed(1.0, 0), timed(0.1, 400))]
    assert cost_of(pairs).times["prefill_seconds"].of_each == 0.5
    assert cost_of(pairs, timed_in_one_run=False).times["prefill_seconds"].of_each is None
    one = cost_of(pairs[:1]).times["prefill_seconds"]
    assert one.lower == one.median == one.upper == 1.0


def test_what_was_not_recorded_is_unknown_and_not_whole(make_run: MakeRun) -> None:
    folder = make_run(
        scores={"full": {"qa": [1.0] * 3}},
        record=lambda v, t, i: {"prefill_seconds": 1.0 + i, "reused_prefix_tokens": 0},
    )
    file = folder / "full" / "qa.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines[:2]:  # as an earlier version, or another program, wrote them
        del line["reused_prefix_tokens"]
        line.pop("record_sha256", None)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(folder)
    assert [reused_tokens(r) for r in run.records] == [None, None, 0]
    (row,) = summary_rows(columns_of([run]))
    assert (row.cost.reuse.whole, row.cost.reuse.unknown) == (1, 2)
    assert row.cost.times["prefill_seconds"].median == 3.0
    assert "1 whole<br>2 unknown" in " ".join(render([run]).split())
    table = leaderboard([run])
    assert table.loc[0, "prefill_seconds"] == 3.0
    assert (table.loc[0, "whole_prefills"], table.loc[0, "reused_share"]) == (1, 0.0)


def test_costs_are_over_the_examples_that_every_variant_answered(make_run: MakeRun) -> None:
    # The window fails on the long example: its mean cache must not look smaller for that.
    def record(variant: str, task: str, i: int) -> dict[str, Any]:
        size = 1000 if i == 0 else 10
        return {"cache_bytes_measured": size, "cache_bytes_analytic": size, "flops": size}

    scores = {"full": {"qa": [1.0, 1.0, 1.0]}, "window": {"qa": [None, 1.0, 1.0]}}
    rows = summary_rows(columns_of([read_run(make_run(scores=scores, record=record))]))
    assert [row.cost.amounts["flops"].mean for row in rows] == [10, 10]
