"""Curves join like examples only; every pair; what a cut took away; foreign tables."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.bins import edges_of, short_tokens, tokens_of
from reports.compare import every_pair
from reports.curves import curve, curves
from reports.figure_tables import FigureTable
from reports.leaderboard import columns_of, compared_tasks
from reports.notices import notices
from reports.page import build_report, render
from reports.run_folders import read_run


def distances(*values: int):
    """Attributes of a task's records: the n-th has the n-th distance."""
    return lambda variant, task, i: {"attributes": {"evidence_distance": values[i]}}


def named(variant, task, i):
    """Attributes as a task called 'kind@facts_length' has them."""
    kind, _, rest = task.partition("@")
    facts, _, length = rest.partition("_")
    return {"attributes": {"kind": kind, "facts": int(facts), "length": int(length or 512)}}


def columns_with(make_run, scores, record, **info):
    return columns_of([read_run(make_run("run", scores, record=record, **info))])


def drawn(columns, name):
    """Per panel what is held, and per point the columns' means, in percent."""
    found = curve(columns, name)
    return [] if found is None else [
        (
            panel.held,
            {
                point: [None if cell is None else round(100 * cell.mean) for cell in cells]
                for point, cells in panel.points
            },
        )
        for panel in found.panels
    ]  # fmt: skip


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_bins_hold_every_distance_and_are_few(a, b):
    least, most = sorted((a, b))
    edges = edges_of(least, most)
    assert edges == sorted(set(edges)) and len(edges) <= 23
    assert edges[0] <= least and most < edges[-1]


def test_a_wide_range_of_distances_is_divided_into_octaves_a_narrow_one_evenly():
    assert edges_of(160, 2000) == [128, 256, 512, 1024, 2048]
    assert edges_of(160, 500) == [100, 200, 300, 400, 500, 600]


def test_levels_are_sorted_by_their_tokens():
    levels = ["1m", "128k", "whole", "1536", "16k", "4096"]
    assert sorted(levels, key=tokens_of) == ["1536", "4096", "16k", "128k", "1m", "whole"]
    assert [short_tokens(n) for n in (1536, 2048)] == ["1536", "2k"]


def test_scores_fall_into_the_bin_of_their_distance(make_run):
    columns = columns_with(
        make_run, {"full": {"qa": [1, 1, 1, 1]}, "ahn": {"qa": [1, 1, 0, 0.5]}},
        distances(200, 255, 256, 3000),
    )  # fmt: skip
    points = {"128–256": [100, 100], "256–512": [100, 0], "2k–4k": [100, 50]}
    assert drawn(columns, "distance") == [("task qa", points)]


@pytest.mark.parametrize("odd", [True, "near", None, -1, float("nan")])
def test_what_is_no_distance_is_left_out(make_run, odd):
    columns = columns_with(
        make_run, {"full": {"qa": [1, 0, 1]}},
        lambda v, t, i: {"attributes": {"evidence_distance": (odd, 100, 4000)[i]}},
    )  # fmt: skip
    ((_, points),) = drawn(columns, "distance")
    assert points == {"64–128": [0], "2k–4k": [100]}


def test_lengths_come_from_the_tasks_levels_else_from_the_records(make_run):
    def of(variant, task, i):
        return {} if "@" not in task else {"attributes": {"length": int(task.split("@")[1])}}

    scores = {"full": {"a_128k": [1.0], "a_16k": [0.0], "p@2048": [1.0], "p@512": [0.5]}}
    levels = {"a_128k": "128k", "a_16k": "16k", "p@2048": None, "p@512": None}
    tasks = {name: {"examples": 1, "level": level} for name, level in levels.items()}
    columns = columns_with(make_run, scores, of, tasks=tasks)
    # Two families of tasks: no line from one to the other.
    assert drawn(columns, "length") == [
        ("task a", {"16k": [0], "128k": [100]}),
        ("task p", {"512": [50], "2k": [100]}),
    ]


def test_levels_of_one_data_set_are_one_kind_of_task(make_run):
    scores = {"full": {"qa_16k": [1.0, 0.0], "qa_32k": [0.0, 0.0], "other": [1.0]}}
    tasks = {
        "qa_16k": {"examples": 2, "dataset": "qa", "level": "16k"},
        "qa_32k": {"examples": 2, "dataset": "qa", "level": "32k"},
        "other": {"examples": 1, "dataset": "other", "level": None},
    }
    columns = columns_with(make_run, scores, None, tasks=tasks)
    assert drawn(columns, "length") == [("task qa", {"16k": [50], "32k": [0]})]


