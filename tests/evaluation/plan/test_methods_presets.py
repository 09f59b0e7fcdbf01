"""The presets that compare every method at equal bytes: they plan, and the page is theirs."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from evaluation.plan.configuration import resolve_configuration
from evaluation.plan.plan import make_plan
from evaluation.plan.tasks import resolve_tasks
from tasks.ruler.rows import WITHOUT_FILES

ROOT = Path(__file__).resolve().parents[3]
SIZED = {
    "window", "compressive-mean", "compressive-max", "StreamingLLM", "SnapKV", "PyramidKV", "KNorm",
    "ExpectedAttention", "bits-8", "bits-4", "bits-2", "SnapKV-bits-4",
}  # fmt: skip


@pytest.mark.parametrize("preset", ["methods", "methods-qwen2.5-7b"])
def test_every_variant_of_the_preset_can_be_made(preset: str) -> None:
    """Those of the large model on the pocket model: their options are what is tried."""
    pytest.importorskip("kvpress")
    small = {
        "benchmark": "pocket", "model": "pocket", "tasks": ["pocket_qa@1"], "lengths": ["512"],
        "ahn": {name: f"pocket/{name}" for name in ("gdn", "dn", "mamba2")}, "limit": 1,
        "window": 128, "sinks": 4, "dtype": "float32", "device": "cpu", "data": "pocket",
    }  # fmt: skip
    of_file, problems = resolve_configuration({}, preset)
    assert problems == []
    variants = of_file.variants
    if preset != "methods":  # sizes for long documents: more than a pocket document has
        variants = [re.sub(r"(window_size|n_sink)=[0-9]+", r"\1=4", text) for text in variants]
    configuration, problems = resolve_configuration(small | {"variants": variants}, None)
    assert problems == []
    plan = make_plan(configuration.model_copy(update={"budget": of_file.budget}))
    assert {name for name, model in plan.models.items() if model.sizable} == SIZED
    assert {"full", "stock", "ahn-gdn", "ahn-dn", "ahn-mamba2", "no-write-gdn"} < set(plan.models)


def test_the_preset_of_the_large_model_asks_for_no_file_of_the_user() -> None:
    """With RULER's 13 tasks the command, as the README has it, is refused for want of essays."""
    configuration, problems = resolve_configuration({}, "methods-qwen2.5-7b")
    assert problems == []
    asked = resolve_tasks(configuration)
    assert asked.problems == ()
    assert {task.dataset for task in asked.tasks} == set(WITHOUT_FILES)


def test_the_page_asks_504_questions_of_each_variant() -> None:
    with (ROOT / "docs/gallery/methods.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["variant"].split(" ")[0] for row in rows} > SIZED | {"full", "stock", "endpoint"}
    assert {row["questions"] for row in rows} == {"504"}
    page = (ROOT / "docs/methods.md").read_text("utf-8")
    for row in rows:
        assert f"| {row['variant']} | 504 | {row['score']} |" in page
