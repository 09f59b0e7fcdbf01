"""Which changes to the code does no test notice? One change at a time, and the nearest tests.

    pip install -e '.[mutation]'                            # mutmut, whose operators are used
    python -m tests.bench.mutation run --jobs 2             # adds to runs/mutation/results.jsonl
    python -m tests.bench.mutation run cost ops --sample 0  # all mutants of two areas
    python -m tests.bench.mutation run cost --again         # survivors, after tests were written
    python -m tests.bench.mutation list cost                # survivors without a reason, as YAML
    python -m tests.bench.mutation table -o docs/mutation.md

Each area is a few source files and the test files nearest to them. One process imports torch and
the other packages; for each mutant it forks a child, which works in a copy of the project with the
changed file and runs the tests in it: first those that reached the changed lines in an unchanged
run, the fastest first, until one fails; if none does, all of the area's. A mutant is killed when a
test fails, Python crashes or the time is up (ten times what the unchanged tests took, and half a
minute). Tests marked `slow`, and what reads the shared reference material, take no part, so that
the figures are those of any checkout.

Of each file `--sample` mutants are drawn, with a fixed seed. A run that was interrupted goes on
where it stopped; a mutant of a file that has changed since is another one.

The table names every survivor with its reason, from `mutation_survivors.yaml`; it ends with exit
code 1 while one has none.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.bench.mutants import Mutant, mutants_of
from tests.bench.mutation_children import ROOT, Order, Running, copy_project, warm_up
from tests.bench.mutation_table import FileResults, table

WORK = ROOT / "runs" / "mutation"
RESULTS = WORK / "results.jsonl"
REASONS = Path(__file__).with_name("mutation_survivors.yaml")


@dataclass(frozen=True)
class Area:
    """Source files and the nearest test files, as patterns relative to the project."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]
    skipped: tuple[str, ...] = ()


AREAS: dict[str, Area] = {
    "cells": Area(
        ("ahn/cells/*.py",),
        (
            "tests/ahn/models/test_dense_golden.py",
            "tests/ahn/cells/test_*.py",
            "tests/ahn/cost/test_accounting*.py",
            "tests/ahn/models/test_equations.py",
            "tests/ahn/ops/test_selector.py",
        ),
    ),
    "ops": Area(
        ("ahn/ops/*.py",),
        ("tests/ahn/ops/test_[!k]*.py",),
        # what calls CUDA kernels: its tests need a GPU
        skipped=("ahn/ops/fla_kernels.py", "ahn/ops/mamba_kernels.py"),
    ),
    "attention": Area(
        ("ahn/models/attention.py", "ahn/models/window_attention.py", "ahn/models/decode_step.py"),
        (
            "tests/ahn/models/test_window_attention.py",
            "tests/ahn/models/test_attention*.py",
            "tests/ahn/models/test_dense_golden.py",
            "tests/ahn/models/test_streaming.py",
            "tests/ahn/models/test_causal_lm_generation.py",
            "tests/ahn/models/test_equations.py",
        ),
    ),
    "cache": Area(
        ("ahn/models/cache.py",),
        (
            "tests/ahn/models/test_cache*.py",
            "tests/ahn/models/test_dense_golden.py",
            "tests/ahn/models/test_causal_lm_generation.py",
            "tests/ahn/models/test_streaming.py",
        ),
    ),
    "cost": Area(
        ("ahn/cost/accounting.py",),
        ("tests/ahn/cost/test_accounting.py", "tests/ahn/cost/test_accounting_details.py"),
    ),
    "metrics": Area(
        ("tasks/metrics/*.py",),
        (
            "tests/tasks/test_stored_conformance.py",
            "tests/tasks/metrics/test_*.py",
        ),
    ),
    "statistics": Area(
        ("reports/stats.py", "reports/interval*.py"),
        ("tests/reports/test_stat*.py", "tests/reports/test_interval*.py"),
    ),
    "identity": Area(
        ("evaluation/plan/identity.py",),
        ("tests/evaluation/plan/test_identity*.py", "tests/evaluation/run/test_store.py"),
    ),
    "losses": Area(
        ("ahn/distill/losses.py",),
        ("tests/ahn/models/test_dense_golden.py", "tests/ahn/distill/test_losses*.py"),
    ),
}


def sources_of(area: Area) -> list[str]:
    """The area's source files."""
    return [path for path in _fitting(area.sources) if path not in area.skipped]


def tests_of(area: Area) -> list[str]:
    """The area's test files."""
    return _fitting(area.tests)


