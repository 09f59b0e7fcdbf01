"""The suite is the same for every process that collects it.

pytest-xdist refuses to run when two of its processes collect different tests; a test whose id
holds a time, an address, a path or the order of a set then fails the whole suite at random.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Collects `tests` of the folder argv[1] and writes the ids, in their order, to argv[2].
COLLECT = """
import json, sys, pytest

class Ids:
    def pytest_collection_finish(self, session):
        ids = [item.nodeid for item in session.items]
        with open(sys.argv[2], "w") as file:
            json.dump(ids, file)

root = sys.argv[1]
arguments = ["-q", "-q", "--collect-only", "-p", "no:cacheprovider", "-c", root + "/pyproject.toml"]
sys.exit(pytest.main([*arguments, root + "/tests"], plugins=[Ids()]))
"""
# Before that: the clock stands elsewhere, and folders list their files the other way round.
OTHER_MACHINE = """
import os, time

def shifted(clock, by):
    return lambda: clock() + by

time.time, time.time_ns = shifted(time.time, 4e8), shifted(time.time_ns, 4 * 10**17)

class Reversed:
    def __init__(self, entries):
        self.entries = entries
        self.left = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))
    def __iter__(self): return self
    def __next__(self): return next(self.left)
    def __enter__(self): return self
    def __exit__(self, *error): self.entries.close()
    def close(self): self.entries.close()

listdir, scandir = os.listdir, os.scandir
os.listdir = lambda *path: sorted(listdir(*path), reverse=True)
os.scandir = lambda *path: Reversed(scandir(*path))
"""


def start_collecting(code: str, output: Path, cwd: Path, **env: str) -> subprocess.Popen[str]:
    """Start collecting with `env` added to the environment; an empty value removes a name."""
    # The suite's own settings are no part of the machine, and its workers' names are not inherited.
    foreign = ("PYTEST_", "AHN_BENCH_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    environment = {k: v for k, v in (kept | env).items() if v}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(ROOT), str(output)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_collect_the_same_tests(tmp_path: Path) -> None:
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    home = tmp_path / "home"
    home.mkdir()
    first = start_collecting(
        COLLECT, here, ROOT, PYTHONHASHSEED="1", TZ="UTC", AHN_BENCH_SHARED=str(tmp_path / "none")
    )
    time.sleep(2)  # whole seconds apart, for clocks that Python code cannot shift
    second = start_collecting(
        OTHER_MACHINE + COLLECT,
        there,
        home,
        PYTHONHASHSEED="2",
        TZ="Pacific/Kiritimati",
        LC_ALL="C",
        PATH=str(Path(sys.executable).parent),  # no browser, no compiler
        HOME=str(home),
        TMPDIR=str(home),
        AHN_BENCH_SHARED=str(home),
        CUDA_VISIBLE_DEVICES="-1",
        COLUMNS="40",
    )
    for process in (first, second):
        said, _ = process.communicate()
        assert process.returncode == 0, said
    one, other = json.loads(here.read_text()), json.loads(there.read_text())
    assert sorted(set(one) ^ set(other)) == []
    assert one == other, "the same tests, collected in another order"
    assert len(one) == len(set(one)) > 1000
