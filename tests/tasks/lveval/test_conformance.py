"""LV-Eval: scores, constants and prompts equal those of the authors' own code and tables."""

import gzip
import json
from collections import defaultdict

import pytest

from evaluation.plan.prompts import prepare, truncate
from tasks.averages import Scored, benchmark_tables
from tasks.lveval.adapter import ADAPTER
from tasks.lveval.averages import AVERAGE, by_level
from tasks.metrics.lveval import (
    ABANDON_WORDS_EN,
    ABANDON_WORDS_ZH,
    MIN_RECALL_EN,
    MIN_RECALL_ZH,
)
from tasks.registry import benchmark_definition, find_task, task_names
from tasks.schema import Example
from tasks.scoring import benchmark_score, score_file

pytestmark = pytest.mark.shared

METRICS = {
    "qa_f1_score_with_gold_ans": "lveval_keyword_f1",
    "qa_f1_zh_score_with_gold_ans": "lveval_keyword_f1_zh",
    "qa_f1_score": "lveval_f1",
    "qa_f1_zh_score": "lveval_f1_zh",
    "rouge_zh_score_blacklist": "lveval_rouge_l_zh",
}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def table(shared):
    return read(shared / "protocol" / "lveval.json")


@pytest.fixture(scope="module")
def tokenizer(shared):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "data" / "qwen2.5-tokenizer")


@pytest.fixture(scope="module")
def scored(shared, tmp_path_factory):
    """All records, with the score that `score_file` gives to them in the authors' form."""
    with gzip.open(shared / "conformance" / "lveval_official.jsonl.gz") as lines:
        records = [json.loads(line) for line in lines]
    assert len(records) == 3956
    files = defaultdict(list)
    for record in records:
        files[record["task"]].append(record)
    path = tmp_path_factory.mktemp("lveval") / "predictions.jsonl"
    found: list[tuple[dict, float]] = []
    for task, rows in files.items():
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                line = ADAPTER.export(row, find_task("lveval", task))
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        scores = score_file(path, "lveval", task, "official", workers=1)
        found += zip(rows, scores, strict=True)
    return found


def test_every_score_equals_the_authors(scored):
    different = [
        (record["id"], record["expected_score"], score)
        for record, score in scored
        if record["expected_score"] is not None and score != record["expected_score"]
    ]
    assert different == []
    assert {record["task"] for record, _ in scored} == {
        find_task("lveval", name).dataset for name in task_names("lveval")
    }


def test_key_words_without_a_word_are_as_none_where_the_authors_divide_by_zero(scored):
    """Then English has no gate, and Chinese asks for the answer's own words."""
    raising = [(record, score) for record, score in scored if record["expected_score"] is None]
    assert len(raising) == 30
    for record, score in raising:
        assert "ZeroDivisionError" in record["expected_extra"]["official_raises"]
        task = find_task("lveval", record["task"])
        example, problems = ADAPTER.gold(record | {"gold_ans": None}, task)
        assert example is not None and not problems
        assert score == task.score(record["prediction"], example, "official")
    assert sum(score > 0 for _, score in raising) == 20


def test_means_over_whole_files_equal_the_authors(shared, scored):
    entries = read(shared / "conformance" / "aggregates.json")
    entries = [entry for entry in entries if entry["benchmark"] == "lveval"]
    assert len(entries) == 35
    for entry in entries:
        scores = [
            score
            for record, score in scored
            if (record["task"], record.get("model")) == (entry["task"], entry["model"])
            and record["expected_score"] is not None
            and (entry["scope"] == "full_file" or record["id"].startswith("lv-c/"))
        ]
        assert len(scores) == entry["n"]
        assert benchmark_score(scores) == entry["expected"], entry
        tables = benchmark_tables("lveval", {entry["dataset"]: [Scored(s) for s in scores]})
        assert dict(tables[0].rows)[entry["task"]][0] == entry["expected"]


