"""`make peers`: what is listed is judged by `tests.peers.expected`, and counted for each class."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Generator
from typing import Any

import pytest

from tests.peers.expected import KINDS, listed, verdict

#: what is to be said at the end
NOTES: list[str] = []
_OUTCOMES = ("passed", "skipped", *KINDS, "failed")
_COUNTS: dict[str, Counter[str]] = defaultdict(Counter)
_REASONS: dict[tuple[str, str], set[str]] = defaultdict(set)
_SKIPPED: Counter[str] = Counter()
#: marks on transformers' tests
_MARKS = (
    "accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "generate",
    "is_training_test", "order", "torch_compile_test",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Marks must be known (`--strict-markers`)."""
    for mark in _MARKS:
        config.addinivalue_line("markers", f"{mark}: of transformers' tests (make peers)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Generator[None, Any, Any]:
    """Report a listed failure as what it is listed as, and every other listed outcome as failed."""
    report = yield
    owner = getattr(item, "cls", None)
    if owner is None or (report.when != "call" and report.outcome == "passed"):
        return report
    expected = listed(item.name, owner.__name__)
    if expected is None:
        _COUNTS[owner.__name__][report.outcome] += 1
        if report.skipped and isinstance(report.longrepr, tuple):
            _SKIPPED[report.longrepr[2].removeprefix("Skipped: ")] += 1
        return report
    raised = [] if call.excinfo is None else [call.excinfo.value]
    if raised and isinstance(raised[0], ExceptionGroup):  # of subtests
        raised = list(raised[0].exceptions)
    errors = [f"{type(error).__name__}: {error}" for error in raised]
    problem = verdict(expected, report.outcome, errors)
    if problem is None:
        report.outcome, report.wasxfail = "skipped", f"{expected.kind}: {expected.reason}"
        _COUNTS[owner.__name__][expected.kind] += 1
        _REASONS[expected.kind, expected.reason].add(item.name)
    else:
        report.outcome = "failed"
        report.longrepr = f"{problem}\n\n{report.longrepr or ''}"
        _COUNTS[owner.__name__]["failed"] += 1
    return report


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A line for each class, and why tests are refused."""
    if not _COUNTS:
        return
    write = terminalreporter.write_line
    terminalreporter.section("transformers' own tests")
    write(f"{'':24}" + "".join(f"{name:>16}" for name in _OUTCOMES) + f"{'all':>8}")
    for owner, counts in _COUNTS.items():
        numbers = "".join(f"{counts[name]:>16}" for name in _OUTCOMES)
        write(f"{owner:24}{numbers}{counts.total():>8}")
    for (kind, reason), names in sorted(_REASONS.items(), reverse=True):
        write(
            f"{kind}, {min(names)}{f' and {len(names) - 1} more' if names - {min(names)} else ''}"
        )
        write(f"    {reason}")
    for reason, count in _SKIPPED.most_common():
        write(f"skipped by themselves, {count} times: {reason}")
    for note in NOTES:
        write(f"note: {note}")
