"""Ctrl-C, SIGTERM and SIGKILL leave a folder that the same command continues."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from tests.evaluation.conftest import question, records_of, start_process, write_rows


@pytest.fixture
def command(tiny, tmp_path):
    """Two variants, twelve examples each, six documents."""
    rows = write_rows(tmp_path / "hotpotqa.jsonl", [question(i, 1 + i % 6) for i in range(12)])
    return [
        "longbench", "--model", tiny, "--data", rows.parent, "--tasks", "hotpotqa",
        "--variant", "full", "--variant", "window", "--window", 48, "--sinks", 4,
        "--dtype", "float32", "--device", "cpu", "--no-report",
    ]  # fmt: skip


def lines_in(run: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in run.glob("*/*.jsonl"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_stopped_run_is_continued_to_the_same_records(run_eval, command, tmp_path, number, code):
    run = tmp_path / "run"
    process = start_process(*command, "--output", run)
    deadline = time.monotonic() + 60
    while lines_in(run) < 4 and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    done = lines_in(run)
    assert 4 <= done < 24
    status = json.loads((run / "run.json").read_text("utf-8"))["status"]
    assert status == ("running" if number == signal.SIGKILL else "interrupted")
    assert ("the same command continues" in errors) == (number != signal.SIGKILL)

    result = run_eval(*command, "--output", run)
    assert result.exit_code == 0, result.stderr
    assert f"continuing: {done} of 24" in result.stderr
    assert json.loads((run / "run.json").read_text("utf-8"))["status"] == "finished"
    run_eval(*command, "--output", tmp_path / "uninterrupted")
    assert records_of(run) == records_of(tmp_path / "uninterrupted")


def test_ctrl_c_while_the_model_loads_leaves_a_run_to_continue(
    run_eval, command, tmp_path, monkeypatch
):
    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr("evaluation.variants.ahn.load_model", interrupted)
        result = run_eval(*command, "--output", tmp_path / "run")
    assert result.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert run_eval(*command, "--output", tmp_path / "run").exit_code == 0
