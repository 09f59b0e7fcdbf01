"""Real runs of the pocket model on the page, and the page in a browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.paper.report.page import write_paper_report
from tests.evaluation.paper.report.conftest import OF_7B
from tests.evaluation.paper.report.test_figures import NASTY, probe
from tests.reports.test_page_browser import ATTACKS, Elements, browser, rendered, visible

MakePaperRun = Callable[..., Path]
LONGBENCH = ("dureader", "hotpotqa", "musique", "narrativeqa", "qmsum", "triviaqa")

__all__ = ["browser"]  # a fixture


@pytest.mark.slow
def test_runs_of_the_pocket_model_fill_their_table(run_eval: Any, tmp_path: Path) -> None:
    runs, page = tmp_path / "runs", tmp_path / "paper.html"
    flags = ("--model", "pocket", "--limit", 2, "--no-report", "-o", runs)
    assert run_eval("paper", "table5", *flags).exit_code == 0
    result = run_eval("paper", "report", runs, "-o", page, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    (table5,) = (s for s in found["sections"] if s["name"] == "table5")
    (scores,) = (b for b in table5["miniature"] if b["kind"] == "scores")
    assert [name for name, _ in scores["rows"]] == ["Full Attn", "Sinks + SWA", "AHN-GDN"]
    assert all(cell["ours"]["n"] for _, cells in scores["rows"] for cell in cells)
    assert (
        not scores["settings"]
        and [cells[0]["ours"]["n"] for _, cells in scores["rows"]] == [10] * 3
    )
    (differences,) = (b for b in table5["miniature"] if b["kind"] == "differences")
    ours = dict(map(tuple, differences["rows"]))["AHN-GDN − Sinks + SWA"][0][1]
    full, window, memory = (cells[0]["ours"]["mean"] for _, cells in scores["rows"])
    assert ours["interval"]["mean"] == pytest.approx(memory - window)
    assert all(line["use"] == "yes" for line in found["runs"]) and len(found["runs"]) == 3
    assert [b["kind"] for b in table5["blocks"]] == ["scores", "not run"]
    assert any(claim["where"] == "table5" for claim in found["claims"])
    assert f"{100 * full:.1f}" in page.read_text("utf-8")


@pytest.mark.browser
def test_in_a_browser_nothing_of_a_run_comes_alive(
    browser: str,
    paper_run: MakePaperRun,
    tmp_path: Path,
) -> None:
    for number, attack in enumerate(ATTACKS):
        changes = {"window": 8064, "path": attack, "ahn": f"/x/{attack}", "dtype": attack}
        paper_run(
            f"runs/{number}",
            {"v": ("ahn", changes)},
            {"v": dict.fromkeys(LONGBENCH, [0.5, 0.6])},
            configuration={"model": attack},
        )
    probe(tmp_path / "runs" / "probe", model=f"/x/{NASTY}")
    page = write_paper_report([tmp_path / "runs"], tmp_path / "paper.html")
    dom = rendered(browser, page, tmp_path / "profile")
    assert "<title>AHN-Bench: the AHN paper, published and measured</title>" in dom
    elements = Elements(dom).found
    assert not [tag for tag, _ in elements if tag in ("script", "img", "iframe", "link", "object")]
    assert not [a for _, a in elements if a.get("id") == "planted" or any(k[:2] == "on" for k in a)]
    text = visible(dom)
    assert "What the paper says, and what was found here" in text
    assert f"{OF_7B}, scores" in text and "Setting differs:" in text
    assert 'document.title = "owned-0"' in text, "shown as text"