def _fitting(patterns: Sequence[str]) -> list[str]:
    """The files of some patterns, each once, in their order; one with `*` may fit none.

    Raises:
        SystemExit: a name without `*` is no file, or nothing fits at all.
    """
    found: list[str] = []
    for pattern in patterns:
        paths = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))
        if not paths and "*" not in pattern:
            raise SystemExit(f"{pattern}: no such file; see AREAS in {__file__}")
        found += [path for path in paths if path not in found]
    if not found:
        raise SystemExit(f"{', '.join(patterns)}: no such files; see AREAS in {__file__}")
    return found


def drawn(path: str, sample: int, seed: int) -> tuple[list[Mutant], int]:
    """The mutants of a file that are tried, in the order of the text, and how many there are."""
    mutants = mutants_of(ROOT, path)
    if 0 < sample < len(mutants):
        chosen = random.Random(f"{seed}/{path}").sample(range(len(mutants)), sample)
        return [mutants[n] for n in sorted(chosen)], len(mutants)
    return mutants, len(mutants)


@dataclass(frozen=True)
class Baseline:
    """The unchanged tests of an area: seconds of each, and which reached each line."""

    seconds: dict[str, float]
    reached: dict[str, dict[str, list[str]]]

    def nearest(self, mutant: Mutant) -> list[str]:
        """The tests that reached the lines, the fastest first; all, if an import did or none."""
        lines = self.reached.get(mutant.path, {})
        found: set[str] = set()
        for line in range(mutant.first, mutant.last + 1):
            found |= set(lines.get(str(line), []))
        if not found or "" in found:
            found = set(self.seconds)
        return sorted(found & set(self.seconds), key=lambda test: self.seconds[test])

    def limit(self, tests: Sequence[str]) -> float:
        return 30 + 10 * sum(self.seconds[test] for test in tests)


def baseline(area: Area, slot: Path) -> Baseline:
    """Run the unchanged tests once, with coverage.

    Raises:
        SystemExit: they fail.
    """
    running = Running.start(slot, Order(tests_of(area), cover=sources_of(area)), 3600)
    if running.wait() != "passed":
        raise SystemExit(f"the unchanged tests fail, see {slot.with_suffix('.log')}")
    seen = running.seen()
    return Baseline(seen["seconds"], seen["reached"])


def read_results() -> dict[str, dict[str, Any]]:
    """The newest result of each mutant, by its key."""
    if not RESULTS.is_file():
        return {}
    lines = RESULTS.read_text(encoding="utf-8").splitlines()
    return {record["key"]: record for record in map(json.loads, filter(None, lines))}


class Attempt:
    """A mutant in a copy: its nearest tests, then all."""

    def __init__(self, slot: Path, mutant: Mutant, base: Baseline, files: Sequence[str]) -> None:
        self.slot, self.mutant, self.base, self.files = slot, mutant, base, files
        self._file = slot / mutant.path
        self._original = self._file.read_bytes()
        for compiled in (self._file.parent / "__pycache__").glob(f"{self._file.stem}.*.pyc"):
            compiled.unlink()
        self._file.write_text(mutant.code, encoding="utf-8")
        chosen = base.nearest(mutant)
        self._whole = len(chosen) == len(base.seconds)
        reached = {test.split("::")[0] for test in chosen}
        order = Order([file for file in files if file in reached], chosen)
        self._started = time.monotonic()
        self._running = Running.start(slot, order, base.limit(chosen))

    def poll(self) -> dict[str, Any] | None:
        """The result, or None while it runs."""
        outcome = self._running.poll()
        if outcome is None:
            return None
        if outcome in ("passed", "none") and not self._whole:
            self._whole = True
            limit = self.base.limit([*self.base.seconds])
            self._running = Running.start(self.slot, Order(self.files), limit)
            return None
        self._file.write_bytes(self._original)
        return {
            "key": self.mutant.key,
            "path": self.mutant.path,
            "line": self.mutant.first,
            "old": self.mutant.old,
            "new": self.mutant.new,
            "outcome": "survived" if outcome == "passed" else outcome,
            "by": self._running.seen().get("failed"),
            "seconds": round(time.monotonic() - self._started, 1),
            "date": datetime.date.today().isoformat(),
        }

    def stop(self) -> None:
        """End the child, and leave the copy as it was."""
        self._running.stop()
        self._file.write_bytes(self._original)


