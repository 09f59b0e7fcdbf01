"""What makes two runs the same run: only such records may share a folder.

The identity is a SHA-256 over `identity_parts`. In it is all that is meant to change a prediction
or a score: weights, variants, data, template, truncation, decoding settings, dtype, seed, the
metrics with their code, and the first prompt's token ids (so the tokenizer too). Not in it: paths,
and how many examples are asked, so that a run can be continued with a higher limit; versions,
hardware and the form of the memory's recurrence (`AHN_BACKEND`), which compute the same and round
it differently: each start of a run records them, each record names its start, and where they change
a warning says so. What guards the single examples is `prompt_sha256`, which every record holds and
`evaluation.run.store` compares.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.backends.base import Backend
from evaluation.backends.generation import settings_as_dict
from evaluation.plan.environment import (
    environment_variables,
    git_state,
    hardware,
    now,
    package_versions,
)
from evaluation.plan.planned import Plan, PlannedTask
from reports.records import RunInfo, Start, content_sha256
from tasks.metric_code import metric_sha256

_BLOCK_BYTES = 1 << 20
_SINCE_SCHEMA_3 = ("postprocess", "metric_sha256")
"""Parts of a task that earlier folders do not hold, and cannot be asked for."""


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def digest_of(parts: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of `parts` as canonical JSON."""
    return content_sha256(parts)


def parts_as_of(version: int, parts: Mapping[str, Any]) -> dict[str, Any]:
    """`parts` as far as a folder of schema `version` has them."""
    if version >= 3:
        return dict(parts)
    tasks = {
        name: {key: value for key, value in task.items() if key not in _SINCE_SCHEMA_3}
        for name, task in parts.get("tasks", {}).items()
    }
    return {**parts, "tasks": tasks}


def prompt_sha256(planned: PlannedTask, index: int) -> str:
    """Digest (hex) of one example: which it is, with which tokens, and what is the right answer."""
    example, prompt = planned.examples[index], planned.prompts[index]
    row = [example.example_id, example.answers, example.label, example.row.get("all_classes")]
    digest = hashlib.sha256(json.dumps(row, default=str).encode())
    digest.update(prompt.ids.tobytes())
    return digest.hexdigest()


def _task_parts(planned: PlannedTask) -> dict[str, Any]:
    rules = planned.rules
    # Parts that only some tasks have: the others' identity stays what it was.
    own: dict[str, Any] = {} if planned.made_of is None else {"made_of": dict(planned.made_of)}
    if rules.answer_prefix:
        own["answer_prefix"] = rules.answer_prefix
    return own | {
        "template_sha256": planned.task.template_sha256(planned.protocol),
        "first_prompt_sha256": prompt_sha256(planned, 0),
        "data_sha256": sorted(str(file.get("sha256")) for file in planned.files),
        "truncation": rules.truncation,
        "reserve_generation": rules.reserve_generation,
        "max_length": planned.max_length,
        "chat_template": rules.chat_template,
        "system_message": rules.system_message,
        "demonstration": [list(turn) for turn in rules.demonstration],
        "stop": list(rules.stop),
        "postprocess": [asdict(cut) for cut in rules.postprocess],
        "metric": rules.metric,
        "metric_sha256": metric_sha256(rules.metric),
        "decoding": settings_as_dict(planned.settings),
        **({} if rules.turns is None else {"turns": asdict(rules.turns)}),
    }


def _weights_sha256(model: Backend, hashes: dict[Path, str]) -> list[str]:
    """Weights by content; files that several variants share are read once."""
    files = model.weight_files()
    for path in files:
        if path not in hashes:
            hashes[path] = file_sha256(path)
    return sorted({hashes[path] for path in files})


def identity_parts(plan: Plan, hashes: dict[Path, str] | None = None) -> dict[str, Any]:
    """What the identity of `plan` is made of. Reads all weight files once.

    Args:
        plan: of the run.
        hashes: digests of weight files that were read for another plan; those read now are added.
    """
    hashes = {} if hashes is None else hashes
    parts = parts_without_weights(plan)
    for name, model in plan.models.items():
        if weights := _weights_sha256(model, hashes):
            parts["variants"][name]["weights_sha256"] = weights
    return parts


