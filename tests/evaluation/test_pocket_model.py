"""The embedded pocket model: it recalls what the issue of the demo rests on, on held-out facts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import ahn
from ahn.distill.recipe import Recipe, load_recipe
from evaluation.cli import app
from reports.run_folders import Run, read_run
from reports.stats import paired_difference
from tasks.pocket.training import PHASES, conversations
from tasks.registry import task_names

PER_TASK = 10
CELLS = ("gdn", "dn", "mamba2")
MEMORIES = (*CELLS, *(f"{cell}-seed1" for cell in CELLS))
FOLDER = Path(ahn.POCKET_PATH)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All variants, the three cells among them, on every default task with one and four facts."""
    folder = tmp_path_factory.mktemp("pocket") / "run"
    tasks = [name for name in task_names("pocket") if not name.endswith("@16")]
    arguments = ["longbench", "--model", "pocket", "--data", "pocket"]
    for cell in CELLS:
        arguments += ["--ahn", f"{cell}=pocket/{cell}"]
    arguments += ["--window", "128", "--sinks", "4", "--limit", str(PER_TASK), "--no-report"]
    for variant in ("full", "window", "ahn", "no-write-gdn"):
        arguments += ["--variant", variant]
    for task in tasks:
        arguments += ["--tasks", task]
    result = CliRunner().invoke(app, [*arguments, "--output", str(folder)])
    assert result.exit_code == 0, result.output
    return read_run(folder)


def scores(run: Run, variant: str, facts: int) -> dict[str, float]:
    return {
        record.example_id: float(record.score or 0)
        for record in run.records
        if record.variant == variant and record.attributes["facts"] == facts
    }


def mean(run: Run, variant: str, facts: int) -> float:
    values = scores(run, variant, facts)
    assert len(values) == 7 * PER_TASK
    return sum(values.values()) / len(values)


@pytest.mark.slow
@pytest.mark.parametrize("facts", [1, 4])
def test_full_attention_recalls_and_the_window_does_not(run: Run, facts: int) -> None:
    # three standard errors below and above what is promised for many more examples
    assert mean(run, "full", facts) >= 0.97 - 0.06
    assert mean(run, "window", facts) <= 0.05 + 0.08


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("facts", "promised"), [(1, 0.95), (4, 0.80)])
def test_the_memory_recalls_what_left_the_window(
    run: Run, cell: str, facts: int, promised: float
) -> None:
    assert mean(run, f"ahn-{cell}", facts) >= promised - 0.1
    gain = paired_difference(scores(run, f"ahn-{cell}", facts), scores(run, "window", facts))
    assert gain.low > 0.3


@pytest.mark.slow
def test_without_writes_every_prediction_is_the_windows(run: Run) -> None:
    predictions = {
        variant: {r.example_id: r.prediction for r in run.records if r.variant == variant}
        for variant in ("window", "no-write-gdn")
    }
    assert predictions["window"] == predictions["no-write-gdn"]
    assert len(predictions["window"]) == 2 * 7 * PER_TASK


def test_the_embedded_files_are_small_and_their_recipes_are_the_committed_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12_000_000
    # how many conversations a phase has follows from its blocks alone
    monkeypatch.setattr("tasks.pocket.training._conversation", lambda *_: {})
    counts = {name: sum(1 for _ in conversations(name)) for name in PHASES}
    recipes = Path(__file__).resolve().parents[2] / "configs" / "train"
    for part, log in (
        ("teacher-a", "training/teacher-a-training.json"),
        ("teacher-b", "training/teacher-b-training.json"),
        ("teacher-c", "training/teacher-training.json"),
        *((memory, f"{memory}/training.json") for memory in MEMORIES),
    ):
        logged = json.loads((FOLDER / log).read_text())
        assert Recipe(**logged["recipe"]) == load_recipe(recipes / f"pocket-{part}.yaml")
        data = logged["recipe"]["dataset"]
        names = [Path(file).stem for file in ([data] if isinstance(data, str) else data)]
        assert logged["samples"]["read"] == sum(counts[name] for name in names)
        assert logged["history"][-1]["loss"] < logged["history"][0]["loss"]
        assert logged["seconds"] > 0 and logged["machine"]["torch"]
