"""`run_eval lveval | infinitebench | longbench` on a tiny model: rows to records, export, page."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from tasks.published import published_tables as all_published
from tasks.registry import task_names
from tests.evaluation.conftest import SINKS, WINDOW, records_of, write_rows

DEVICE = ["--dtype", "float32", "--device", "cpu", "--window", WINDOW, "--sinks", SINKS]


def lveval_row(i: int, level: str) -> dict:
    words = {"16k": 30, "32k": 60}[level]
    return {
        "input": f"What is paragraph {i} of?", "answers": ["amber"], "answer_keywords": "amber",
        "context": f"Paragraph {i} is of amber. " + "and so on. " * words, "length": words,
        "dataset": f"hotpotwikiqa_mixup_{level}", "language": "en", "confusing_facts": "",
    }  # fmt: skip


@pytest.fixture(scope="module")
def lveval(run_eval, tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lveval")
    for level in ("16k", "32k"):
        name = f"hotpotwikiqa_mixup_{level}"
        write_rows(
            folder / "data" / "hotpotwikiqa_mixup" / f"{name}.jsonl",
            [lveval_row(i, level) for i in range(3)],
        )
    result = run_eval(
        "lveval", "--model", tiny, "--data", folder / "data", "--tasks", "hotpotwikiqa_mixup",
        "--lengths", "16k,32k", "--max-length", 400, "--output", folder / "run", *DEVICE,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return folder / "run"


@pytest.mark.slow
def test_lveval_runs_a_data_set_at_the_lengths_asked_for(lveval):
    found = records_of(lveval)
    assert {r["task"] for r in found} == {"hotpotwikiqa_mixup_16k", "hotpotwikiqa_mixup_32k"}
    assert {r["variant"] for r in found} == {"full", "window"} and len(found) == 12
    assert {r["gold_ans"] for r in found} == {"amber"}
    cut = [r for r in found if r["truncated"]]
    assert cut and {r["truncation"] for r in cut} == {"middle"}
    info = json.loads((lveval / "run.json").read_text())
    assert {t["level"] for t in info["tasks"].values()} == {"16k", "32k"}


def test_lvevals_page_has_the_authors_tables_and_published_ones_apart(lveval):
    page = (lveval / "report.html").read_text(encoding="utf-8")
    measured, published = page.index('id="benchmark"'), page.index('id="published"')
    assert measured < published
    assert "LV-Eval" in page[measured:published] and "Source: " not in page[measured:published]
    others = page[published : page.index('id="examples"')]
    assert "infinigence/LVEval, revision 63e7ae9" in others and "ByteDance-Seed/AHN" in others
    assert "ChatGLM3-6B-32k" in others and "30.70" in others
    assert "hotpotwikiqa_mixup" in others and "cmrc_mixup" not in others, "only what was asked"
    assert 'id="length"' in page, "a curve over the levels"


def test_lveval_is_exported_and_scores_the_same(run_eval, lveval, tmp_path):
    result = run_eval("export", lveval, "--format", "lveval", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    files = sorted(tmp_path.glob("out/outputs/*-full/*.jsonl"))
    assert [f.stem for f in files] == ["hotpotwikiqa_mixup_16k", "hotpotwikiqa_mixup_32k"]
    for file in files:
        scores = tmp_path / "scores.jsonl"
        arguments = ["--benchmark", "lveval", "--task", file.stem, "--per-example", scores]
        assert run_eval("score", file, *arguments).exit_code == 0
        again = [json.loads(line)["score"] for line in scores.read_text().splitlines()]
        ran = [json.loads(line) for line in (lveval / "full" / file.name).read_text().splitlines()]
        assert again == [r["score"] for r in ran]
    mixed = run_eval("export", lveval, "--format", "infinitebench", "-o", tmp_path / "no")
    assert mixed.exit_code == 2 and "--format lveval" in mixed.stderr


def published_on(run: Path) -> dict[str, dict[str, str]]:
    """The published tables on a run's page that list tasks: by row and heading, as shown."""
    page = (run / "report.html").read_text(encoding="utf-8")
    section = page[page.index('id="published"') :].split("</section>")[0]
    found = {}
    for table in re.findall(r"<table.*?</table>", section, re.S):
        lines = [
            [
                re.sub(r"<[^>]+>", "", cell).strip()
                for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)
            ]
            for row in re.findall(r"<tr.*?</tr>", table, re.S)
        ]
        for name, *cells in lines[1:]:
            if name in task_names("longbench") + task_names("infinitebench"):
                found[name] = dict(zip(lines[0][1:], map(html.unescape, cells), strict=True))
    return found


def as_published(title: str, tasks: list[str]) -> dict[str, dict[str, str]]:
    """Figures of configs/published by task and model, written as a page writes them."""
    (table,) = [table for table in all_published() if table.title == title]
    return {
        task: {
            model: cell
            if isinstance(cell := cells[table.columns.index(task)], str)
            else f"{cell:.2f}"
            if isinstance(cell, float)
            else str(cell)
            for model, cells in table.rows
        }
        for task in tasks
    }


