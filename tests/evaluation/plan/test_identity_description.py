"""`run.json` at the start of a run: every field says what is true of the run."""

from __future__ import annotations

import copy
import dataclasses
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from evaluation.plan import environment, identity
from evaluation.plan.configuration import RunConfiguration
from evaluation.plan.identity import differences, digest_of, identity_parts, prompt_sha256, run_info
from evaluation.plan.plan import make_plan
from evaluation.plan.planned import Plan
from reports.records import RunInfo
from tests.evaluation.conftest import SINKS, WINDOW


@pytest.fixture(scope="module")
def plan(tiny: Path, data: Path) -> Plan:
    return make_plan(
        RunConfiguration(
            model=str(tiny), data=str(data), tasks=["samsum", "hotpotqa"],
            variants=["full", "window"], window=WINDOW, sinks=SINKS, dtype="float32", device="cpu",
            max_length=300, seed=7,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def info(plan: Plan) -> RunInfo:
    return run_info(plan)


def test_it_tells_when_where_and_how_the_run_was_started(plan: Plan, info: RunInfo) -> None:
    age = datetime.now(UTC) - datetime.fromisoformat(info.created)
    assert timedelta(0) <= age < timedelta(hours=1)
    (start,) = info.starts
    assert info.created == info.updated == start.time
    assert info.command == start.command == sys.argv
    assert info.configuration == start.configuration == plan.configuration.model_dump(mode="json")
    assert info.git == start.git == environment.git_state()
    assert info.packages == start.packages == environment.package_versions()
    assert info.packages["torch"]
    assert info.hardware == start.hardware == environment.hardware("cpu")
    assert start.environment == environment.environment_variables()
    assert info.status == "running"


def test_it_holds_the_state_of_the_repository(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"commit": "0123abc", "dirty": True}
    monkeypatch.setattr(identity, "git_state", lambda: state)
    found = run_info(plan)
    assert found.git == found.starts[0].git == state


def test_its_identity_is_the_digest_of_its_parts(plan: Plan, info: RunInfo) -> None:
    assert info.identity_parts == identity_parts(plan)
    assert info.identity == digest_of(info.identity_parts)


def test_it_describes_each_task_with_the_constants_that_were_used(info: RunInfo) -> None:
    # LongBench's config/dataset2maxlen.json, eval.py's dataset2metric, pred.py's list of tasks
    # that take no chat template.
    parts = info.identity_parts["tasks"]
    source = info.tasks["samsum"].pop("source")
    assert source.startswith("THUDM/LongBench ") and "eval.py" in source
    assert info.tasks["samsum"] == {
        "protocol": "official",
        "template_sha256": parts["samsum"]["template_sha256"],
        "max_new_tokens": 128,
        "max_length": 300,
        "truncation": "middle",
        "chat_template": False,
        "metric": "rouge_l",
        "examples": 2,
        "system_message": None,
        "benchmark": "longbench",
        "dataset": "samsum",
        "level": None,
        "language": "en",
        "category": "few-shot learning",
    }
    info.tasks["samsum"]["source"] = source
    other = info.tasks["hotpotqa"]
    assert (other["max_new_tokens"], other["metric"], other["examples"]) == (32, "qa_f1", 8)
    assert other["chat_template"] is True


def test_generation_settings_are_given_once_where_all_tasks_share_them(
    plan: Plan, info: RunInfo
) -> None:
    assert list(info.generation) == ["full", "window"]
    for settings in info.generation.values():
        common = {key: value for key, value in settings.items() if key != "per_task"}
        assert common["repetition_penalty"] == 1.3  # of the checkpoint
        assert set(settings["per_task"]) == {"samsum", "hotpotqa"}
        for planned in plan.tasks:
            own = settings["per_task"][planned.task.name]
            assert not own.keys() & common.keys()
            whole = identity_parts(plan)["tasks"][planned.task.name]["decoding"]
            assert common | own == whole
        assert settings["per_task"]["samsum"]["max_new_tokens"] == 128


def test_models_are_described_by_variant(plan: Plan, info: RunInfo) -> None:
    assert info.models == {name: spec.describe() for name, spec in plan.models.items()}
    assert info.models["window"]["window"] == WINDOW and info.models["full"]["window"] is None


def test_a_file_that_two_tasks_read_is_listed_once(plan: Plan) -> None:
    first, second = plan.tasks
    both = dataclasses.replace(second, files=[*first.files, *second.files])
    found = run_info(dataclasses.replace(plan, tasks=[first, both])).data_files
    assert found == [*first.files, *second.files]


def test_differences_name_each_place_and_say_how_many_more() -> None:
    mine = {"a": 1, "only": 2, "deep": {"x": [1, 2], "same": 0}}
    theirs = {"a": 3, "gone": 2, "deep": {"x": [1, 3], "same": 0}}
    assert sorted(differences(mine, theirs)) == [
        "a 3 there, 1 here",
        "deep.x [1, 3] there, [1, 2] here",
        "gone only in the folder",
        "only only in this run",
    ]
    many = {f"k{n}": n for n in range(9)}
    assert differences(many, {}, most=9) == [f"k{n} only in this run" for n in range(9)]
    assert differences(many, {}, most=6)[6:] == ["and 3 more"]
    assert differences(many, {})[6:] == ["and 3 more"]


def test_an_answer_that_is_no_json_still_has_a_digest(plan: Plan) -> None:
    planned = plan.tasks[0]
    odd = copy.copy(planned.examples[0])
    object.__setattr__(odd, "label", {1, 2})
    changed = dataclasses.replace(planned, examples=[odd, *planned.examples[1:]])
    assert prompt_sha256(changed, 0) != prompt_sha256(planned, 0)
