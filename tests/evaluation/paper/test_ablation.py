"""Table 4: rows compared example by example, seed by seed and over all seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from evaluation.cli import app
from evaluation.paper.ablation import WITHOUT, Outcome, outcome, outcome_table
from evaluation.paper.experiments import experiments
from reports.compare import average_difference
from reports.leaderboard import Column, columns_of, tasks_of
from reports.matched import matched
from reports.run_folders import read_run
from tests.reports.conftest import write_run

Scores = Mapping[str, list[float]]
ONE = [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]
OTHER = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
LOW = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
NONE = [0.0] * 6


@pytest.fixture
def column(tmp_path: Path) -> Callable[..., Column]:
    """A column of its own run folder, as each variant of a study has."""

    def make(name: str, scores: list[float]) -> Column:
        folder = write_run(tmp_path / name, {name: {"qa": scores, "kv": scores[::-1]}})
        [found] = columns_of([read_run(folder)])
        return found

    return make


@pytest.fixture
def two_seeds(column: Callable[..., Column]) -> dict[str, dict[int | None, Column]]:
    return {
        WITHOUT: {None: column("window", NONE)},
        "kl-random": {0: column("r0", ONE), 1: column("r1", OTHER)},
        "kl-fixed1024": {0: column("f0", OTHER), 1: column("f1", LOW)},
    }


def test_every_two_rows_are_compared_with_the_same_seed_and_over_all(
    two_seeds: dict[str, dict[int | None, Column]],
) -> None:
    found = outcome(128, 4, two_seeds)
    assert [(d.row, d.other, d.seed) for d in found.differences] == [
        ("kl-random", "kl-fixed1024", 0),
        ("kl-random", "kl-fixed1024", 1),
        ("kl-random", "kl-fixed1024", None),
        ("kl-random", WITHOUT, None),
        ("kl-fixed1024", WITHOUT, None),
    ]
    one, two, both = (found.differences[n].interval for n in range(3))
    assert one.mean == pytest.approx(2 / 6) and two.mean == pytest.approx(1 / 6)
    assert both.mean == pytest.approx((one.mean + two.mean) / 2)
    assert both.n == 12, "six questions of two tasks, whatever the seeds"
    assert found.tasks == 2
    assert found.scores["kl-random", None].mean == pytest.approx(3 / 6)
    assert found.scores[WITHOUT, None].mean == 0
    assert ("kl-random", 0) in found.scores


def test_a_difference_is_that_of_any_report(
    two_seeds: dict[str, dict[int | None, Column]],
) -> None:
    one, other = two_seeds["kl-random"][0], two_seeds["kl-fixed1024"][0]
    every = [column for row in two_seeds.values() for column in row.values()]
    expected = average_difference(one, other, tasks_of([one]), matched(every))
    assert outcome(128, 4, two_seeds).differences[0].interval == expected


def test_p_values_are_corrected_for_the_differences_over_all_seeds(
    two_seeds: dict[str, dict[int | None, Column]],
) -> None:
    found = outcome(128, 4, two_seeds).differences
    assert [d.adjusted is None for d in found] == [d.seed is not None for d in found]
    for difference in found:
        if difference.adjusted is not None:
            assert difference.interval.p is not None
            assert difference.interval.p <= difference.adjusted <= 3 * difference.interval.p + 1e-12


def test_a_seed_that_one_row_lacks_is_left_out_of_their_difference(
    two_seeds: dict[str, dict[int | None, Column]],
) -> None:
    del two_seeds["kl-fixed1024"][1]
    found = {(d.row, d.other, d.seed): d.interval for d in outcome(128, 4, two_seeds).differences}
    assert ("kl-random", "kl-fixed1024", 1) not in found
    pair = ("kl-random", "kl-fixed1024")
    assert found[*pair, None] == found[*pair, 0]
    assert found["kl-random", WITHOUT, None].mean == pytest.approx(3 / 6), "of both seeds"


def test_rows_without_a_seed_in_common_are_not_compared(
    two_seeds: dict[str, dict[int | None, Column]],
) -> None:
    del two_seeds["kl-fixed1024"][1], two_seeds["kl-random"][0]
    found = outcome(128, 4, two_seeds)
    assert {(d.row, d.other) for d in found.differences} == {
        ("kl-random", WITHOUT),
        ("kl-fixed1024", WITHOUT),
    }
    assert text(found)


def text(found: Outcome) -> str:
    console = Console(width=200, record=True)
    console.print(outcome_table("pocket", found))
    return console.export_text()


def line(page: str, start: str) -> str:
    return next(line for line in page.splitlines() if line.strip().startswith(start))


def test_the_table_has_the_papers_figures_and_ours(
    two_seeds: dict[str, dict[int | None, Column]],
) -> None:
    page = text(outcome(128, 4, two_seeds))
    assert "window 128 + 4" in page and "12 examples of 2 tasks" in page
    row = line(page, "KL, random window  ")
    assert "40.59" in row and "66.7 [" in row and "33.3 [" in row and "50.0 [" in row
    row = line(page, "KL, random window less KL, window 1024 fixed")
    assert "+2.06" in row and "+33.3 [" in row and "+16.7 [" in row and "+25.0 [" in row
    row = line(page, "KL, window 1024 fixed less Sinks + SWA")
    assert "+0.01" in row and "=" in row
    assert "CE" not in page, "what was not asked has no row"


# -- end to end ----------------------------------------------------------------------------------


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["paper", "table4", *words], terminal_width=200)


@pytest.mark.slow
def test_each_trained_memory_answers_at_every_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "250")
    result = run("--model", "pocket", "--limit", "1", "-o", "runs", "--no-report")
    assert result.exit_code == 0, result.output
    sweep = experiments()["table4"].sweep_of("pocket")
    [part] = experiments()["table4"].parts_of("pocket")
    folders = {path.parent.name for path in Path("runs/pocket", part).glob("*/run.json")}
    rows = ("kl-random", "ce-random", "kl-fixed1024")
    memories = [f"ahn-{row}-seed{seed}" for row in rows for seed in (0, 1)]
    expected = {f"{v}-{w}" for v in (*memories, "window") for w in sweep.windows}
    assert folders == expected and len(sweep.windows) > 1
    for window in sweep.windows:
        assert f"Table 4 with pocket, window {window} + 4" in result.output
    info = json.loads(Path("runs/pocket", part, "ahn-ce-random-seed1-128/run.json").read_text())
    [model] = info["models"].values()
    assert model["ahn"].endswith("pocket/ablation/ce-random-seed1")
    assert (model["window"], model["sinks"]) == (128, 4)
    assert "KL, random window less KL, window 1024 fixed" in result.output
    again = run("--model", "pocket", "--limit", "1", "-o", "runs", "--no-report")
    assert again.exit_code == 0 and "continuing" in again.output


def test_a_dry_run_says_what_is_trained_and_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("--model", "qwen2.5-7b", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "to train kl-fixed1024: torchrun" in result.output
    assert "none of the weights that are asked of qwen2.5-7b are here" in result.output
    assert not list(tmp_path.iterdir())
    result = run("--model", "pocket", "--dry-run", "--limit", "1")
    assert result.exit_code == 0 and "ahn-kl-random-seed0-128" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "--model: needed by table4"),
        (("--model", "qwen2.5-3b"), "table4 has no 'qwen2.5-3b'"),
        (
            (
                "--model",
                "qwen2.5-7b",
                "--ahn",
                "kl-random=pocket/gdn",
                "--variant",
                "ahn-ce-random-8064",
            ),
            "train them, or give --ahn ce-random=PATH",
        ),
        (("--model", "qwen2.5-7b"), "none of the weights that are asked of qwen2.5-7b are here"),
        (("--model", "pocket", "--ahn", "gdn=pocket/gdn"), "weights of table4 are called"),
        (("--model", "pocket", "--ahn", "ce-random-seed0=pocket/gdn"), "trained otherwise"),
        (("--model", "pocket", "--variant", "ahn-gdn-128"), "--variant: table4 of pocket has no"),
        (("--model", "pocket", "--data", "somewhere"), "--data"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*words)
    assert result.exit_code == 2 and told in result.stderr, result.output
    assert "Traceback" not in result.output and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_only_some_variants_can_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--model", "pocket", "--limit", "1", "-o", "runs", "--no-report")
    result = run(*words, "--variant", "ahn-kl-random-seed0-128,window-128")
    assert result.exit_code == 0, result.output
    assert {path.parent.name for path in Path("runs/pocket").glob("*/*/run.json")} == {
        "ahn-kl-random-seed0-128",
        "window-128",
    }