@pytest.mark.slow
def test_infinitebench_makes_its_synthetic_rows_at_a_length(run_eval, tiny, tmp_path):
    arguments = [
        "infinitebench", "--model", tiny, "--data", "synthetic", "--tasks", "passkey,math_find",
        "--limit", 2, "--max-length", 1900, *DEVICE, "--output", tmp_path / "run",
    ]  # fmt: skip
    result = run_eval(*arguments, "--length", 300)
    assert result.exit_code == 0, result.stderr
    found = records_of(tmp_path / "run")
    assert len(found) == 8 and not any(r["error"] for r in found)
    assert all(not r["chat_template"] for r in found), "open models continue a text"
    assert all(r["answer_in_prompt"] for r in found if r["task"] == "passkey")
    assert {type(r["label"][0]) for r in found if r["task"] == "math_find"} <= {int, float}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "The rows of passkey, math_find were generated (length=300, seed=0)" in page
    other = run_eval(*arguments, "--length", 350)
    assert other.exit_code == 2 and "belongs to another run" in other.stderr
    raised = run_eval(*arguments, "--length", 300, "--limit", 3)
    assert raised.exit_code == 0 and "continuing: 8 of 12" in raised.stderr
    assert published_on(tmp_path / "run") == as_published(
        "InfiniteBench: tasks", ["passkey", "math_find"]
    )


@pytest.mark.slow
def test_longbenchs_page_shows_the_leaderboard_of_the_tasks_that_were_run(
    run_eval, tiny, data, tmp_path
):
    result = run_eval(
        "longbench", "--model", tiny, "--data", data, "--tasks", "samsum,hotpotqa", "--limit", 1,
        *DEVICE, "--output", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    expected = as_published("LongBench leaderboard: data sets", ["hotpotqa", "samsum"])
    assert published_on(tmp_path / "run") == expected and len(expected["samsum"]) == 8
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "LongBench: score per data set (official)" in page
    assert "LongBench: English (official)" not in page, "no category has all its tasks"
    assert "<td>44.0</td>" in page and "44.00" not in page, "as printed: with one decimal"


def test_longbench_e_runs_and_is_bucketed_by_length(run_eval, tiny, tmp_path):
    rows = [
        {"input": "Which?", "context": f"Text {i}. " * 20, "answers": ["amber"], "length": length,
         "dataset": "hotpotqa", "language": "en", "all_classes": None, "_id": f"r{i}"}
        for i, length in enumerate((1000, 5000, 9000))
    ]  # fmt: skip
    write_rows(tmp_path / "data" / "hotpotqa_e.jsonl", rows)
    result = run_eval(
        "longbench", "--model", tiny, "--data", tmp_path / "data", "--tasks", "hotpotqa_e",
        *DEVICE, "--output", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert {r["benchmark"] for r in records_of(tmp_path / "run")} == {"longbench_e"}
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "LongBench-E: score per length (official), hotpotqa_e" in page and "8k+" in page


@pytest.mark.slow
def test_the_pocket_suite_compares_cells_over_lengths(run_eval, tmp_path):
    result = run_eval(
        "pocket", "--tasks", "pocket_qa@1,pocket_qa@4_2048", "--lengths", "512,1k", "--limit", 2,
        "--variant", "window,ahn-gdn,ahn-dn", "--output", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = records_of(tmp_path / "run")
    assert {r["variant"] for r in found} == {"window", "ahn-gdn", "ahn-dn"}
    names = {f"pocket_qa@{facts}{suffix}" for facts in (1, 4) for suffix in ("", "_1024")}
    assert {r["task"] for r in found} == names and len(found) == 24
    assert "none of the variants reads these weights mamba2" in result.stderr
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for curve in ("facts", "distance", "length"):
        assert f'<section id="{curve}">' in page
    assert 'id="published"' not in page, "nobody published figures of the pocket suite"
    assert "were generated" not in page, "the pocket suite has no other rows"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["lveval", "--lengths", "12k"], "--lengths: unknown length '12k'"),
        (["lveval", "--tasks", "cmrc"], "cmrc_mixup"),
        (["lveval", "--lengths", ","], "--lengths: none is given"),
        (["infinitebench", "--protocol", "official-gpt5"], "did you mean 'official-gpt4'"),
        (["infinitebench", "--protocol", "ahn"], "code_run, kv_retrieval"),
        (["infinitebench", "--data", "synthetic", "--length", "long"], "'long'"),
        (["infinitebench", "--data", "synthetic", "--tasks", "longbook_qa_eng,passkey"],
         "--data synthetic: longbook_qa_eng cannot be generated (only"),
        (["longbench", "--data", "synthetic"], "no task of longbench can be generated"),
        (["lveval", "--data", "synthetic", "--tasks", "lveval_16k"], "no task of lveval can be"),
        (["infinitebench", "--data", "synthetic", "--length", "1k,2k"], "one at a time"),
        (["infinitebench", "--data", ".", "--tasks", "passkey", "--length", "1k"],
         "--data synthetic"),
        (["pocket", "--lengths", "3k", "--limit", 1], "no pocket tasks of 3072 tokens"),
    ],
)  # fmt: skip
def test_what_a_benchmark_does_not_have_is_one_message(run_eval, tiny, arguments, said):
    if "--data" not in arguments and arguments[0] != "pocket":
        arguments = [*arguments, "--data", "synthetic" if arguments[0] == "infinitebench" else "."]
    if arguments[0] == "lveval" and "--tasks" not in arguments:
        arguments = [*arguments, "--tasks", "cmrc_mixup"]
    model = [] if arguments[0] == "pocket" else ["--model", tiny, "--device", "cpu"]
    result = run_eval(*arguments, *model, "--dry-run")
    assert result.exit_code == 2 and said in result.stderr, result.stderr
    assert "Traceback" not in result.output
    if "generated" in said:
        assert len(result.stderr.strip().splitlines()) == 1


def test_tasks_without_rows_in_a_folder_are_one_message(run_eval, tiny, data):
    result = run_eval("longbench", "--model", tiny, "--data", data, "--device", "cpu")
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert "has no rows of 2wikimqa, dureader" in line
    assert line.endswith("give --tasks hotpotqa,samsum")
