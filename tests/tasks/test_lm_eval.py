"""The task files in lm-evaluation-harness itself: found, valid, asked and scored as by us."""

import dataclasses
import functools
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

import tasks
from common.errors import InputError
from tasks import lm_eval as ours
from tasks.registry import (
    benchmark_names,
    benchmark_tasks,
    expand,
    find_task,
    group_names,
    task_names,
)
from tasks.schema import scored_example
from tasks.sources import load_examples

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness (pip install .[lm-eval])")

FOLDER = Path(tasks.__file__).parent
ALL_TASKS = [task for benchmark in benchmark_names() for task in benchmark_tasks(benchmark)]


@pytest.fixture(scope="module")
def manager():
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(FOLDER), include_defaults=False)


@pytest.fixture(scope="module")
def their_names():
    """What lm-evaluation-harness calls its own tasks, groups and tags.

    Read from the lines of its thousands of files: building its index takes most of a minute.
    """
    import lm_eval.tasks

    line = re.compile(
        rb"""^ *(?:- )?(?:task|group|tag): *["']?([^"'\s#]+)|^ +- *([\w.-]+) *$""", re.M
    )
    names = set()
    for path in Path(lm_eval.tasks.__file__).parent.glob("**/*.yaml"):
        names |= {(first or second).decode() for first, second in line.findall(path.read_bytes())}
    assert {"longbench", "longbench_e", "infinitebench", "longbench_hotpotqa", "mmlu"} <= names
    return names


def test_every_task_and_group_has_one_name_there_and_none_of_theirs(manager, their_names):
    names = {task.lm_eval_name for task in ALL_TASKS}
    assert len(names) == len(ALL_TASKS)
    assert names <= set(manager.all_subtasks)
    assert not set(manager.all_tasks) & their_names
    # Every group that can be asked for is a file, but those that the levels imply.
    groups = {group.removeprefix("ahnbench_") for group in manager.all_groups}
    for benchmark in benchmark_names():
        datasets = {find_task(benchmark, name).dataset for name in task_names(benchmark)}
        assert set(group_names(benchmark)) - datasets <= groups


def test_groups_hold_the_same_tasks_there(manager):
    by_name = {task.lm_eval_name: task for task in ALL_TASKS}

    def leaves(group):
        for member in manager.task_index[group].cfg["task"]:
            yield from [by_name[member]] if member in by_name else leaves(member)

    for benchmark in benchmark_names():
        for group in set(group_names(benchmark)):
            theirs = group if group in manager.all_groups else f"ahnbench_{group}"
            if theirs in manager.all_groups:
                members = list(leaves(theirs))
                assert len(members) == len({task.name for task in members})
                assert {t.name for t in members} == {
                    t.name for t in expand(benchmark, [group], None)
                }


def test_lm_eval_validate_accepts_every_name(manager, capsys, monkeypatch):
    import argparse

    import lm_eval.tasks
    from lm_eval._cli.validate import Validate

    # The command as it is, but that it does not index lm_eval's own tasks for forty seconds.
    without = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", without)

    validate = Validate(argparse.ArgumentParser().add_subparsers())
    names = ",".join(manager.all_subtasks + manager.all_groups)
    validate._execute(argparse.Namespace(tasks=names, include_path=str(FOLDER)))
    assert "All tasks found and valid" in capsys.readouterr().out


@pytest.mark.slow
def test_every_file_is_a_configuration_that_lm_eval_can_build(manager, monkeypatch, caplog):
    """As `TaskManager` builds it, on one made-up document in place of the rows."""
    from datasets import Dataset
    from lm_eval.tasks._yaml_loader import load_yaml

    from tasks.lm_eval_task import BenchmarkTask

    asked = []

    def rows(benchmark, name, level=None, **_):
        asked.append((benchmark, name, level))
        document = {
            "benchmark": benchmark,
            "name": name if level is None else f"{name}_{level}",
            "protocol": "official",
            "example": json.dumps(dataclasses.asdict(scored_example(["c"]))),
        }
        return {"test": Dataset.from_list([{"prompt": " a {{b}}\n", "target": "c", **document}])}

    monkeypatch.setattr(ours, "rows", rows)
    with caplog.at_level(logging.WARNING):
        for task in ALL_TASKS:
            path = manager.task_index[task.lm_eval_name].yaml_path
            config = load_yaml(path)
            assert config["class"] is BenchmarkTask
            built = BenchmarkTask(config=config)
            assert asked[-1] == (task.benchmark, task.dataset, task.level)
            assert built.doc_to_text(built.eval_docs[0]) == " a {{b}}\n"  # not a template
            assert built.config.generation_kwargs["until"] == []
            assert built.config.num_fewshot == 0
            official = task.protocol("official").max_new_tokens
            assert built.config.generation_kwargs["max_gen_toks"] == official
    told = {record.getMessage().split(": ", 1)[-1].split(". ")[0] for record in caplog.records}
    assert told == {"the protocol 'official' is followed as a whole by --model ahn only"}


