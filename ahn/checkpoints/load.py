"""Loading models: base and memory weights from one folder or two, strictly.

Only safetensors are read; a checkpoint is either used whole or refused with the names of what
does not fit. Every weight gets one type at load: `dtype`, else the base model's.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ahn.checkpoints.build import build_model, check_finite
from ahn.checkpoints.config_values import check_values
from ahn.checkpoints.keys import (
    MEMORY_KEY,
    base_problems,
    idle_memory,
    listed,
    memory_problems,
    needed_base,
    needed_memory,
    router_problems,
    two_sources_problems,
)
from ahn.checkpoints.locate import (
    check_stop_tokens,
    describe_model,
    local_folder,
    stored_tensors,
    weight_files,
)
from ahn.checkpoints.placement import resolve_device_map, resolve_dtype
from ahn.checkpoints.rope import with_rope
from ahn.checkpoints.safetensors_files import StoredTensor, not_finite
from ahn.checkpoints.write import save_memory, write_config
from ahn.config import AHNConfig
from ahn.cost.shapes import ModelShape
from ahn.families import family_of
from ahn.released import read_ahn_config, released_config, window_notice
from common.errors import InputError
from common.notices import tell_once

__all__ = [
    "Checkpoint",
    "build_model",
    "check_model",
    "checkpoint_tensors",
    "describe_model",
    "load_model",
    "local_folder",
    "read_ahn_config",
    "released_config",
    "resolve_checkpoint",
    "save_memory",
    "weight_files",
    "write_config",
]


@dataclass(frozen=True)
class Checkpoint:
    """What is to be loaded, settled from configurations alone.

    Attributes:
        path: base model, or merged model: folder or hub id.
        config: its `config.json`, with the RoPE scaling that was asked for.
        family: `model_type` of its row in `ahn.families`.
        shape: its sizes.
        settings: cell, window, sinks, layers with full attention, variant.
        source: where the memory's weights are; None: the variant needs none.
        notice: what people must be told about the window; see `window_notice`.
    """

    path: str | Path
    config: dict[str, Any]
    family: str
    shape: ModelShape
    settings: AHNConfig
    source: str | Path | None
    notice: str | None = None

    @property
    def two_folders(self) -> bool:
        """Whether the memory comes from elsewhere than the base."""
        return self.source is not None and not _same(self.source, self.path)


def _same(one: str | Path, other: str | Path) -> bool:
    return str(one) == str(other) or (
        Path(one).is_dir() and Path(other).is_dir() and Path(one).samefile(other)
    )


def resolve_checkpoint(
    path_or_id: str | Path,
    variant: str = "ahn",
    ahn: str | Path | None = None,
    window: int | None = None,
    sinks: int | None = None,
    rope_scaling: Mapping[str, Any] | None = None,
    yarn_factor: float | None = None,
    backend: str | None = None,
) -> Checkpoint:
    """What `load_model` would load, from the configurations of base and memory.

    Raises:
        InputError: everything that is wrong with the arguments or the configurations.
    """
    problems = AHNConfig.problems(variant, None, window, sinks, backend=backend)
    if problems:
        raise InputError(*problems)
    config = describe_model(path_or_id)
    family = family_of(config, path_or_id)
    own = read_ahn_config(config, path_or_id)
    source: str | Path | None = None
    settings, described, place = own, config, path_or_id
    if AHNConfig(variant=variant).layer(0).cell is not None:
        source = ahn if ahn is not None else (path_or_id if own is not None else None)
        if source is None:
            raise InputError(
                f"variant {variant!r} needs memory weights: {path_or_id} has none, pass ahn= "
                "(--ahn) with a folder or hub id of AHN weights"
            )
    if ahn is not None:
        ahn_json = describe_model(ahn)
        if family_of(ahn_json, ahn) != family:
            raise InputError(
                f"{ahn}: trained for {ahn_json.get('model_type')}, but {path_or_id} is "
                f"{config.get('model_type')}"
            )
        settings = read_ahn_config(ahn_json, ahn)
        if settings is None:
            raise InputError(
                f"{ahn}: config.json names no cell (_ahn_implementation); not an AHN checkpoint"
            )
        described, place = ahn_json, ahn
    notice = None if variant == "full" else window_notice(described, place, window, sinks)
    settings = settings or AHNConfig()
    settings = replace(
        settings,
        variant=variant,
        window=settings.window if window is None else window,
        sinks=settings.sinks if sinks is None else sinks,
        backend=settings.backend if backend is None else backend,
    )
    try:
        shape = ModelShape.from_config(config)
        layer_problems = AHNConfig.problems(
            variant, None, None, None, settings.full_attention_layers, shape.num_hidden_layers
        )
        if layer_problems:
            raise InputError(f"{'; '.join(layer_problems)} (fa_layer_ids)")
    except InputError as error:
        raise InputError(f"{path_or_id}: config.json: {error}") from None
    check_values(config, path_or_id)
    check_stop_tokens(path_or_id, config, shape.vocab_size)
    sliding = family.sliding_layers(config) if own is None else []
    if sliding and (variant == "full" or window is None):
        found, remedy = family.window_switch(config)
        raise InputError(
            f"{path_or_id}: config.json has {found}: {len(sliding)} of its layers have a window "
            "of their own, which variant 'full' does not compute and the others replace: give a "
            "window of yours (window=, --window; variants window, ahn, no-write), or " + remedy
        )
    try:
        config = with_rope(config, rope_scaling, yarn_factor)
    except InputError as error:
        raise InputError(f"{path_or_id}: {error}") from None
    return Checkpoint(path_or_id, config, family.model_type, shape, settings, source, notice)


def checkpoint_tensors(checkpoint: Checkpoint, strict: bool = False) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint, base and memory, by key.

    Args:
        checkpoint: of `resolve_checkpoint`.
        strict: refuse memories of layers that keep full attention, too; else they are left out,
            with a warning: released configurations can name such layers (`fa_layer_ids`).

    Raises:
        InputError: files that cannot be read, and all keys and shapes that do not fit.
    """
    path, source = checkpoint.path, checkpoint.source
    wanted = needed_base(checkpoint.shape)
    tensors = stored_tensors(path)
    problems = base_problems(path, wanted, tensors)
    if source is not None:
        held = tensors
        if checkpoint.two_folders:
            held = stored_tensors(source)
            problems += two_sources_problems(path, tensors, source, held, wanted)
        needed = needed_memory(checkpoint.shape, checkpoint.settings)
        idle = idle_memory(checkpoint.shape, checkpoint.settings, held)
        if idle and strict:
            problems.append(
                f"{source}: memory keys of layers that keep full attention (fa_layer_ids): "
                f"{listed(idle)}"
            )
        elif idle:
            warnings.warn(
                f"{source}: not used, since these layers keep full attention (fa_layer_ids): "
                f"{listed(idle)}",
                stacklevel=3,
            )
        held = {key: tensor for key, tensor in held.items() if key not in idle}
        tensors = {key: tensor for key, tensor in tensors.items() if key not in idle}
        problems += memory_problems(source, held, needed, checkpoint.settings.cell)
        tensors = tensors | held
    else:
        problems += router_problems(path, tensors)
    if problems:
        raise InputError(*(dict.fromkeys(problems)))
    return tensors


