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
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
OF_ONE_START = ("prefill_seconds", "decode_seconds", "start", "record_sha256")
"""Fields of a record that differ between two runs of one command."""


def command(run: Path, limit: int) -> list[str]:
    """A pocket run of three variants, one thread."""
    return [
        sys.executable, "-m", "evaluation", "pocket", "--tasks", "pocket_qa@1,pocket_qa@4",
        "--lengths", "512", "--variant", "full,window,ahn-gdn", "--limit", str(limit),
        "--no-report", "--output", str(run),
    ]  # fmt: skip


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=_hears_signals,
    )  # fmt: skip


def _hears_signals() -> None:
    """As from a shell, also where this script runs under nohup."""
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


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
    from evaluation.check import check_run

    return check_run(run, workers=1).problems


def kill_once(arguments: list[str], run: Path, number: int, draw: random.Random) -> str:
    """Start, let some records be written, end; returns what went wrong, empty: nothing."""
    before = whole_lines(run)
    count = sum(map(len, before.values()))
    process = start(arguments)
    wanted = count + draw.randrange(0, 4)
    while process.poll() is None and sum(map(len, whole_lines(run).values())) < wanted:
        time.sleep(0.002)
    time.sleep(draw.random() * 0.1)
    if process.poll() is not None:
        return f"ended by itself with {process.returncode}; is --limit too small for so many kills?"
    process.send_signal(number)
    _, errors = process.communicate()
    expected = -number if number == signal.SIGKILL else 128 + number
    if process.returncode not in (expected, -number):  # -number: before the handler was there
        return f"exit code {process.returncode}, not {expected}: {errors[-300:]}"
    if "Traceback" in errors:
        return f"traceback: {errors[-500:]}"
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
    sys.path.insert(0, str(ROOT))
    draw = random.Random(options.seed)
    failures, sent = [], Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        run, undisturbed = Path(folder, "run"), Path(folder, "undisturbed")
        arguments = command(run, options.limit)
        for kill in range(options.kills):
            number = SIGNALS[kill % len(SIGNALS)]
            wrong = kill_once(arguments, run, number, draw)
            count = sum(map(len, whole_lines(run).values()))
            name = signal.Signals(number).name
            sent[name] += 1
            print(f"{kill + 1:3} {name:8} {count:4} records  {wrong or 'whole'}", flush=True)
            if wrong:
                failures.append(wrong)
        for place in (run, undisturbed):
            process = start(command(place, options.limit))
            _, errors = process.communicate()
            if process.returncode:
                failures.append(f"{place.name}: {errors[-500:]}")
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
