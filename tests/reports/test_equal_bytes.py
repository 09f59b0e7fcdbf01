"""Comparison at equal bytes: what was kept of documents, how far off the budget, and peaks."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evaluation.commands.tables import result_tables
from reports.compare import summary_rows
from reports.costs import cost_of
from reports.equal_bytes import budget_text
from reports.frames import frame, leaderboard, write_table
from reports.leaderboard import columns_of
from reports.notices import notices
from reports.page import render
from reports.records import ExampleRecord
from reports.run_folders import Run, read_run

MakeRun = Callable[..., Path]
MakeRecord = Callable[..., ExampleRecord]

AS_AHN = {"as": {"window": 128, "sinks": 4, "cell": "GatedDeltaNet"}, "kind": "ahn"}
BUDGET = 1_020_288


def kept(variant: str, task: str, number: int) -> dict[str, Any]:
    """Records as a run with `--budget ahn-gdn` has them; the endpoint's say what a server can."""
    document = {
        "full": 3_145_728,
        "window": 811_008,
        "equal": 1_019_904 - 384 * (number == 2),
        "ahn-gdn": BUDGET,
        "press": 1_019_904,
        "q4": 464_640,
    }.get(variant)
    tokens = {"full": 500.0, "window": 132.0, "q4": 500.0, "press": 166.0, "equal": 166.0}
    if document is None:
        return {
            "document_tokens": 500,
            "budget_bytes": BUDGET,
            "cache_bytes_analytic": None,
            "cache_bytes_measured": None,
        }
    at_end = document + (79_872 if variant in ("press", "q4") else 0)
    return {
        "document_tokens": 500,
        "budget_bytes": BUDGET,
        "document_bytes": document,
        "kept_tokens": tokens.get(variant, 132.0),
        "cache_bytes_measured": at_end,
        "cache_bytes_analytic": at_end,
        "cache_bytes_stored": at_end + 2_048,
        "peak_bytes": (5_000_000 + number) if number < 2 else None,
    }


VARIANTS = ("full", "window", "equal", "ahn-gdn", "press", "q4", "server")


def equal_run(make_run: MakeRun, name: str = "run", **changes: Any) -> Run:
    models: dict[str, dict[str, Any]] = {v: {"path": "pocket", "variant": v} for v in VARIANTS}
    models["full"] |= {"window": None, "sinks": None, "cell": None}
    models["window"] |= {"window": 128, "sinks": 4, "cell": None}
    models["equal"] |= {"variant": "window", "window": None, "sinks": 4, "cell": None}
    models["ahn-gdn"] |= {"variant": "ahn", "window": 128, "sinks": 4, "cell": "GatedDeltaNet"}
    models["press"] |= {"variant": "kvpress", "press": {"press": "SnapKVPress", "window_size": 32}}
    models["q4"] |= {"variant": "quantized", "bits": 4, "group": 64}
    models["server"] |= {"variant": "endpoint", "model": "some-model"}
    info: dict[str, Any] = {
        "configuration": {"model": "pocket", "budget": "ahn-gdn"},
        "identity_parts": {"budget": AS_AHN, "documents": "read to their end"},
        "models": models,
    }
    scores = {variant: {"qa": [1.0, 0.0, 1.0]} for variant in VARIANTS}
    return read_run(make_run(name, scores, record=changes.pop("record", kept), **info | changes))


def plain_text(page: str) -> str:
    """The page's words, without its data, tags removed, white space folded."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def kept_lines(page: str) -> list[str]:
    """The words of each row of the table of what is kept."""
    (table,) = re.findall(r'<table class="kept">(.*?)</table>', page, flags=re.S)
    return [plain_text(row) for row in re.findall(r"<tr>(.*?)</tr>", table, flags=re.S)]


def table_rows(page: str) -> dict[str, str]:
    """`kept_lines` by the first word, the variant's name."""
    return {row.split()[0]: row for row in kept_lines(page)}


