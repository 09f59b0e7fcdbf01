"""Averages as the authors form them, worked out by hand."""

import pytest

from common.errors import InputError
from tasks.averages import Scored, benchmark_tables, mean, percent
from tasks.longbench.averages import CATEGORIES
from tasks.longbench_e.averages import bucket_of, bucket_scores
from tasks.registry import expand, find_task, task_names


def scored(*scores, length=None):
    return [Scored(score, length) for score in scores]


def table(tables, title):
    (found,) = [t for t in tables if t.title == title]
    return found


def cells(found):
    return {name: dict(zip(found.columns, row, strict=True)) for name, row in found.rows}


def test_a_mean_is_in_percent_with_two_decimals():
    assert percent(scored(1, 0, 0)) == 33.33 and percent([]) is None
    assert mean([10.0, 20.05], 2) == 15.03 and mean([10.0, 20.0], 1) == 15.0
    assert mean([10.0, None], 2) is None and mean([], 2) is None


def test_code_completion_counts_in_both_languages_of_longbench():
    of_category = dict(zip(CATEGORIES, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), strict=True))
    scores = {
        name: scored(of_category[find_task("longbench", name).category])
        for name in task_names("longbench")
    }
    scores["lcc"] = scored(0.7)  # with repobench-p's 0.5: 60
    tables = benchmark_tables("longbench", scores)
    assert [t.title for t in tables][1:] == ["LongBench: English", "LongBench: Chinese"]
    for found in tables[1:]:
        assert found.columns == ("Avg", *CATEGORIES) and found.note == ""
        row = cells(found)["mean"]
        assert [row[c] for c in CATEGORIES] == [10, 20, 30, 40, 60, 60]
        assert row["Avg"] == 36.67
    assert cells(tables[0])["lcc"] == {"score": 70.0} and len(tables[0].rows) == 21


def test_a_category_is_a_mean_of_data_sets_not_of_examples():
    scores = {
        "narrativeqa": scored(*[1.0] * 98, 0, 0),
        "qasper": scored(0.0),
        "multifieldqa_en": scored(0.5),
    }
    (_, english) = benchmark_tables("longbench", scores)
    row = cells(english)["mean"]
    assert row["single-doc QA"] == 49.33  # (98 + 0 + 50) / 3
    assert row["Avg"] is None and row["summarization"] is None
    assert english.note.startswith("not here: ") and "gov_report" in english.note


def test_an_incomplete_category_has_no_figure():
    tables = benchmark_tables("longbench", {"narrativeqa": scored(1.0), "qasper": scored(1.0)})
    assert cells(tables[1])["mean"]["single-doc QA"] is None
    assert [t.title for t in tables] == ["LongBench: score per data set", "LongBench: English"]


@pytest.mark.parametrize(
    ("length", "bucket"),
    [(0, "0-4k"), (3999, "0-4k"), (4000, "4-8k"), (7999, "4-8k"), (8000, "8k+"), (90000, "8k+")],
)
def test_buckets_of_longbench_e(length, bucket):
    assert bucket_of(length) == bucket


def test_an_empty_bucket_has_no_figure():
    examples = scored(1, 0, 1, length=3999) + scored(0.5, length=8000)
    assert bucket_scores(examples) == {"0-4k": 66.67, "4-8k": None, "8k+": 50.0}


def test_longbench_e_by_task_and_by_whole_categories():
    buckets = scored(0.2, length=10), scored(0.4, length=5000), scored(0.6, length=9000)
    low, high = [s for b in buckets for s in b], scored(1, length=10)
    tables = benchmark_tables("longbench_e", {"lcc": low, "repobench-p": high, "hotpotqa_e": low})
    tasks = table(tables, "LongBench-E: score per length")
    assert cells(tasks)["lcc_e"] == {"0-4k": 20, "4-8k": 40, "8k+": 60} and tasks.note == ""
    categories = table(tables, "LongBench-E: categories per length")
    assert cells(categories) == {"code completion": {"0-4k": 60, "4-8k": None, "8k+": None}}


def test_examples_without_length_are_told():
    (tasks,) = benchmark_tables("longbench_e", {"trec": scored(1), "lcc": scored(1, length=1)})
    assert cells(tasks)["trec_e"] == dict.fromkeys(("0-4k", "4-8k", "8k+"))
    assert tasks.note == "without the rows' length, in no bucket: examples of trec_e"


def test_generated_tasks_and_tasks_without_examples_are_left_out():
    scores = {"pocket_qa@4": scored(1), "trec": [], "lcc": scored(0.25)}
    (tasks, english, chinese) = benchmark_tables("longbench", scores)
    assert cells(tasks) == {"lcc": {"score": 25.0}}
    assert benchmark_tables("longbench", {"pocket_qa@4": scored(1)}) == []
    with pytest.raises(InputError, match="unknown task 'nonsense'"):
        benchmark_tables("longbench", {"nonsense": scored(1)})


def test_a_benchmark_without_averages_gives_its_tasks_means():
    (found,) = benchmark_tables("infinitebench", {"passkey": scored(1, 0), "code_run": scored(1)})
    assert found.columns == ("score",)
    assert cells(found) == {"passkey": {"score": 50.0}, "code_run": {"score": 100.0}}


def test_the_groups_of_the_leaderboard_are_all_of_longbench():
    found = expand("longbench", ["longbench_en,longbench_zh"], None)
    assert len(found) == 21 == len(task_names("longbench"))