def test_a_curve_of_one_point_is_none(make_run, pocket_run):
    one = make_run("one", {"full": {"qa": [1]}}, record={"attributes": {"facts": 4}})
    assert curves(columns_of([read_run(one)])) == []
    assert [c.name for c in curves(columns_of([read_run(pocket_run)]))] == ["facts"]


# -- like with like -----------------------------------------------------------------------------


def some(right: int, wrong: int) -> list[float]:
    return [1.0] * right + [0.0] * wrong


def test_a_line_over_length_does_not_speak_of_the_facts(make_run):
    # As the demo is made: 1, 4 and 16 facts in short texts, 4 facts in long ones. Pooled, the
    # memory gains with length, from 57 to 70; with four facts it loses, from 80 to 70.
    scores = {
        "ahn": {
            "qa@1_512": some(10, 0), "qa@4_512": some(8, 2), "qa@16_512": some(0, 10),
            "qa@4_1024": some(7, 3), "qa@4_2048": some(6, 4),
        }
    }  # fmt: skip
    columns = columns_with(make_run, scores, named)
    assert drawn(columns, "length") == [
        ("task qa, 4 stored facts", {"512": [80], "1k": [70], "2k": [60]})
    ]
    assert drawn(columns, "facts") == [
        ("task qa, texts of 512 tokens", {"1": [100], "4": [80], "16": [0]})
    ]
    found = curve(columns, "length")
    assert found is not None and (found.left_out, found.examples) == (20, 50)


ALONG = {"facts": (1, 4, 16), "length": (512, 1024, 2048), "distance": (100, 300, 700)}


HIDDEN = ("facts", "length", "distance", "kind", "metric", "hops")


@pytest.mark.parametrize(("along", "hidden"), [(a, h) for a in ALONG for h in HIDDEN if a != h])
def test_a_line_falls_where_every_stratum_falls(make_run, along, hidden):
    # Simpson's paradox: the easy stratum, always 40 points better, has few examples at the first
    # point and many at the last, so that the pooled mean rises though each stratum falls.
    rows = [
        (point, easy, score)
        for point in range(3)
        for easy, count in ((True, (4, 10, 16)[point]), (False, (16, 10, 4)[point]))
        for score in [0.9 - 0.1 * point - 0.4 * (not easy)] * count
    ]
    pooled = [[s for p, _, s in rows if p == point] for point in range(3)]
    assert sum(pooled[0]) / 20 < sum(pooled[1]) / 20 < sum(pooled[2]) / 20

    def record(variant, task, i):
        point, easy, _ = rows[i]
        attributes = {"facts": 4, "length": 512, "evidence_distance": 100, "kind": "a", "hops": 1}
        names = {"distance": "evidence_distance"}
        attributes[names.get(along, along)] = ALONG[along][point]
        if hidden == "kind":
            attributes["kind"] = "a" if easy else "b"
        elif hidden == "hops":
            attributes["hops"] = 1 if easy else 2
        elif hidden != "metric":
            attributes[names.get(hidden, hidden)] = ALONG[hidden][0 if easy else 2]
        other = {"metric": "exact_match" if easy or hidden != "metric" else "qa_f1"}
        return {"attributes": attributes, **other}

    scores = {"full": {"qa": [1.0] * 60}, "ahn": {"qa": [score for _, _, score in rows]}}
    found = drawn(columns_with(make_run, scores, record), along)
    assert found
    for held, points in found:
        means = [cells[1] for cells in points.values()]
        assert len(means) == 3 and means == sorted(means, reverse=True)
        assert means[0] > means[2] + 15, held