def printed(run: Run, width: int = 200) -> str:
    stream = io.StringIO()
    Console(width=width, file=stream).print(result_tables(run))
    return stream.getvalue()


def test_the_page_says_what_each_variant_kept(make_run: MakeRun) -> None:
    page = render([equal_run(make_run)])
    rows = table_rows(page)
    assert list(rows)[1:] == list(VARIANTS)
    press = rows["press"]
    assert "996 KiB" in press  # the budget, and after the document
    assert "−0.04 %" in press and "166 of 500" in press
    assert "1.05 MiB" in press  # at the end it has grown
    assert "4.77 MiB" in press and "2 of 3 examples" in press
    assert "+208.3 %" in rows["full"] and "−20.5 %" in rows["window"]
    assert "0.0 %" in rows["ahn-gdn"]
    words = plain_text(page)
    assert "Budget: as ahn-gdn holds, exact accounting" in words
    assert "once the document was read and before the question, measured" in words


def test_the_furthest_example_counts(make_run: MakeRun) -> None:
    rows = {r.column.label: r for r in summary_rows(columns_of([equal_run(make_run)]))}
    off = rows["equal"].cost.kept.deviation
    assert off == pytest.approx(-768 / BUDGET)
    assert "−0.08 %" in table_rows(render([equal_run(make_run, "again")]))["equal"]


def test_what_a_server_cannot_know_is_a_gap_with_its_reason(make_run: MakeRun) -> None:
    row = table_rows(render([equal_run(make_run)]))["server"]
    assert "a server, whose cache cannot be seen" in row
    assert "0 B" not in row and row.count("–") >= 5


def test_variants_that_are_not_at_the_budget_are_named(make_run: MakeRun) -> None:
    run = equal_run(make_run)
    (notice,) = [n for n in notices([run], columns_of([run])) if "budget" in n]
    for said in (
        "full (+208.3 %, with every token kept)",
        "window (−20.5 %)",
        "q4 (−54.5 %, with every token kept)",
        "server: bytes not known",
    ):
        assert said in notice
    for fine in ("equal", "ahn-gdn", "press"):
        assert f"{fine} (" not in notice


def test_no_notice_where_all_are_within_half_a_percent(make_run: MakeRun) -> None:
    def record(variant: str, task: str, i: int) -> dict[str, Any]:
        return {**kept("press", task, i), "document_bytes": int(BUDGET * 1.0049)}

    run = equal_run(make_run, record=record)
    assert [n for n in notices([run], columns_of([run])) if "budget" in n] == []

    def above(variant: str, task: str, i: int) -> dict[str, Any]:
        return {**kept("press", task, i), "document_bytes": int(BUDGET * 1.0052)}

    run = equal_run(make_run, "above", record=above)
    (notice,) = [n for n in notices([run], columns_of([run])) if "budget" in n]
    assert "press (+0.52 %)" in notice


def test_many_variants_off_the_budget_make_a_notice_that_fits(make_run: MakeRun) -> None:
    names = [f"window-window{n}-sinks4" for n in range(100, 130)]
    run = read_run(
        make_run(
            "many",
            {name: {"qa": [1.0]} for name in names},
            record=lambda v, t, i: kept("window", t, i),
            configuration={"model": "pocket", "budget": "ahn-gdn"},
            identity_parts={"budget": AS_AHN},
        )
    )
    (notice,) = [n for n in notices([run], columns_of([run])) if "budget" in n]
    assert len(notice) < 600 and "more" in notice


@pytest.mark.parametrize(
    ("given", "parts", "said"),
    [
        ("ahn-gdn", AS_AHN, "as ahn-gdn holds, exact accounting"),
        (None, AS_AHN, "as ahn holds, exact accounting"),
        ("0.26", {"share_of_keys_and_values": 0.26, "element_bytes": 2},
         "26.0 % of every token's keys and values"),
        ("1.2MiB", {"bytes": 1_258_291}, "1.20 MiB for each document"),
        ("odd", {"new": 1}, "odd"),
        ("odd", "text", "odd"),
        ("odd", {"bytes": "many"}, "odd"),
        (None, None, None),
    ],
)  # fmt: skip
def test_the_budget_in_words(make_run: MakeRun, given: Any, parts: Any, said: str | None) -> None:
    configuration = {"model": "pocket"} | ({"budget": given} if given else {})
    identity = {} if parts is None else {"budget": parts}
    run = equal_run(make_run, configuration=configuration, identity_parts=identity)
    assert budget_text(run) == said


