"""Which models a run needs: one `ModelSpec` per variant, checked without loading weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import ahn
from ahn.checkpoints import read_ahn_config
from ahn.config import PAPER_SINKS, AHNConfig
from evaluation.configuration import RunConfiguration
from evaluation.problems import collect
from evaluation.variants import (
    VARIANTS,
    ModelSpec,
    ahn_path,
    default_variants,
    model_path,
    unknown_variant,
)


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
        return collect(problems, partial(read_ahn_config, config, where)) if config else None
    described = collect(problems, partial(ahn.describe_model, path))
    if described is None:
        return None
    before = len(problems)
    settings: AHNConfig | None = collect(problems, partial(read_ahn_config, described, path))
    if settings is None and len(problems) == before:
        problems.append(f"--ahn: {path} holds no AHN weights (config.json names no memory cell)")
    return settings


def resolve_models(
    configuration: RunConfiguration,
    config: Mapping[str, Any] | None,
    problems: list[str],
    warnings: list[str],
) -> dict[str, ModelSpec]:
    """One `ModelSpec` per variant; the same window and sinks for all that have them."""
    device, dtype = _device_and_dtype(configuration, problems)
    before = len(problems)
    memory = _memory_settings(configuration, config, problems)
    unreadable = len(problems) > before  # then its window and sinks are not known
    has_memory = memory is not None or configuration.ahn is not None
    names = configuration.variants or default_variants(
        configuration.window is not None or has_memory, has_memory
    )
    if "" in names:
        problems.append("--variant: no name is given")
        names = [name for name in names if name]
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
        effective_sinks = memory.sinks if memory else PAPER_SINKS
    keeping_all = memory.full_attention_layers if memory else ()
    if any(v.needs_window for v in known):
        if effective_window is None and not unreadable:
            which = ", ".join(v.name for v in known if v.needs_window)
            problems.append(f"--window: needed by {which}")
        elif effective_window is not None and 0 < effective_window < effective_sinks:
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


def check_models(models: Mapping[str, ModelSpec], problems: list[str]) -> None:
    """Configuration and tensor shapes of every variant; each problem once."""
    for spec in models.values():
        in_range = spec.window is None or (spec.window > 0 and (spec.sinks or 0) >= 0)
        needs_memory = VARIANTS[spec.variant].needs_memory
        if not in_range or (needs_memory and spec.cell is None):
            continue  # said already, in the words of the flag
        found = collect(problems, spec.check) or []
        problems += [problem for problem in found if problem not in problems]
