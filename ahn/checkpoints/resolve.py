"""What a model will be, decided once: from its configurations and the headers of its weights.

`resolve_checkpoint` looks for the files, reads configurations and headers, and refuses whatever
does not fit; no weight is loaded, and torch is imported only to look for a GPU. Everything that
needs to know what a model will be (loading, plans, merging, the server) takes the result.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ahn.cells.registry import CELLS
from ahn.checkpoints.config_values import check_values
from ahn.checkpoints.keys import (
    base_problems,
    idle_memory,
    listed,
    memory_problems,
    needed_base,
    needed_memory,
    router_problems,
    two_sources_problems,
)
from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.names import ahn_path
from ahn.checkpoints.placement import resolve_device_map, resolve_dtype
from ahn.checkpoints.rope import context_length, with_rope
from ahn.checkpoints.safetensors_files import StoredTensor
from ahn.config import BACKENDS, VARIANTS, AHNConfig, LayerLayout, example_layout
from ahn.cost.shapes import ModelShape
from ahn.families import Family, family_of
from ahn.released import read_ahn_config, window_notice
from common.errors import InputError, Problems

Tensors = Mapping[str, StoredTensor]


@dataclass(frozen=True)
class ResolvedCheckpoint:
    """A model before its weights are loaded: `ahn.load_model` takes it as it is.

    Attributes:
        base: files of the base model, or of the model with AHN weights merged in.
        memory: files of the memory's weights, `base` itself where they are merged into it; None:
            the variant needs none.
        config: the base's `config.json`, with the RoPE scaling that was asked for.
        family: `model_type` of its row in `ahn.families`.
        shape: the base's sizes.
        settings: variant, cell, window, sinks, pooled slots, layers with full attention, form of
            the recurrence.
        tensors: every tensor that is loaded, base and memory, by key.
        idle: keys of memories that are not loaded, because their layers keep full attention.
        dtype: name of the type of all weights once loaded.
        device_map: where they go, in transformers' form; `{"": "cpu"}`: all on the CPU.
        notices: what people must be told, such as that a window is not the one in `config.json`.
    """

    base: CheckpointFiles
    memory: CheckpointFiles | None
    config: Mapping[str, Any]
    family: str
    shape: ModelShape
    settings: AHNConfig
    tensors: Tensors = field(repr=False)
    idle: tuple[str, ...]
    dtype: str
    device_map: str | Mapping[str, str]
    notices: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Folder or hub id of the base model."""
        return str(self.base)

    @property
    def device(self) -> str | None:
        """The one device of all weights; None: they are spread over several."""
        if isinstance(self.device_map, str) or set(self.device_map) != {""}:
            return None
        return self.device_map[""]

    @property
    def context(self) -> int | None:
        """Positions the model was made for, stretched by YaRN where set; None: not said."""
        return context_length(self.config)

    @property
    def two_folders(self) -> bool:
        """Whether the memory comes from elsewhere than the base."""
        return self.memory is not None and self.memory is not self.base

    @property
    def layout(self) -> tuple[LayerLayout, ...]:
        """What each layer keeps of the past."""
        return self.settings.layouts(self.shape.num_hidden_layers)

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files it is loaded from; downloads those that are on the hub only."""
        files = list(self.base.weight_files)
        if self.memory is not None and self.two_folders:
            files += self.memory.weight_files
        return files

    def downloaded(self) -> ResolvedCheckpoint:
        """The same with all weights in files here; itself where they are.

        Raises:
            InputError: the hub cannot be reached, or its files are not what their headers said.
        """
        if not self.base.is_remote and (self.memory is None or not self.memory.is_remote):
            return self
        base = self.base.downloaded()
        memory = self.memory
        if memory is not None:
            memory = memory.downloaded() if self.two_folders else base
        tensors, idle = _tensors(base, memory, self.shape, self.settings)
        return replace(self, base=base, memory=memory, tensors=tensors, idle=idle)


def resolve_checkpoint(
    path_or_id: str | Path | CheckpointFiles,
    variant: str = "ahn",
    ahn: str | Path | CheckpointFiles | None = None,
    window: int | None = None,
    sinks: int | None = None,
    dtype: Any = None,
    device: Any = None,
    *,
    device_map: Any = None,
    rope_scaling: Mapping[str, Any] | None = None,
    yarn_factor: float | None = None,
    backend: str | None = None,
    rate: int | None = None,
    pooling: str | None = None,
    slots: int | None = None,
) -> ResolvedCheckpoint:
    """What `ahn.load_model` would load with these arguments, without loading it.

    Args:
        path_or_id: see `ahn.load_model`, as all other arguments. Files that were opened before
            (`ahn.checkpoints.locate.CheckpointFiles`) are not read again.

    Raises:
        InputError: everything that is wrong with the arguments, the configurations, or the keys
            and shapes of the weights.
    """
    problems = Problems()
    pooled = {"rate": rate, "pooling": pooling, "slots": slots}
    given: dict[str, Any] = {name: x for name, x in pooled.items() if x is not None}
    wrong = AHNConfig.problems(
        variant, None, window, sinks, backend=backend, rate=rate, pooling=pooling, slots=slots
    )
    problems.add(*wrong)
    if given and variant in VARIANTS and not example_layout(variant).slots:
        problems.add(
            f"{', '.join(given)}: variant {variant!r} pools nothing (variant 'compressive' does)"
        )
    with problems.collecting():
        placed = resolve_device_map(device, device_map)
    with problems.collecting():
        resolve_dtype(dtype, {}, "F32")
    problems.check()
    base = _files(path_or_id)
    config, notices = base.config, list[str]()
    family = family_of(config, base.place)
    own = read_ahn_config(config, base.place)
    settings, described, memory = own, base, base if own is not None else None
    if ahn is not None:
        memory = described = _files(ahn if isinstance(ahn, CheckpointFiles) else ahn_path(ahn))
        settings = _settings_beside(base, family, memory)
        memory = base if memory.is_same(base) else memory
    example = example_layout(variant)
    if example.cell is None:
        memory = None
    elif memory is None:
        raise InputError(
            f"variant {variant!r} needs memory weights: {base} has none, pass ahn= (--ahn) with a "
            "folder or hub id of AHN weights"
        )
    settings = settings or AHNConfig()
    if example.window:
        notice = window_notice(described.config, described.place, window, sinks)
        notices += [notice] if notice is not None else []
        settings = settings.with_span(window, sinks)
    elif not example.attends:
        span = {"window": window, "sinks": sinks}
        unused = [f"{name} {number}" for name, number in span.items() if number is not None]
        if unused:
            notices.append(
                f"{', '.join(unused)}: not used, variant {variant!r} has no window and no sinks"
            )
    settings = replace(
        settings,
        variant=variant,
        backend=settings.backend if backend is None else backend,
        **given,
    )
    settings, shape = _sized(base, settings)
    check_values(config, base.place)
    base.check_stop_tokens(shape.vocab_size)
    sliding = family.sliding_layers(config) if own is None else []
    if sliding and example.attends and (variant == "full" or window is None):
        found, remedy = family.window_switch(config)
        raise InputError(
            f"{base}: config.json has {found}: {len(sliding)} of its layers have a window of their "
            "own, which variant 'full' does not compute and the others replace: give a window of "
            "yours (window=, --window; variants window, ahn, no-write, compressive), or " + remedy
        )
    try:
        config = with_rope(config, rope_scaling, yarn_factor)
    except InputError as error:
        raise error.prefixed(f"{base}: ") from None
    tensors, idle = _tensors(base, memory, shape, settings)
    dtype = resolve_dtype(dtype, config, tensors["model.embed_tokens.weight"].dtype)
    _check_backend(settings, shape, placed, dtype, memory is not None)
    if idle:
        notices.append(
            f"{memory}: not used, since these layers keep full attention (fa_layer_ids): "
            f"{listed(idle)}"
        )
    return ResolvedCheckpoint(
        base,
        memory,
        config,
        family.model_type,
        shape,
        settings,
        tensors,
        idle,
        dtype,
        placed,
        tuple(notices),
    )


def default_variant(base: CheckpointFiles, has_ahn: bool, has_window: bool) -> str:
    """The variant that is meant where none is named: `ahn`, `window` or `full`.

    Args:
        base: the model, which may have AHN weights merged into it.
        has_ahn: AHN weights are given beside it.
        has_window: a window is given.
    """
    if has_ahn or read_ahn_config(base.config, base.place) is not None:
        return "ahn"
    return "window" if has_window else "full"


def _files(place: str | Path | CheckpointFiles) -> CheckpointFiles:
    return place if isinstance(place, CheckpointFiles) else CheckpointFiles(place)


def _settings_beside(base: CheckpointFiles, family: Family, memory: CheckpointFiles) -> AHNConfig:
    """The settings of AHN weights that are given beside a base model.

    Raises:
        InputError: they belong to another family of models, or are none.
    """
    config = memory.config
    if family_of(config, memory.place) != family:
        raise InputError(
            f"{memory}: trained for {config.get('model_type')}, but {base} is "
            f"{base.config.get('model_type')}"
        )
    return memory_settings(memory)


def memory_settings(memory: CheckpointFiles) -> AHNConfig:
    """What AHN weights say of themselves.

    Raises:
        InputError: they are none, or something in their configuration cannot be.
    """
    settings = read_ahn_config(memory.config, memory.place)
    if settings is None:
        raise InputError(
            f"{memory}: config.json names no cell (_ahn_implementation); not an AHN checkpoint"
        )
    return settings


def _sized(base: CheckpointFiles, settings: AHNConfig) -> tuple[AHNConfig, ModelShape]:
    """The settings with what depends on the base's sizes, and these; they must fit."""
    try:
        shape = ModelShape.from_config(base.config)
        settings = settings.with_default_slots(
            shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        )
        try:
            settings.layouts(shape.num_hidden_layers)
        except InputError as error:
            raise InputError(f"{'; '.join(error.problems)} (fa_layer_ids)") from None
    except InputError as error:
        raise error.prefixed(f"{base}: config.json: ") from None
    return settings, shape


