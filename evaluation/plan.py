"""Resolve a configuration into tasks x variants x examples, and check all of it.

Everything that can be known without weights is found here, before a model is loaded: the plan
either holds, or `make_plan` raises one `InputError` that lists every problem. The tokenizer is
loaded, because only it can say how long the prompts are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ahn
from ahn.checkpoints import local_folder, read_ahn_config
from ahn.config import AHNConfig
from ahn.cost import ModelShape
from evaluation.configuration import RunConfiguration
from evaluation.generate import generation_settings, load_generation_config
from evaluation.problems import InputError, input_error_types, messages
from evaluation.prompting import PreparedPrompt, prepare, smallest_max_length
from evaluation.variants import (
    VARIANTS,
    ModelSpec,
    ahn_path,
    default_variants,
    model_path,
    unknown_variant,
)
from tasks.registry import expand, task_names
from tasks.schema import Example, Task, TaskProtocol
from tasks.sources import load_examples

DEFAULT_SINKS = 128  # the paper's
CONTEXT_SLACK = 500  # the authors' max_length is the model's context less this
MISSING_SHOWN = 3

Watch = Callable[[str, int, int], None]  # what is being done, done, total


@dataclass(frozen=True)
class PlannedTask:
    """One task with its rows and the prompts made of them (same order)."""

    task: Task
    protocol: str
    max_length: int
    examples: list[Example]
    prompts: list[PreparedPrompt]
    files: list[dict[str, Any]]
    settings: Any  # transformers.GenerationConfig: what `generate` is called with

    @property
    def rules(self) -> TaskProtocol:
        """The task's constants under the protocol of the run."""
        return self.task.protocols[self.protocol]


@dataclass(frozen=True)
class Plan:
    """A run that can be started."""

    configuration: RunConfiguration
    models: dict[str, ModelSpec]  # by variant, in the order asked for
    shape: ModelShape
    model_config: Mapping[str, Any]
    context: int  # tokens the model was made for
    tokenizer: Any
    tasks: list[PlannedTask]
    seed: int
    warnings: list[str] = field(default_factory=list)

    @property
    def examples_per_variant(self) -> int:
        """Examples that each variant answers."""
        return sum(len(task.examples) for task in self.tasks)


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


def _collect(problems: list[str], step: Callable[[], Any]) -> Any:
    """The result of `step`; None, and its messages in `problems`, if the input was bad."""
    try:
        return step()
    except ValueError as error:
        if not isinstance(error, input_error_types()):
            raise
        problems += [m for m in messages(error) if m not in problems]
        return None


def _device_and_dtype(configuration: RunConfiguration, problems: list[str]) -> tuple[str, str]:
    """What `auto` stands for here."""
    import torch

    device = configuration.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError:
        problems.append(f"--device: unknown device {device!r} (cpu, cuda, cuda:1 ...)")
        return "cpu", "float32"
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        problems.append(f"--device: {device!r} is not there ({torch.cuda.device_count()} found)")
    elif kind.type not in ("cpu", "cuda"):
        problems.append(f"--device: {device!r} is not supported (cpu, cuda, cuda:1 ...)")
    dtype = configuration.dtype
    if dtype == "auto":
        dtype = "bfloat16" if kind.type == "cuda" else "float32"
    return device, dtype


def _memory_settings(
    configuration: RunConfiguration, config: Mapping[str, Any] | None, problems: list[str]
) -> AHNConfig | None:
    """Settings of the AHN weights: those given, or those merged into the model."""
    path = ahn_path(configuration.ahn)
    if path is None:
        where = configuration.model or ""
        return _collect(problems, partial(read_ahn_config, config, where)) if config else None
    described = _collect(problems, partial(ahn.describe_model, path))
    if described is None:
        return None
    settings: AHNConfig | None = _collect(problems, partial(read_ahn_config, described, path))
    if settings is None and not problems:
        problems.append(f"--ahn: {path} holds no AHN weights (config.json names no memory cell)")
    return settings


