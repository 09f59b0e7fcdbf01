"""The house stands: three wings that do not know each other, and no torch where none belongs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import import_graph

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


@pytest.fixture(scope="module")
def graph() -> import_graph.Graph:
    return import_graph.module_graph(ROOT)


def test_no_module_imports_itself_by_way_of_others(graph):
    assert import_graph.circles(graph) == []
    for folder in import_graph.folders(ROOT):
        assert import_graph.measured(graph, folder).circles == [], folder


@pytest.mark.parametrize(("folder", "entries", "levels"), [("ahn", 12, 8), ("evaluation", 10, 8)])
def test_a_package_can_be_taken_in_at_a_glance(graph, folder, entries, levels):
    found = import_graph.measured(graph, folder)
    assert len(found.levels) <= entries, sorted(found.levels)
    assert max(found.levels.values()) <= levels, found.levels


def test_no_import_of_ours_is_hidden_in_a_string():
    """Names in strings are for what is found at run time: entry points and lazy classes."""
    hidden = []
    for name, path in import_graph.modules(ROOT).items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called, first = ast.unparse(node.func), ast.unparse(node.args[0])
            if called.endswith(("import_module", "__import__")):
                ours = re.match(rf"f?['\"]({'|'.join(import_graph.PACKAGES)})\b", first)
                if ours:
                    hidden.append(f"{name}:{node.lineno}: {first}")
    assert hidden == []


def test_the_graph_finds_a_circle_and_counts_levels(tmp_path):
    """The measure itself, on a package made here."""
    for path, text in {
        "ahn/__init__.py": "",
        "ahn/a.py": "def f():\n    from ahn.b import x\n",
        "ahn/b.py": "from ahn import c",
        "ahn/c.py": "import ahn.deep.d",
        "ahn/deep/__init__.py": "",
        "ahn/deep/d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ahn.e",
        "ahn/e.py": "x = 1",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    made = import_graph.module_graph(tmp_path)
    found = import_graph.measured(made, "ahn")
    levels = {"__init__": 1, "e": 1, "deep": 2, "c": 3, "b": 4, "a": 5}
    assert found.levels == levels and found.circles == [] and found.arrows == 4
    (tmp_path / "ahn/e.py").write_text("import ahn.b")
    made = import_graph.module_graph(tmp_path)
    assert import_graph.circles(made) == [["ahn.b", "ahn.c", "ahn.deep.d", "ahn.e"]]
    assert import_graph.measured(made, "ahn").circles == [["b", "c", "deep", "e"]]
