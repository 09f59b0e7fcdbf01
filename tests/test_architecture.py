"""The house stands: three wings that do not know each other, and no torch where none belongs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_imports_point_the_way_the_architecture_draws():
    pytest.importorskip("importlinter", reason="development tools are not installed")
    code = (
        "import sys; from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(no_cache=True))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    "module",
    [
        "tasks.registry",
        "tasks.scoring",
        "reports.page",
        "ahn.cost.accounting",
        "ahn.cost.zoo",
        "evaluation.cli",
    ],
)
def test_scoring_reporting_and_planning_start_without_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
