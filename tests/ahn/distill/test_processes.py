"""Forks of the test process that hang do not fail a test, and are told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.ahn.distill import processes


def hang_once(marker: Path) -> None:
    print("here", flush=True)
    if not marker.exists():
        marker.touch()
        time.sleep(600)


@pytest.mark.slow
def test_a_fork_that_hangs_is_started_again_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_LIMIT_SECONDS", 3)
    with pytest.warns(UserWarning, match="a fork hung and was started again:\nhere"):
        ended = processes.forked(tmp_path, hang_once, tmp_path / "marker")
    assert (ended.code, ended.output) == (0, "here\n")


@pytest.mark.slow
def test_a_fork_that_hangs_twice_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_LIMIT_SECONDS", 1)
    with pytest.warns(UserWarning), pytest.raises(AssertionError, match="hung twice"):
        processes.forked(tmp_path, time.sleep, 600)