def test_a_page_of_runs_with_and_without_a_budget(make_run: MakeRun) -> None:
    def plain(variant: str, task: str, i: int) -> dict[str, Any]:
        return {"cache_bytes_stored": 1_048_576}

    without = read_run(make_run("earlier", {"full": {"qa": [1.0] * 3}}, record=plain))
    run = equal_run(make_run)
    page = render([without, run])
    (row,) = [text for text in kept_lines(page) if "documents and questions in one" in text]
    assert row.startswith("full · earlier") and "1.00 MiB" in row
    found = [n for n in notices([without, run], columns_of([without, run])) if "budget" in n]
    assert len(found) == 1 and "earlier" not in found[0]
    words = plain_text(page)
    assert "Budget of run: as ahn-gdn holds" in words
    assert "cache bytes measured, mean per example at the end of generation" in words


def test_runs_of_different_budgets_are_told_apart(make_run: MakeRun) -> None:
    other = equal_run(
        make_run,
        "other",
        configuration={"model": "pocket", "budget": "0.3"},
        identity_parts={"budget": {"share_of_keys_and_values": 0.3, "element_bytes": 4}},
    )
    runs = [equal_run(make_run), other]
    found = [n for n in notices(runs, columns_of(runs)) if "different budgets" in n]
    assert len(found) == 1 and "30.0 %" in found[0] and "as ahn-gdn holds" in found[0]


def without_new_fields(folder: Path, version: int) -> Path:
    """The folder as an earlier version wrote it."""
    for file in folder.glob("*/*.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        for line in lines:
            for name in (
                "document_tokens", "budget_bytes", "kept_tokens", "document_bytes",
                "cache_bytes_stored", "peak_bytes", "record_sha256",
            ):  # fmt: skip
                line.pop(name, None)
            line["schema_version"] = version
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"schema_version": version}))
    return folder


@pytest.mark.parametrize("version", [2, 3])
def test_a_page_of_earlier_records_is_as_it_was(pocket_run: Path, version: int) -> None:
    run = read_run(without_new_fields(pocket_run, version))
    page = render([run])
    assert 'class="kept"' not in page
    words = plain_text(page)
    assert "budget" not in words.lower() and "Peak" not in words
    assert "at the end of generation" in words
    assert "eak" not in printed(run) and "budget" not in printed(run)


def test_storage_without_more_is_no_table(make_run: MakeRun) -> None:
    """Plain runs record the storages, too: they say something where they differ."""

    def stored(more: int) -> Callable[..., Mapping[str, Any]]:
        return lambda v, t, i: {"cache_bytes_stored": 1_048_576 + more}

    same = read_run(make_run("same", {"full": {"qa": [1.0]}}, record=stored(0)))
    more = read_run(make_run("more", {"full": {"qa": [1.0]}}, record=stored(2**20)))
    assert 'class="kept"' not in render([same])
    rows = table_rows(render([more]))
    assert "2.00 MiB" in rows["full"] and "Budget" not in rows["Variant"]


def test_shares_of_peak_and_bytes_are_over_the_examples_that_have_them(
    make_record: MakeRecord,
) -> None:
    records = [
        make_record(peak_bytes=10, budget_bytes=100, document_bytes=99),
        make_record(peak_bytes=30, budget_bytes=100, document_bytes=102),
        make_record(budget_bytes=0, document_bytes=5),
        make_record(budget_bytes=100),
    ]
    cost = cost_of([(record, None) for record in records])
    assert (cost.kept.largest_peak, cost.kept.peaks, cost.kept.examples) == (30, 2, 4)
    assert cost.amounts["peak_bytes"].mean == 20
    assert cost.kept.deviation == pytest.approx(0.02)
    nothing = cost_of([]).kept
    assert (nothing.deviation, nothing.largest_peak, nothing.peaks) == (None, None, 0)


