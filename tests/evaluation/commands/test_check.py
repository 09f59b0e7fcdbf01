"""`run_eval check`: what is wrong of a run is named by line, and mended without loss."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.commands.check import check_run
from evaluation.run.locks import FolderLock
from reports.records import SCHEMA_VERSION, content_sha256
from tests.evaluation.conftest import ROOT, SINKS, WINDOW, records_of
from tests.evaluation.plan.test_environment_starts import as_schema_2
from tests.reports.conftest import write_run

FILE = "full/hotpotqa.jsonl"


@pytest.fixture(scope="module")
def command(tiny, data) -> list[Any]:
    return [
        "longbench", "--model", tiny, "--data", data, "--tasks", "hotpotqa,samsum",
        "--variant", "full,window", "--window", WINDOW, "--sinks", SINKS, "--limit", 3,
        "--max-length", 100, "--dtype", "float32", "--device", "cpu", "--no-report",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(run_eval, command, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("check") / "run"
    assert run_eval(*command, "--output", run).exit_code == 0
    return run


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def content_of(run: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}


def changed(digest: bool = True, **fields: Any) -> Callable[[bytes], bytes]:
    """A line with other values; `digest`: with a digest that fits them."""

    def change(line: bytes) -> bytes:
        record = json.loads(line) | fields
        if digest:
            del record["record_sha256"]
            record["record_sha256"] = content_sha256(record)
        return json.dumps(record, ensure_ascii=False).encode()

    return change


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(line: bytes) -> bytes:
        assert old in line
        return line.replace(old, new, 1)

    return change


def test_a_whole_run_has_no_problems(run_eval, run):
    before = content_of(run)
    for flag in ([], ["--repair"]):
        result = run_eval("check", run, *flag)
        assert result.exit_code == 0, result.stdout
        assert "10 whole records in 4 files; nothing is wrong" in result.stdout
        assert content_of(run) == before


SECOND_LINE = {
    "not JSON": (lambda line: line[:50], "not JSON"),
    "empty": (lambda line: b"", "empty line"),
    "not an object": (lambda line: b"[1]", "not a JSON object"),
    "not UTF-8": (replaced(b"hotpotqa", b"hotpot\xff"), "not UTF-8"),
    "NaN": (replaced(b'"score":0.0', b'"score":NaN'), "NaN is no number"),
    "key twice": (replaced(b'"task":', b'"task":"x","task":'), "key 'task' is given twice"),
    "nested": (lambda line: b"[" * 10**5, "nested too deeply"),
    "unknown field": (changed(scor=1), "scor"),
    "missing field": (replaced(b'"score":0.0,', b""), "score"),
    "number as text": (replaced(b'"prompt_tokens":', b'"prompt_tokens":"7","x":'), "prompt_tokens"),
    "bool as number": (replaced(b'"score":0.0', b'"score":true'), "score"),
    "negative time": (changed(prefill_seconds=-1.0), "prefill_seconds"),
    "score above 1": (changed(score=1.5), "score"),
    "another score": (changed(score=0.5), "score is 0.5, but qa_f1 gives 0.0"),
    "another prediction": (changed(prediction="0", answers=["0"]), "qa_f1 gives 1.0"),
    "altered tokens": (changed(digest=False, prompt_tokens=1), "changed after it was written"),
    "altered prompt": (changed(digest=False, prompt_sha256="0" * 64), "changed after it"),
    "no digest of a prompt": (changed(prompt_sha256="abc"), "prompt_sha256 is no SHA-256"),
    "of no start": (changed(start=1), "of start 1, but run.json lists 1"),
    "another variant": (changed(variant="window"), "of variant 'window'"),
    "another task": (changed(task="samsum"), "task 'samsum'"),
    "another protocol": (changed(protocol="ahn"), "protocol is 'ahn', in run.json 'official'"),
    "another metric": (changed(metric="count"), "metric is 'count', in run.json 'qa_f1'"),
    "later schema": (changed(schema_version=SCHEMA_VERSION + 1), "schema version"),
}


@pytest.mark.parametrize("damage", list(SECOND_LINE))
def test_a_bad_line_is_named_and_its_example_answered_anew(
    run_eval, run, command, finished, damage
):
    change, said = SECOND_LINE[damage]
    path = run / FILE
    lines = path.read_bytes().split(b"\n")
    bad = lines[1] = change(lines[1])
    path.write_bytes(b"\n".join(lines))
    before = content_of(run)

    found = check_run(run)
    assert any(p.startswith(f"{path}:2: ") and said in p for p in found.problems), found.problems
    assert not [p for p in found.problems if ".jsonl:" in p and f"{path}:2: " not in p]
    assert content_of(run) == before, "a check changes nothing"

    result = run_eval("check", run, "--repair")
    assert result.exit_code == 1 and f"{path}:2: " in result.stdout
    assert "1 lines moved aside" in result.stdout
    assert path.with_name(f"{path.name}.rejected").read_bytes() == bad + b"\n"
    assert path.read_bytes() == lines[0] + b"\n" + lines[2] + b"\n"
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    again = run_eval("check", run)
    assert again.exit_code == 0 and "1 of 10 planned examples have no whole record" in again.stdout


@pytest.mark.parametrize("damage", ["not JSON", "another score", "altered tokens"])
def test_after_repair_the_same_command_completes_the_run(run_eval, run, command, finished, damage):
    path = run / FILE
    lines = path.read_bytes().split(b"\n")
    lines[1] = SECOND_LINE[damage][0](lines[1])
    path.write_bytes(b"\n".join(lines))
    assert run_eval("check", run, "--repair").exit_code == 1
    result = run_eval(*command, "--output", run)
    assert result.exit_code == 0 and "continuing: 9 of 10" in result.stderr
    assert records_of(run) == records_of(finished)
    checked = run_eval("check", run)
    assert checked.exit_code == 0 and "moved here before" in checked.stdout


def test_a_run_with_a_bad_line_says_what_mends_it(run_eval, run, command):
    path = run / FILE
    path.write_bytes(b"{\n" + path.read_bytes())
    result = run_eval(*command, "--output", run)
    assert result.exit_code == 2 and f"run_eval check {run} --repair" in result.stderr


def test_an_example_recorded_twice_keeps_its_first_record(run_eval, run):
    path = run / FILE
    whole = path.read_bytes()
    first = whole.split(b"\n")[0]
    path.write_bytes(whole + first + b"\n")
    result = run_eval("check", run, "--repair")
    assert result.exit_code == 1
    assert f"{path}:4: example " in result.stdout and "already recorded in line 1" in result.stdout
    assert path.read_bytes() == whole and run_eval("check", run).exit_code == 0


@pytest.mark.parametrize("torn", [b'{"ben', b'{"ben\n{"schema_ver', b"\0\0\0\0"])
def test_torn_last_lines_are_problems_until_the_next_start(run_eval, run, torn):
    path = run / FILE
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    result = run_eval("check", run)
    assert result.exit_code == 1 and f"{path}:4: not whole JSON" in result.stdout
    assert run_eval("check", run, "--repair").exit_code == 1
    assert path.read_bytes() == whole and run_eval("check", run).exit_code == 0


def test_line_ends_and_byte_order_marks_are_mended_in_place(run_eval, run, finished):
    path = run / FILE
    whole = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + whole.replace(b"\n", b"\r\n"))
    result = run_eval("check", run, "--repair")
    assert result.exit_code == 1
    assert f"{path}:1: begins with a byte order mark and ends in a" in result.stdout
    assert f"{path}:3: ends in a carriage return" in result.stdout
    assert path.read_bytes() == whole and content_of(run).keys() == {
        run / p.relative_to(finished) for p in content_of(finished)
    }
    assert run_eval("check", run).exit_code == 0


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("no-write/hotpotqa.jsonl", "run.json names no variant 'no-write'"),
        ("full/trec.jsonl", "run.json names no task 'trec'"),
    ],
)
def test_records_that_the_run_does_not_know_are_moved_aside(run_eval, run, command, place, said):
    path = run / place
    path.parent.mkdir(exist_ok=True)
    shutil.copy(run / FILE, path)
    result = run_eval("check", run, "--repair")
    assert result.exit_code == 1 and f"{path}:1: {said}" in result.stdout
    assert not path.exists() and path.with_name(f"{path.name}.rejected").exists()
    assert run_eval("check", run).exit_code == 0
    assert run_eval(*command, "--output", run).exit_code == 0


def test_what_is_no_record_file_is_left_alone(run_eval, run):
    notes = run / "notes" / "mine.jsonl"
    notes.parent.mkdir()
    notes.write_text('{"a": 1}\nno json\n')
    result = run_eval("check", run, "--repair")
    assert result.exit_code == 0 and f"{notes}: no file of this run" in result.stdout
    assert notes.read_text() == '{"a": 1}\nno json\n'


def test_a_lost_file_is_a_problem_of_a_finished_run(run_eval, run):
    (run / FILE).unlink()
    result = run_eval("check", run)
    assert result.exit_code == 1
    assert "says finished, but 3 of 10 planned examples have no whole record" in result.stdout
    assert run_eval("check", run, "--repair").exit_code == 1
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    assert run_eval("check", run).exit_code == 0


def test_an_altered_identity_is_a_problem(run_eval, run):
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace('"seed": 42', '"seed": 43'))
    assert text != (run / "run.json").read_text()
    result = run_eval("check", run)
    assert result.exit_code == 1 and "identity is not the digest of identity_parts" in result.stdout


def test_a_damaged_description_is_a_problem_and_lines_are_checked_still(run_eval, run):
    (run / "run.json").write_text("{")
    lines = (run / FILE).read_bytes().split(b"\n")
    (run / FILE).write_bytes(b"\n".join([lines[0], b"{}", *lines[2:]]))
    result = run_eval("check", run)
    assert result.exit_code == 1
    assert "run.json: not readable as JSON" in result.stdout
    assert f"{run / FILE}:2: " in result.stdout


def test_prompts_that_differ_between_variants_are_found_without_digests(run_eval, run):
    as_schema_2(run)
    path = run / FILE
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert run_eval("check", run).exit_code == 0
    lines[0]["prompt_sha256"] = "0" * 64
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run_eval("check", run)
    assert result.exit_code == 1
    assert f"{path}:1: answers another prompt than in other variants" in result.stdout
    assert f"{run / 'window/hotpotqa.jsonl'}:1: answers another prompt" in result.stdout


def test_what_is_no_run_folder_is_bad_input(run_eval, run, tmp_path):
    for folder in (tmp_path / "absent", tmp_path, run / FILE):
        result = run_eval("check", folder)
        assert result.exit_code == 2 and result.stderr.startswith("error: ")
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(content | {"schema_version": SCHEMA_VERSION + 1}))
    before = content_of(run)
    result = run_eval("check", run, "--repair")
    assert result.exit_code == 2 and "update ahn-bench" in result.stderr
    assert content_of(run) == before


def test_a_run_that_is_being_written_is_checked_but_not_repaired(run_eval, run):
    path = run / FILE
    path.write_bytes(path.read_bytes() + b'{"half')
    lock = FolderLock(run)
    lock.acquire()
    try:
        before = content_of(run)
        result = run_eval("check", run)
        assert result.exit_code == 0, result.stdout
        assert "a process is writing into it" in result.stdout
        result = run_eval("check", run, "--repair")
        assert result.exit_code == 2 and "written by another process" in result.stderr
        assert content_of(run) == before
    finally:
        lock.release()
    assert run_eval("check", run).exit_code == 1


def test_a_check_needs_no_write_permission_and_makes_no_lock(run_eval, run):
    (run / ".lock").unlink()
    assert run_eval("check", run).exit_code == 0
    assert not (run / ".lock").exists()


@pytest.mark.parametrize("field", ["task", "protocol", "metric"])
def test_what_this_version_does_not_know_is_not_scored_and_told(run_eval, tmp_path, field):
    own = {"task": "hotpotqa", "protocol": "official", "metric": "qa_f1"} | {field: "later"}
    described = {own["task"]: {"examples": 2, "benchmark": "longbench"} | own}
    described[own["task"]].pop("task")
    run = write_run(
        tmp_path / "run", {"full": {own["task"]: [1.0, 0.25]}},
        record={"protocol": own["protocol"], "metric": own["metric"]}, tasks=described,
        identity=content_sha256({"seed": 0}),
    )  # fmt: skip
    result = run_eval("check", run)
    assert result.exit_code == 0, result.stdout
    assert "later" in result.stdout and "scores are not checked" in result.stdout


def test_failed_examples_and_their_retries_are_no_problems(run_eval, tmp_path):
    run = write_run(
        tmp_path / "run", {"full": {"hotpotqa": [1.0, None]}},
        record=lambda variant, task, i: {"metric": "qa_f1", "protocol": "official"},
        identity=content_sha256({"seed": 0}),
        tasks={"hotpotqa": {"examples": 2, "benchmark": "longbench"}},
    )  # fmt: skip
    result = run_eval("check", run)
    assert result.exit_code == 0, result.stdout
    assert "1 examples failed; the next start tries them again" in result.stdout
    path = run / "full" / "hotpotqa.jsonl"
    first, failed = path.read_text().splitlines()
    retried = json.loads(failed) | {"error": None, "score": 1.0}
    path.write_text(f"{first}\n{failed}\n{json.dumps(retried)}\n")
    result = run_eval("check", run)
    assert result.exit_code == 0 and "examples failed" not in result.stdout


@pytest.mark.parametrize(
    ("benchmark", "task", "label", "answers", "prediction", "score"),
    [
        ("infinitebench", "math_find", [7], ["7"], "7", 1.0),
        ("infinitebench", "math_find", None, ["7"], "8", 0.0),
        ("infinitebench", "kv_retrieval", "ab-1", ["ab-1"], "it is ab-1.", 1.0),
        ("lveval", "hotpotwikiqa_mixup_16k", None, ["a lamp"], "a lamp", 1.0),
        ("longbench", "trec", None, ["lamp"], "lamp", 1.0),
        ("longbench", "pocket_qa@4", None, ["lamp"], " lamp", 1.0),
    ],
)
def test_every_benchmarks_records_score_as_when_they_were_made(
    tmp_path, benchmark, task, label, answers, prediction, score
):
    from tasks.registry import find_task

    metric = find_task(benchmark, task).protocol("official").metric
    fields = {
        "benchmark": benchmark, "protocol": "official", "metric": metric, "label": label,
        "answers": answers, "prediction": prediction, "all_classes": ["lamp", "chair"],
    }  # fmt: skip
    run = write_run(
        tmp_path / "run", {"full": {task: [score]}}, record=fields,
        identity=content_sha256({"seed": 0}), tasks={task: {"examples": 1}},
    )  # fmt: skip
    assert check_run(run).problems == []
    path = run / "full" / f"{task}.jsonl"
    path.write_text(path.read_text().replace(f'"score":{score}', '"score":0.125'))
    assert any("score is 0.125" in problem for problem in check_run(run).problems)


def test_a_check_starts_without_torch(run):
    code = (
        "import sys; from pathlib import Path; from evaluation.commands.check import check_run; "
        f"assert not check_run(Path({str(run)!r})).problems; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