def test_the_constants_equal_the_protocol_table(table):
    assert benchmark_definition("lveval").levels == table["levels"]
    configs = {c["config"] for entry in table["tasks"] for c in entry["hf_configs"]}
    assert configs == set(task_names("lveval")) and len(configs) == 55
    for entry in table["tasks"]:
        for config in entry["hf_configs"]:
            task = find_task("lveval", config["config"])
            assert (task.language, task.category) == (entry["language"], entry["category"])
            assert f"{task.dataset}/{ADAPTER.member(task)}" == config["zip_member"]
            assert (ADAPTER.hub_file(task), task.level) == (config["zip"], config["level"])
            for protocol in ("official", "ahn"):
                rules = task.protocol(protocol)
                assert rules.template == entry["prompt"][protocol]
                assert rules.max_new_tokens == entry["max_new_tokens"][protocol]
                assert rules.metric == METRICS[entry["metric"][protocol]]
                assert rules.seed == table["protocols"][protocol]["seed"]
                given = table["protocols"][protocol]["generation"]
                assert rules.generation["do_sample"] == given["do_sample"]
    ahn = find_task("lveval", "cmrc_mixup_128k").protocol("ahn")
    assert ahn.default_max_length == table["protocols"]["ahn"]["max_length_default"]


def test_the_metrics_constants_equal_the_protocol_table(table):
    constants = table["metric_constants"]
    assert constants["keyword_recall_threshold"] == {"en": MIN_RECALL_EN, "zh": MIN_RECALL_ZH}
    assert set(constants["ABANDON_WORDS_EN"]) == ABANDON_WORDS_EN
    assert set(constants["ABANDON_WORDS_ZH"]) == ABANDON_WORDS_ZH


def test_averages_of_the_published_tables_come_out(shared):
    """To the roundings that the protocol table found in the authors' README."""
    published = read(shared / "protocol" / "published.json")["lveval"]
    for model, by_level_published in published["overall_by_level"].items():
        figures = {
            f"{dataset}_{level}": figure
            for dataset, models in published["by_dataset_and_level"].items()
            for level, figure in models[model].items()
        }
        assert len(figures) == 55
        means = by_level(figures)
        rows = dict(means.rows)
        assert means.note == "" and len(rows) == 12
        for level, figure in zip(means.columns[:-1], rows[AVERAGE], strict=False):
            assert figure == pytest.approx(by_level_published[level], abs=0.0101)
        for dataset, figure in published["by_dataset_mean_over_levels"][model].items():
            assert rows[dataset][-1] == pytest.approx(figure, abs=0.0201)


@pytest.mark.parametrize("protocol", ["official", "ahn"])
@pytest.mark.parametrize("dataset", ["hotpotwikiqa_mixup", "dureader_mixup"])
@pytest.mark.parametrize("max_length", [301, 302, 4000])
def test_a_long_prompt_is_cut_token_for_token_as_the_authors_cut_it(
    shared, table, tokenizer, dataset, protocol, max_length
):
    """Their steps (utils.py:111-119) on a row of LV-Eval's form, with a real tokenizer and text."""
    source = "multi_news" if dataset.startswith("hotpot") else "multifieldqa_zh"
    with (shared / "data" / "longbench" / f"{source}.jsonl").open(encoding="utf-8") as lines:
        context = json.loads(next(lines))["context"]
    row = {"context": context, "input": "Who? 谁？", "answers": [context[:20]], "length": 1}
    task = find_task("lveval", f"{dataset}_16k")
    assert ADAPTER.check(row, task) == []
    (template,) = (e["prompt"][protocol] for e in table["tasks"] if e["task"] == dataset)

    prompt = template.format(**row)
    ids = tokenizer(prompt, truncation=False).input_ids
    if len(ids) > max_length:
        half = int(max_length / 2)
        prompt = tokenizer.decode(ids[:half], skip_special_tokens=True) + tokenizer.decode(
            ids[-half:], skip_special_tokens=True
        )
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    example = Example("1", row, row["answers"], "", "here")
    cut = truncate(task.render(example, protocol), task.protocol(protocol), max_length, tokenizer)
    assert cut.text == prompt and cut.tokens_cut == max(0, len(ids) - 2 * int(max_length / 2))
    prepared = prepare(task, example, protocol, tokenizer, max_length)
    assert prepared.ids.tolist() == tokenizer(chat, truncation=False).input_ids
