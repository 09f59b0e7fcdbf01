"""Resolve a configuration into tasks x variants x examples, and check all of it.

Everything that can be known without weights is found here, before a model is loaded: the plan
either holds, or `make_plan` raises one `InputError` that lists every problem. The tokenizer is
loaded, because only it can say how long the prompts are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ahn.checkpoints.load import local_folder
from ahn.checkpoints.tokenizer_options import tokenizer_options
from ahn.cost.accounting import ModelShape
from common.errors import InputError
from common.writing import check_folder_writable
from evaluation.backends.streaming import generation_settings, load_generation_config
from evaluation.plan.configuration import RunConfiguration
from evaluation.plan.models import (
    check_backend,
    check_models,
    described_model,
    resolve_models,
)
from evaluation.plan.planned import Plan, PlannedTask
from evaluation.plan.prompts import prepare, smallest_max_length
from evaluation.plan.recording import unwritable
from evaluation.plan.tasks import AskedTasks, Watch, load_rows, resolve_tasks
from evaluation.plan.variants import model_path
from evaluation.problems import collect
from tasks.schema import TaskProtocol

CONTEXT_SLACK = 500  # the authors' max_length is the model's context less this


def context_length(config: Mapping[str, Any]) -> int | None:
    """Positions that the model was made for: its maximum, stretched by YaRN where set."""
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int):
        return None
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "yarn" and "original_max_position_embeddings" in scaling:
        stretched = scaling.get("factor", 1.0) * scaling["original_max_position_embeddings"]
        return max(positions, int(stretched))
    return positions


def _load_tokenizer(path: str, problems: list[str]) -> Any:
    from transformers import AutoTokenizer

    if not Path(path).is_dir() and (path.count("/") != 1 or path.startswith((".", "/"))):
        problems.append(f"--tokenizer: no such folder: {path} (and it is not a hub id)")
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **tokenizer_options(path))
    # Whatever is wrong with the files (absent, not JSON, of an unknown class): an input problem.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        problems.append(f"--tokenizer: none can be loaded from {path} ({reason})")
        return None
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        # transformers makes up an empty one for a folder that has none
        problems.append(f"--tokenizer: there is none in {path}; name one that belongs to the model")
        return None
    return tokenizer


def _max_length(
    task: str,
    rules: TaskProtocol,
    configuration: RunConfiguration,
    context: int,
    problems: list[str],
) -> int | None:
    """Longest prompt of `task`; None, with the reason in `problems`, if none is possible."""
    given = configuration.max_length
    if given is not None:
        length = given
    elif rules.default_max_length is not None:
        length = rules.default_max_length
    else:
        length = context - CONTEXT_SLACK
    smallest = smallest_max_length(rules)
    if length >= smallest:
        return length
    reason = "" if given is not None else f"; by default the model's {context} - {CONTEXT_SLACK}"
    problem = f"--max-length: {length} is too small for {task} (at least {smallest}{reason})"
    if problem not in problems:
        problems.append(problem)
    return None


def _check_prompts(
    task: PlannedTask,
    context: int,
    vocabulary: int,
    allow_overlong: bool,
    problems: list[str],
    warnings: list[str],
) -> None:
    """Prompts fit the model: its positions and its vocabulary."""
    name = task.task.name
    empty = [e.where for e, p in zip(task.examples, task.prompts, strict=True) if not p.tokens]
    problems += [f"{where}: the prompt of {name} has no tokens" for where in empty]
    highest = max((int(p.ids.max()) for p in task.prompts if p.tokens), default=0)
    if highest >= vocabulary:
        problems.append(
            f"--tokenizer: gives token id {highest} in {name}, but the model's vocabulary "
            f"ends at {vocabulary - 1}"
        )
    longest = max((p.tokens for p in task.prompts), default=0)
    overlong = sum(p.tokens > context for p in task.prompts)
    if overlong and not allow_overlong:
        problems.append(
            f"{name}: {overlong} of {len(task.prompts)} prompts are longer than the model's "
            f"max_position_embeddings {context} (longest: {longest} tokens); lower --max-length, "
            "stretch them with --yarn-factor, or give --allow-overlong"
        )
    elif longest + task.rules.max_new_tokens > context:
        warnings.append(
            f"{name}: the longest prompt ({longest} tokens) and its answer (up to "
            f"{task.rules.max_new_tokens}) together pass the model's {context} positions"
        )


def _check_output(output: Path) -> None:
    """The run folder can be made and written to."""
    try:
        check_folder_writable(output)
    except InputError as error:
        raise error.prefixed("--output: ") from None


def make_plan(
    configuration: RunConfiguration,
    earlier_problems: Sequence[str] = (),
    watch: Watch | None = None,
) -> Plan:
    """Resolve and check `configuration`; `earlier_problems` are listed with what is found here.
    `watch` is told of rows and prompts that are made. Raises `InputError` with all problems.
    """
    problems, warnings = list(earlier_problems), list[str]()
    path = model_path(configuration.model)
    config: Mapping[str, Any] | None = None
    if path is None:
        problems.append("--model: none given")
    else:
        config = collect(problems, partial(described_model, path, configuration.yarn_factor))
    models = resolve_models(configuration, config, problems, warnings)
    if config is not None:
        check_models(models, problems)
    shape = None if config is None else collect(problems, partial(_shape, config))
    context = context_length(config) if config else None
    if config is not None and context is None:
        problems.append(f"--model: {path}: config.json has no max_position_embeddings")
    longest = configuration.max_length
    if longest is not None and context and longest > context and not configuration.allow_overlong:
        problems.append(
            f"--max-length: {longest} is more than the model's max_position_embeddings "
            f"{context} (give --allow-overlong if that is meant)"
        )

    asked = collect(problems, partial(resolve_tasks, configuration)) or AskedTasks([], "", ())
    problems += [message for message in asked.problems if message not in problems]
    tasks, protocol = asked.tasks, asked.protocol
    seed = configuration.seed
    if seed is None:
        seed = tasks[0].protocols[protocol].seed if tasks else 0
    if configuration.output is not None:
        collect(problems, partial(_check_output, Path(configuration.output)))
    rows = load_rows(tasks, configuration, seed, watch, files_only=bool(problems))
    problems += [message for message in rows.problems if message not in problems]
    sources = rows.sources

    folder = None  # a plan needs configuration and tokenizer, no weights
    if path is not None and config is not None:
        folder = local_folder(path, weights=False)
    tokenizer_path = model_path(configuration.tokenizer) or (folder and str(folder))
    tokenizer = _load_tokenizer(tokenizer_path, problems) if tokenizer_path else None
    checkpoint = (
        None
        if folder is None or config is None
        else collect(problems, partial(load_generation_config, folder, config))
    )

    planned: list[PlannedTask] = []
    if config and context and shape and tokenizer and checkpoint:
        model_type = config.get("model_type")
        total = sum(len(source.examples) for source in sources.values())
        done = 0
        for task in tasks:
            source = sources.get(task.name)
            rules = task.protocols[protocol]
            length = _max_length(task.name, rules, configuration, context, problems)
            if source is None or length is None:
                continue
            prompts = []
            for example in source.examples:
                prompts.append(prepare(task, example, protocol, tokenizer, length, model_type))
                done += 1
                if watch:
                    watch(done, total, "preparing prompts")
            settings = generation_settings(
                checkpoint,
                protocol,
                rules.generation,
                rules.max_new_tokens,
                tokenizer,
                model_type,
                task.benchmark,
            )
            entry = PlannedTask(
                task, protocol, length, source.examples, prompts, source.files,
                settings,
            )  # fmt: skip
            _check_prompts(
                entry, context, shape.vocab_size, configuration.allow_overlong, problems, warnings
            )
            problems += unwritable(entry)
            planned.append(entry)
    if shape is not None:
        check_backend(models, shape, problems)
    if problems:
        raise InputError(*problems)
    assert shape is not None and config is not None and context is not None
    return Plan(
        configuration=configuration,
        models=models,
        shape=shape,
        model_config=config,
        context=context,
        tokenizer=tokenizer,
        tasks=planned,
        seed=seed,
        warnings=warnings,
    )


def _shape(config: Mapping[str, Any]) -> ModelShape:
    """The model's shape; `InputError` where its configuration lacks what that takes."""
    try:
        return ModelShape.from_config(config)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"--model: config.json does not describe a model ({error})") from error


def sampling_seed(seed: int, task: str, example_id: str) -> int:
    """Seed of one sampled answer: independent of which examples came before it."""
    digest = hashlib.sha256(f"{seed}\n{task}\n{example_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
