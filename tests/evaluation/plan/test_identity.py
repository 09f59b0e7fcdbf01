"""The identity of a run: every part of it counts, and nothing that may differ between starts."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ahn.checkpoints.locate import CheckpointFiles
from ahn.config import AHNConfig
from evaluation.backends.streaming import StreamingBackend
from evaluation.plan import identity
from evaluation.plan.configuration import RunConfiguration
from evaluation.plan.identity import digest_of, identity_parts, parts_as_of, parts_without_weights
from evaluation.plan.plan import make_plan
from evaluation.plan.planned import Plan, PlannedTask
from tasks.schema import TextCut
from tests.evaluation.conftest import SINKS, WINDOW


@pytest.fixture(scope="module")
def plan(tiny: Path, data: Path) -> Plan:
    return make_plan(
        RunConfiguration(
            model=str(tiny), data=str(data), tasks=["samsum"], variants=["window"], window=WINDOW,
            sinks=SINKS, dtype="float32", device="cpu", max_length=300,
        )
    )  # fmt: skip


def of_task(**changes: Any) -> Callable[[Plan], Plan]:
    """A plan whose only task differs in fields of `PlannedTask`."""

    def change(plan: Plan) -> Plan:
        return dataclasses.replace(plan, tasks=[dataclasses.replace(plan.tasks[0], **changes)])

    return change


def of_rules(**changes: Any) -> Callable[[Plan], Plan]:
    """A plan whose only task differs in what its protocol says."""

    def change(plan: Plan) -> Plan:
        planned = plan.tasks[0]
        rules = dataclasses.replace(planned.rules, **changes)
        task = dataclasses.replace(planned.task, protocols={planned.protocol: rules})
        return of_task(task=task)(plan)

    return change


def of_model(kind: str = "window", yarn_factor: float | None = None, **changes: Any) -> Any:
    """A plan whose only variant differs: in its kind, its settings, or what is loaded."""

    def change(plan: Plan) -> Plan:
        ((name, model),) = plan.models.items()
        assert isinstance(model, StreamingBackend)
        own = {
            key: value
            for key, value in changes.items()
            if hasattr(AHNConfig, key) or key == "full_attention_layers"
        }
        settings = dataclasses.replace(model.checkpoint.settings, **own)
        rest = {key: value for key, value in changes.items() if key not in own}
        checkpoint = dataclasses.replace(model.checkpoint, settings=settings, **rest)
        changed = StreamingBackend(name, kind, checkpoint, yarn_factor=yarn_factor)
        return dataclasses.replace(plan, models={name: changed})

    return change


def of_configuration(**changes: Any) -> Callable[[Plan], Plan]:
    return lambda plan: dataclasses.replace(
        plan, configuration=plan.configuration.model_copy(update=changes)
    )


def another_first_prompt(plan: Plan) -> Plan:
    first, *others = plan.tasks[0].prompts
    ids = np.append(first.ids, first.ids[:1])
    return of_task(prompts=[dataclasses.replace(first, ids=ids), *others])(plan)


def another_decoding(plan: Plan) -> Plan:
    settings = copy.deepcopy(plan.tasks[0].settings)
    settings.repetition_penalty = 1.4
    return of_task(settings=settings)(plan)


TASK = "tasks.samsum"
MODEL = "variants.window"
CHANGES: dict[str, Callable[[Plan], Plan]] = {
    "benchmark": of_configuration(benchmark="lveval"),
    "protocol": of_configuration(protocol="ahn"),
    "seed": lambda plan: dataclasses.replace(plan, seed=plan.seed + 1),
    "model_config_sha256": lambda plan: dataclasses.replace(
        plan, model_config={**plan.model_config, "rms_norm_eps": 1e-5}
    ),
    f"{MODEL}.window": of_model(window=WINDOW + 1),
    f"{MODEL}.sinks": of_model(sinks=SINKS + 1),
    f"{MODEL}.cell": of_model("ahn", cell="Mamba2"),
    f"{MODEL}.full_attention_layers": of_model(full_attention_layers=(1,)),
    f"{MODEL}.dtype": of_model(dtype="bfloat16"),
    f"{MODEL}.device": of_model(device_map={"": "cuda:1"}),
    f"{MODEL}.yarn_factor": of_model(yarn_factor=2.0),
    f"{TASK}.template_sha256": of_rules(template="{context} {input}"),
    f"{TASK}.first_prompt_sha256": another_first_prompt,
    f"{TASK}.data_sha256": of_task(files=[{"path": "x", "sha256": "0" * 64, "revision": None}]),
    f"{TASK}.truncation": of_rules(truncation="left"),
    f"{TASK}.reserve_generation": of_rules(reserve_generation=True),
    f"{TASK}.max_length": of_task(max_length=301),
    f"{TASK}.chat_template": of_rules(chat_template=True),
    f"{TASK}.system_message": of_rules(system_message="Be brief."),
    f"{TASK}.demonstration": of_rules(demonstration=(("user", "a"), ("assistant", "b"))),
    f"{TASK}.stop": of_rules(stop=("\n",)),
    f"{TASK}.postprocess": of_rules(postprocess=(TextCut(keep_before="."),)),
    f"{TASK}.metric": of_rules(metric="exact_match"),
    f"{TASK}.decoding": another_decoding,
}
ELSEWHERE = {  # parts that need more than a plan to change, and the test that changes them
    f"{MODEL}.weights_sha256": "test_other_weights_under_the_same_name_are_another_run",
    f"{TASK}.metric_sha256": "test_a_metric_with_other_code_is_another_run",
}


def parts_in(parts: dict[str, Any]) -> set[str]:
    """Every part by its path: of the run, of a variant, of a task."""
    found = set()
    for key, value in parts.items():
        if key in ("variants", "tasks"):
            found |= {f"{key}.{name}.{part}" for name, of in value.items() for part in of}
        else:
            found.add(key)
    return found


def test_every_part_is_changed_by_a_test(plan):
    stretched = of_model(yarn_factor=2.0)(plan)
    assert parts_in(identity_parts(stretched)) == set(CHANGES) | set(ELSEWHERE)
    assert all(name in globals() for name in ELSEWHERE.values())


@pytest.mark.parametrize("part", list(CHANGES))
def test_a_change_of_any_part_is_another_run(plan, part):
    before = parts_without_weights(plan)
    after = parts_without_weights(CHANGES[part](plan))
    assert digest_of(before) != digest_of(after)
    known = json.loads(json.dumps(before))
    found = identity.differences(after, known, most=99)
    named = {".".join(text.split(" ")[0].split(".")[:3]) for text in found}
    assert part in named and named <= {part, f"{TASK}.metric_sha256"}  # another metric's code


@pytest.mark.parametrize(
    "change",
    [
        of_configuration(limit=7, output="elsewhere", threads=3, report=False),
        of_model(base=CheckpointFiles("a copy"), device_map={"": "cpu:0"}),
        lambda plan: of_task(
            examples=plan.tasks[0].examples[:1], prompts=plan.tasks[0].prompts[:1]
        )(plan),
    ],
    ids=["configuration", "place", "limit"],
)
def test_what_may_change_between_starts_is_no_part(plan, change):
    assert parts_without_weights(change(plan)) == parts_without_weights(plan)


def test_backend_and_versions_are_no_part(plan, monkeypatch):
    before = identity_parts(plan)
    monkeypatch.setenv("AHN_BACKEND", "recurrent")
    monkeypatch.setattr(identity, "package_versions", lambda: {"torch": "0.1"})
    assert identity_parts(plan) == before


def test_other_weights_under_the_same_name_are_another_run(plan, monkeypatch):
    before = identity_parts(plan)
    monkeypatch.setattr(identity, "file_sha256", lambda path: "0" * 64)
    after = identity_parts(plan)
    assert digest_of(after) != digest_of(before)
    assert before["variants"]["window"]["weights_sha256"] != ["0" * 64]


def test_a_metric_with_other_code_is_another_run(plan, monkeypatch):
    name = plan.tasks[0].rules.metric
    before = identity_parts(plan)
    monkeypatch.setattr("tasks.metric_code.METRICS", {name: lambda prediction, example: 1.0})
    after = identity_parts(plan)
    assert digest_of(after) != digest_of(before)
    assert before["tasks"]["samsum"]["metric"] == after["tasks"]["samsum"]["metric"]


def test_what_only_some_tasks_have_is_a_part_of_theirs_alone(plan):
    made_of = {"length": 4096, "tokenizer_sha256": "0" * 64}
    for change, part in (
        (of_task(made_of=made_of), "made_of"),
        (of_rules(answer_prefix=" Answer:"), "answer_prefix"),
    ):
        before, after = (parts_without_weights(p)["tasks"]["samsum"] for p in (plan, change(plan)))
        assert part not in before and after.keys() - before.keys() == {part}


def test_what_schema_2_did_not_hold_is_not_asked_of_its_folders(plan):
    parts = parts_without_weights(plan)
    earlier = parts_as_of(2, parts)
    lacking = parts_in(parts) - parts_in(earlier)
    assert lacking == {f"{TASK}.postprocess", f"{TASK}.metric_sha256"}
    assert parts_as_of(3, parts) == parts


def test_a_plan_has_no_field_that_the_test_forgets():
    """A new field of a planned task must be considered for the identity."""
    assert {field.name for field in dataclasses.fields(PlannedTask)} == {
        "task", "protocol", "max_length", "examples", "prompts", "files", "settings", "made_of",
    }  # fmt: skip
