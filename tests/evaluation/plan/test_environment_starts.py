"""A continued run keeps its history: every start is listed, and each record names its own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from reports.run_folders import read_run
from tests.evaluation.conftest import SINKS, WINDOW, records_of


@pytest.fixture(scope="module")
def command(tiny, data, memory) -> list[Any]:
    return [
        "longbench", "--model", tiny, "--data", data, "--tasks", "samsum", "--variant", "full",
        "--variant", "ahn", "--ahn", memory, "--window", WINDOW, "--sinks", SINKS,
        "--max-length", 200, "--dtype", "float32", "--device", "cpu", "--no-report",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def one_start(run_eval, command, tmp_path_factory) -> Path:
    """A run of the first example of each variant; to be read only."""
    run = tmp_path_factory.mktemp("starts") / "run"
    result = run_eval(*command, "--limit", 1, "--output", run)
    assert result.exit_code == 0, result.stderr
    return run


@pytest.fixture
def run(one_start, tmp_path) -> Path:
    return Path(shutil.copytree(one_start, tmp_path / "run"))


def description(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text("utf-8"))


def starts_of_records(run: Path) -> dict[tuple[str, str], int | None]:
    return {(r.variant, r.example_id): r.start for r in read_run(run).records}


def as_schema_2(run: Path) -> Path:
    """The folder as an earlier version would have written it."""
    content = description(run)
    del content["starts"]
    for task in content["identity_parts"]["tasks"].values():
        del task["postprocess"], task["metric_sha256"]
    from evaluation.plan.identity import digest_of

    content |= {"schema_version": 2, "identity": digest_of(content["identity_parts"])}
    (run / "run.json").write_text(json.dumps(content, indent=1))
    for path in run.glob("*/*.jsonl"):
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for line in lines:
            del line["start"], line["record_sha256"]
            line["schema_version"] = 2
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_a_start_records_how_and_where_it_ran(one_start):
    (start,) = description(one_start)["starts"]
    assert start["time"] == description(one_start)["created"]
    assert start["command"] and start["configuration"]["limit"] == 1
    assert "torch" in start["packages"] and start["hardware"]["threads"] >= 1
    assert set(start["environment"]) <= set(os.environ)
    assert start["backends"] == {"ahn": {"prefill": "chunked", "decode": "recurrent"}}
    assert not start["reconstructed"]
    assert set(starts_of_records(one_start).values()) == {0}


def test_every_start_is_kept_and_records_name_theirs(run_eval, command, run, monkeypatch):
    first = description(run)
    monkeypatch.setattr("sys.argv", ["run_eval", "again"])
    monkeypatch.setenv("OMP_DYNAMIC", "FALSE")
    result = run_eval(*command, "--limit", 2, "--output", run)
    assert result.exit_code == 0, result.stderr
    second = description(run)
    assert [s["command"] for s in second["starts"]] == [
        first["starts"][0]["command"], ["run_eval", "again"]
    ]  # fmt: skip
    assert second["starts"][0] == first["starts"][0]
    assert [s["configuration"]["limit"] for s in second["starts"]] == [1, 2]
    assert second["starts"][1]["environment"]["OMP_DYNAMIC"] == "FALSE"
    assert second["command"] == ["run_eval", "again"] and second["created"] == first["created"]
    starts = starts_of_records(run)
    assert {key[1]: start for key, start in starts.items()} == {"row0": 0, "row1": 1}
    assert run_eval(*command, "--limit", 2, "--output", run).exit_code == 0
    assert len(description(run)["starts"]) == 3, "also one that finds nothing left to do"


def test_a_start_that_differs_is_continued_with_a_warning(
    run_eval, command, run, monkeypatch, tmp_path
):
    import evaluation.plan.identity as identity

    versions = identity.package_versions()
    monkeypatch.setattr(identity, "package_versions", lambda: versions | {"torch": "99.0"})
    monkeypatch.setattr(
        identity, "git_state",
        lambda: {"revision": "f" * 40, "dirty": True, "diff_sha256": "abc" * 20},
    )  # fmt: skip
    monkeypatch.setenv("AHN_BACKEND", "recurrent")
    result = run_eval(*command, "--limit", 2, "--output", run, "--no-reuse-prefixes")
    assert result.exit_code == 0, result.stderr
    told = " ".join(result.stderr.split())
    for said in (
        "torch " + versions["torch"] + " (start 0), 99.0 (start 1)",
        "ffffffffffff with uncommitted changes abcabcabcabc (start 1)",
        "AHN_BACKEND none (start 0), recurrent (start 1)",
        "reuse_prefixes True (start 0), False (start 1)",
    ):
        assert said in told
    assert "transformers" not in told
    page = tmp_path / "page.html"
    assert run_eval("report", run, "-o", page).exit_code == 0
    text = page.read_text("utf-8")
    assert "Start 0" in text and "; 2 records; " in text
    assert "99.0 (start 1)" in text and "recurrence of ahn chunked/recurrent (start 0)" in text


def test_equal_starts_are_no_matter_for_a_warning(run_eval, command, run):
    result = run_eval(*command, "--limit", 2, "--output", run)
    assert result.exit_code == 0 and "conditions" not in result.stderr
    assert read_run(run).warnings == []


def test_starts_without_records_do_not_count(run_eval, command, run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("AHN_BACKEND", "recurrent")
        run_eval(*command, "--limit", 1, "--output", run)  # nothing was left to do
    result = run_eval(*command, "--limit", 2, "--output", run)
    assert "AHN_BACKEND" not in result.stderr
    assert len(description(run)["starts"]) == 3 and read_run(run).warnings == []


def test_a_folder_of_schema_2_is_continued(run_eval, command, run, monkeypatch):
    before = description(as_schema_2(run))
    lines = {p: p.read_bytes() for p in run.glob("*/*.jsonl")}
    monkeypatch.setenv("AHN_BACKEND", "recurrent")
    result = run_eval(*command, "--limit", 2, "--output", run)
    assert result.exit_code == 0, result.stderr
    told = " ".join(result.stderr.split())
    assert "continuing: 2 of 4" in told
    assert "AHN_BACKEND not recorded (start 0), recurrent (start 1)" in told
    assert "written by an earlier version" in told and "run_eval check" in told
    content = description(run)
    first, second = content["starts"]
    assert first["reconstructed"] and first["environment"] is None
    assert first["command"] == before["command"] and first["time"] == before["created"]
    assert second["environment"]["AHN_BACKEND"] == "recurrent"
    assert content["schema_version"] == 4
    assert all(path.read_bytes().startswith(old) for path, old in lines.items())
    assert {key[1]: s for key, s in starts_of_records(run).items()} == {"row0": None, "row1": 1}
    assert run_eval("check", run).exit_code == 0


def test_a_folder_of_schema_2_is_refused_to_another_run(run_eval, command, run):
    as_schema_2(run)
    planned = run_eval(*command, "--limit", 2, "--output", run, "--dry-run")
    assert planned.exit_code == 0, planned.stderr
    for flag in ([], ["--dry-run"]):
        result = run_eval(*command, "--output", run, "--window", WINDOW + 1, *flag)
        assert result.exit_code == 2 and "belongs to another run" in result.stderr
        assert "postprocess" not in result.stderr


def test_a_default_folder_of_schema_2_is_found_again(run_eval, command, run, monkeypatch, tmp_path):
    before = description(as_schema_2(run))
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "runs" / f"longbench-{before['identity'][:12]}"
    place.parent.mkdir()
    run.rename(place)
    result = run_eval(*command, "--limit", 2)
    assert result.exit_code == 0 and "continuing: 2 of 4" in result.stderr
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_a_changed_metric_is_refused_the_folder(run_eval, command, run, monkeypatch):
    before = records_of(run)
    from tasks.metrics import METRICS

    def rouge_l(prediction: str, example: object) -> float:
        return 0.5

    monkeypatch.setattr("tasks.metric_code.METRICS", {**METRICS, "rouge_l": rouge_l})
    for flag in ([], ["--dry-run"]):
        result = run_eval(*command, "--limit", 2, "--output", run, *flag)
        assert result.exit_code == 2 and "tasks.samsum.metric_sha256" in result.stderr
    assert records_of(run) == before


@pytest.mark.parametrize(("name", "said"), [("flash", "unknown backend"), ("fla", "AHN_BACKEND=")])
def test_a_backend_that_cannot_run_is_refused_in_the_plan(
    run_eval, command, tmp_path, monkeypatch, name, said
):
    monkeypatch.setenv("AHN_BACKEND", name)
    result = run_eval(*command, "--output", tmp_path / "run", "--dry-run")
    assert result.exit_code == 2 and said in result.stderr
    at = command.index("full") + 1  # after it come the memory's variant and weights
    assert command[at : at + 3] == ["--variant", "ahn", "--ahn"]
    result = run_eval(*command[:at], *command[at + 4 :], "--dry-run")
    assert result.exit_code == (2 if name == "flash" else 0), result.stderr


def test_secrets_and_places_are_not_recorded(monkeypatch):
    from evaluation.plan.environment import environment_variables

    for name in ("CUDA_API_KEY", "TORCH_HOME", "TRITON_CACHE_DIR", "HF_TOKEN", "PATH_OMP"):
        monkeypatch.setenv(name, "x")
    for name in ("AHN_BACKEND", "CUBLAS_WORKSPACE_CONFIG", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    found = environment_variables()
    assert not set(found) & {"CUDA_API_KEY", "TORCH_HOME", "TRITON_CACHE_DIR", "HF_TOKEN"}
    assert {"AHN_BACKEND", "CUBLAS_WORKSPACE_CONFIG", "OPENBLAS_NUM_THREADS"} <= set(found)
    assert "PATH_OMP" not in found