def parts_without_weights(plan: Plan) -> dict[str, Any]:
    """`identity_parts` as far as they are known without reading weights."""
    config = {k: v for k, v in plan.model_config.items() if not k.startswith("_name")}
    # only where they are: a run without them is the one it always was
    reading = {"documents": "read to their end"} if plan.at_boundary else {}
    budget = {} if plan.budget is None else {"budget": dict(plan.budget.identity)}
    return {
        **reading,
        **budget,
        "benchmark": plan.configuration.benchmark,
        "protocol": plan.configuration.protocol,
        "seed": plan.seed,
        "model_config_sha256": digest_of(config),
        "variants": {name: dict(model.identity()) for name, model in plan.models.items()},
        "tasks": {planned.task.name: _task_parts(planned) for planned in plan.tasks},
    }


def _differences(mine: Any, theirs: Any, path: str, found: list[str]) -> None:
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for key in dict.fromkeys([*theirs, *mine]):
            where = f"{path}.{key}" if path else str(key)
            if key not in mine:
                found.append(f"{where} only in the folder")
            elif key not in theirs:
                found.append(f"{where} only in this run")
            else:
                _differences(mine[key], theirs[key], where, found)
    elif mine != theirs:
        shown = [str(value) if len(str(value)) <= 24 else "…" for value in (theirs, mine)]
        found.append(path if shown == ["…", "…"] else f"{path} {shown[0]} there, {shown[1]} here")


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any], most: int = 6) -> list[str]:
    """Where two sets of identity parts differ, in words; at most `most` and how many more."""
    found: list[str] = []
    # Through JSON, as `theirs` went, so that a tuple equals a list.
    _differences(json.loads(json.dumps(mine)), theirs, "", found)
    return found[:most] + ([f"and {len(found) - most} more"] if len(found) > most else [])


def run_info(plan: Plan, hashes: dict[Path, str] | None = None) -> RunInfo:
    """``run.json`` of a run that starts now. Reads all weight files once, for the identity.

    Args:
        plan: of the run.
        hashes: see `identity_parts`.
    """
    parts = identity_parts(plan, hashes)
    devices = [model.device for model in plan.models.values() if model.device is not None]
    files = [file for planned in plan.tasks for file in planned.files]
    start = Start(
        time=now(),
        command=list(sys.argv),
        configuration=plan.configuration.model_dump(mode="json"),
        git=git_state(),
        packages=package_versions(),
        hardware=hardware(devices[0] if devices else None),
        environment=environment_variables(),
    )
    return RunInfo(
        identity=digest_of(parts),
        identity_parts=parts,
        created=start.time,
        updated=start.time,
        starts=[start],
        command=start.command,
        configuration=start.configuration,
        generation={name: _generation(plan, model) for name, model in plan.models.items()},
        git=start.git,
        packages=start.packages,
        hardware=start.hardware,
        models={name: dict(model.describe()) for name, model in plan.models.items()},
        tasks={planned.task.name: _task_description(planned) for planned in plan.tasks},
        data_files=[dict(entry) for i, entry in enumerate(files) if entry not in files[:i]],
        status="running",
    )


def _generation(plan: Plan, model: Backend) -> dict[str, Any]:
    """How a variant answers: what all tasks have in common, and `per_task` what they have not."""
    per_task: dict[str, dict[str, Any]] = {}
    for planned in plan.tasks:
        told = model.generation(planned.settings, planned.rules.stop, plan.tokenizer)
        settings = settings_as_dict(planned.settings) if told is None else dict(told.settings)
        per_task[planned.task.name] = settings
    common = {
        key: value
        for key, value in next(iter(per_task.values())).items()
        if all(settings.get(key) == value for settings in per_task.values())
    }
    own = {
        name: {key: value for key, value in settings.items() if key not in common}
        for name, settings in per_task.items()
    }
    return common | {"per_task": own}


def _task_description(planned: PlannedTask) -> dict[str, Any]:
    task, rules = planned.task, planned.rules
    return {
        "protocol": planned.protocol,
        "template_sha256": task.template_sha256(planned.protocol),
        "max_new_tokens": rules.max_new_tokens,
        "max_length": planned.max_length,
        "truncation": rules.truncation,
        "chat_template": rules.chat_template,
        "metric": rules.metric,
        "examples": len(planned.examples),
        "system_message": rules.system_message,
        "benchmark": task.benchmark,
        "dataset": task.dataset or task.name,
        "level": task.level,
        "language": task.language,
        "category": task.category,
        "source": task.source,
        **({} if task.chance is None else {"chance": task.chance}),
    }
