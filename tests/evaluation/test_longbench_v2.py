"""`run_eval run longbench_v2`, from the authors' list to records, the page and their file."""

from __future__ import annotations

import json

import pytest

from tests.evaluation.conftest import SINKS, WINDOW, records_of
from tests.tasks.longbench_v2.rows import row

DEVICE = ["--dtype", "float32", "--device", "cpu", "--window", WINDOW, "--sinks", SINKS]
TASK = "longbench_v2_all"


@pytest.fixture(scope="module")
def run(run_eval, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("longbench_v2")
    (folder / "data.json").write_text(json.dumps([row(i) for i in range(6)]))
    result = run_eval(
        "run", "longbench_v2", "--model", tiny, "--data", folder, "--max-length", 301,
        "--variant", "full", "--output", folder / "run", *DEVICE,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return folder / "run"


def test_records_hold_the_letter_and_what_is_averaged_over(run):
    found = records_of(run)
    assert len(found) == 6 and {r["task"] for r in found} == {TASK}
    assert not any(r["error"] for r in found)
    assert {r["answers"][0] for r in found} == set("ABCD")
    assert {r["attributes"]["length_group"] for r in found} == {"short", "medium", "long"}
    assert all(r["chat_template"] and r["truncation"] == "middle_joined" for r in found)
    # 150 of the first and 151 of the last tokens are kept, and the chat template comes on top
    assert {r["prompt_tokens_untruncated"] - r["tokens_cut"] for r in found} == {301}
    assert {r["prompt_tokens"] for r in found} == {301 + 3}
    described = json.loads((run / "run.json").read_text())["tasks"][TASK]
    assert described["chance"] == 0.25


def test_the_page_says_what_a_guess_scores_and_has_result_pys_line(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "a guess scores 25 %" in page
    assert "LongBench v2: accuracy (official)" in page and "Overall" in page and "Medium" in page


def test_a_run_is_checked_and_exported_to_one_file(run_eval, run, tmp_path):
    checked = run_eval("check", run)
    assert checked.exit_code == 0, checked.stdout + checked.stderr
    result = run_eval("export", run, "--format", "longbench_v2", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    (file,) = tmp_path.glob("out/results/*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    by_id = {line["_id"]: line for line in lines}
    for number in range(6):
        made, line = row(number), by_id[f"row{number}"]
        same = ("domain", "sub_domain", "difficulty", "length", "answer")
        assert {key: line[key] for key in same} == {key: made[key] for key in same}
        assert line["judge"] == (line["pred"] == made["answer"])
    scored = run_eval("score", file, "--benchmark", "longbench_v2", "--task", TASK)
    assert scored.exit_code == 0, scored.stderr


def test_cot_is_refused_with_the_reason(run_eval, tiny, run):
    result = run_eval("run", "longbench_v2", "--model", tiny, "--data", run.parent,
                      "--protocol", "official-cot", "--dry-run", "--device", "cpu")  # fmt: skip
    assert result.exit_code == 2 and "it asks twice" in result.stderr
    assert "choose one of official, official-no-context" in result.stderr
