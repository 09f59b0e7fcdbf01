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

import pytest

from evaluation.cli import _tidy_interrupts
from tests.evaluation.conftest import ROOT, question, records_of, start_process, write_rows


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
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),  # as SIGTERM, see below
        (signal.SIGKILL, -9),
    ],
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


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_while_the_model_loads_leaves_a_run_to_continue(
    run_eval, command, tmp_path, monkeypatch, number, code
):
    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(each) for each in signals]
    with monkeypatch.context() as patch:
        patch.setattr("evaluation.variants.ahn.load_model", interrupted)
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
import sys, time, typer
from evaluation.cli import _exit_code, _tidy_interrupts
with _tidy_interrupts():
    try:
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
    except KeyboardInterrupt as interrupt:
        for _ in range(3):
            print("a word to a terminal that is gone", flush=True)
            typer.echo("and another", err=True)
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