ROWS: list[dict[str, Any]] = [
    {"input": "Who?", "context": "Passage.\u2028", "answers": ["Ann", "Bo"], "_id": "a"},
    {"input": "Where?", "context": "Passage {x}.", "answers": ["Rome"], "_id": "b", "length": 3},
]


@pytest.fixture
def folder(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    for name in ("hotpotqa", "hotpotqa_e"):
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("benchmark", ["longbench", "longbench_e"])
def test_a_task_is_asked_and_scored_there_as_here(folder, benchmark):
    from lm_eval.tasks import TaskManager

    metadata = {"data": str(folder), "protocol": "ahn", "pretrained": "some/model", "window": 8064}
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)
    name = f"ahnbench_{benchmark}_hotpotqa"
    built = manager.load([name])["tasks"][name]
    task = find_task(benchmark, "hotpotqa")
    for doc, row in zip(built.eval_docs, ROWS, strict=True):
        document = ours.document_of(doc)
        assert document is not None and document.protocol == "ahn" and document.task is task
        assert document.example.row == row and document.example.label == row["answers"]
        assert built.doc_to_text(doc) == task.render(document.example, "ahn")
        assert built.doc_to_target(doc) == row["answers"][0]
        for answer in ("Bo", " Rome\n\nQuestion: and?", ""):
            expected = task.score(answer, document.example, "ahn")
            assert built.process_results(doc, [answer]) == {"score": expected}
    # LongBench-E's scorer of AHN makes none of the cuts of LongBench's.
    expected = {"longbench": 1.0, "longbench_e": 0.5}[benchmark]
    assert built.process_results(built.eval_docs[1], ["Rome\n\nQuestion: x"])["score"] == expected


def test_every_pocket_task_has_a_file_there(manager):
    names = [f"ahnbench_{name.replace('@', '_')}" for name in task_names("pocket")]
    assert manager.task_index["ahnbench_pocket"].cfg["task"] == names
    for name, lm_eval_name in zip(task_names("pocket"), names, strict=True):
        asked = manager.task_index[lm_eval_name].cfg
        assert asked["dataset_kwargs"] == {"benchmark": "pocket", "name": name}
        rules = find_task("longbench", name).protocol("official")
        assert asked["generation_kwargs"]["max_gen_toks"] == rules.max_new_tokens


def test_pocket_rows_are_made_and_scored_there_as_here():
    from lm_eval.tasks import TaskManager

    metadata = {"limit": 3, "seed": 5}
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)
    built = manager.load(["ahnbench_pocket_qa_4"])["tasks"]["ahnbench_pocket_qa_4"]
    task = find_task("longbench", "pocket_qa@4")
    expected = load_examples(task, None, 3, 5).examples
    assert [built.doc_to_text(doc) for doc in built.eval_docs] == [
        task.render(example, "official") for example in expected
    ]
    for doc, example in zip(built.eval_docs, expected, strict=True):
        document = ours.document_of(doc)
        assert document is not None and document.example == example
        assert built.process_results(doc, [example.answers[0]]) == {"score": 1.0}
        assert built.process_results(doc, ["else"]) == {"score": 0.0}


@pytest.mark.parametrize(("length", "name"), [("512", "pocket_qa@4"), ("1k", "pocket_qa@4_1024")])
def test_pocket_rows_of_a_length_are_run_evals(length, name):
    found = ours.rows("longbench", "pocket_qa@4", length=length, limit=2)["test"]
    expected = load_examples(find_task("pocket", name), None, 2, 0).examples
    assert [doc["name"] for doc in found] == [name] * 2
    made = [ours.document_of(doc) for doc in found]
    assert [document.example for document in made if document] == expected


def test_synthetic_rows_of_any_length_are_made_there_too():
    asked = {"benchmark": "infinitebench", "name": "passkey", "data": "synthetic", "length": "2k"}
    found = ours.rows(**asked, limit=2, protocol="official-gpt4", seed=3)["test"]
    task = find_task("infinitebench", "passkey")
    expected = load_examples(task, "synthetic", 2, 3, "2k").examples
    for doc, example in zip(found, expected, strict=True):
        document = ours.document_of(doc)
        assert document is not None and document.example == example
        assert doc["prompt"] == task.render(example, "official-gpt4")
        assert ours.score(doc, [f"It is {example.label[0]}."]) == {"score": 1.0}


