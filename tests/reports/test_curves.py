"""Curves over facts, distance and length; every pair; what a cut took away; foreign tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.compare import every_pair
from reports.curves import _edges, by_distance, by_level, curves
from reports.figure_tables import FigureTable
from reports.leaderboard import columns_of, compared_tasks
from reports.notices import notices
from reports.page import build_report, render
from reports.run_folders import read_run


def distances(*values: int):
    """Attributes of a task's records: the n-th has the n-th distance."""
    return lambda variant, task, i: {"attributes": {"evidence_distance": values[i]}}


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_bins_hold_every_distance_and_are_few(a, b):
    least, most = sorted((a, b))
    edges = _edges(least, most)
    assert edges == sorted(set(edges)) and len(edges) <= 23
    assert edges[0] <= least and most < edges[-1]


def test_a_wide_range_of_distances_is_divided_into_octaves_a_narrow_one_evenly():
    assert _edges(160, 2000) == [128, 256, 512, 1024, 2048]
    assert _edges(160, 500) == [100, 200, 300, 400, 500, 600]


def test_scores_fall_into_the_bin_of_their_distance(make_run):
    run = make_run(
        "run", {"full": {"qa": [1, 1, 1, 1]}, "ahn": {"qa": [1, 1, 0, None]}},
        record=distances(200, 255, 256, 3000),
    )  # fmt: skip
    points = dict(by_distance(columns_of([read_run(run)])))
    assert list(points) == ["128–256", "256–512", "2k–4k"]
    means = {
        name: [None if cell is None else cell.mean for cell in cells]
        for name, cells in points.items()
    }
    assert means == {"128–256": [1, 1], "256–512": [1, 0], "2k–4k": [1, None]}


@pytest.mark.parametrize("odd", [True, "near", None, -1, float("nan")])
def test_what_is_no_distance_is_left_out(make_run, odd):
    run = make_run("run", {"full": {"qa": [1]}}, record={"attributes": {"evidence_distance": odd}})
    assert by_distance(columns_of([read_run(run)])) == []


def test_lengths_come_from_the_tasks_levels_else_from_the_records(make_run):
    def of(variant, task, i):
        return {} if "@" not in task else {"attributes": {"length": int(task.split("@")[1])}}

    scores = {"full": {"a_128k": [1.0], "a_16k": [0.0], "p@2048": [1.0], "p@512": [0.5]}}
    levels = {"a_128k": "128k", "a_16k": "16k", "p@2048": None, "p@512": None}
    tasks = {name: {"examples": 1, "level": level} for name, level in levels.items()}
    run = make_run("run", scores, record=of, tasks=tasks)
    points = by_level(columns_of([read_run(run)]))
    assert [(name, cells[0].mean) for name, cells in points if cells[0]] == [
        ("512", 0.5), ("2k", 1.0), ("16k", 0.0), ("128k", 1.0)
    ]  # fmt: skip


def test_a_curve_of_one_point_is_none(make_run, pocket_run):
    one = make_run("one", {"full": {"qa": [1]}}, record={"attributes": {"facts": 4}})
    assert curves(columns_of([read_run(one)])) == []
    assert [c.name for c in curves(columns_of([read_run(pocket_run)]))] == ["facts"]


def test_every_pair_is_compared_both_ways(pocket_run):
    columns = columns_of([read_run(pocket_run)])
    table = every_pair(columns, compared_tasks(columns))
    names = [column.label for column, _ in table]
    of = {(row.label, names[i]): cell for row, cells in table for i, cell in enumerate(cells)}
    assert all(of[name, name] is None for name in names)
    for a in names:
        for b in names:
            one, other = of[a, b], of[b, a]
            if one is not None and other is not None:
                assert one.mean == pytest.approx(-other.mean)
                assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    difference = of["ahn", "window"]
    assert difference is not None and difference.mean == pytest.approx(0.7)


def test_what_the_cut_took_is_counted_once_for_all_variants(make_run):
    def cut(variant, task, i):
        gone = i == 0
        return {"truncated": gone, "answer_removed": gone, "tokens_cut": 9 * gone}

    scores = {"full": {"qa": [0, 1]}, "window": {"qa": [0, 1]}}
    runs = [read_run(make_run("run", scores, record=cut))]
    (notice,) = [n for n in notices(runs, columns_of(runs)) if "removed" in n]
    assert "from 1 prompts (qa: 1 of 2)" in notice
    assert "answer gone in 1" in render(runs)


def test_foreign_tables_stand_apart_and_are_escaped(pocket_run, tmp_path):
    own = FigureTable("Own <b>", ("a",), (("row", (71.256,)), ("none", (None,))), ("a & b",))
    other = FigureTable("Theirs", ("a",), (("GPT", ("< 5",)),), source="org/<repo>")
    page = build_report([pocket_run], tmp_path / "page.html", lambda columns: [other, own])
    text = page.read_text(encoding="utf-8")
    measured, published = text.index('id="benchmark"'), text.index('id="published"')
    assert measured < text.index("Own &lt;b&gt;") < published < text.index("Theirs")
    assert "71.26" in text and "a &amp; b" in text
    assert "&lt; 5" in text and "Source: org/&lt;repo&gt;" in text
    without = build_report([pocket_run], tmp_path / "without.html").read_text(encoding="utf-8")
    assert 'id="benchmark"' not in without and 'id="published"' not in without