def check_model(
    path_or_id: str | Path,
    variant: str,
    ahn: str | Path | None = None,
    window: int | None = None,
    sinks: int | None = None,
    rope_scaling: Mapping[str, Any] | None = None,
    yarn_factor: float | None = None,
) -> list[str]:
    """Everything that can be known to be wrong before any weight is loaded, a line each.

    Reads `config.json` and the headers of the safetensors files; takes what `load_model` takes.
    """
    try:
        checkpoint_tensors(
            resolve_checkpoint(path_or_id, variant, ahn, window, sinks, rope_scaling, yarn_factor)
        )
        return []
    except InputError as error:
        return str(error).splitlines()


def load_model(
    path_or_id: str | Path,
    variant: str = "ahn",
    ahn: str | Path | None = None,
    window: int | None = None,
    sinks: int | None = None,
    dtype: Any = None,
    device: Any = None,
    *,
    device_map: Any = None,
    rope_scaling: Mapping[str, Any] | None = None,
    yarn_factor: float | None = None,
    backend: str | None = None,
) -> Any:
    """Load a model in one of its variants.

    Args:
        path_or_id: folder or hub id of a model of a family of `ahn.families` (Qwen2, Qwen3, Llama,
            Mistral), or of one with AHN weights merged in.
        variant: `full`, `window`, `ahn` or `no-write` (see `ahn.VARIANTS`).
        ahn: folder or hub id of AHN weights; not needed for `full` and `window`, nor when they
            are merged into the model.
        window: sliding window W in tokens, the current one included, sinks not; default: the AHN
            checkpoint's, else the paper's 32,640, also where the checkpoint's is a leftover of
            training, as in the released ones (a logged warning says so).
        sinks: attention sinks in tokens; default as for `window`, else 128. More sinks than
            window are fine.
        dtype: torch dtype or its name, for all weights (memory included); default: the base
            model's. States and norms are computed in float32 whatever it is.
        device: where to put the model; `auto`: a GPU where there is one; default: CPU.
        device_map: instead of `device`, as in transformers: `auto`, or modules to devices.
        rope_scaling: as in transformers, e.g. `{"rope_type": "yarn", "factor": 4.0}`; default:
            the checkpoint's.
        yarn_factor: short for `rope_scaling` with YaRN.
        backend: form of the memory's recurrence (see `ahn.config.BACKENDS`); `AHN_BACKEND` in the
            environment goes before it. Default: the checkpoint's, else the fastest that fits.

    Returns:
        A `PreTrainedModel` in eval mode; `forward` and `generate` work. Its `config` holds the
        RoPE scaling (`rope_parameters`) and the AHN settings (`ahn`).

    Raises:
        InputError: paths, shapes, keys or settings that do not fit; the message names them. A
            backend that is not installed: it says how to install it.
    """
    checkpoint = resolve_checkpoint(
        path_or_id, variant, ahn, window, sinks, rope_scaling, yarn_factor, backend
    )
    tell_once(checkpoint.notice)
    # first everything that needs no weights, so that nothing is loaded half (or downloaded)
    _check_backend(checkpoint)
    placed = resolve_device_map(device, device_map)
    resolve_dtype(dtype, checkpoint.config, "F32")
    for place in (path_or_id, checkpoint.source):
        if place is not None:
            local_folder(place)
    tensors = checkpoint_tensors(checkpoint)
    _check_memory_finite(tensors, checkpoint)
    model = build_model(
        local_folder(path_or_id),
        checkpoint.family,
        checkpoint.config,
        checkpoint.settings,
        resolve_dtype(dtype, checkpoint.config, tensors["model.embed_tokens.weight"].dtype),
        tensors=tensors,
        device_map=placed,
    )
    check_finite(model, path_or_id)
    return model.eval()


def _check_backend(checkpoint: Checkpoint) -> None:
    if checkpoint.source is None:
        return
    from ahn.ops import asked, check

    check(asked(checkpoint.settings.backend))


def _check_memory_finite(tensors: Mapping[str, StoredTensor], checkpoint: Checkpoint) -> None:
    if checkpoint.source is None:
        return
    bad = not_finite({key: t for key, t in tensors.items() if MEMORY_KEY.match(key)})
    if bad:
        raise InputError(
            f"{tensors[bad[0]].file}: weights that are not finite numbers: {listed(bad)}"
        )
