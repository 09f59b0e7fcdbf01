"""InfiniteBench: scores and constants equal those of the authors' own code and tables."""

import gzip
import json
from collections import defaultdict

import pytest

from tasks.registry import benchmark_definition, expand, find_task, task_names
from tasks.schema import Example
from tasks.scoring import benchmark_score, score_file

pytestmark = pytest.mark.shared

FILES = {"infinitebench_official": 15452, "infinitebench_edge": 99, "infinitebench_ahn": 2160}


@pytest.fixture(scope="module")
def records(shared):
    """All records by file and by what the authors would keep in one prediction file."""
    found = defaultdict(list)
    for name, size in FILES.items():
        with gzip.open(shared / "conformance" / f"{name}.jsonl.gz") as lines:
            rows = [json.loads(line) for line in lines]
        assert len(rows) == size
        for row in rows:
            found[name, row["protocol"], row["task"], row["model"]].append(row)
    return found


@pytest.fixture(scope="module")
def scores(records, tmp_path_factory):
    """The scores that `score_file` gives to the records, written as the authors' files."""
    path = tmp_path_factory.mktemp("conformance") / "predictions.jsonl"
    found = {}
    for key, rows in records.items():
        _, protocol, task, model = key
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(json.dumps(line(row), ensure_ascii=False) + "\n")
        if model == "gpt4" and protocol == "official":
            protocol = "official-gpt4"
        found[key] = score_file(path, "infinitebench", task, protocol, workers=1)
    return found


def line(row):
    if row["protocol"] == "ahn":  # AHN's runs of InfiniteBench have LongBench's form
        return {"pred": row["prediction"], "answers": row["answers"], "all_classes": None}
    return {"id": row["id"], "prediction": row["prediction"], "ground_truth": row["label"]}


def test_every_score_equals_the_authors(records, scores):
    different = [
        (row["id"], row["expected_score"], score)
        for key, rows in records.items()
        for row, score in zip(rows, scores[key], strict=True)
        if row["expected_score"] is not None and score != row["expected_score"]
    ]
    assert different == []


def test_where_the_authors_code_raises_the_score_is_0(records, scores):
    raising = [
        score
        for key, rows in records.items()
        for row, score in zip(rows, scores[key], strict=True)
        if row["expected_score"] is None
    ]
    assert raising == [0.0]


def test_a_line_that_names_gpt4_is_scored_by_its_rule_under_official_too(records, tmp_path):
    rows = records["infinitebench_edge", "official", "math_calc", "gpt4"]
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(line(row) | {"model": "gpt4"}) + "\n" for row in rows))
    found = score_file(path, "infinitebench", "math_calc", "official")
    assert found == [row["expected_score"] for row in rows] and len(found) == 5


def test_the_records_cover_every_task(records):
    assert {task for _, protocol, task, _ in records if protocol == "official"} == set(
        task_names("infinitebench")
    )


def test_cleaned_predictions_of_the_ahn_evaluation_equal_theirs(records):
    cleaned = [
        row for rows in records.values() for row in rows if "scored_text" in row["expected_extra"]
    ]
    assert len(cleaned) > 500
    for row in cleaned:
        task = find_task("infinitebench", row["task"])
        assert task.postprocess(row["prediction"], "ahn") == row["expected_extra"]["scored_text"]


def test_means_equal_the_authors(shared, records, scores):
    entries = [
        entry
        for entry in json.loads((shared / "conformance" / "aggregates.json").read_text())
        if entry["benchmark"] == "infinitebench"
    ]
    checked = 0
    for entry in entries:
        key = (f"infinitebench_{entry['protocol']}", entry["protocol"], entry["task"])
        found = scores.get((*key, entry["model"]), [])
        assert entry["scope"] == "full_file" or len(found) == entry["n"]
        if found and len(found) == entry["n"]:  # not those of files that are here in part only
            assert benchmark_score(found) == entry["expected"], entry
            whole = 100 if entry["protocol"] == "ahn" else 1
            mean = whole * sum(found) / len(found)
            assert mean == pytest.approx(entry["expected_unrounded"], abs=1e-12)
            checked += 1
    assert checked == 47 + 40 + 8