def _resolve_models(
    configuration: RunConfiguration,
    config: Mapping[str, Any] | None,
    problems: list[str],
    warnings: list[str],
) -> dict[str, ModelSpec]:
    """One `ModelSpec` per variant; the same window and sinks for all that have them."""
    device, dtype = _device_and_dtype(configuration, problems)
    memory = _memory_settings(configuration, config, problems)
    has_memory = memory is not None or configuration.ahn is not None
    names = configuration.variants or default_variants(
        configuration.window is not None or has_memory, has_memory
    )
    problems += [unknown_variant(name) for name in names if name not in VARIANTS]
    known = [VARIANTS[name] for name in names if name in VARIANTS]
    if configuration.ahn is not None and not any(v.needs_memory for v in known):
        warnings.append("--ahn: none of the variants reads these weights")

    window, sinks = configuration.window, configuration.sinks
    if window is not None and window <= 0:
        problems.append(f"--window: must be at least 1 token, not {window}")
    if sinks is not None and sinks < 0:
        problems.append(f"--sinks: must be 0 or more tokens, not {sinks}")
    effective_window = memory.window if window is None and memory else window
    effective_sinks = sinks
    if effective_sinks is None:
        effective_sinks = memory.sinks if memory else DEFAULT_SINKS
    keeping_all = memory.full_attention_layers if memory else ()
    if any(v.needs_window for v in known):
        if effective_window is None:
            which = ", ".join(v.name for v in known if v.needs_window)
            problems.append(f"--window: needed by {which}")
        elif 0 < effective_window < effective_sinks:
            said = "" if sinks is not None else " (the default; see --sinks)"
            problems.append(
                f"--window: {effective_window} tokens are fewer than the {effective_sinks} "
                f"sinks{said}"
            )
    if any(v.needs_memory for v in known) and not has_memory:
        which = ", ".join(v.name for v in known if v.needs_memory)
        problems.append(
            f"--ahn: needed by {which} (AHN weights, or a model with AHN weights merged into it)"
        )
    return {
        v.name: ModelSpec(
            variant=v.name,
            path=model_path(configuration.model) or "",
            # The window needs it too where some layers keep full attention: the same ones.
            ahn=ahn_path(configuration.ahn)
            if v.needs_memory or (v.needs_window and keeping_all)
            else None,
            window=effective_window if v.needs_window else None,
            sinks=effective_sinks if v.needs_window else None,
            cell=memory.cell if v.needs_memory and memory else None,
            dtype=dtype,
            device=device,
            full_attention_layers=keeping_all if v.needs_window else (),
        )
        for v in known
    }


def _check_models(models: Mapping[str, ModelSpec], problems: list[str]) -> None:
    """Configuration and tensor shapes of every variant; each problem once."""
    for spec in models.values():
        in_range = spec.window is None or (spec.window > 0 and (spec.sinks or 0) >= 0)
        needs_memory = VARIANTS[spec.variant].needs_memory
        if not in_range or (needs_memory and spec.cell is None and spec.ahn is None):
            continue  # said already, in the words of the flag
        found = _collect(problems, spec.check) or []
        problems += [problem for problem in found if problem not in problems]


def _resolve_tasks(configuration: RunConfiguration, problems: list[str]) -> list[Task]:
    """The tasks asked for, each once. Names are looked up one by one, to report all unknown."""
    data = configuration.data or ""
    names: Sequence[str] = configuration.tasks
    if not names:
        if data != "pocket":
            names = task_names(configuration.benchmark)
        else:
            found: list[Task] = (
                _collect(problems, lambda: expand(configuration.benchmark, [], data)) or []
            )
            return found
    tasks: dict[str, Task] = {}
    for name in names:
        expanded = _collect(problems, partial(expand, configuration.benchmark, [name], data))
        tasks |= {task.name: task for task in expanded or []}
    return list(tasks.values())


def _load_tokenizer(path: str, problems: list[str]) -> Any:
    from transformers import AutoTokenizer

    if not Path(path).is_dir() and (path.count("/") != 1 or path.startswith((".", "/"))):
        problems.append(f"--tokenizer: no such folder: {path} (and it is not a hub id)")
        return None
    try:
        return AutoTokenizer.from_pretrained(path)
    # Whatever is wrong with the files (absent, not JSON, of an unknown class): an input problem.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        problems.append(f"--tokenizer: none can be loaded from {path} ({reason})")
        return None


