"""What the tests of recipes share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def run_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`run_eval ARGUMENTS` in `tmp_path`, in this process; fails where it does not end with 0."""
    from click.testing import CliRunner

    from evaluation.cli import app
    from tasks import registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", {})

    def run(*words: object, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return run