def test_the_chart_is_over_bytes_after_the_document_where_all_have_them(make_run: MakeRun) -> None:
    words = plain_text(render([equal_run(make_run)]))
    assert "once the document was read" in words
    assert "at the end of generation. The numbers" not in words


def test_the_terminal_has_a_table_of_what_was_kept(make_run: MakeRun) -> None:
    text = printed(equal_run(make_run))
    assert "as ahn-gdn holds, exact accounting" in " ".join(text.split())
    cells = [[c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines()]
    rows = {row[0]: row[1:] for row in cells if row and row[0]}
    assert rows["press"] == [
        "996 KiB", "−0.04 %", "166 of 500", "996 KiB", "1.05 MiB", "1.05 MiB", "4.77 MiB", "2 of 3",
    ]  # fmt: skip
    assert rows["server"] == ["996 KiB", *["–"] * 6, "0 of 3"]
    assert "server: not known: a server, whose cache cannot be seen" in text


def test_frames_and_tables_carry_the_fields(make_run: MakeRun, tmp_path: Path) -> None:
    run = equal_run(make_run)
    records = frame([run])
    press = records[records["variant"] == "press"]
    assert set(press["document_bytes"]) == {1_019_904} and set(press["budget_bytes"]) == {BUDGET}
    assert press["peak_bytes"].notna().sum() == 2
    board = leaderboard([run]).set_index("variant")
    assert board.loc["press", "kept_tokens"] == 166
    assert board.loc["press", "document_bytes"] == 1_019_904
    assert board.loc["full", "budget_deviation"] == pytest.approx(3_145_728 / BUDGET - 1)
    assert (board.loc["press", "peak_bytes"], board.loc["press", "peaks"]) == (5_000_000.5, 2)
    assert board.loc["press", "peak_bytes_largest"] == 5_000_001
    written = write_table(board.reset_index(), tmp_path / "board.csv").read_text()
    assert "budget_deviation" in written and "1019904" in written


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("full", "every key and value"),
        ("window", "4 sinks + window 128"),
        ("equal", "4 sinks + window sized to the budget"),
        ("ahn-gdn", "4 sinks + window 128, GatedDeltaNet"),
        ("press", "SnapKVPress"),
        ("q4", "bits 4, group 64"),
        ("server", "model some-model"),
    ],
)
def test_a_variant_in_words(make_run: MakeRun, variant: str, said: str) -> None:
    rows = re.findall(r"<tr>\s*<th scope=\"row\">(.*?)</th>", render([equal_run(make_run)]), re.S)
    words = [plain_text(row) for row in rows]
    assert f"{variant} {said}" in words


def test_a_page_of_many_variants_has_rows_and_signs_for_all(make_run: MakeRun) -> None:
    names = [f"w{i}" for i in range(18)]
    scores = {name: {"qa": [1.0, 0.0]} for name in names}

    def record(variant: str, task: str, i: int) -> dict[str, Any]:
        return kept("server" if variant == "w17" else "window", task, i)

    run = read_run(make_run("many", scores, record=record))
    page = render([run])
    assert "Up and to the left" not in plain_text(page)
    (chart,) = re.findall(r'aria-label="(Score against cache size[^"]*)"', page)
    assert chart.count("score 50.0") == 18 and "w17: score 50.0 [0.3, 99.7], cache –" in chart
    swatches = set(re.findall(r'<svg class="swatch".*?</svg>', page))
    assert len(swatches) == 18
    few = render([read_run(make_run("few", {n: scores[n] for n in names[:8]}, record=record))])
    assert "Up and to the left" in plain_text(few)
