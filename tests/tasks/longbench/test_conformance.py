"""Scores equal those of the LongBench and AHN authors' own code, prediction for prediction."""

import dataclasses
import functools
import gzip
import json
from collections import defaultdict

import pytest

from common.errors import InputError
from tasks.averages import Scored
from tasks.longbench.averages import leaderboards
from tasks.longbench_e.averages import bucket_of, bucket_scores
from tasks.metrics import METRICS
from tasks.metrics.rouge import rouge_l_f
from tasks.registry import expand, find_task, protocol_name, task_names
from tasks.schema import scored_example
from tasks.scoring import benchmark_score, score_file

pytestmark = pytest.mark.shared

FILES = {
    "longbench_official": 9975,
    "longbench_ahn": 2680,
    "longbench_constructed": 2874,
    "longbench_e": 1725,
}


@functools.cache
def read(folder, name):
    with gzip.open(folder / f"{name}.jsonl.gz") as lines:
        return [json.loads(line) for line in lines]


def records(shared, name):
    return read(shared / "conformance", name)


def aggregates(shared):
    return json.loads((shared / "conformance" / "aggregates.json").read_text(encoding="utf-8"))


def task_of(record):
    return find_task(record["benchmark"], record["task"])


def rules_of(record):
    return protocol_name(record["benchmark"], record["protocol"])


_scores: dict[int, float] = {}  # by the identity of the record, which `read` keeps


def our_score(record):
    """Each record is scored once, whichever tests ask for it."""
    key = id(record)
    if key not in _scores:
        example = scored_example(record["answers"], record["all_classes"])
        _scores[key] = task_of(record).score(record["prediction"], example, rules_of(record))
    return _scores[key]


@pytest.mark.parametrize(("name", "size"), FILES.items())
def test_every_score_equals_the_authors_exactly(shared, name, size):
    rows = records(shared, name)
    assert len(rows) == size
    different = [
        (row["protocol"], row["task"], row["id"], row["expected_score"], score)
        for row, score in ((row, our_score(row)) for row in rows)
        if row["expected_score"] is not None and score != row["expected_score"]
    ]
    assert different == []


def test_the_files_cover_every_task_under_both_protocols(shared):
    covered = {(row["protocol"], row["task"]) for name in FILES for row in records(shared, name)}
    wanted = {(p, task) for p in ("official", "ahn") for task in task_names("longbench")}
    assert wanted <= covered


def test_where_the_authors_code_raises_the_score_is_0(shared):
    raising = [r for r in records(shared, "longbench_constructed") if r["expected_score"] is None]
    assert len(raising) == 6
    assert [our_score(record) for record in raising] == [0.0] * 6


def test_cleaned_predictions_equal_the_authors(shared):
    cleaned = [r for name in FILES for r in records(shared, name)]
    cleaned = [r for r in cleaned if "scored_text" in r["expected_extra"]]
    assert len(cleaned) > 2000
    for record in cleaned:
        text = task_of(record).postprocess(record["prediction"], rules_of(record))
        assert text == record["expected_extra"]["scored_text"], record["id"]


def test_the_recursion_limit_is_all_that_makes_long_summaries_score_0(shared):
    raised = [
        record
        for record in records(shared, "longbench_constructed")
        if "RecursionError" in str(record["expected_extra"].get("rouge_raised"))
    ]
    english = [record for record in raised if record["task"] == "gov_report"]
    assert english and len(raised) == 4
    for record in english:
        unlimited = rouge_l_f(record["prediction"], record["answers"][0], max_trace_calls=None)
        expected = record["expected_extra"]["score_without_recursion_limit"]
        assert unlimited == pytest.approx(expected, abs=1e-9)


def test_files_in_the_authors_format_give_the_authors_scores_and_figures(shared, tmp_path):
    files = defaultdict(list)
    for name in ("longbench_official", "longbench_ahn", "longbench_constructed"):
        for record in records(shared, name):
            # The hand-made TREC rows have different classes; a file has those of its last row.
            if record["expected_score"] is not None and (
                name != "longbench_constructed" or record["task"] != "trec"
            ):
                files[name, record["protocol"], record["task"], record.get("model")].append(record)
    published = {
        ("longbench_constructed", entry["protocol"], entry["task"], None): entry["expected"]
        for entry in aggregates(shared)
        if entry["benchmark"] == "longbench" and entry["scope"] == "records_here"
    }
    assert len(published) == 40
    path = tmp_path / "predictions.jsonl"
    for (name, protocol, task, model), rows in files.items():
        if name != "longbench_constructed":
            rows = rows[:25]  # all of them are scored above, one by one
        lines = [
            {"pred": r["prediction"], **{k: r[k] for k in ("answers", "all_classes", "length")}}
            for r in rows
        ]
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        scores = score_file(path, "longbench", task, protocol)
        assert scores == [row["expected_score"] for row in rows]
        if (name, protocol, task, model) in published:
            assert benchmark_score(scores) == published.pop((name, protocol, task, model))
    assert not published


def test_means_over_whole_files_of_real_predictions_equal_the_published(shared):
    files = defaultdict(list)
    for record in records(shared, "longbench_official"):
        files[record["task"], record["model"]].append(our_score(record))
    means = {key: benchmark_score(scores) for key, scores in files.items()}
    published = {
        (entry["task"], entry["model"]): entry["expected"]
        for entry in aggregates(shared)
        if entry["benchmark"] == "longbench"
        and entry["protocol"] == "official"
        and entry.get("recomputable_from_folder")
    }
    assert len(published) == 42
    assert {key: means[key] for key in published} == published