def test_a_line_falls_where_tasks_differ_in_their_share(make_run):
    # The easy task has more examples in the long texts.
    scores = {
        "ahn": {
            "easy_1k": some(4, 0), "easy_2k": some(16, 0), "easy_4k": some(17, 3),
            "hard_1k": some(10, 10), "hard_2k": some(4, 6), "hard_4k": some(1, 3),
        }
    }  # fmt: skip
    tasks = {
        name: {"examples": 0, "dataset": name[:4], "level": name[5:]} for name in scores["ahn"]
    }
    columns = columns_with(make_run, scores, None, tasks=tasks)
    ((held, points),) = drawn(columns, "length")
    assert held == "2 kinds of task; mixed alike at every point"
    # Either task weighs half at every point.
    assert points == {"1k": [75], "2k": [70], "4k": [55]}


def test_strata_that_reach_over_other_points_have_a_panel_of_their_own(make_run):
    scores = {
        "ahn": {
            "qa@4_512": some(8, 2), "qa@4_1024": some(7, 3),
            "qa@16_1024": some(5, 5), "qa@16_2048": some(4, 6),
        }
    }  # fmt: skip
    assert sorted(drawn(columns_with(make_run, scores, named), "length")) == [
        ("task qa, 16 stored facts", {"1k": [50], "2k": [40]}),
        ("task qa, 4 stored facts", {"512": [80], "1k": [70]}),
    ]


def test_a_task_that_lacks_a_point_is_left_out_of_the_whole_line(make_run):
    scores = {
        "ahn": {
            "qa@1": some(9, 1), "qa@4": some(8, 2), "qa@16": some(7, 3),
            "kv@1": some(10, 0), "kv@4": some(10, 0), "kv@16": some(10, 0),
            "few@16": some(0, 10),
        }
    }  # fmt: skip
    columns = columns_with(make_run, scores, named)
    ((held, points),) = drawn(columns, "facts")
    assert held.startswith("2 kinds of task, texts of 512 tokens")
    assert points == {"1": [95], "4": [90], "16": [85]}
    found = curve(columns, "facts")
    assert found is not None and found.left_out == 10


def test_tasks_weigh_equally_however_many_strata_they_have(make_run):
    scores = {
        "ahn": {
            "qa@1_512": some(10, 0), "qa@4_512": some(10, 0),
            "qa@1_1024": some(10, 0), "qa@4_1024": some(10, 0),
            "kv@1_512": some(0, 10), "kv@4_512": some(0, 10),
        }
    }  # fmt: skip
    ((held, points),) = drawn(columns_with(make_run, scores, named), "facts")
    assert points == {"1": [50], "4": [50]}
    assert held == "2 kinds of task, texts of 512 and 1k tokens; mixed alike at every point"


def test_points_are_given_up_for_tasks_that_lack_different_ones(make_run):
    # Each task lacks another point; over the two that all have, all are compared.
    scores = {
        "ahn": {
            "a@1": some(5, 0), "a@4": some(5, 0), "a@8": some(5, 0),
            "b@1": some(0, 5), "b@4": some(0, 5), "b@16": some(5, 0),
        }
    }  # fmt: skip
    ((held, points),) = drawn(columns_with(make_run, scores, named), "facts")
    assert held.startswith("2 kinds of task")
    assert points == {"1": [50], "4": [50]}


def test_a_panel_of_very_few_examples_is_left_out(make_run):
    scores = {
        "ahn": {
            "qa@1_512": some(40, 0), "qa@4_512": some(20, 20),
            "qa@1_1024": some(1, 0), "qa@16_1024": some(0, 1),
        }
    }  # fmt: skip
    columns = columns_with(make_run, scores, named)
    assert drawn(columns, "facts") == [("task qa, texts of 512 tokens", {"1": [100], "4": [50]})]
    found = curve(columns, "facts")
    assert found is not None and found.left_out == 2


def test_variants_are_compared_at_each_point_on_the_same_examples(make_run):
    # The memory has no score of two questions on four facts, which full attention got wrong.
    full = {"qa@1": [1.0] * 6, "qa@4": [1.0] * 4 + [0.0] * 2}
    ahn = {"qa@1": [1.0] * 6, "qa@4": [1.0, 1.0, 0.0, 0.0, None, None]}
    columns = columns_with(make_run, {"full": full, "ahn": ahn}, named)
    ((_, points),) = drawn(columns, "facts")
    assert points == {"1": [100, 100], "4": [100, 50]}


