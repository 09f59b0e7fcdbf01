"""`run_eval run scbench` on a tiny model: a document read once, and asked turn by turn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluation.conftest import (
    SINKS,
    WINDOW,
    byte_tokenizer,
    records_of,
    save_tiny_qwen2,
    write_rows,
)
from tests.tasks.scbench.rows import row

pytestmark = pytest.mark.slow  # all of it asks a model about whole conversations

DEVICE = ["--dtype", "float32", "--device", "cpu", "--window", WINDOW, "--sinks", SINKS]
TASKS = ("scbench_mf", "scbench_summary_with_needles", "scbench_kv")
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_qwen2(folder, context=8192)
    return byte_tokenizer(folder, TEMPLATE)


@pytest.fixture(scope="module")
def run(run_eval, model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scbench")
    for name in TASKS:
        write_rows(folder / "data" / f"{name}.jsonl", [row(name, n, 2) for n in range(2)])
    result = run_eval(
        "run", "scbench", "--model", model, "--data", folder / "data", "--tasks", ",".join(TASKS),
        "--max-length", 6000, "--variant", "full,window", "--output", folder / "run", *DEVICE,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return folder / "run"


@pytest.mark.slow
def test_every_turn_is_a_record_and_the_document_is_read_once(run):
    found = records_of(run)
    assert len(found) == 3 * 2 * 2 * 2 and not any(r["error"] for r in found)
    assert {r["example_id"] for r in found} == {"0-0", "0-1", "1-0", "1-1"}
    assert {r["attributes"]["turn"] for r in found} == {1, 2}
    lines = (run / "full" / "scbench_kv.jsonl").read_text().splitlines()
    reused = {r["example_id"]: r["reused_prefix_tokens"] for r in map(json.loads, lines)}
    assert reused["0-0"] == reused["1-0"] == 0 and min(reused["0-1"], reused["1-1"]) > 200
    assert {r["label"] for r in found if r["task"] == "scbench_mf"} == {10, 11, 20, 21}


def test_kinds_of_questions_have_answers_of_their_own_length(run):
    found = [r for r in records_of(run) if r["task"] == "scbench_summary_with_needles"]
    longest = {r["attributes"]["part"]: 0 for r in found}
    for record in found:
        part = record["attributes"]["part"]
        longest[part] = max(longest[part], record["generated_tokens"])
    assert longest["scbench_passkey"] <= 15 < longest["scbench_summary"] <= 800


def test_the_page_has_the_authors_figures(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "SCBench: score per task (official)" in page
    assert "SCBench: score per turn (official)" in page
    assert "scbench_summary_with_needles: scbench_passkey" in page


def test_a_run_is_checked_exported_and_scored_the_same(run_eval, run, tmp_path):
    checked = run_eval("check", run)
    assert checked.exit_code == 0, checked.stdout + checked.stderr
    result = run_eval("export", run, "--format", "scbench", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    for name in TASKS:
        (file,) = tmp_path.glob(f"out/results/*-full/prediction_{name}_multi_turn.jsonl")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert {(line["id"], line["turn_idx"]) for line in lines} == {
            (0, 0), (0, 1), (1, 0), (1, 1)
        }  # fmt: skip
        for line in lines:
            turn = row(name, line["id"], 2)["multi_turns"][line["turn_idx"]]
            assert line["ground_truth"] == turn["answer"] and line.get("task") == turn.get("task")
        scores = tmp_path / "scores.jsonl"
        arguments = ["--benchmark", "scbench", "--task", name, "--per-example", scores]
        scored = run_eval("score", file, *arguments)
        assert scored.exit_code == 0, scored.stderr
        again = [json.loads(line)["score"] for line in scores.read_text().splitlines()]
        ran = [json.loads(x) for x in (run / "full" / f"{name}.jsonl").read_text().splitlines()]
        assert again == [r["score"] for r in ran]


def test_functions_keep_what_scoring_them_again_needs(run_eval, model, tmp_path):
    pytest.importorskip("tree_sitter")
    name = "scbench_repoqa_and_kv"
    write_rows(tmp_path / "data" / f"{name}.jsonl", [row(name, n, 2) for n in range(2)])
    result = run_eval(
        "run", "scbench", "--model", model, "--data", tmp_path / "data", "--tasks", name,
        "--max-length", 6000, "--variant", "window", "--output", tmp_path / "run", *DEVICE,
        "--protocol", "official-scdq",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = records_of(tmp_path / "run")
    functions = [r for r in found if r["attributes"]["part"] == "scbench_repoqa"]
    assert [len(r["label"]["needles"]) for r in functions] == [2, 2]
    assert run_eval("check", tmp_path / "run").exit_code == 0
    out = run_eval("export", tmp_path / "run", "--format", "scbench", "-o", tmp_path / "out")
    assert out.exit_code == 0, out.stderr
    (file,) = tmp_path.glob(f"out/results/*/prediction_{name}_scdq.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["func_name"] for line in lines if line["task"] == "scbench_repoqa"} == {
        "add_0", "add_10"
    }  # fmt: skip
    assert {line["repo"] for line in lines} == {"owner/repo0"}
    scored = run_eval("score", file, "--benchmark", "scbench", "--task", name)
    assert scored.exit_code == 0, scored.stderr


def test_a_length_that_leaves_no_room_is_one_message(run_eval, model, tmp_path):
    write_rows(tmp_path / "data" / "scbench_kv.jsonl", [row("scbench_kv", 0)])
    result = run_eval(
        "run", "scbench", "--model", model, "--data", tmp_path / "data", "--tasks", "scbench_kv",
        "--max-length", 400, "--dry-run", "--device", "cpu",
    )  # fmt: skip
    assert result.exit_code == 2 and "450 tokens are kept free" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