def test_what_cannot_be_asked_is_an_input_error(folder):
    with pytest.raises(InputError, match="unknown protocol 'ours'"):
        ours.rows(benchmark="longbench", name="hotpotqa", data=str(folder), protocol="ours")
    with pytest.raises(InputError, match="no rows in"):
        ours.rows(benchmark="longbench", name="trec", data=str(folder))
    assert (
        len(ours.rows(benchmark="longbench", name="hotpotqa", data=str(folder), limit=1)["test"])
        == 1
    )


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"protocl": "ahn"}, "unknown key 'protocl'; did you mean 'protocol'"),
        ({"protocols": "ahn"}, "unknown key 'protocols'; did you mean 'protocol'"),
        ({"lengths": "2k"}, "unknown key 'lengths'; did you mean 'length'"),
        ({"limit": True}, "--metadata: limit must be a number of rows, not True"),
        ({"limit": "2"}, "--metadata: limit must be a number of rows, not '2'"),
        ({"limit": 10**9}, "--metadata: limit must be at most 100,000"),
        ({"seed": True}, "--metadata: seed should be a number"),
        ({"seed": -1}, "--metadata: seed should be a number"),
        ({"seed": 1.5}, "--metadata: seed should be a number"),
        ({"data": 3}, "--metadata: data should be text, not 3"),
        ({"protocol": None}, "--metadata: protocol should be text, not None"),
        ({"length": True}, "a length of True tokens can be asked of synthetic rows only"),
        ({"name": "trec"}, "--metadata: name is said by the task, not chosen"),
    ],
)
def test_a_choice_that_cannot_be_meant_is_refused(folder, choice, told):
    from lm_eval.tasks import TaskManager

    metadata = {"data": str(folder), **choice}
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)
    with pytest.raises(InputError, match=told):
        manager.load(["ahnbench_longbench_hotpotqa"])


def test_arguments_of_a_model_are_no_choices(folder):
    given: dict[str, Any] = {"pretrained": "x", "max_length": 10, "window": 3, "dtype": "auto"}
    found = ours.rows(benchmark="longbench", name="hotpotqa", data=str(folder), **given)
    assert len(found["test"]) == len(ROWS)


def test_new_tokens_are_those_of_the_protocol(folder):
    from lm_eval.tasks import TaskManager

    (folder / "gov_report.jsonl").write_text(json.dumps({**ROWS[0], "dataset": "gov_report"}))
    for protocol, tokens in (("official", 512), ("ahn", 500)):
        metadata = {"data": str(folder), "protocol": protocol}
        manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata=metadata)
        (task,) = manager.load(["ahnbench_longbench_gov_report"])["tasks"].values()
        assert task.config.generation_kwargs["max_gen_toks"] == tokens


PARTS = {
    ("longbench", "hotpotqa", "official"): ["loses its middle", "chat template is used"],
    ("longbench", "trec", "ahn"): ["of a prompt of more than 32,000 tokens the last are kept",
                                   "chat template is left out"],
    ("longbench", "samsum", "official"): ["an answer ends at a newline"],
    ("infinitebench", "passkey", "official"): ["special tokens are taken out", "131,072 tokens"],
    ("infinitebench", "passkey", "official-gpt4"): ["a system message goes first"],
    ("longbench", "pocket_qa@1", "official"): ["a prompt is never cut"],
}  # fmt: skip


@pytest.mark.parametrize(("key", "parts"), PARTS.items(), ids=["-".join(key) for key in PARTS])
def test_what_the_harness_cannot_carry_out_is_named(key, parts):
    from tasks.lm_eval_task import not_carried_out

    benchmark, name, protocol = key
    told = not_carried_out(find_task(benchmark, name).protocol(protocol))
    assert all(any(part in line for line in told) for part in parts), told
    assert len(told) == len(set(told)) >= 2


def test_a_document_of_another_task_is_told_apart():
    assert ours.document_of({"question": "?", "answer": "!"}) is None
    mine = {"benchmark": "longbench", "name": "trec", "protocol": "official", "example": "{}"}
    assert ours.document_of(mine) is None
    with pytest.raises(ValueError, match="not a document of these tasks: question"):
        ours.score({"question": "?"}, ["!"])