def test_a_variant_without_a_task_does_not_end_the_others_lines(make_run):
    def record(variant, task, i):
        return named(variant, task, i)

    scores = {
        "full": {"qa@1": [1.0] * 4, "qa@4": [0.5] * 4, "kv@1": [1.0] * 4, "kv@4": [0.0] * 4},
        "ahn": {"qa@1": [1.0] * 4, "qa@4": [0.0] * 4},
    }
    assert sorted(drawn(columns_with(make_run, scores, record), "facts")) == [
        ("task kv, texts of 512 tokens", {"1": [100, None], "4": [0, None]}),
        ("task qa, texts of 512 tokens", {"1": [100, 100], "4": [50, 0]}),
    ]


def test_what_changes_along_with_the_property_is_named(make_run):
    # The number of units is the length in another measure, and is never the same at two lengths.
    def record(variant, task, i):
        length = int(task.split("@")[1])
        return {"attributes": {"length": length, "units": length * 3 + i}}

    scores = {"full": {"kv@512": [1.0] * 12, "kv@1024": [0.0] * 12}}
    columns = columns_with(make_run, scores, record)
    found = curve(columns, "length")
    assert found is not None and found.not_held == ("units",)
    assert drawn(columns, "length") == [("task kv", {"512": [100], "1k": [0]})]
    few = {"full": {"kv@512": [1.0] * 2, "kv@1024": [0.0] * 2}}
    found = curve(columns_with(make_run, few, record), "length")
    assert found is not None and found.not_held == ("units",)


def test_words_that_name_the_single_example_are_no_kind_of_task(make_run):
    def record(variant, task, i):
        attributes = named(variant, task, i)["attributes"]
        return {"attributes": attributes | {"person": f"{task} {i}", "long": i % 2 == 0}}

    scores = {"ahn": {"qa@1": some(30, 0), "qa@4": some(15, 15)}}
    columns = columns_with(make_run, scores, record)
    found = curve(columns, "facts")
    assert found is not None and found.not_held == ("person",)
    ((held, points),) = drawn(columns, "facts")
    assert held.startswith("2 kinds of task") and list(points) == ["1", "4"]


def test_each_point_has_the_weights_of_its_panel(make_run):
    # Random scores and sizes: a point's mean is the mean of its cells with weights that are the
    # same at every point, so that adding a constant to a cell shifts every point alike.
    source = random.Random(0)
    sizes = {f"qa@{f}_{n}": source.randint(1, 9) for f in (1, 4) for n in (512, 1024, 2048)}
    scores = {t: [source.randint(0, 50) / 100 for _ in range(n)] for t, n in sizes.items()}
    lifted = {t: [s + 0.5 * t.startswith("qa@4") for s in v] for t, v in scores.items()}
    columns = columns_with(make_run, {"full": scores, "ahn": lifted}, named)
    found = curve(columns, "length")
    assert found is not None
    (panel,) = found.panels
    assert "1 and 4 stored facts" in panel.held and "mixed alike" in panel.held
    shifts = [b.mean - a.mean for _, (a, b) in panel.points if a and b]
    assert len(shifts) == 3
    assert shifts == pytest.approx([shifts[0]] * 3) and 0.1 < shifts[0] < 0.4


def test_the_page_says_what_its_lines_join(make_run):
    scores = {"ahn": {"qa@1_512": some(9, 1), "qa@4_512": some(8, 2), "qa@4_1024": some(7, 3)}}
    text = " ".join(render([read_run(make_run("run", scores, record=named))]).split())
    assert "<h3>task qa, texts of 512 tokens</h3>" in text
    assert "<h3>task qa, 4 stored facts</h3>" in text
    assert "10 of 30 examples have no like at another point" in text


def test_every_pair_is_compared_both_ways(pocket_run):
    columns = columns_of([read_run(pocket_run)])
    table = every_pair(columns, compared_tasks(columns))
    names = [column.label for column, _ in table]
    assert all(cells[i] is None for i, (_, cells) in enumerate(table))
    of = {
        (row.label, names[i]): cell
        for row, cells in table
        for i, cell in enumerate(cells)
        if cell is not None
    }
    assert len(of) == 4 * 3
    for a in names:
        for b in names:
            if a != b:
                one, other = of[a, b].interval, of[b, a].interval
                assert one.mean == pytest.approx(-other.mean)
                assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert of["ahn", "window"].interval.mean == pytest.approx(0.7)


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
