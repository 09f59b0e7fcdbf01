"""Leaderboard, comparison and notices, against small runs whose figures are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reports.compare import answer, baseline_of, standings, task_difference
from reports.curves import by_facts
from reports.leaderboard import columns_of, compared_tasks, leaderboard, run_names, wide
from reports.notices import notices
from reports.run_folders import Run, read_run

MakeRun = Callable[..., Path]


def sentence(runs: list[Run]) -> str:
    return "".join(text for text, _ in answer(standings(columns_of(runs))))


def warned(runs: list[Run]) -> str:
    return "\n".join(notices(runs, columns_of(runs)))


def test_the_leaderboard_has_a_row_per_variant_and_task(pocket_run: Path) -> None:
    table = leaderboard([read_run(pocket_run)])
    assert len(table) == 8
    row = table.set_index(["variant", "task"]).loc[("ahn", "pocket_qa@1")]
    assert row["mean"] == pytest.approx(0.9)
    assert row["low"] < 0.9 < row["high"]
    assert (row["n"], row["errors"], row["planned"]) == (10, 0, 10)
    assert row["cache_bytes_measured"] == 524_288
    assert row["flops"] == 2_000_000_000


def test_the_wide_table_keeps_the_order_of_tasks_and_variants(pocket_run: Path) -> None:
    table = wide(leaderboard([read_run(pocket_run)]))
    assert list(table.columns) == ["full", "window", "ahn", "no-write"]
    assert [task for _, task, _ in table.index] == ["pocket_qa@1", "pocket_qa@4"]
    assert table.loc[("longbench", "pocket_qa@4", "ahn"), "ahn"] == pytest.approx(0.5)


def test_standings_average_tasks_and_relate_cost_to_full_attention(pocket_run: Path) -> None:
    rows = {row.column.variant: row for row in standings(columns_of([read_run(pocket_run)]))}
    ahn = rows["ahn"]
    assert ahn.score is not None
    assert ahn.difference is not None
    assert ahn.baseline is not None
    assert ahn.score.mean == pytest.approx(0.7)
    assert ahn.baseline.variant == "window"
    assert ahn.difference.mean == pytest.approx(0.7)
    assert ahn.difference.excludes_zero()
    assert ahn.share_of_full["cache_bytes_measured"] == pytest.approx(0.5)
    assert rows["window"].baseline is None
    no_write = rows["no-write"].difference
    assert no_write is not None
    assert not no_write.excludes_zero()


def test_the_answer_is_one_sentence_with_an_interval(pocket_run: Path) -> None:
    text = sentence([read_run(pocket_run)])
    assert text.startswith("AHN scores 70.0 [")
    assert "of 100 over 2 tasks, where full attention scores 100.0" in text
    assert "with 50.0 % of its cache (measured)" in text
    assert "paired difference to window: +70.0 [+" in text
    assert text.endswith(" points.")


def test_a_difference_that_may_be_chance_is_called_so(make_run: MakeRun) -> None:
    run = make_run(scores={"window": {"qa": [0.0, 1.0, 0.0]}, "ahn": {"qa": [0.0, 1.0, 1.0]}})
    assert "which may be chance" in sentence([read_run(run)])


def test_without_ahn_or_baseline_the_answer_says_what_there_is(make_run: MakeRun) -> None:
    alone = make_run("alone", {"full": {"qa": [1.0, 0.0]}})
    assert sentence([read_run(alone)]).startswith("full scores 50.0 [")
    failed = make_run("failed", {"full": {"qa": [None, None]}})
    assert "No example has a score" in sentence([read_run(failed)])


def test_variants_of_one_name_are_told_apart_by_their_runs(
    make_run: MakeRun, pocket_run: Path
) -> None:
    other = make_run("other", {"ahn": {"pocket_qa@1": [1.0]}, "mamba": {"pocket_qa@1": [1.0]}})
    labels = [c.label for c in columns_of([read_run(pocket_run), read_run(other)])]
    assert labels == ["full", "window", "ahn · demo", "no-write", "ahn · other", "mamba"]


def test_run_names_take_as_many_folders_as_it_needs() -> None:
    assert run_names([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert run_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]


def test_a_run_without_window_is_compared_with_the_window_of_another(
    make_run: MakeRun, pocket_run: Path
) -> None:
    other = make_run("other", {"mamba": {"pocket_qa@1": [1.0] * 10}})
    columns = columns_of([read_run(pocket_run), read_run(other)])
    baseline = baseline_of(columns[-1], columns)
    assert baseline is not None
    assert baseline.label == "window"
    difference = task_difference(columns[-1], baseline, compared_tasks(columns)[0])
    assert difference is not None
    assert (difference.mean, difference.n) == (1.0, 10)


def test_examples_of_other_documents_are_not_paired(make_run: MakeRun, pocket_run: Path) -> None:
    other = make_run(
        "other",
        {"mamba": {"pocket_qa@1": [1.0] * 10}},
        record=lambda v, t, i: {"document_id": f"elsewhere-{i}"},
    )
    columns = columns_of([read_run(pocket_run), read_run(other)])
    assert task_difference(columns[-1], columns[1], compared_tasks(columns)[0]) is None
    assert "different examples" in warned([read_run(pocket_run), read_run(other)])


def test_failed_examples_are_left_out_and_counted(make_run: MakeRun) -> None:
    run = read_run(make_run(scores={"full": {"qa": [1.0, None, 1.0]}, "ahn": {"qa": [0.0] * 3}}))
    table = leaderboard([run]).set_index("variant")
    assert table.loc["full", "mean"] == 1.0
    assert (table.loc["full", "n"], table.loc["full", "errors"]) == (2, 1)
    assert "1 of 6 examples of run run ended with an error (full: 1)" in warned([run])


def test_averages_cover_only_what_all_variants_answered(make_run: MakeRun) -> None:
    scores = {"full": {"a": [1.0] * 4, "b": [0.0] * 4}, "ahn": {"a": [1.0] * 4}}
    run = read_run(make_run(scores=scores))
    assert [t.task for t in compared_tasks(columns_of([run]))] == ["a"]
    means = [row.score.mean for row in standings(columns_of([run])) if row.score is not None]
    assert means == [1.0, 1.0]
    assert "1 of 2 tasks lack a score of some variant" in warned([run])


def test_the_number_of_facts_groups_tasks(pocket_run: Path) -> None:
    table = by_facts(columns_of([read_run(pocket_run)]))
    assert list(table) == [1, 4]
    ahn_at_four = table[4][2]
    assert ahn_at_four is not None
    assert ahn_at_four.mean == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"status": "running"}, "not finished (status: running): 2 of 2 planned"),
        ({"tasks": {"qa": {"examples": 5}}}, "incomplete: 2 of 5 planned"),
        ({"models": {"full": {}, "ahn": {}}}, "no record of the variant ahn"),
    ],
)
def test_unfinished_runs_are_called_so(
    make_run: MakeRun, info: dict[str, Any], message: str
) -> None:
    run = make_run(scores={"full": {"qa": [1.0, 0.0]}}, **info)
    assert message in warned([read_run(run)])


def test_a_finished_run_needs_no_warning(pocket_run: Path) -> None:
    assert warned([read_run(pocket_run)]) == ""


def test_measured_bytes_that_are_not_the_analytic_ones_are_reported(make_run: MakeRun) -> None:
    run = make_run(scores={"full": {"qa": [1.0]}}, record={"cache_bytes_measured": 7})
    assert "differ in 1 of 1 examples" in warned([read_run(run)])


def test_runs_with_other_prompts_are_not_called_comparable(
    make_run: MakeRun, pocket_run: Path
) -> None:
    other = make_run(
        "other",
        {"mamba": {"pocket_qa@1": [1.0] * 10}},
        tasks={"pocket_qa@1": {"template_sha256": "ff" * 32, "examples": 10}},
    )
    assert "different prompts or metrics" in warned([read_run(pocket_run), read_run(other)])
