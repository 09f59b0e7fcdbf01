"""Leaderboard, comparison and notices, against small runs whose figures are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reports.compare import (
    answer,
    baseline_of,
    every_pair,
    marked,
    reference_of,
    subject_of,
    summary_rows,
    task_difference,
)
from reports.curves import curve
from reports.frames import leaderboard, wide
from reports.leaderboard import (
    columns_of,
    compared_tasks,
    model_names,
    run_names,
)
from reports.matched import matched
from reports.notices import notices
from reports.run_folders import Run, read_run

MakeRun = Callable[..., Path]


def sentence(runs: list[Run]) -> str:
    return "".join(text for text, _ in answer(summary_rows(columns_of(runs))))


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
    assert table.loc[("pocket", "pocket_qa@4", "ahn"), "ahn"] == pytest.approx(0.5)


def test_standings_average_tasks_and_relate_cost_to_full_attention(pocket_run: Path) -> None:
    rows = {row.column.variant: row for row in summary_rows(columns_of([read_run(pocket_run)]))}
    ahn = rows["ahn"]
    assert ahn.score is not None
    assert ahn.difference is not None
    assert ahn.baseline is not None
    assert ahn.score.mean == pytest.approx(0.7)
    assert ahn.baseline.variant == "window"
    assert ahn.difference.interval.mean == pytest.approx(0.7)
    assert ahn.difference.clear
    assert ahn.cost.amounts["cache_bytes_measured"].of_each == pytest.approx(0.5)
    assert ahn.loss is not None and ahn.loss.interval.mean == pytest.approx(-0.3)
    assert rows["full"].loss is None
    assert rows["window"].baseline is None
    no_write = rows["no-write"].difference
    assert no_write is not None
    assert not no_write.clear


def test_the_answer_names_loss_gain_and_what_was_saved(pocket_run: Path) -> None:
    text = sentence([read_run(pocket_run)])
    assert text.startswith("AHN on pocket scores 70.0 [")
    assert "of 100 over 2 tasks, −30.0 [−" in text
    assert "] against full attention (100.0), +70.0 [+" in text
    assert "] against the window (0.0), with 50.0 % of full attention's cache (measured)" in text
    assert text.endswith(" and 100.0 % of its FLOPs (analytic) in the mean example.")


def several_memories(make_run: MakeRun, name: str = "run", **info: Any) -> Path:
    """Three memories, of which the second is the best: 0.4, 0.8 and 0.6."""

    def cost(variant: str, task: str, number: int) -> dict[str, Any]:
        size = {"full": 1000, "window": 100, "ahn-b": 300}.get(variant, 200)
        return {"cache_bytes_measured": size, "cache_bytes_analytic": size, "flops": 5 * size}

    scores = {
        variant: {"qa": [1.0] * right + [0.0] * (20 - right)}
        for variant, right in
        (("full", 20), ("window", 0), ("ahn-a", 8), ("ahn-b", 16), ("ahn-c", 12))
    }  # fmt: skip
    return make_run(name, scores, record=cost, **info)


def test_the_answer_is_about_the_best_memory_and_says_that_it_was_chosen(
    make_run: MakeRun,
) -> None:
    run = read_run(several_memories(make_run))
    text = sentence([run])
    assert text.startswith("Of 3 memories of pocket, ahn-b scores best: 80.0 [")
    assert "−20.0 [" in text and "+80.0 [" in text
    assert "with 30.0 % of full attention's cache (measured) and 30.0 % of its FLOPs" in text
    subject = subject_of(summary_rows(columns_of([run])))
    assert subject is not None and subject.column.variant == "ahn-b"


def test_the_answer_has_a_sentence_for_each_model(make_run: MakeRun) -> None:
    small = several_memories(make_run, "s", configuration={"model": "org/Small-3B"})
    large = make_run(
        "l",
        {"full": {"qa": [1.0] * 20}, "window": {"qa": [0.0] * 20}, "ahn": {"qa": [1.0] * 20}},
        configuration={"model": "org/Large-7B"},
    )
    runs = [read_run(small), read_run(large)]
    text = sentence(runs)
    assert "Of 3 memories of Small-3B, ahn-b scores best: 80.0 [" in text
    assert " AHN on Large-7B scores 100.0 [" in text
    assert "This page has 2 models (Small-3B, Large-7B)" in warned(runs)
    subject = subject_of(summary_rows(columns_of(runs)))
    assert subject is not None and subject.column.label == "ahn-b · Small-3B", "the first model's"
    labels = [c.label for c in columns_of(runs)]
    assert labels[:2] == ["full · Small-3B", "window · Small-3B"]
    assert labels[-1] == "ahn · Large-7B"


def test_models_are_named_by_as_much_of_their_path_as_tells_them_apart() -> None:
    assert model_names(["org/A", "org/B", "org/A"]) == {"org/A": "A", "org/B": "B"}
    assert model_names(["/x/one/merged", "/x/two/merged"]) == {
        "/x/one/merged": "one/merged",
        "/x/two/merged": "two/merged",
    }
    assert model_names([""]) == {"": "unnamed"}


def test_a_difference_that_may_be_chance_is_called_so(make_run: MakeRun) -> None:
    run = make_run(scores={"window": {"qa": [0.0, 1.0, 0.0]}, "ahn": {"qa": [0.0, 1.0, 1.0]}})
    assert "] against the window (33.3, may be chance)." in sentence([read_run(run)])


def test_marks_are_corrected_for_the_number_of_differences(make_run: MakeRun) -> None:
    # Six of twenty gained: p = 0.03 on its own, too little among twelve tasks.
    gained = [1.0] * 6 + [0.0] * 14
    tasks = {f"t{i}": gained if i == 0 else [0.0] * 20 for i in range(12)}
    run = read_run(
        make_run(
            scores={"window": {t: [0.0] * 20 for t in tasks}, "ahn": tasks, "full": tasks},
        )
    )
    columns = columns_of([run])
    every = compared_tasks(columns)
    intervals = [task_difference(columns[1], columns[0], task) for task in every]
    first = intervals[0]
    assert first is not None and first.p is not None and 0.005 < first.p < 0.05
    assert first.excludes_zero()
    (alone,) = marked([first])
    assert alone is not None and alone.clear
    together = marked(intervals)
    assert together[0] is not None and not together[0].clear
    assert together[0].adjusted == pytest.approx(12 * first.p)
    assert marked([None, first])[0] is None


def test_every_pair_is_corrected_for_the_number_of_pairs(make_run: MakeRun) -> None:
    gained = [1.0] * 7 + [0.0] * 13
    scores = {"full": {"qa": gained}, "window": {"qa": [0.0] * 20}, "ahn": {"qa": gained}}
    columns = columns_of([read_run(make_run(scores=scores))])
    table = every_pair(columns, compared_tasks(columns))
    cell, back = table[0][1][1], table[1][1][0]
    assert cell is not None and back is not None and cell.interval.p is not None
    # Three pairs, of which two have this p-value and come first.
    assert cell.adjusted == back.adjusted == pytest.approx(3 * cell.interval.p)


def test_without_ahn_or_baseline_the_answer_says_what_there_is(make_run: MakeRun) -> None:
    alone = make_run("alone", {"full": {"qa": [1.0, 0.0]}})
    assert sentence([read_run(alone)]).startswith("full on pocket scores 50.0 [")
    unnamed = make_run("unnamed", {"full": {"qa": [1.0, 0.0]}}, configuration={}, models={})
    assert sentence([read_run(unnamed)]).startswith("full scores 50.0 [")
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


def two_runs(make_run: MakeRun, **second: Any) -> list[Run]:
    """Two runs with a window and a memory each; the windows score 0 and 0.5."""
    scores = {"full": [1.0] * 10, "ahn": [1.0] * 10}
    first = make_run("first", {v: {"qa": s} for v, s in {**scores, "window": [0.0] * 10}.items()})
    half = [1.0] * 5 + [0.0] * 5
    other = make_run(
        "second", {v: {"qa": s} for v, s in {**scores, "window": half}.items()}, **second
    )
    return [read_run(first), read_run(other)]


def test_each_column_is_compared_with_the_baseline_of_its_own_run(make_run: MakeRun) -> None:
    runs = two_runs(make_run)
    rows = {row.column.label: row for row in summary_rows(columns_of(runs))}
    for name, gain in (("first", 1.0), ("second", 0.5)):
        row = rows[f"ahn · {name}"]
        assert row.baseline is not None and row.baseline.label == f"window · {name}"
        assert row.difference is not None
        assert row.difference.interval.mean == pytest.approx(gain)
        assert row.reference is not None and row.reference.label == f"full · {name}"
        assert rows[f"window · {name}"].baseline is None
        full = rows[f"full · {name}"].baseline
        assert full is not None and full.label == f"window · {name}"


def test_the_window_of_another_model_is_no_baseline(make_run: MakeRun, pocket_run: Path) -> None:
    other = make_run(
        "other", {"ahn": {"pocket_qa@1": [1.0] * 10}}, configuration={"model": "org/Other"}
    )
    columns = columns_of([read_run(pocket_run), read_run(other)])
    assert columns[-1].label == "ahn · Other"
    baseline = baseline_of(columns[-1], columns)
    assert baseline is columns[0], "only the page's first column is left, by its full name"
    assert baseline.label == "full · pocket"
    assert reference_of(columns[-1], columns) is None


def test_full_attention_of_the_same_model_is_found_in_another_run(
    make_run: MakeRun, pocket_run: Path
) -> None:
    other = make_run(
        "other", {"mamba": {"pocket_qa@1": [1.0] * 10}}, record={"cache_bytes_measured": 262_144}
    )
    rows = summary_rows(columns_of([read_run(pocket_run), read_run(other)]))
    assert rows[-1].reference is rows[0].column
    assert rows[-1].cost.amounts["cache_bytes_measured"].of_each == pytest.approx(0.25)
    assert rows[-1].cost.times["prefill_seconds"].median is not None
    assert rows[-1].cost.times["prefill_seconds"].of_each is None, "another machine, perhaps"
    assert rows[0].cost.times["prefill_seconds"].of_each == 1


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


def test_means_are_over_the_examples_that_every_variant_answered(make_run: MakeRun) -> None:
    # Full attention fails on the hard half, which the memory answers wrong.
    full = [1.0] * 4 + [None] * 4
    ahn = [1.0, 1.0, 1.0, 0.0] + [0.0] * 4
    run = read_run(
        make_run(scores={"full": {"qa": full}, "window": {"qa": ahn}, "ahn": {"qa": ahn}})
    )
    columns = columns_of([run])
    (task,) = compared_tasks(columns)
    shared = matched(columns)
    assert [len(shared.records(c, task)) for c in columns] == [4, 4, 4]
    assert shared.left_out(columns, task) == 4
    rows = {row.column.label: row for row in summary_rows(columns)}
    ahn_row, full_row = rows["ahn"], rows["full"]
    assert ahn_row.score is not None and full_row.score is not None and ahn_row.loss is not None
    assert ahn_row.score.mean == 0.75
    assert ahn_row.loss.interval.mean == ahn_row.score.mean - full_row.score.mean
    text = warned([run])
    assert "4 of 8 examples were not answered by every variant (qa: 4)" in text
    assert "left out of means, differences and costs, for every variant" in text


def test_a_variant_without_a_common_example_keeps_its_own(make_run: MakeRun) -> None:
    one = make_run("one", {"full": {"qa": [1.0, 1.0, 0.0, 0.0]}})
    other = make_run(
        "other", {"ahn": {"qa": [1.0, 0.0]}}, record=lambda v, t, i: {"example_id": f"else-{i}"}
    )
    runs = [read_run(one), read_run(other)]
    means = [row.score.mean for row in summary_rows(columns_of(runs)) if row.score is not None]
    assert means == [0.5, 0.5]
    assert "have none in common" in warned(runs)


def test_averages_cover_only_what_all_variants_answered(make_run: MakeRun) -> None:
    scores = {"full": {"a": [1.0] * 4, "b": [0.0] * 4}, "ahn": {"a": [1.0] * 4}}
    run = read_run(make_run(scores=scores))
    assert [t.task for t in compared_tasks(columns_of([run]))] == ["a"]
    means = [row.score.mean for row in summary_rows(columns_of([run])) if row.score is not None]
    assert means == [1.0, 1.0]
    assert "1 of 2 tasks lack a score of some variant" in warned([run])


def test_the_number_of_facts_groups_tasks(pocket_run: Path) -> None:
    by_facts = curve(columns_of([read_run(pocket_run)]), "facts")
    assert by_facts is not None
    (panel,) = by_facts.panels
    table = dict(panel.points)
    assert list(table) == ["1", "4"]
    ahn_at_four = table["4"][2]
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
    text = warned([read_run(pocket_run), read_run(other)])
    assert "different prompts or metrics (template_sha256)" in text


def test_runs_with_other_limits_are_not_called_comparable(
    make_run: MakeRun, pocket_run: Path
) -> None:
    described = {"template_sha256": "ab" * 32, "examples": 10, "max_length": 4096}
    other = make_run(
        "other", {"mamba": {"pocket_qa@1": [1.0] * 10}}, tasks={"pocket_qa@1": described}
    )
    assert "different prompts" not in warned([read_run(pocket_run), read_run(other)])
    longer = make_run(
        "longer",
        {"gdn": {"pocket_qa@1": [1.0] * 10}},
        tasks={"pocket_qa@1": described | {"max_length": 8192}},
    )
    assert "metrics (max_length)" in warned([read_run(other), read_run(longer)])


def test_rows_made_for_a_tokenizer_are_one_notice_for_all_lengths(make_run: MakeRun) -> None:
    """RULER has no published rows; a digest for each length would fill the head of the page."""
    digest = "ab" * 32
    made = [
        f"generated:ruler/{task}?length={length}&seed=42&tokenizer_sha256={digest}"
        for length in (4096, 8192)
        for task in ("vt", "fwe")
    ]
    files = [{"path": p, "sha256": digest, "revision": None} for p in made]
    files += [{**files[0], "path": "generated:infinitebench/passkey?length=300&seed=0"}]
    run = make_run(scores={"full": {"vt": [1.0]}}, data_files=files)
    found = [n for n in notices([read_run(run)], columns_of([read_run(run)])) if "rows of" in n]
    assert found == [
        "The rows of passkey were generated (length=300, seed=0), they are not the published ones: "
        "published figures are of other questions.",
        "The rows of vt, fwe (length 4096, 8192; seed 42) were made for this model's tokenizer: a "
        "model with another tokenizer is asked other rows, also where its published figures are "
        "made so.",
    ]


# -- several windows ---------------------------------------------------------------------------


def described(**windows: tuple[str, int | None]) -> dict[str, Any]:
    """`models` of run.json from kind and window, by name with `_` for `-`."""
    return {
        name.replace("_", "-"): {"variant": kind, "path": "pocket", "window": window, "sinks": 4}
        for name, (kind, window) in windows.items()
    }


SWEPT = described(
    full=("full", None), window_64=("window", 64), window_128=("window", 128), ahn_64=("ahn", 64),
    ahn_128=("ahn", 128), ct_128=("compressive", 128), ahn_32=("ahn", 32),
)  # fmt: skip


def test_of_several_windows_the_baseline_is_the_one_of_the_same_size(make_run: MakeRun) -> None:
    scores = {name: {"qa": [1.0, 0.0]} for name in SWEPT}
    columns = columns_of([read_run(make_run("swept", scores, models=SWEPT))])
    found = {c.variant: baseline_of(c, columns) for c in columns}
    assert {name: other and other.variant for name, other in found.items()} == {
        "full": None, "window-64": "full", "window-128": "full", "ahn-64": "window-64",
        "ahn-128": "window-128", "ct-128": "window-128", "ahn-32": "full",
    }  # fmt: skip


def test_the_window_of_the_same_size_is_found_in_another_run(make_run: MakeRun) -> None:
    def run(name: str, **models: tuple[str, int | None]) -> Run:
        said = described(**models)
        return read_run(make_run(name, {v: {"qa": [1.0, 0.0]} for v in said}, models=said))

    runs = [
        run("a", window=("window", 64)), run("b", w128=("window", 128)), run("c", ahn=("ahn", 128)),
        run("d", ahn=("ahn", 32)), run("e", window=("window", 64), ahn=("ahn", 128)),
    ]  # fmt: skip
    columns = columns_of(runs)
    found = {(c.run_name, c.variant): baseline_of(c, columns) for c in columns}
    names = {key: other and (other.run_name, other.variant) for key, other in found.items()}
    assert names["c", "ahn"] == ("b", "w128")
    twice = columns_of([*runs, run("f", w=("window", 128), ahn=("ahn", 128))])
    (other,) = [baseline_of(c, twice) for c in twice if (c.run_name, c.variant) == ("f", "ahn")]
    assert other is not None and other.run_name == "f", "of the same size, that of its own run"
    assert names["d", "ahn"] == ("a", "window"), "no window of its size: any, as ever"
    assert names["e", "ahn"] == ("e", "window"), "the run's own window comes first"


def test_the_answer_does_not_call_windows_memories(make_run: MakeRun) -> None:
    scores = {name: {"qa": [1.0, 0.0]} for name in SWEPT} | {"ahn-128": {"qa": [1.0, 1.0]}}
    said = sentence([read_run(make_run("swept", scores, models=SWEPT))])
    assert said.startswith("Of 3 variants with a memory on pocket, ahn-128 scores best: 100.0")
    assert "against window-128" in said