def test_the_constants_equal_the_protocol_table(shared):
    table = json.loads((shared / "protocol" / "infinitebench.json").read_text(encoding="utf-8"))
    assert sorted(entry["task"] for entry in table["tasks"]) == task_names("infinitebench")
    for entry in table["tasks"]:
        task = find_task("infinitebench", entry["task"])
        assert (task.language, task.category) == (entry["language"], entry["category"])
        assert task.protocol("official").max_new_tokens == entry["max_new_tokens"]["official"]
        for family, prompt in entry["prompt"]["official"].items():
            name = "official" if family == "yarn-mistral" else f"official-{family}"
            if prompt["formats_with_create_prompt"] != "ok":
                assert prompt["formats_with_create_prompt"] in task.unavailable[name]
            elif (task.name, family) == ("math_calc", "gpt4"):
                assert task.protocol(name).template == "{context}"  # what the run really sent
            else:
                assert task.protocol(name).template == prompt["template"]
        if entry["prompt"]["ahn"]:
            ahn = task.protocol("ahn")
            assert ahn.template == entry["prompt"]["ahn"]
            assert ahn.max_new_tokens == entry["max_new_tokens"]["ahn"]
            assert ahn.chat_template is entry["chat_template"]["ahn"] is True
    paper = {entry["task"] for entry in table["tasks"] if entry["in_ahn_paper_subset"]}
    assert {task.name for task in expand("infinitebench", ["infinitebench_paper"], None)} == paper

    protocols = benchmark_definition("infinitebench").protocols
    lengths = table["protocols"]["official"]["max_input_tokens"]
    assert protocols["official"].default_max_length == lengths["yarn-mistral"]
    assert protocols["official-gpt4"].default_max_length == lengths["gpt4"]
    assert protocols["ahn"].default_max_length == table["protocols"]["ahn"]["max_length_default"]
    assert protocols["official"].chat_template is table["protocols"]["official"]["chat_template"]
    assert protocols["ahn"].seed == table["protocols"]["ahn"]["seed"]
    messages = table["system_messages"]
    assert protocols["official-gpt4"].system_message == messages["default_gpt4"]
    calc = find_task("infinitebench", "math_calc").protocol("official-gpt4")
    assert calc.system_message == messages["math_calc_gpt4"]
    assert set(benchmark_definition("infinitebench").synthetic) == {
        entry["task"] for entry in table["tasks"] if "synthetic" in entry["category"]
    }


@pytest.fixture(scope="module")
def tokenizer(shared):
    from transformers import AutoTokenizer

    folder = shared / "data" / "qwen2.5-tokenizer"
    found = AutoTokenizer.from_pretrained(folder)
    template = folder / "chat_templates" / "Qwen-Qwen2.5-7B-Instruct.jinja"
    found.chat_template = template.read_text(encoding="utf-8")
    return found


def test_gpt4_keeps_the_odd_token_at_the_end_and_open_models_drop_it(tokenizer):
    from evaluation.plan.prompts import truncate

    task = find_task("infinitebench", "math_calc")
    text = "1 + 2 - 3 + 4 - 5 + 6"
    ids = tokenizer(text).input_ids
    for name, max_length, tail in (
        ("official", 10, 5),
        ("official", 11, 5),
        ("official-gpt4", 10, 5),
        ("official-gpt4", 11, 6),
    ):
        cut = truncate(text, task.protocol(name), max_length, tokenizer)
        assert cut.text == tokenizer.decode([*ids[:5], *ids[-tail:]])
        assert cut.tokens_cut == len(ids) - 5 - tail


def test_gpt4s_sum_comes_after_the_systems_text_and_the_demonstration(tokenizer):
    from evaluation.plan.prompts import prepare

    task = find_task("infinitebench", "math_calc")
    example = Example("0", {"context": "8 - 3", "input": ""}, [], "", "here", label=[5])
    text = tokenizer.decode(prepare(task, example, "official-gpt4", tokenizer, 1000).ids)
    system, *turns = text.removeprefix("<|im_start|>").split("<|im_end|>\n<|im_start|>")
    assert system == f"system\n{task.protocol('official-gpt4').system_message}"
    assert turns == [
        "user\n1 + 2 - 4 - 10",
        "system\n[1, 3, -1, -11]",
        "user\n8 - 3",
        "assistant\n",
    ]
    bare = tokenizer.decode(prepare(task, example, "official", tokenizer, 1000).ids)
    assert bare == task.render(example, "official")  # the open models' family has no template
