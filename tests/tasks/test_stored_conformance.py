"""Scores equal those of the authors' formulas, bit for bit, on the rows of `tests/data`.

The formulas are written a second time in `authors_formulas.py`; where the authors' own scores are
at hand (`../shared`), those formulas are held to all of them below.
"""

import gzip
import json
from collections import defaultdict
from functools import cache

import pytest

from tasks.averages import Scored, benchmark_tables
from tasks.metrics import METRICS
from tasks.registry import benchmark_definition, find_task, protocol_name, task_names
from tasks.schema import scored_example
from tasks.scoring import benchmark_score, score_file
from tests.data import make_conformance
from tests.data.make_conformance import FOLDER
from tests.tasks import authors_formulas

BENCHMARKS = ("longbench", "longbench_e", "lveval", "infinitebench")

#: Our score where the authors' code raises, by task and prediction, with the reason in words.
DEFINED = {
    ("passage_retrieval_en", "3"): 0.0,  # the answer names no paragraph
    ("passage_retrieval_zh", "段落2"): 0.0,
    ("trec", "City"): 0.0,  # no classes, so none can be recognised
    ("loogle_SD_mixup", "six apples"): 0.8,  # key words without a word are as none
    ("loogle_CR_mixup", "six apples"): 0.8,
    ("multifieldqa_zh_mixup", "百分之八"): 1.0,
    ("lic_mixup", "百分之八"): 1.0,
    ("math_find", "88.0"): 1.0,  # numbers are compared by value
    ("math_find", "88.5"): 0.0,
    ("math_find", "88"): 1.0,  # as the text of a number
}


