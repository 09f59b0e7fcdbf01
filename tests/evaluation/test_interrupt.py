"""Ctrl-C, SIGTERM and SIGKILL leave a folder that the same command continues."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from evaluation.cli import main
from evaluation.generate import Generator
from tests.evaluation.conftest import question, records_of, write_rows
from tests.processes import start_fork


@pytest.fixture(scope="module")
def command(tiny, tmp_path_factory):
    """Two variants, twelve examples each, six documents."""
    folder = tmp_path_factory.mktemp("rows")
    rows = write_rows(folder / "hotpotqa.jsonl", [question(i, 1 + i % 6) for i in range(12)])
    return [
        "longbench", "--model", tiny, "--data", rows.parent, "--tasks", "hotpotqa",
        "--variant", "full", "--variant", "window", "--window", 48, "--sinks", 4,
        "--dtype", "float32", "--device", "cpu", "--no-report",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(run_eval, command, tmp_path_factory):
    """Records of `command`."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert run_eval(*command, "--output", run).exit_code == 0
    return records_of(run)


HELD_AFTER = 5
"""Answers after which the run in the other process waits for its signal."""


def run_and_wait(arguments: list[str], waiting: Path) -> None:
    """`run_eval ARGUMENTS`, which makes the file `waiting` and stops in its sixth example."""
    answer = Generator.answer
    answered: list[Any] = []

    def held(self: Generator, *args: Any, **kwargs: Any) -> Any:
        if len(answered) == HELD_AFTER:
            waiting.touch()
            time.sleep(600)
        answered.append(answer(self, *args, **kwargs))
        return answered[-1]

    Generator.answer = held  # type: ignore[method-assign]
    sys.argv = ["run_eval", *arguments]
    main()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_stopped_run_is_continued_to_the_same_records(
    run_eval, command, uninterrupted, tmp_path, number, code
):
    run, waiting, output = tmp_path / "run", tmp_path / "waiting", tmp_path / "output"
    arguments = [str(word) for word in [*command, "--output", run]]
    process = start_fork(run_and_wait, arguments, waiting, output=output)
    assert process.pid is not None
    while not waiting.exists() and process.is_alive():
        time.sleep(0.01)
    if process.is_alive():
        os.kill(process.pid, number)
    process.join()
    errors = output.read_text("utf-8")
    assert process.exitcode == code, errors
    assert "Traceback" not in errors
    records = [line for path in run.glob("*/*.jsonl") for line in path.read_bytes().splitlines()]
    assert len(records) == HELD_AFTER
    status = json.loads((run / "run.json").read_text("utf-8"))["status"]
    assert status == ("running" if number == signal.SIGKILL else "interrupted")
    assert ("the same command continues" in errors) == (number != signal.SIGKILL)

    result = run_eval(*command, "--output", run)
    assert result.exit_code == 0, result.stderr
    assert f"continuing: {HELD_AFTER} of 24" in result.stderr
    assert json.loads((run / "run.json").read_text("utf-8"))["status"] == "finished"
    assert records_of(run) == uninterrupted


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
