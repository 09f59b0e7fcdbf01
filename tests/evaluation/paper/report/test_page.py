"""The page as a file: whole, inert, the same as its JSON; and what is refused."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from evaluation.cli import app
from evaluation.paper.report.blocks import Picture
from evaluation.paper.report.page import paper_report, paper_report_json, write_paper_report
from reports.page import MOST_BYTES
from tests.evaluation.paper.report.conftest import OF_7B

MakePaperRun = Callable[..., Path]
SECTIONS = [*(f"table{i}" for i in range(1, 10)), "figure3", "figure4", "figure5", "figure7"]
LONGBENCH = ("dureader", "hotpotqa", "musique", "narrativeqa", "qmsum", "triviaqa")
SWA = {"window": 8064}
NASTY = "</style><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&amp;\x00"


def pair(paper_run: MakePaperRun, name: str = "runs/pair", **more: Any) -> Path:
    """A window and a memory above it, of 40 examples a task."""
    scores = {"w": 0.2, "m": 0.6}
    return paper_run(
        name,
        {"w": ("window", SWA), "m": ("ahn", SWA)},
        {v: dict.fromkeys(LONGBENCH, [s, s + 0.02] * 20) for v, s in scores.items()},
        **more,
    )


def test_every_table_and_figure_is_there_in_order(paper_run: MakePaperRun, tmp_path: Path) -> None:
    pair(paper_run)
    page = write_paper_report([tmp_path / "runs"], tmp_path / "new" / "paper.html")
    text = page.read_text("utf-8")
    assert re.findall(r'<section id="([a-z]+\d)"', text) == SECTIONS
    assert text.startswith("<!doctype html>") and len(text) < MOST_BYTES
    assert "61.00" in text and "run_eval paper table2 --model qwen2.5-3b" in text


def test_the_verdict_is_first_and_rests_on_paired_differences(
    paper_run: MakePaperRun, tmp_path: Path
) -> None:
    pair(paper_run)
    report = paper_report([tmp_path])
    (claim,) = (c for c in report.claims if c.where == "table3")
    assert claim.claim == "LongBench: AHN-GDN above Sinks + SWA"
    assert claim.verdict == "holds" and claim.model == OF_7B
    assert claim.published == pytest.approx(2.07)
    assert claim.ours is not None and claim.ours.interval.mean == pytest.approx(0.4)
    assert report.answer.startswith(f"On {OF_7B}: 1 claim tried; holds 1, does not hold 0,")
    assert any("claims on pocket" in one for one in report.untried)


def test_a_claim_says_that_settings_differ(paper_run: MakePaperRun, tmp_path: Path) -> None:
    pair(paper_run)
    (claim,) = (c for c in paper_report([tmp_path]).claims if c.where == "table3")
    assert claim.remark == ""
    pair(paper_run, max_length=16000)
    (claim,) = (c for c in paper_report([tmp_path]).claims if c.where == "table3")
    assert claim.remark == "settings differ: see there"


def test_all_claims_on_one_model_are_corrected_together(
    paper_run: MakePaperRun, tmp_path: Path
) -> None:
    scores = {"w": 0.2, "m": 0.23, "c": 0.2}
    kinds = {"w": ("window", SWA), "m": ("ahn", SWA), "c": ("compressive", SWA)}
    paper_run(
        "runs",
        kinds,
        {v: dict.fromkeys(LONGBENCH, [s, s + 0.02] * 20) for v, s in scores.items()},
    )
    claims = [c for c in paper_report([tmp_path]).claims if c.where == "table3"]
    assert len(claims) == 2
    for claim in claims:
        assert claim.ours is not None and claim.ours.interval.p is not None
        assert claim.ours.adjusted == pytest.approx(min(1.0, 2 * claim.ours.interval.p))


@pytest.mark.parametrize(
    ("window", "memory", "verdict"),
    [(0.6, 0.2, "does not hold"), (0.5, 0.5, "cannot be said")],
)
def test_a_claim_that_is_not_seen_is_not_held(
    paper_run: MakePaperRun, tmp_path: Path, window: float, memory: float, verdict: str
) -> None:
    of = {"w": [window, window + 0.02] * 20, "m": [memory + 0.02, memory] * 20}
    paper_run(
        "runs",
        {"w": ("window", SWA), "m": ("ahn", SWA)},
        {v: dict.fromkeys(LONGBENCH, s) for v, s in of.items()},
    )
    (claim,) = (c for c in paper_report([tmp_path]).claims if c.where == "table3")
    assert claim.verdict == verdict


def test_costs_are_judged_without_a_run(paper_run: MakePaperRun, tmp_path: Path) -> None:
    pair(paper_run)
    costs = {
        (c.model, "cache" in c.claim): c.verdict
        for c in paper_report([tmp_path]).claims
        if c.where == "table9"
    }
    slip = costs.pop((OF_7B, False))
    assert slip == "does not hold" and set(costs.values()) == {"holds"} and len(costs) == 5


def test_the_json_has_what_the_page_has(paper_run: MakePaperRun, tmp_path: Path) -> None:
    pair(paper_run)
    found = json.loads(json.dumps(paper_report_json([tmp_path]), allow_nan=False))
    assert [section["name"] for section in found["sections"]] == SECTIONS
    (table,) = (
        block
        for block in found["sections"][2]["blocks"]
        if block["kind"] == "scores" and block["title"].startswith(OF_7B)
    )
    row = dict(map(tuple, table["rows"]))["AHN-GDN"][-1]
    assert row["published"] == 40.59 and row["ours"]["mean"] == pytest.approx(0.61)
    assert row["difference"] == pytest.approx(61 - 40.59)
    pictures = [b for s in found["sections"] for b in s["blocks"] if b["kind"] == "picture"]
    assert pictures and all("chart" not in picture and picture["rows"] for picture in pictures)


def test_windows_are_a_figure_with_its_table(paper_run: MakePaperRun, tmp_path: Path) -> None:
    for window, score in ((896, 0.3), (1920, 0.5), (8064, 0.55)):
        at = {"window": window}
        paper_run(
            f"runs/{window}",
            {"w": ("window", at), "m": ("ahn", at), "c": ("compressive", at)},
            {
                v: dict.fromkeys(LONGBENCH, [score + more, score + more + 0.02] * 20)
                for v, more in (("w", 0.0), ("m", 0.2), ("c", 0.01))
            },
        )
    report = paper_report([tmp_path])
    (figure,) = (s for s in report.sections if s.name == "figure7")
    (picture,) = figure.blocks
    assert isinstance(picture, Picture)
    assert picture.columns[1:] == ("Sinks + SWA", "CT-Average", "AHN-GDN")
    assert [name for name, _ in picture.rows] == ["1,024", "2,048", "8,192"]
    assert picture.rows[0][1][0].startswith("31.0 [") and "<svg" in str(picture.chart)
    claims = [c.claim for c in report.claims if c.where == "figure7"]
    assert len(claims) == 6 and claims[0].endswith("above Sinks + SWA at a window of 896")


def test_one_window_is_no_figure(paper_run: MakePaperRun, tmp_path: Path) -> None:
    pair(paper_run)
    (figure,) = (s for s in paper_report([tmp_path]).sections if s.name == "figure7")
    assert [block.kind for block in figure.blocks] == ["not run"]


def test_another_model_is_shown_apart(paper_run: MakePaperRun, tmp_path: Path) -> None:
    changes = {**SWA, "parameters": 1_000_003}
    paper_run(
        "runs",
        {"w": ("window", changes)},
        {"w": dict.fromkeys(LONGBENCH, [0.5, 0.6])},
        configuration={"model": "acme/other"},
    )
    report = paper_report([tmp_path])
    assert any(
        n.startswith("Not of the paper's models, and in no table: acme/other")
        for n in report.notices
    )
    (line,) = report.runs
    assert line.use == "no: not one of the paper's models" and line.model == "acme/other"


def test_texts_of_a_run_are_inert(paper_run: MakePaperRun, tmp_path: Path) -> None:
    changes = {**SWA, "path": NASTY, "ahn": f"/x/{NASTY}", "dtype": NASTY}
    paper_run(
        "runs",
        {"w": ("ahn", changes)},
        {"w": dict.fromkeys(LONGBENCH, [0.5, 0.6])},
        configuration={"model": NASTY},
    )
    page = write_paper_report([tmp_path], tmp_path / "paper.html").read_text("utf-8")
    assert "&lt;script&gt;" in page and "<script" not in page and "<img" not in page
    assert "\x00" not in page
    style = re.search(r"<style>(.*?)</style>", page, re.S)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in page.replace("&#39;", "'")
    assert not re.search(r'(?:src|href)="(?!#)', page)


def test_folders_are_searched_and_each_run_counts_once(
    paper_run: MakePaperRun, tmp_path: Path
) -> None:
    run = pair(paper_run, "runs/qwen2.5-7b/longbench-six/both")
    report = paper_report([tmp_path / "runs", run, tmp_path / "runs" / "qwen2.5-7b"])
    assert [line.name for line in report.runs] == ["both/w", "both/m"]


def test_a_run_without_records_is_left_out_with_a_word(
    paper_run: MakePaperRun, tmp_path: Path
) -> None:
    pair(paper_run)
    empty = pair(paper_run, "runs/empty")
    for file in empty.glob("*/*.jsonl"):
        file.write_text("", encoding="utf-8")
    report = paper_report([tmp_path / "runs"])
    assert report.notices == (f"{empty}: left out, the run has no records yet.",)


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["paper", "report", *arguments])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_bad_input_is_refused_before_anything_is_written(
    paper_run: MakePaperRun, tmp_path: Path
) -> None:
    run = pair(paper_run)
    page, other = tmp_path / "paper.html", tmp_path / "notes.html"
    (tmp_path / "nothing").mkdir()
    assert "no such folder" in refused(str(tmp_path / "absent"), "-o", str(page))
    assert "has a run.json" in refused(str(tmp_path / "nothing"), "-o", str(page))
    assert "--output" in refused(str(run))
    other.write_text("mine", encoding="utf-8")
    assert "is no report of ahn-bench" in refused(str(run), "-o", str(other))
    assert other.read_text("utf-8") == "mine"
    (run / "w" / "qmsum.jsonl").write_text('{"a": 1}\n{"a": 2}\n', encoding="utf-8")
    assert "qmsum.jsonl:1" in refused(str(run), "-o", str(page))
    assert not page.exists()


def test_the_command_writes_the_page_and_replaces_it(
    paper_run: MakePaperRun, tmp_path: Path
) -> None:
    run, page = pair(paper_run), tmp_path / "paper.html"
    first = CliRunner().invoke(app, ["paper", "report", str(run), "-o", str(page)])
    assert first.exit_code == 0 and f"report: {page}" in first.output
    bytes_of_first = page.read_bytes()
    again = CliRunner().invoke(app, ["paper", "report", str(run), "-o", str(page), "--json"])
    assert again.exit_code == 0 and page.read_bytes() == bytes_of_first
    assert json.loads(again.stdout)["answer"].startswith(f"On {OF_7B}")
