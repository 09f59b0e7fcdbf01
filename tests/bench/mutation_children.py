"""Children of the mutation runner: a copy of the project, and pytest in a fork of this process.

The fork has torch and the other packages imported already; the project's own modules, changed or
not, it imports from its copy.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def copy_project(to: Path) -> None:
    """The files that git knows or would add, compiled, so that children need not do it."""
    shutil.rmtree(to, ignore_errors=True)
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    compiled = [sys.executable, "-m", "compileall", "-q", "."]
    subprocess.run(compiled, cwd=to, check=True)


def warm_up() -> None:
    """Import what all children would import, and nothing of the project itself."""
    for name in (
        "coverage", "hypothesis", "jieba", "numpy", "pandas", "pydantic", "pytest",
        "rapidfuzz", "rich", "rouge", "rouge_score.rouge_scorer", "safetensors.torch", "torch",
        "transformers.generation", "transformers.models.qwen2.modeling_qwen2",
        "transformers.models.qwen3.modeling_qwen3", "transformers.trainer", "yaml",
    ):  # fmt: skip
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    gc.freeze()


class Observer:
    """A plugin of pytest: picks tests, and sees their times, the first that failed, lines reached.

    Args:
        chosen: the tests to run, in this order; none: all.
        cover: files whose lines are watched.
    """

    def __init__(self, chosen: Sequence[str] = (), cover: Sequence[str] = ()) -> None:
        self.chosen = {test: place for place, test in enumerate(chosen)}
        self.seconds: Counter[str] = Counter()
        self.failed: str | None = None
        self.coverage: Any = None
        if cover:
            import coverage

            self.coverage = coverage.Coverage(data_file=None, include=[*cover], config_file=False)
            self.coverage.start()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self.chosen:
            items[:] = [item for item in items if item.nodeid in self.chosen]
            items.sort(key=lambda item: self.chosen[item.nodeid])

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self.coverage is not None:
            self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_runtest_logfinish(self) -> None:
        if self.coverage is not None:
            self.coverage.switch_context("")

    def reached(self, paths: Sequence[str]) -> dict[str, dict[int, list[str]]]:
        """For each file and line the tests that reached it; an import is the test ''."""
        self.coverage.stop()
        data = self.coverage.get_data()
        return {path: data.contexts_by_lineno(str(Path(path).resolve())) for path in paths}


@dataclass(frozen=True)
class Order:
    """What a child is to do.

    Attributes:
        files: test files.
        chosen: tests of them, in order; none: all.
        cover: source files whose lines are watched; with them, tests go on after a failure.
    """

    files: Sequence[str]
    chosen: Sequence[str] = ()
    cover: Sequence[str] = ()


def child(slot: Path, order: Order) -> int:
    """Run pytest in the copy `slot`; what it saw goes to a file beside it."""
    os.setsid()
    output = os.open(slot.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.chdir(slot)
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]  # this script's; the tests are those of the copy
    sys.path = [str(slot), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
    sys.dont_write_bytecode = not order.cover
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(slot)}
    os.environ.update(environment, AHN_BENCH_SHARED=str(slot / "not-here"))
    import pytest

    observer = Observer(order.chosen, order.cover)
    options = ["-q", "-p", "no:cacheprovider", "-m", "not slow", "--hypothesis-seed=0"]
    options += [f"--basetemp={slot.with_suffix('.tmp')}", *([] if order.cover else ["-x"])]
    code = int(pytest.main([*options, *order.files], plugins=[observer]))
    seen: dict[str, Any] = {"seconds": observer.seconds, "failed": observer.failed}
    if order.cover:
        seen["reached"] = observer.reached(order.cover)
    slot.with_suffix(".json").write_text(json.dumps(seen))
    return code


@dataclass
class Running:
    """A child at work."""

    slot: Path
    process: int
    deadline: float

    @classmethod
    def start(cls, slot: Path, order: Order, limit: float) -> Running:
        slot.with_suffix(".json").unlink(missing_ok=True)
        sys.stdout.flush()
        process = os.fork()
        if not process:
            code = 99
            try:
                code = child(slot, order)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        return cls(slot, process, time.monotonic() + limit)

    def poll(self) -> str | None:
        """How it ended: `passed`, `failed`, `crashed`, `timeout`, or `none` of the chosen tests.

        None: it runs.
        """
        pid, status = os.waitpid(self.process, os.WNOHANG)
        if not pid:
            if time.monotonic() < self.deadline:
                return None
            self.stop()
            return "timeout"
        code = os.waitstatus_to_exitcode(status)
        self._kill_group()
        if code == 99:
            raise SystemExit(f"the child itself failed, see {self.slot.with_suffix('.log')}")
        return {0: "passed", 5: "none"}.get(code, "crashed" if code < 0 else "failed")

    def stop(self) -> None:
        """End it, and what it started."""
        self._kill_group()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.process, 0)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process, signal.SIGKILL)

    def seen(self) -> dict[str, Any]:
        """What it wrote; nothing where it did not come so far."""
        file = self.slot.with_suffix(".json")
        return json.loads(file.read_text()) if file.is_file() else {}

    def wait(self) -> str:
        while (outcome := self.poll()) is None:
            time.sleep(0.02)
        return outcome