def run(names: Sequence[str], sample: int, seed: int, jobs: int, again: bool) -> None:
    """Try the mutants of some areas that have no result yet."""
    WORK.mkdir(parents=True, exist_ok=True)
    lock = (WORK / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise SystemExit(f"another run is at work in {WORK}") from None
    slots = [WORK / f"copy{n}" for n in range(jobs)]
    for slot in slots:
        copy_project(slot)
    warm_up()
    for name in names:
        area = AREAS[name]
        known = read_results()
        waiting: list[Mutant] = []
        for path in sources_of(area):
            tried = drawn(path, sample, seed)[0]
            waiting += [
                mutant
                for mutant in tried
                if mutant.key not in known or (again and known[mutant.key]["outcome"] == "survived")
            ]
        if not waiting:
            print(f"{name}: nothing to try")
            continue
        base = baseline(area, slots[0])
        for slot in slots[1:]:  # the compiled tests
            shutil.copytree(slots[0], slot, dirs_exist_ok=True)
        print(f"{name}: {len(waiting)} mutants, {len(base.seconds)} tests", flush=True)
        with RESULTS.open("a", encoding="utf-8") as results:
            try_all(waiting, base, tests_of(area), slots, results)


def try_all(
    waiting: list[Mutant], base: Baseline, files: Sequence[str], slots: list[Path], results: Any
) -> None:
    """Try mutants in all copies at once; each result is written when it is there."""
    total, started, survived = len(waiting), time.monotonic(), 0
    free, done = list(slots), 0
    attempts: list[Attempt] = []
    waiting = waiting[::-1]
    try:
        while waiting or attempts:
            while waiting and free:
                attempts.append(Attempt(free.pop(), waiting.pop(), base, files))
            time.sleep(0.02)
            for attempt in list(attempts):
                result = attempt.poll()
                if result is None:
                    continue
                attempts.remove(attempt)
                free.append(attempt.slot)
                results.write(json.dumps(result, ensure_ascii=False) + "\n")
                results.flush()
                done += 1
                survived += result["outcome"] == "survived"
                left = (time.monotonic() - started) / done * (total - done)
                told = f"{done} of {total}, {survived} survived, {left:.0f} s to go"
                print(f"\r  {told} ", end="", flush=True)
    finally:
        for attempt in attempts:
            attempt.stop()
        print()


def collect(names: Sequence[str], sample: int, seed: int) -> dict[str, list[FileResults]]:
    """The results of the mutants that a run with these options would try.

    Raises:
        SystemExit: some were not tried.
    """
    known, missing = read_results(), Counter[str]()
    found: dict[str, list[FileResults]] = {}
    for name in names:
        found[name] = []
        for path in sources_of(AREAS[name]):
            tried, possible = drawn(path, sample, seed)
            missing[name] += sum(mutant.key not in known for mutant in tried)
            records = [known[mutant.key] for mutant in tried if mutant.key in known]
            found[name].append(FileResults(path, possible, records))
    if any(missing.values()):
        lacking = ", ".join(f"{name} ({n})" for name, n in missing.items() if n)
        raise SystemExit(f"not tried yet: {lacking}; run them first")
    return found


def reasons() -> dict[tuple[str, str, str], str]:
    """Why a survivor survives, by path, old and new text."""
    if not REASONS.is_file():
        return {}
    entries = yaml.safe_load(REASONS.read_text(encoding="utf-8")) or []
    return {(e["path"], e["old"], e["new"]): e["reason"] for e in entries}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "list", "table"))
    parser.add_argument(
        "areas", nargs="*", metavar="area", help=f"of {', '.join(AREAS)}; default: all"
    )
    parser.add_argument("--sample", type=int, default=60, help="mutants of each file; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="try survivors again")
    parser.add_argument("-o", "--output", type=Path, help="of the table; without it, the screen")
    options = parser.parse_args()
    unknown = sorted(set(options.areas) - set(AREAS))
    if unknown:
        parser.error(f"unknown area {unknown[0]!r}; one of {', '.join(AREAS)}")
    names = options.areas or list(AREAS)
    if options.command == "run":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # children are ended then
        run(names, options.sample, options.seed, options.jobs, options.again)
        return
    found = collect(names, options.sample, options.seed)
    why = reasons()
    if options.command == "list":
        survivors = [r for files in found.values() for file in files for r in file.survivors]
        entries = [
            {key: record[key] for key in ("path", "old", "new")} | {"reason": ""}
            for record in survivors
            if (record["path"], record["old"], record["new"]) not in why
        ]
        print(yaml.safe_dump(entries, sort_keys=False, width=1000, allow_unicode=True))
        return
    page, unexplained = table(found, why, options.sample, options.seed)
    if options.output is None:
        print(page)
    else:
        options.output.write_text(page, encoding="utf-8")
    if unexplained:
        raise SystemExit(f"{unexplained} survivors have no reason in {REASONS}")


if __name__ == "__main__":
    main()