def _max_length(
    task: Task, configuration: RunConfiguration, context: int, problems: list[str]
) -> int | None:
    """Longest prompt of `task`; None, with the reason in `problems`, if none is possible."""
    rules = task.protocols[configuration.protocol]
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
    problem = f"--max-length: {length} is too small for {task.name} (at least {smallest}{reason})"
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
            "or give --allow-overlong"
        )
    elif longest + task.rules.max_new_tokens > context:
        warnings.append(
            f"{name}: the longest prompt ({longest} tokens) and its answer (up to "
            f"{task.rules.max_new_tokens}) together pass the model's {context} positions"
        )


def _is_folder_or_absent(output: str | None, problems: list[str]) -> None:
    if output is not None and Path(output).exists() and not Path(output).is_dir():
        problems.append(f"--output: {output} is a file, not a folder")


def make_plan(
    configuration: RunConfiguration,
    earlier_problems: Sequence[str] = (),
    watch: Watch | None = None,
) -> Plan:
    """Resolve and check `configuration`; `earlier_problems` are listed with what is found here.

    `watch` is told how the preparation of prompts goes on. Raises `InputError` with all problems.
    """
    problems, warnings = list(earlier_problems), list[str]()
    path = model_path(configuration.model)
    config: Mapping[str, Any] | None = None
    if path is None:
        problems.append("--model: none given")
    else:
        config = _collect(problems, partial(ahn.describe_model, path))
    models = _resolve_models(configuration, config, problems, warnings)
    if config is not None:
        _check_models(models, problems)
    shape = None if config is None else _collect(problems, partial(_shape, config))
    context = context_length(config) if config else None
    if config is not None and context is None:
        problems.append(f"--model: {path}: config.json has no max_position_embeddings")
    longest = configuration.max_length
    if longest is not None and context and longest > context and not configuration.allow_overlong:
        problems.append(
            f"--max-length: {longest} is more than the model's max_position_embeddings "
            f"{context} (give --allow-overlong if that is meant)"
        )

    tasks = _resolve_tasks(configuration, problems)
    seed = configuration.seed
    if seed is None:
        seed = tasks[0].protocols[configuration.protocol].seed if tasks else 0
    sources = {
        task.name: _collect(
            problems,
            partial(load_examples, task, configuration.data, configuration.limit, seed),
        )
        for task in tasks
    }
    _is_folder_or_absent(configuration.output, problems)

    folder = local_folder(path) if path is not None and config is not None else None
    tokenizer_path = model_path(configuration.tokenizer) or (folder and str(folder))
    tokenizer = _load_tokenizer(tokenizer_path, problems) if tokenizer_path else None
    checkpoint = (
        None
        if folder is None or config is None
        else _collect(problems, partial(load_generation_config, folder, config))
    )

    planned: list[PlannedTask] = []
    if config and context and shape and tokenizer and checkpoint:
        model_type = config.get("model_type")
        total = sum(len(source.examples) for source in sources.values() if source)
        done = 0
        for task in tasks:
            source = sources[task.name]
            length = _max_length(task, configuration, context, problems)
            if source is None or length is None:
                continue
            rules = task.protocols[configuration.protocol]
            prompts = []
            for example in source.examples:
                prompts.append(
                    prepare(task, example, configuration.protocol, tokenizer, length, model_type)
                )
                done += 1
                if watch:
                    watch("preparing prompts", done, total)
            settings = generation_settings(
                checkpoint,
                configuration.protocol,
                rules.generation,
                rules.max_new_tokens,
                tokenizer,
                model_type,
            )
            entry = PlannedTask(
                task, configuration.protocol, length, source.examples, prompts, source.files,
                settings,
            )  # fmt: skip
            _check_prompts(
                entry, context, shape.vocab_size, configuration.allow_overlong, problems, warnings
            )
            planned.append(entry)
    if problems:
        raise InputError(problems)
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
        raise InputError(f"--model: config.json does not describe a Qwen2 ({error})") from error


def sampling_seed(seed: int, task: str, example_id: str) -> int:
    """Seed of one sampled answer: independent of which examples came before it."""
    digest = hashlib.sha256(f"{seed}\n{task}\n{example_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