@cache
def rows(benchmark):
    lines = (FOLDER / f"{benchmark}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


@cache
def figures():
    return json.loads((FOLDER / "aggregates.json").read_text(encoding="utf-8"))


def task_of(row):
    level = f"_{row['level']}" if "level" in row else ""
    return find_task(row["benchmark"], row["task"] + level)


def rules_of(row):
    return protocol_name(row["benchmark"], row["protocol"])


def in_authors_form(row):
    """A line of a prediction file as the authors write it."""
    if row["benchmark"] == "infinitebench" and "label" in row:
        return {"id": row["id"], "prediction": row["prediction"], "ground_truth": row["label"]}
    keys = {"answers", "all_classes", "length", "gold_ans"} & row.keys()
    return {"pred": row["prediction"]} | {key: row[key] for key in keys}


@cache
def our_scores(benchmark):
    """Each row with our score; the classes are its own."""
    found = []
    for row in rows(benchmark):
        task = task_of(row)
        example, problems = task.adapter.gold(in_authors_form(row), task)
        assert not problems
        found.append((row, task.score(row["prediction"], example, rules_of(row))))
    return found


@pytest.mark.parametrize(
    ("benchmark", "least"), [*zip(BENCHMARKS, (480, 150, 165, 260), strict=True)]
)
def test_every_score_equals_the_formulas_bit_for_bit(benchmark, least):
    scored = our_scores(benchmark)
    assert len(scored) >= least
    different = [
        (row["id"], row["protocol"], row["task"], row["prediction"], row["expected_score"], score)
        for row, score in scored
        if row["expected_score"] is not None and score != row["expected_score"]
    ]
    assert different == []


def test_the_rows_cover_every_task_and_every_metric_of_the_authors():
    for benchmark in BENCHMARKS:
        covered = {task_of(row).name for row in rows(benchmark)}
        assert covered == set(task_names(benchmark)), benchmark
    used = {task_of(row).protocol(rules_of(row)).metric for b in BENCHMARKS for row in rows(b)}
    ours_alone = {"exact_match", "infinitebench_code_debug_letter", "infinitebench_dialogue_any"}
    elsewhere = ("longbench_v2_", "scbench_", "string_match_")  # in the tests of these benchmarks
    here = {name for name in METRICS if not name.startswith(elsewhere)}
    assert used | ours_alone | {"code_similarity_levenshtein"} == here


def test_the_rows_say_something():
    """No file of ones and zeros: each kind of score that a metric can give is there."""
    for benchmark in BENCHMARKS:
        scores = [row["expected_score"] for row in rows(benchmark)]
        assert scores.count(0.0) > 20 and scores.count(1.0) > 10
        assert len({score for score in scores if score not in (None, 0.0, 1.0)}) > 20


def test_where_the_authors_code_raises_the_score_is_defined():
    raised = {
        (row["task"], row["prediction"]): score
        for benchmark in BENCHMARKS
        for row, score in our_scores(benchmark)
        if row["expected_score"] is None
    }
    assert raised == DEFINED


def test_cleaned_predictions_equal_the_formulas():
    compared = 0
    for benchmark in BENCHMARKS:
        for row in rows(benchmark):
            expected = row["expected_extra"].get("scored_text", row["prediction"])
            assert task_of(row).postprocess(row["prediction"], rules_of(row)) == expected
            compared += expected != row["prediction"]
    assert compared > 130


def test_code_similarity_with_levenshtein():
    compared = 0
    for row in (*rows("longbench"), *rows("longbench_e")):
        if "with_python_Levenshtein" in row["expected_extra"]:
            text = task_of(row).postprocess(row["prediction"], rules_of(row))
            score = METRICS["code_similarity_levenshtein"](text, scored_example(row["answers"]))
            assert score == row["expected_extra"]["with_python_Levenshtein"], row["id"]
            compared += 1
    assert compared > 50


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_files_in_the_authors_form_give_the_same_scores_and_figures(benchmark, tmp_path):
    files = defaultdict(list)
    for row, score in our_scores(benchmark):
        if row["model"] != "no-classes":  # a file has the classes of its last row
            files[rules_of(row), task_of(row).name].append((row, score))
    path, published = tmp_path / "predictions.jsonl", dict(figures()["tasks"])
    for (protocol, task), scored in files.items():
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for row, _ in scored:
                file.write(json.dumps(in_authors_form(row), ensure_ascii=False) + "\n")
        found = score_file(path, benchmark, task, protocol, workers=1)
        assert found == [score for _, score in scored]
        kept = [
            s
            for s, (row, _) in zip(found, scored, strict=True)
            if row["expected_score"] is not None
        ]
        if benchmark != "longbench_e":
            assert benchmark_score(kept) == published[f"{benchmark}/{protocol}"][task]


def tables(benchmark):
    """Our tables over the official rows on which the authors' code does not raise."""
    scores = defaultdict(list)
    for row, score in our_scores(benchmark):
        if rules_of(row) == "official" and row["expected_score"] is not None:
            scores[task_of(row).name].append(Scored(score, row.get("length")))
    return {
        table.title: {name: dict(zip(table.columns, row, strict=True)) for name, row in table.rows}
        for table in benchmark_tables(benchmark, scores)
    }


def test_the_leaderboard_of_longbench():
    for language, expected in figures()["longbench_leaderboard"].items():
        row = tables("longbench")[f"LongBench: {language}"]["mean"]
        # figures are rounded before they are averaged, twice
        assert row == pytest.approx(expected, abs=0.0101)


def test_the_buckets_of_longbench_e():
    found = tables("longbench_e")["LongBench-E: score per length"]
    assert found == {f"{task}_e": row for task, row in figures()["longbench_e_buckets"].items()}


def test_the_levels_and_data_sets_of_lveval():
    found = tables("lveval")["LV-Eval: data sets by levels"]
    levels = {level: found["average"][level] for level in benchmark_definition("lveval").levels}
    assert levels == pytest.approx(figures()["lveval_levels"], abs=0.0051)
    datasets = {name: row["average"] for name, row in found.items() if name != "average"}
    assert datasets == pytest.approx(figures()["lveval_datasets"], abs=0.0051)


def test_the_means_of_infinitebench():
    found = tables("infinitebench")["InfiniteBench: score per task"]
    expected = figures()["tasks"]["infinitebench/official"]
    assert {task: row["score"] for task, row in found.items()} == expected


@pytest.mark.slow
def test_the_generator_gives_the_stored_rows_and_figures_again():
    files, made = make_conformance.make()
    assert files.keys() == set(BENCHMARKS)
    for benchmark, found in files.items():
        assert json.loads(json.dumps(found)) == rows(benchmark), benchmark
    assert made == figures()


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "size"),
    {
        "longbench_official": 9975,
        "longbench_ahn": 2680,
        "longbench_constructed": 2874,
        "longbench_e": 1725,
        "lveval_official": 3956,
        "infinitebench_official": 15452,
        "infinitebench_edge": 99,
        "infinitebench_ahn": 2160,
    }.items(),
)
def test_the_formulas_equal_the_authors_own_scores(shared, file, size):
    """All of them, and the exceptions too."""
    with gzip.open(shared / "conformance" / f"{file}.jsonl.gz") as lines:
        records = [json.loads(line) for line in lines]
    assert len(records) == size
    for record in records:
        try:
            score = authors_formulas.score(record)
        except authors_formulas.RAISED:
            score = None
        assert score == record["expected_score"], record["id"]
        extra = record["expected_extra"]
        if "scored_text" in extra:
            assert authors_formulas.cleaned(record) == extra["scored_text"], record["id"]
        if "with_python_Levenshtein" in extra:
            found = authors_formulas.levenshtein_score(record)
            assert found == extra["with_python_Levenshtein"], record["id"]
