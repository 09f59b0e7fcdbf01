"""Ends a pocket run again and again, by SIGKILL, SIGTERM and SIGHUP; what is left must be whole.

    python tests/bench/kills.py --kills 50

After every kill: no line that was whole is lost or changed, `run_eval check` finds at most torn
last lines, and the same command goes on. At the end: every example has one record, equal to that of
a run that nobody disturbed. Prints a line for each kill and a summary; exit code 1 if anything
failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
OF_ONE_START = ("prefill_seconds", "decode_seconds", "start", "record_sha256")
"""Fields of a record that differ between two runs of one command."""


def arguments(run: Path, limit: int) -> list[str]:
    """A pocket run of three variants."""
    return [
        "run_eval", "pocket", "--tasks", "pocket_qa@1,pocket_qa@4", "--lengths", "512",
        "--variant", "full,window,ahn-gdn", "--limit", str(limit), "--threads", "1",
        "--no-report", "--output", str(run),
    ]  # fmt: skip


class Start:
    """`run_eval` in a forked process, which need not import torch once more."""

    def __init__(self, words: list[str], said: Path) -> None:
        self.said = said
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._run(words)
            finally:
                os._exit(99)  # `main` exits by itself

    def _run(self, words: list[str]) -> None:
        from evaluation.cli import main

        for number in (signal.SIGHUP, signal.SIGTERM):  # also where this script runs under nohup
            signal.signal(number, signal.SIG_DFL)
        out = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = words
        try:
            main()
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
        except BaseException:
            traceback.print_exc()
            os._exit(98)

    def ended(self, wait: bool = False) -> bool:
        """Whether it has ended; with `wait`, once it has."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None


def whole_lines(run: Path) -> dict[Path, list[bytes]]:
    """The lines of every record file that end in a newline."""
    return {path: path.read_bytes().split(b"\n")[:-1] for path in run.glob("*/*.jsonl")}


def records(run: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """By variant, task and example; AssertionError where one is there twice."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for lines in whole_lines(run).values():
        for line in lines:
            record = {k: v for k, v in json.loads(line).items() if k not in OF_ONE_START}
            key = (record["variant"], record["task"], record["example_id"])
            assert key not in found, f"{key} is there twice"
            record.pop("reused_prefix_tokens")
            found[key] = record
    return found


def check(run: Path) -> list[str]:
    """What `run_eval check` finds."""
    from evaluation.commands.check import check_run

    return check_run(run, workers=1).problems


def kill_once(words: list[str], run: Path, number: int, draw: random.Random) -> str:
    """Start, let some records be written, end; returns what went wrong, empty: nothing."""
    before = whole_lines(run)
    process = Start(words, run.with_name("said"))
    wanted = sum(map(len, before.values())) + draw.randrange(0, 4)
    while not process.ended() and sum(map(len, whole_lines(run).values())) < wanted:
        time.sleep(0.002)
    time.sleep(draw.random() * 0.1)
    if process.ended():
        return f"ended by itself with {process.status}; is --limit too small for so many kills?"
    os.kill(process.pid, number)
    process.ended(wait=True)
    said = process.said.read_text("utf-8", "replace")
    expected = -number if number == signal.SIGKILL else 128 + number
    if process.status not in (expected, -number):  # -number: before the handler was there
        return f"exit code {process.status}, not {expected}: {said[-300:]}"
    if "Traceback" in said:
        return f"traceback: {said[-500:]}"
    after = whole_lines(run)
    for path, lines in before.items():
        if after.get(path, [])[: len(lines)] != lines:
            return f"{path}: acknowledged lines are lost or changed"
    if (run / "run.json").exists():
        json.loads((run / "run.json").read_text())
        odd = [problem for problem in check(run) if "not whole JSON" not in problem]
        if odd:
            return "; ".join(odd)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--limit", type=int, default=40, help="examples per task and variant")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # a fork copies no threads
    sys.path.insert(0, str(ROOT))
    import evaluation.commands.run  # noqa: F401 - torch, once

    draw = random.Random(options.seed)
    failures, sent = [], Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        run, undisturbed = Path(folder, "run"), Path(folder, "undisturbed")
        words = arguments(run, options.limit)
        for kill in range(options.kills):
            number = SIGNALS[kill % len(SIGNALS)]
            wrong = kill_once(words, run, number, draw)
            count = sum(map(len, whole_lines(run).values()))
            name = signal.Signals(number).name
            sent[name] += 1
            print(f"{kill + 1:3} {name:8} {count:4} records  {wrong or 'whole'}", flush=True)
            if wrong:
                failures.append(wrong)
        for place in (run, undisturbed):
            process = Start(arguments(place, options.limit), run.with_name("said"))
            process.ended(wait=True)
            if process.status:
                failures.append(f"{place.name}: {process.said.read_text('utf-8')[-500:]}")
        left = check(run)
        failures += left
        equal = records(run) == records(undisturbed)
        if not equal:
            failures.append("the records are not those of the undisturbed run")
        starts = len(json.loads((run / "run.json").read_text())["starts"])
        told = ", ".join(f"{count} {name}" for name, count in sent.items())
        print(
            f"{told}: {len(records(run))} records in {starts} starts, "
            f"{'equal to' if equal else 'NOT those of'} the undisturbed run; "
            f"{len(failures)} failures"
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
