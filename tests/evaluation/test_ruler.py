"""`run_eval ruler`: rows for the run's tokenizer, the answer prefix, identity, files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ahn
from evaluation.plan.configuration import RunConfiguration
from evaluation.plan.identity import parts_without_weights
from evaluation.plan.making import tokenizer_sha256
from evaluation.plan.plan import make_plan
from evaluation.plan.planned import Plan
from evaluation.plan.prompts import apply_chat_template, prepare
from tasks.registry import find_task
from tasks.ruler import generators
from tasks.ruler import rows as ruler
from tests.evaluation.conftest import byte_tokenizer, records_of
from tests.tasks.ruler import texts

LENGTH = 1200
FLAGS = ("--dtype", "float32", "--device", "cpu", "--no-report")


def wanted(tiny: Path, task: str = "fwe", **other: Any) -> RunConfiguration:
    given: dict[str, Any] = {"lengths": [str(LENGTH)], "limit": 2, "variants": ["full"]}
    return RunConfiguration(
        benchmark="ruler", model=str(tiny), tasks=[task], dtype="float32", device="cpu",
        **(given | other),
    )  # fmt: skip


def planned(tiny: Path, task: str = "fwe", **other: Any) -> Plan:
    return make_plan(wanted(tiny, task, **other))


@pytest.fixture
def essay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(generators, "_sentences", texts.sentences)
    (tmp_path / "essay.txt").write_text(texts.essay())
    return tmp_path / "essay.txt"


# -- prompts ---------------------------------------------------------------------------------------


def test_the_answer_prefix_stands_behind_the_chat_templates_opening(tiny: Path) -> None:
    plan = planned(tiny)
    (task,) = plan.tasks
    tokenizer = plan.tokenizer
    for example, prompt in zip(task.examples, task.prompts, strict=True):
        row = example.row
        text = tokenizer.decode(prompt.ids)
        assert text == f"<|user|>{row['input']}<|end|><|assistant|>{row['answer_prefix']}"
        assert prompt.chat_template and prompt.tail == text[-400:]
        assert row["answer_prefix"].startswith(" Answer: According to the coded text above")


def test_a_length_holds_chat_template_prompt_and_answer(tiny: Path) -> None:
    plan = planned(tiny, "niah_single_1,fwe", lengths=["1100", "1k"])
    assert [task.task.name for task in plan.tasks] == [
        "niah_single_1_1100", "fwe_1100", "niah_single_1_1024", "fwe_1024",
    ]  # fmt: skip
    reserved = len(
        plan.tokenizer.tokenize(apply_chat_template("{task_template}", plan.tokenizer, "qwen2"))
    )
    for task in plan.tasks:
        assert task.task.length is not None
        made = ruler.rows(
            task.task.dataset,
            task.task.length,
            lambda text: len(plan.tokenizer.tokenize(text)),
            2,
            42,
            None,
            reserved,
        )
        assert [example.row for example in task.examples] == list(made)
        for prompt in task.prompts:
            tokens = prompt.tokens + task.rules.max_new_tokens
            assert 0.7 * task.task.length < tokens <= task.task.length


def test_without_a_chat_template_rows_are_those_of_the_rows_command(
    tiny: Path, tmp_path: Path, run_eval: Callable[..., Any]
) -> None:
    bare = byte_tokenizer(tmp_path / "bare", chat_template=None)
    plan = planned(tiny, "niah_multikey_2", tokenizer=str(bare), seed=7)
    result = run_eval(
        "rows", "ruler", "--tasks", "niah_multikey_2", "--length", LENGTH, "--seed", 7,
        "--limit", 2, "--tokenizer", bare, "-o", tmp_path / "rows",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "rows" / "niah_multikey_2.jsonl").read_text().splitlines()
    (task,) = plan.tasks
    assert [json.loads(line) for line in lines] == [example.row for example in task.examples]
    row, ids = task.examples[0].row, task.prompts[0].ids
    assert plan.tokenizer.decode(ids) == row["input"] + row["answer_prefix"]
    given = planned(tiny, "niah_multikey_2", data=str(tmp_path / "rows"), tokenizer=str(bare),
                    lengths=[])  # fmt: skip
    assert [list(p.ids) for p in given.tasks[0].prompts] == [list(p.ids) for p in task.prompts]
    assert given.tasks[0].task.name == "niah_multikey_2" and given.tasks[0].made_of is None


def test_the_rows_command_leaves_a_runs_room_to_a_chat_template(
    tiny: Path, tmp_path: Path, run_eval: Callable[..., Any]
) -> None:
    plan = planned(tiny, "fwe")
    made_of = plan.tasks[0].made_of
    assert made_of is not None
    result = run_eval(
        "rows", "ruler", "--tasks", "fwe", "--length", LENGTH, "--limit", 2, "--tokenizer", tiny,
        "--template-tokens", made_of["chat_template_tokens"], "-o", tmp_path,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "fwe.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [e.row for e in plan.tasks[0].examples]


def test_the_document_ends_before_the_question(tiny: Path) -> None:
    plan = planned(tiny, "niah_single_1")
    task = plan.tasks[0]
    prompt = prepare(task.task, task.examples[0], "official", plan.tokenizer, LENGTH, "qwen2", True)
    assert list(prompt.ids) == list(task.prompts[0].ids)
    behind = plan.tokenizer.decode(prompt.ids[prompt.document_tokens :])
    assert behind.startswith("\nWhat is the special magic number for ")
    assert behind.endswith("mentioned in the provided text is")


# -- what decides the rows -------------------------------------------------------------------------


def test_what_made_the_rows_is_in_the_identity(tiny: Path, tmp_path: Path, essay: Path) -> None:
    own: dict[str, Any] = {"essay": str(essay), "allow_overlong": True}
    plan = planned(tiny, "niah_single_2", lengths=["4500"], **own)
    parts = parts_without_weights(plan)["tasks"]["niah_single_2_4500"]
    made_of = plan.tasks[0].made_of
    assert made_of is not None and parts["made_of"] == made_of
    assert parts["answer_prefix"] == "{answer_prefix}"
    assert made_of["tokenizer_sha256"] == tokenizer_sha256(plan.tokenizer)
    assert made_of["seed"] == 42 and made_of["length"] == 4500

    other = tmp_path / "other.txt"
    other.write_text(texts.essay() + " More.")
    changed = (
        planned(tiny, "niah_single_2", lengths=["4500"], **(own | {"essay": str(other)}))
        .tasks[0]
        .made_of
    )
    assert changed is not None and changed["files"] != made_of["files"]
    assert {**changed, "files": made_of["files"]} == made_of
    reseeded = planned(tiny, "niah_single_2", lengths=["4500"], seed=1, **own).tasks[0].made_of
    assert reseeded == {**made_of, "seed": 1}


def test_tokenizers_with_other_vocabularies_are_others(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    first, same = (AutoTokenizer.from_pretrained(tiny) for _ in range(2))
    assert tokenizer_sha256(first) == tokenizer_sha256(same)
    same.add_tokens(["magic"])
    assert tokenizer_sha256(first) != tokenizer_sha256(same)


# -- runs ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(
    tiny: Path, run_eval: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of two tasks at two lengths."""
    folder = tmp_path_factory.mktemp("runs") / "ruler"
    result = run_eval(
        "ruler", "--model", tiny, "--tasks", "niah_multikey_3,fwe", "--lengths", "1300,1400",
        "--limit", 1, "-o", folder, *FLAGS[:-1],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return folder


def test_records_say_length_and_rows(finished: Path, run_eval: Callable[..., Any]) -> None:
    records = records_of(finished)
    assert [record["task"] for record in records] == [
        "fwe_1300", "fwe_1400", "niah_multikey_3_1300", "niah_multikey_3_1400",
    ]  # fmt: skip
    for record in records:
        length = int(record["task"].rpartition("_")[2])
        assert record["attributes"]["length"] == length >= record["length"]
        assert record["metric"] == "string_match_all" and record["chat_template"]
    info = json.loads((finished / "run.json").read_text())
    assert info["tasks"]["fwe_1300"]["dataset"] == "fwe"
    assert all("tokenizer_sha256=" in file["path"] for file in info["data_files"])
    assert run_eval("check", finished).exit_code == 0
    page = (finished / "report.html").read_text()
    assert "RULER: tasks by lengths" in page and "mean of all 13" in page


def test_what_is_exported_is_in_the_authors_format_and_scores_the_same(
    finished: Path, run_eval: Callable[..., Any], tmp_path: Path
) -> None:
    result = run_eval("export", finished, "--format", "ruler", "-o", tmp_path)
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("1300/pred/*/fwe.jsonl")
    (line,) = map(json.loads, path.read_text().splitlines())
    assert list(line) == ["index", "pred", "input", "outputs", "others", "truncation", "length"]
    (record,) = (r for r in records_of(finished) if r["task"] == "fwe_1300")
    assert line["index"] == 0 and line["outputs"] == record["answers"]
    assert line["input"].endswith("words are:") and line["pred"] == record["prediction"]
    result = run_eval("score", path, "--benchmark", "ruler", "--task", "fwe")
    assert result.output == f"fwe (official, 1 predictions): {100 * record['score']}\n"


@pytest.mark.slow
def test_a_run_is_continued_with_more_of_the_same_rows_only(
    finished: Path, tiny: Path, run_eval: Callable[..., Any]
) -> None:
    again = ["ruler", "--model", tiny, "--tasks", "niah_multikey_3,fwe", "-o", finished, *FLAGS]
    result = run_eval(*again, "--lengths", "1300,1400", "--limit", 1, "--seed", 7)
    assert result.exit_code == 2 and "seed" in result.stderr
    result = run_eval(*again, "--lengths", "1300,1350", "--limit", 1)
    assert result.exit_code == 2 and "fwe_1350" in result.stderr
    result = run_eval(*again, "--lengths", "1300,1400", "--limit", 2)
    assert result.exit_code == 0 and "continuing: 4 of 8" in result.stderr, result.output
    assert len(records_of(finished)) == 8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "fwe,vt"], "--lengths: needed for fwe, vt"),
        (["--tasks", "fwe", "--lengths", "4k,x"], "should be a number of tokens"),
        (["--tasks", "niah_single_3", "--lengths", "4k"], "--essay: needed by niah_single_3"),
        (["--lengths", "4k"], "--essay: needed by niah_multikey_1, niah_multiquery, niah_multi"),
        (["--tasks", "qa_2", "--lengths", "4k"], "give it with --hotpotqa"),
        (["--tasks", "fwe", "--lengths", "1k", "--squad", "FOLDER/fwe.jsonl"],
         "--squad: none of these tasks"),
        (["--tasks", "fwe", "--lengths", "200"], "fwe: a length of 200 tokens, of which 18"),
        (["--tasks", "fwe", "--lengths", "1k", "--protocol", "ahn"], "unknown protocol 'ahn'"),
        (["--tasks", "fwe", "--lengths", "1k", "--tokenizer", str(ahn.POCKET_PATH)],
         "--tokenizer: cannot write RULER's texts"),
        (["--tasks", "fwe", "--lengths", "9k", "--limit", "1"], "longer than the model's"),
        (["--tasks", "fwe", "--data", "FOLDER", "--words", "x"], "--words: rows of --data are not"),
        (["--tasks", "fwe", "--data", "FOLDER", "--lengths", "1k"], "has no folder 1024"),
        (["--tasks", "niah_single_2", "--lengths", "4k", "--essay", "/nowhere"], "/nowhere"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_one_message(
    tiny: Path, run_eval: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(generators, "_sentences", texts.sentences)
    (tmp_path / "fwe.jsonl").write_text('{"input": "a", "outputs": ["b"]}\n')
    given = [word.replace("FOLDER", str(tmp_path)) for word in arguments]
    result = run_eval("ruler", "--model", tiny, "-o", tmp_path / "run", *given, *FLAGS)
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert not (tmp_path / "run").exists()


def test_rulers_files_are_for_ruler_alone(
    tiny: Path, data: Path, run_eval: Callable[..., Any]
) -> None:
    flags = ["--model", tiny, "--data", data, "--tasks", "samsum", "--dry-run"]
    result = run_eval("longbench", *flags, "--essay", "x")
    assert result.exit_code == 2
    assert result.stderr == "error: --essay: only rows of ruler are made of it\n"


def test_tasks_are_listed_with_what_they_are_made_of(run_eval: Callable[..., Any]) -> None:
    (listed,) = json.loads(run_eval("tasks", "ruler", "--json").output)
    places = {task["name"]: task["rows"] for task in listed["tasks"]}
    assert places["vt"]["from"] == "made for the run's tokenizer" and places["vt"]["here"]
    assert "--essay" in places["niah_multivalue"]["from"]
    assert "rajpurkar/squad_v2 on the hub" in places["qa_1"]["from"]
    assert listed["any_length"] and not places["qa_1"]["here"]
    text = run_eval("tasks", "ruler").output
    assert "lengths of each: any" in text and "ruler_no_download" in text


def test_the_prompts_constants_are_the_authors() -> None:
    rules = find_task("ruler", "qa_2_4096").protocols["official"]
    assert (rules.template, rules.answer_prefix) == ("{context}{question}", "{answer_prefix}")
    assert rules.max_new_tokens == 32 and rules.chat_template and rules.stop == ()
