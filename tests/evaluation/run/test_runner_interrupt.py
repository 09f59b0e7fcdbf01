"""Ctrl-C, SIGTERM, SIGHUP and SIGKILL leave a folder that the same command continues."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from evaluation.backends.local import CachedDocument
from evaluation.cli import _tidy_interrupts, main
from tests.evaluation.conftest import ROOT, question, records_of, write_rows
from tests.processes import start_fork


@pytest.fixture(scope="module")
def command(tiny, tmp_path_factory):
    """Two variants, eight examples each, four documents."""
    folder = tmp_path_factory.mktemp("rows")
    rows = write_rows(folder / "hotpotqa.jsonl", [question(i, 1 + i % 4) for i in range(8)])
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
    answer = CachedDocument.ask
    answered: list[Any] = []

    def held(self: CachedDocument, *args: Any, **kwargs: Any) -> Any:
        if len(answered) == HELD_AFTER:
            waiting.touch()
            time.sleep(600)
        answered.append(answer(self, *args, **kwargs))
        return answered[-1]

    CachedDocument.ask = held  # type: ignore[method-assign]
    sys.argv = ["run_eval", *arguments]
    main()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),  # as SIGTERM, see below
        (signal.SIGKILL, -9),
    ],
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
    assert f"continuing: {HELD_AFTER} of 16" in result.stderr
    assert json.loads((run / "run.json").read_text("utf-8"))["status"] == "finished"
    assert records_of(run) == uninterrupted


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.slow
def test_a_signal_while_the_model_loads_leaves_a_run_to_continue(
    run_eval, command, tmp_path, monkeypatch, number, code
):
    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(each) for each in signals]
    with monkeypatch.context() as patch:
        patch.setattr("evaluation.backends.streaming.load_resolved", interrupted)
        result = run_eval(*command, "--output", tmp_path / "run")
    assert result.exit_code == code
    assert [signal.getsignal(each) for each in signals] == before
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    assert run_eval(*command, "--output", tmp_path / "run").exit_code == 0


def test_hanging_up_is_ignored_where_nohup_had_it_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _tidy_interrupts():
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_whoever_ends_a_run_twice_does_not_disturb_its_end():
    ended = []
    with _tidy_interrupts():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGHUP)
            ended.append("tidily")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # a person may still lose patience
    assert ended == ["tidily"]


ON_A_TERMINAL = """
import sys, time, click
from evaluation.cli import _exit_code, _tidy_interrupts
with _tidy_interrupts():
    try:
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt as interrupt:
        for _ in range(3):
            print("a word to a terminal that is gone", flush=True)
            click.echo("and another", err=True)
        open(sys.argv[1], "w").write("whole")
        code = _exit_code(interrupt)
sys.exit(code)
"""


def test_a_terminal_that_closes_ends_a_run_tidily(tmp_path):
    """What is written after that fails with EIO, unless it is written nowhere."""
    terminal, inside = pty.openpty()

    def own_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL, str(tmp_path / "end")], cwd=ROOT,
        stdin=inside, stdout=inside, stderr=inside, preexec_fn=own_terminal,
    )  # fmt: skip
    os.close(inside)
    try:
        assert b"ready" in os.read(terminal, 100)
    finally:
        os.close(terminal)
    assert process.wait(timeout=60) == 129
    assert (tmp_path / "end").read_text() == "whole"
