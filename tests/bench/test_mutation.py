"""The mutation runner finds what no test notices, and says so."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mutmut", reason="needs the extra `mutation`")

from tests.bench import mutation, mutation_children, mutation_table
from tests.bench.mutants import mutants_of
from tests.bench.mutation_children import Order, Running
from tests.bench.mutation_table import FileResults, table

SOURCE = '''"""A module."""

from __future__ import annotations

from functools import cache

__all__ = ["area"]

SIDES = 2


@cache
def area(width: int, height: int | None = None) -> int:
    """Of a rectangle, or a square."""
    if height is None:
        height = width
    return width * height


def unused(text: str) -> str:
    return text.lower()
'''
TESTS = """
from calc import area

def test_area():
    assert area(2, 3) == 6

def test_square():
    assert area(3) == 9

def test_slow_and_unrelated():
    assert True
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one module and one test file, known to git."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "calc.py").write_text(SOURCE)
    (root / "test_calc.py").write_text(TESTS)
    (root / ".gitignore").write_text("runs/\n__pycache__/\n")
    subprocess.run(["git", "init", "-q", root], check=True)
    for module in (mutation, mutation_children):
        monkeypatch.setattr(module, "ROOT", root)
    monkeypatch.setattr(mutation, "WORK", root / "runs")
    monkeypatch.setattr(mutation, "RESULTS", root / "runs" / "results.jsonl")
    monkeypatch.setattr(mutation, "REASONS", root / "reasons.yaml")
    monkeypatch.setattr(mutation, "warm_up", lambda: None)
    area = mutation.Area(("calc.py",), ("test_calc.py",))
    monkeypatch.setattr(mutation, "AREAS", {"calc": area})
    return root


def test_only_what_is_evaluated_is_changed(project: Path) -> None:
    mutants = mutants_of(project, "calc.py")
    changes = {(mutant.old, mutant.new) for mutant in mutants}
    assert ("return width * height", "return width / height") in changes
    assert ("if height is None:", "if height is not None:") in changes
    assert ("SIDES = 2", "SIDES = 3") in changes
    for left_alone in ("__all__", "@cache", "rectangle", "import", "A module"):
        assert not any(left_alone in old for old, _ in changes), left_alone
    assert len({mutant.key for mutant in mutants}) == len(mutants)
    for mutant in mutants:
        compile(mutant.code, mutant.path, "exec")
        lines = SOURCE.splitlines()[mutant.first - 1 : mutant.last]
        assert mutant.old in " ".join(" ".join(lines).split())


@pytest.mark.slow
def test_survivors_are_found_kept_and_tried_again(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    mutation.run(["calc"], sample=0, seed=0, jobs=2, again=False)
    results = mutation.read_results()
    assert len(results) == len(mutants_of(project, "calc.py")) > 5
    survivors = {r["new"] for r in results.values() if r["outcome"] == "survived"}
    assert "SIDES = 3" in survivors and "return text.upper()" in survivors
    assert not any("width" in new for new in survivors)
    killed = next(r for r in results.values() if r["new"] == "return width / height")
    assert killed["outcome"] == "survived" or killed["by"].startswith("test_calc.py::test_")
    assert (project / "runs" / "copy0" / "calc.py").read_text() == SOURCE

    capfd.readouterr()
    mutation.run(["calc"], sample=0, seed=0, jobs=1, again=False)
    assert "nothing to try" in capfd.readouterr().out
    (project / "test_calc.py").write_text(
        TESTS + "\ndef test_lower():\n    from calc import unused\n    assert unused('A') == 'a'\n"
    )
    mutation.run(["calc"], sample=0, seed=0, jobs=1, again=True)
    survivors = {r["new"] for r in mutation.read_results().values() if r["outcome"] == "survived"}
    assert "SIDES = 3" in survivors and "return text.upper()" not in survivors

    page, unexplained = table(mutation.collect(["calc"], 0, 0), mutation.reasons(), 0, 0)
    assert unexplained == len(survivors) and "**no reason given**" in page
    entries = [{"path": "calc.py", "old": "SIDES = 2", "new": "SIDES = 3", "reason": "not used"}]
    (project / "reasons.yaml").write_text(json.dumps(entries))
    page, fewer = table(mutation.collect(["calc"], 0, 0), mutation.reasons(), 0, 0)
    assert fewer == unexplained - 1 and "line 9: not used" in page


def test_tests_that_fail_unchanged_are_told(project: Path) -> None:
    (project / "test_calc.py").write_text("def test_wrong():\n    assert False\n")
    with pytest.raises(SystemExit, match="the unchanged tests fail"):
        mutation.run(["calc"], sample=1, seed=0, jobs=1, again=False)


@pytest.mark.parametrize(
    ("body", "limit", "outcome"),
    [
        ("while True: pass", 0.5, "timeout"),
        ("__import__('os').abort()", 60, "crashed"),
        ("assert False", 60, "failed"),
        ("pass", 60, "passed"),
    ],
)
@pytest.mark.slow
def test_how_a_child_ended(tmp_path: Path, body: str, limit: float, outcome: str) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "test_it.py").write_text(f"def test_it():\n    {body}\n")
    child = Running.start(copy, Order(["test_it.py"]), limit)
    assert child.wait() == outcome
    with pytest.raises(ProcessLookupError):
        os.kill(child.process, 0)  # it is gone
    assert child.seen().get("failed") == ("test_it.py::test_it" if outcome == "failed" else None)
    none = Running.start(copy, Order(["test_it.py"], chosen=["test_it.py::test_other"]), 60)
    assert none.wait() == "none"


def test_a_sample_is_the_same_every_time_and_a_lack_is_told(project: Path) -> None:
    keys = [[m.key for m in mutation.drawn("calc.py", 4, seed)[0]] for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2] and len(keys[0]) == 4
    with pytest.raises(SystemExit, match=r"not tried yet: calc \(4\)"):
        mutation.collect(["calc"], 4, 0)


def test_the_shares_of_the_table() -> None:
    def record(outcome: str, line: int) -> dict[str, Any]:
        old, new = f"a = {line}", f"a = {line + 1}"
        return {"path": "a.py", "line": line, "old": old, "new": new, "outcome": outcome} | {
            "date": "2026-01-02"
        }

    records = [record(o, n) for n, o in enumerate(["failed", "timeout", "crashed", "survived"])]
    found = {"one": [FileResults("a.py", 9, records)], "two": [FileResults("b.py", 0, [])]}
    page, unexplained = table(found, {("a.py", "a = 3", "a = 4"): "the same"}, 4, 7)
    assert unexplained == 0 and "- line 3: the same" in page
    assert "| **one** | `a.py` | 9 | 4 | 3 | 2 | 1 | 75.0 % |" in page
    assert "| **all** |  | 9 | 4 | 3 | 2 | 1 | 75.0 % |" in page
    assert "--sample 4 --seed 7" in page and "2026-01-02" in page


def test_every_area_has_its_files() -> None:
    for name, area in mutation.AREAS.items():
        assert mutation.sources_of(area) and mutation.tests_of(area), name
    assert mutation_table.FileResults("a.py", 1, []).figures["tried"] == 0
