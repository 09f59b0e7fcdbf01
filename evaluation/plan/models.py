"""Which models a run needs: one `ModelSpec` per variant, checked without loading weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import ahn
from ahn.cells.registry import CELLS
from ahn.checkpoints.load import read_ahn_config
from ahn.checkpoints.rope import with_rope
from ahn.config import BACKENDS, PAPER_SINKS, AHNConfig
from ahn.cost.accounting import ModelShape
from ahn.ops.selector import Case, asked, check
from ahn.released import window_notice
from evaluation.plan.configuration import RunConfiguration
from evaluation.plan.variants import (
    VARIANTS,
    ModelSpec,
    ahn_path,
    choose_variants,
    default_variants,
    model_path,
)
from evaluation.problems import collect


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
    configuration: RunConfiguration,
    config: Mapping[str, Any] | None,
    problems: list[str],
    notices: list[str],
) -> dict[str, AHNConfig]:
    """Settings of the AHN weights by name: those given, or (named '') those in the model.

    What must be said about their windows is added to `notices`.
    """

    def note(found: Mapping[str, Any], where: str) -> None:
        notice = window_notice(found, where, configuration.window, configuration.sinks)
        if notice is not None:
            notices.append(notice)

    if not configuration.ahn:
        where = configuration.model or ""
        merged: AHNConfig | None = None
        if config:
            merged = collect(problems, partial(read_ahn_config, config, where))
            if merged is not None:
                note(config, where)
        return {} if merged is None else {"": merged}
    found = {}
    for name, given in configuration.ahn.items():
        path = ahn_path(given)
        described = collect(problems, partial(ahn.describe_model, path))
        if described is None:
            continue
        before = len(problems)
        settings: AHNConfig | None = collect(problems, partial(read_ahn_config, described, path))
        if settings is not None:
            found[name] = settings
            note(described, path)
        elif len(problems) == before:
            problems.append(
                f"--ahn: {path} holds no AHN weights (config.json names no memory cell)"
            )
    return found


def _one_of(
    memories: Mapping[str, AHNConfig], setting: str, remedy: str, problems: list[str]
) -> Any:
    """What all AHN weights have as `setting`; None without any, or where they differ."""
    values = {name: getattr(memory, setting) for name, memory in memories.items()}
    if len(set(values.values())) > 1:
        listed = ", ".join(f"{name} {value}" for name, value in values.items())
        problems.append(f"--ahn: the weights differ in their {setting} ({listed}): {remedy}")
        return None
    return next(iter(values.values()), None)


def described_model(path: str, yarn_factor: float | None) -> dict[str, Any]:
    """A model's `config.json`, with its positions stretched by YaRN where that is asked.

    Raises `InputError` where there is none, or it cannot be stretched.
    """
    config = dict(ahn.describe_model(path))
    return config if yarn_factor is None else with_rope(config, None, yarn_factor)


def resolve_models(
    configuration: RunConfiguration,
    config: Mapping[str, Any] | None,
    problems: list[str],
    warnings: list[str],
) -> dict[str, ModelSpec]:
    """One `ModelSpec` per variant; the same window and sinks for all that have them."""
    device, dtype = _device_and_dtype(configuration, problems)
    before = len(problems)
    notices: list[str] = []
    memories = _memory_settings(configuration, config, problems, notices)
    unreadable = len(problems) > before  # then its window and sinks are not known
    has_memory = bool(memories or configuration.ahn)
    names = configuration.variants or default_variants(
        configuration.window is not None or has_memory, has_memory
    )
    if "" in names:
        problems.append("--variant: no name is given")
        names = [name for name in names if name]
    chosen = choose_variants(names, list(configuration.ahn), problems)
    unread = [n for n in configuration.ahn if n not in {v.memory for v in chosen}]
    if unread:
        which = f" {', '.join(unread)}" if any(unread) else ""
        warnings.append(f"--ahn: none of the variants reads these weights{which}")

    if any(v.kind.needs_window for v in chosen):
        warnings += dict.fromkeys(notices)

    window, sinks = configuration.window, configuration.sinks
    if window is not None and window <= 0:
        problems.append(f"--window: must be at least 1 token, not {window}")
    if sinks is not None and sinks < 0:
        problems.append(f"--sinks: must be 0 or more tokens, not {sinks}")
    differ = len(problems)
    if window is None:
        window = _one_of(memories, "window", "give --window for all", problems)
    if sinks is None:
        sinks = _one_of(memories, "sinks", "give --sinks for all", problems)
    unreadable = unreadable or len(problems) > differ
    if sinks is None:
        sinks = PAPER_SINKS
    keeping_all = (
        _one_of(memories, "full_attention_layers", "they cannot share a run", problems) or ()
    )
    if any(v.kind.needs_window for v in chosen):
        if window is None and not unreadable:
            which = ", ".join(v.name for v in chosen if v.kind.needs_window)
            problems.append(f"--window: needed by {which}")
        elif window is not None and 0 < window < sinks:
            said = "" if configuration.sinks is not None else " (the default; see --sinks)"
            problems.append(f"--window: {window} tokens are fewer than the {sinks} sinks{said}")
    if any(v.kind.needs_memory for v in chosen) and not has_memory:
        which = ", ".join(v.name for v in chosen if v.kind.needs_memory)
        problems.append(
            f"--ahn: needed by {which} (AHN weights, or a model with AHN weights merged into it)"
        )
    # The window needs weights too where some layers keep full attention: the same ones.
    any_memory = next(iter(configuration.ahn), None) if keeping_all else None
    specs = {}
    for v in chosen:
        memory = v.memory
        if memory is None and v.kind.needs_window:
            memory = any_memory
        given = None if memory is None else configuration.ahn.get(memory)
        settings = None if v.memory is None else memories.get(v.memory)
        specs[v.name] = ModelSpec(
            name=v.name,
            variant=v.kind.name,
            path=model_path(configuration.model) or "",
            ahn=None if given is None else ahn_path(given),
            window=window if v.kind.needs_window else None,
            sinks=sinks if v.kind.needs_window else None,
            cell=settings.cell if settings else None,
            dtype=dtype,
            device=device,
            full_attention_layers=keeping_all if v.kind.needs_window else (),
            yarn_factor=configuration.yarn_factor,
        )
    return specs


def check_models(models: Mapping[str, ModelSpec], problems: list[str]) -> None:
    """Configuration and tensor shapes of every variant; each problem once."""
    for spec in models.values():
        in_range = spec.window is None or (spec.window > 0 and (spec.sinks or 0) >= 0)
        needs_memory = VARIANTS[spec.variant].needs_memory
        if not in_range or (needs_memory and spec.cell is None):
            continue  # said already, in the words of the flag
        found = collect(problems, spec.check) or []
        problems += [problem for problem in found if problem not in problems]


def check_backend(models: Mapping[str, ModelSpec], shape: ModelShape, problems: list[str]) -> None:
    """That `AHN_BACKEND`, where it is set, is known, and can compute every memory here."""
    import torch

    name = asked()
    if name is None:
        return
    cases = {
        Case(
            device=torch.device(spec.device).type,
            dtype=getattr(torch, spec.dtype),
            head_dim=shape.head_dim,
            one_token=False,
            delta_rule=CELLS.find(spec.cell).recurrence == "delta_rule",
            gradients=False,
        )
        for spec in models.values()
        if spec.cell is not None and CELLS.find(spec.cell).recurrence is not None
    }
    for case in cases or ([] if name in BACKENDS else [None]):
        before = len(problems)
        collect(problems, partial(check, name, case))
        if len(problems) > before:
            return