def _check_backend(
    settings: AHNConfig,
    shape: ModelShape,
    placed: str | Mapping[str, str],
    dtype: str,
    has_memory: bool,
) -> None:
    """Refuse a form of the recurrence that is unknown, or cannot compute the memory here."""
    name = os.environ.get("AHN_BACKEND") or settings.backend
    if name is None or (not has_memory and name in BACKENDS):
        return
    import torch

    from ahn.ops.selector import Case, check

    kinds = {"cuda"} if isinstance(placed, str) else {d.split(":")[0] for d in placed.values()}
    cells = settings.cells(shape.num_hidden_layers) if has_memory else ()
    for kind, cell in itertools.product(sorted(kinds), cells):
        check(
            name,
            Case(
                device=kind,
                dtype=getattr(torch, dtype),
                head_dim=shape.head_dim,
                one_token=False,
                delta_rule=CELLS.find(cell).recurrence == "delta_rule",
                gradients=False,
            ),
        )
    check(name)


def _tensors(
    base: CheckpointFiles, memory: CheckpointFiles | None, shape: ModelShape, settings: AHNConfig
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """Every tensor to load, by key, and the keys of memories that are left out.

    The latter are those of layers that keep full attention: released configurations can name
    layers that have a memory (`fa_layer_ids`).

    Raises:
        InputError: files that cannot be read, and all keys and shapes that do not fit.
    """
    wanted, tensors = needed_base(shape), base.tensors
    problems = Problems(base_problems(base.place, wanted, tensors))
    if memory is None:
        problems.add(*router_problems(base.place, tensors))
        problems.check()
        return tensors, ()
    held = memory.tensors
    if memory is not base:
        problems.add(*two_sources_problems(base.place, tensors, memory.place, held, wanted))
    idle = idle_memory(shape, settings, held)
    held = {key: tensor for key, tensor in held.items() if key not in idle}
    needed = needed_memory(shape, settings)
    problems.add(
        *memory_problems(memory.place, held, needed, settings.cells(shape.num_hidden_layers))
    )
    problems.check()
    return {key: t for key, t in tensors.items() if key not in idle} | held, tuple(sorted(idle))