def test_buckets_of_longbench_e_equal_the_authors_and_the_published(shared):
    files = defaultdict(list)
    for record in records(shared, "longbench_e"):
        assert bucket_of(record["length"]) == record["expected_extra"]["bucket"]
        scored = Scored(our_score(record), record["length"])
        files[record["task"], record["model"]].append(scored)
    entries = [e for e in aggregates(shared) if e["benchmark"] == "longbench_e"]
    assert len(entries) == len(files) == 11
    for entry in entries:
        examples = files[entry["task"], entry["model"]]
        assert len(examples) == entry["n"]
        assert bucket_scores(examples) == entry["expected"], entry["task"]


@pytest.mark.parametrize("name", FILES)
def test_code_similarity_with_levenshtein_is_a_metric_of_its_own(shared, name):
    found = [r for r in records(shared, name) if "with_python_Levenshtein" in r["expected_extra"]]
    assert len(found) >= 80
    for record in found:
        text = task_of(record).postprocess(record["prediction"], rules_of(record))
        score = METRICS["code_similarity_levenshtein"](text, scored_example(record["answers"]))
        assert score == record["expected_extra"]["with_python_Levenshtein"], record["id"]


def test_a_file_of_longbench_e_is_scored_by_another_metric_by_name(shared, tmp_path):
    """The published figures of this task were made with python-Levenshtein installed."""
    rows = [r for r in records(shared, "longbench_e") if r["task"] == "repobench-p"]
    path = tmp_path / "repobench-p.jsonl"
    lines = [{"pred": r["prediction"], **{k: r[k] for k in ("answers", "length")}} for r in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    scores = score_file(path, "longbench_e", "repobench-p", "official_e")
    assert scores == [row["expected_score"] for row in rows] and benchmark_score(scores) == 25.6
    name = "code_similarity_levenshtein"
    scores = score_file(path, "longbench_e", "repobench-p", "official", metric=name)
    assert benchmark_score(scores) == 28.84
    with pytest.raises(InputError, match="unknown metric 'levenshtein'"):
        score_file(path, "longbench_e", "repobench-p", "official", metric="levenshtein")


def test_the_leaderboard_comes_out_of_its_data_sets(shared):
    table = json.loads((shared / "protocol" / "published.json").read_text(encoding="utf-8"))
    published, cells = table["longbench"], 0
    for model, figures in published["per_dataset"].items():
        for board in leaderboards(figures):
            theirs = published["leaderboard"][board.title.split(": ")[1]][model]
            theirs = {name.lower().removesuffix(" tasks"): v for name, v in theirs.items()}
            for column, value in zip(board.columns, board.rows[0][1], strict=True):
                assert value == pytest.approx(theirs[column.lower()], abs=0.0701)
                cells += 1
    assert cells == 8 * 2 * 7


def test_the_constants_equal_the_protocol_tables(shared):
    table = json.loads((shared / "protocol" / "longbench.json").read_text(encoding="utf-8"))
    assert sorted(entry["task"] for entry in table["tasks"]) == task_names("longbench")
    for entry in table["tasks"]:
        task = find_task("longbench", entry["task"])
        assert (task.language, task.category) == (entry["language"], entry["category"])
        for name in ("official", "ahn"):
            protocol = task.protocol(name)
            assert protocol.template == entry["prompt"][name]
            assert protocol.max_new_tokens == entry["max_new_tokens"][name]
            assert protocol.chat_template == entry["chat_template"][name]
            assert protocol.seed == table["protocols"][name]["seed"]
            steps = protocol.postprocess
            expected = entry["post_process"][name]["eval"]
            cuts = [step.keep_before for step in steps if step.keep_before is not None]
            assert cuts == [op["sep"] for op in expected if op["op"] == "split_keep_head"]
            strips = [op for op in expected if op["op"] == "strip" or op.get("then") == "strip"]
            assert sum(step.strip for step in steps) == len(strips)
    six = {entry["task"] for entry in table["tasks"] if entry["in_ahn_paper_subset"]}
    assert {task.name for task in expand("longbench", ["longbench_paper"], None)} == six
    for language, group in (("English", "longbench_en"), ("Chinese", "longbench_zh")):
        counted = {e["task"] for e in table["tasks"] if language in e["counted_in_leaderboard"]}
        assert {task.name for task in expand("longbench", [group], None)} == counted
    e_tasks = [f"{name}_e" for name in table["longbench_e"]["tasks"]]
    assert sorted(e_tasks) == sorted(task_names("longbench_e"))
    for name in e_tasks:
        task, whole = find_task("longbench_e", name), find_task("longbench", name[:-2])
        for rules in ("official", "ahn"):
            ours, theirs = task.protocol(rules), whole.protocol(rules)
            assert dataclasses.replace(ours, postprocess=theirs.postprocess) == theirs
        # scorer_e of both takes the first line of the same tasks, and does nothing else.
        assert task.protocol("ahn").postprocess == task.protocol("official").postprocess
        assert task.protocol("official").postprocess == whole.protocol("official").postprocess
