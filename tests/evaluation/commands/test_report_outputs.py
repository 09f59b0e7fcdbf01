"""What a person names as output never costs a file: a run's own least of all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.pages import is_page
from tests.evaluation.conftest import SINKS, WINDOW
from tests.evaluation.test_cli import predictions
from tests.reports.conftest import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    record = {"benchmark": "longbench", "protocol": "official", "metric": "qa_f1"}
    return write_run(
        tmp_path / "run", {"full": {"hotpotqa": [1.0, 0.0]}, "window": {"hotpotqa": [0.0, 0.0]}},
        record=record,
    )  # fmt: skip


def state(folder: Path) -> dict[str, bytes]:
    """Every file and link below `folder`."""
    return {
        str(p): os.fsencode(p.readlink()) if p.is_symlink() else p.read_bytes()
        for p in folder.rglob("*")
        if p.is_symlink() or p.is_file()
    }


def linked(how: Callable[[Path, Path], None], of: str) -> Callable[[Path], Path]:
    def make(run: Path) -> Path:
        link = run.parent / "link.html"
        how(run / of, link)
        return link

    return make


def in_linked_folder(run: Path, name: str) -> Path:
    other = run.parent / "other"
    other.symlink_to(run)
    return other / name


TARGETS: dict[str, Callable[[Path], Path]] = {
    "the description": lambda run: run / "run.json",
    "a record file": lambda run: run / "full" / "hotpotqa.jsonl",
    "a record file to come": lambda run: run / "full" / "samsum.jsonl",
    "the lock": lambda run: run / ".lock",
    "another case": lambda run: run / "RUN.json",
    "another case of a record file": lambda run: run / "full" / "new.JSONL",
    "a variant's folder to come": lambda run: run / "ahn",
    "a relative path": lambda run: Path(os.path.relpath(run / "full" / ".." / "run.json")),
    "a link": linked(lambda of, link: link.symlink_to(of), "run.json"),
    "a link to a record file": linked(lambda of, link: link.symlink_to(of), "full/hotpotqa.jsonl"),
    "a hard link": linked(lambda of, link: os.link(of, link), "run.json"),
    "through a linked folder": lambda run: in_linked_folder(run, "run.json"),
    "moved-aside lines": lambda run: run / "full" / "hotpotqa.jsonl.rejected",
}


@pytest.mark.parametrize("target", list(TARGETS))
def test_a_report_never_replaces_a_runs_file(run_eval, run, target):
    if "to come" in target:  # as in a run that has only begun
        described = json.loads((run / "run.json").read_text())
        described["models"]["ahn"] = {}
        (run / "run.json").write_text(json.dumps(described))
    (run / ".lock").write_text("")
    output = TARGETS[target](run)
    before = state(run.parent)
    result = run_eval("report", run, "-o", output)
    assert result.exit_code == 2 and result.stderr.startswith("error: "), result.output
    assert str(output) in result.stderr
    assert state(run.parent) == before


def test_a_report_never_replaces_a_file_of_another_run(run_eval, run, tmp_path):
    other = write_run(tmp_path / "another", {"full": {"qa": [1.0]}})
    before = state(tmp_path)
    for output in (other / "run.json", other / "full" / "qa.jsonl", other / "full" / "x.jsonl"):
        assert run_eval("report", run, "-o", output).exit_code == 2
    assert state(tmp_path) == before


@pytest.mark.parametrize("content", ["", "notes", "<!doctype html><title>Mine</title>", "{}"])
def test_a_report_replaces_only_a_report(run_eval, run, tmp_path, content):
    output = tmp_path / "page.html"
    output.write_text(content)
    result = run_eval("report", run, "-o", output)
    assert result.exit_code == 2 and "is no report of ahn-bench" in result.stderr
    assert output.read_text() == content
    output.unlink()
    for _ in range(2):
        assert run_eval("report", run, "-o", output).exit_code == 0
        assert is_page(output)


def test_a_report_is_no_replacement_for_what_is_no_file(run_eval, run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for output in (tmp_path / "pipe", tmp_path / "dangling", "/dev/null", run):
        result = run_eval("report", run, "-o", output)
        assert result.exit_code == 2 and "Traceback" not in result.output, output
    assert not Path("/dev/null").is_file() and (tmp_path / "dangling").is_symlink()
    too_long = tmp_path / ("x" * 5000)
    result = run_eval("report", run, "-o", too_long)
    assert result.exit_code == 2 and "name too long" in result.stderr.lower()


def test_a_page_of_an_earlier_version_is_known_as_one(run, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>AHN-Bench: demo'
        "</title>\n<style></style>"
    )
    assert is_page(page)


def test_a_run_does_not_replace_a_foreign_report_html(run_eval, tiny, data, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "report.html").write_text("my own")
    arguments = [
        "longbench", "--model", tiny, "--data", data, "--tasks", "samsum", "--variant", "full",
        "--limit", 1, "--device", "cpu", "--output", run,
    ]  # fmt: skip
    for flag in ([], ["--dry-run"]):
        result = run_eval(*arguments, *flag)
        assert result.exit_code == 2 and "report.html" in result.stderr
        assert [p.name for p in run.iterdir()] == ["report.html"]
    assert (run / "report.html").read_text() == "my own"
    assert run_eval(*arguments, "--no-report").exit_code == 0
    assert (run / "report.html").read_text() == "my own"


SCORE = ["--benchmark", "longbench", "--task", "hotpotqa", "--per-example"]


@pytest.mark.parametrize(
    "target", ["run.json", "full/hotpotqa.jsonl", "full/new.jsonl", "notes.txt", "rows.jsonl"]
)
def test_scores_replace_only_scores(run_eval, run, tmp_path, target):
    (run / "notes.txt").write_text("mine")
    (run / "rows.jsonl").write_text('{"score": 1.0}\n{"score": 1.0, "context": "c"}\n')
    file = predictions(tmp_path, 1, 0)
    before = state(tmp_path)
    result = run_eval("score", file, *SCORE, run / target)
    assert result.exit_code == 2 and "error: " in result.stderr
    assert state(tmp_path) == before


def test_scores_do_not_replace_devices(run_eval, tmp_path):
    result = run_eval("score", predictions(tmp_path, 1), *SCORE, "/dev/null")
    assert result.exit_code == 2 and not Path("/dev/null").is_file()


def test_scores_replace_scores(run_eval, tmp_path):
    file, out = predictions(tmp_path, 1, 0), tmp_path / "scores.jsonl"
    for _ in range(2):
        assert run_eval("score", file, *SCORE, out).exit_code == 0
    assert len(out.read_text().splitlines()) == 2


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_an_export_never_replaces_records(run_eval, run, tmp_path, force):
    """pred/<model>/<task>.jsonl is also <run>/<variant>/<task>.jsonl of a run named pred."""
    other = run.rename(tmp_path / "pred")
    source = write_run(
        tmp_path / "source", {"full": {"hotpotqa": [1.0]}},
        record={"benchmark": "longbench", "protocol": "official"},
    )  # fmt: skip
    before = state(tmp_path)
    result = run_eval(
        "export", source, "--format", "longbench", "-o", tmp_path, "--model-name", "full", *force
    )
    assert result.exit_code == 2 and f"the run {other}" in result.stderr
    assert state(tmp_path) == before


def test_an_export_into_the_working_folder(run_eval, run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = run_eval("export", run, "--format", "longbench", "-o", ".", "--variant", "full")
    assert result.exit_code == 0, result.output
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["pred"]


def test_pocket_data_replaces_only_pocket_data(run_eval, tmp_path):
    out = tmp_path / "data"
    arguments = ["pocket-data", "-o", out, "--share", 0.0001]
    assert run_eval(*arguments).exit_code == 0
    before = state(out)
    assert run_eval(*arguments).exit_code == 0, "its own files it replaces"
    assert state(out) == before
    for name in ("tokenizer/tokenizer_config.json", "student-long.jsonl"):
        (out / name).write_text('{"my": "own"}\n')
        changed = state(out)
        result = run_eval(*arguments)
        assert result.exit_code == 2 and name in result.stderr and "not replaced" in result.stderr
        assert state(out) == changed
        (out / name).write_bytes(before[str(out / name)])


@pytest.fixture
def overwriting(tiny, data, tmp_path) -> list[Any]:
    return [
        "longbench", "--model", tiny, "--data", data, "--tasks", "samsum", "--variant", "window",
        "--window", WINDOW, "--sinks", SINKS, "--limit", 1, "--device", "cpu", "--no-report",
        "--output", tmp_path / "run", "--overwrite",
    ]  # fmt: skip


def test_overwrite_deletes_only_what_the_run_wrote(run_eval, overwriting, run):
    foreign = {
        "data/rows.jsonl": '{"context": "c"}\n',
        "full/notes.jsonl": '{"a": 1}\n',
        "elsewhere/hotpotqa.jsonl": (run / "full" / "hotpotqa.jsonl").read_text(),
        "full/hotpotqa.txt": "mine",
    }
    for name, content in foreign.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(content)
    (run / "full" / "hotpotqa.jsonl.rejected").write_text("{\n")
    result = run_eval(*overwriting)
    assert result.exit_code == 0, result.stderr
    assert {name: (run / name).read_text() for name in foreign} == foreign
    for gone in ("full/hotpotqa.jsonl", "full/hotpotqa.jsonl.rejected", "window/hotpotqa.jsonl"):
        assert not (run / gone).exists()
    assert (run / "window" / "samsum.jsonl").exists()


@pytest.mark.slow
def test_what_overwrite_left_does_not_hinder_the_run_later(run_eval, overwriting, run):
    records = (run / "full" / "hotpotqa.jsonl").read_text()
    left = {
        "data/rows.jsonl": '{"context": "c"}\n',
        "window/mine.jsonl": "{}\n",
        "x/qa.jsonl": records,
    }
    for name, content in left.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(content)
    assert run_eval(*overwriting).exit_code == 0
    result = run_eval(*[w for w in overwriting if w != "--overwrite"], "--limit", 2)
    assert result.exit_code == 0, result.stderr
    assert run_eval("report", run, "-o", run / "page.html").exit_code == 0
    assert {name: (run / name).read_text() for name in left} == left


def test_overwrite_never_writes_into_a_file_of_unknown_origin(run_eval, overwriting, run):
    stranger = run / "window" / "samsum.jsonl"
    stranger.write_text((run / "full" / "hotpotqa.jsonl").read_text())
    before = state(run)
    result = run_eval(*overwriting)
    assert result.exit_code == 2 and f"{stranger} was not written by the run" in result.stderr
    assert {k: v for k, v in state(run).items() if not k.endswith(".lock")} == before
    (run / "run.json").unlink()
    result = run_eval(*overwriting)
    assert result.exit_code == 2 and "no run.json" in result.stderr


@pytest.mark.parametrize("content", ["{", '{"my": "own"}', ""])
def test_overwrite_refuses_a_run_json_that_is_none_of_ours(run_eval, overwriting, run, content):
    (run / "run.json").write_text(content)
    before = state(run)
    for flag in ([], ["--dry-run"]):
        result = run_eval(*overwriting, *flag)
        assert result.exit_code == 2 and "deletes only what a run wrote" in result.stderr
    assert {k: v for k, v in state(run).items() if not k.endswith(".lock")} == before


def test_overwrite_refuses_a_foreign_file_in_a_records_place(run_eval, overwriting, run):
    (run / "full" / "hotpotqa.jsonl").write_text('{"context": "c"}\n')
    before = state(run)
    result = run_eval(*overwriting)
    assert result.exit_code == 2 and "holds no records" in result.stderr
    assert {k: v for k, v in state(run).items() if not k.endswith(".lock")} == before
