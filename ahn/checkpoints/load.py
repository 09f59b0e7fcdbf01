"""Loading models: base and memory weights from one folder or two, strictly.

Only safetensors are read; a checkpoint is either used whole or refused with the names of what
does not fit. Every weight gets one type at load: `dtype`, else the base model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ahn.checkpoints.build import build_model, check_finite
from ahn.checkpoints.keys import MEMORY_KEY, listed
from ahn.checkpoints.locate import CheckpointFiles, describe_model, local_folder, weight_files
from ahn.checkpoints.resolve import ResolvedCheckpoint, resolve_checkpoint
from ahn.checkpoints.safetensors_files import not_finite
from ahn.checkpoints.write import save_memory, write_config
from ahn.released import read_ahn_config, released_config
from common.errors import InputError
from common.notices import tell_once

__all__ = [
    "build_model",
    "check_model",
    "describe_model",
    "load_model",
    "load_resolved",
    "local_folder",
    "read_ahn_config",
    "released_config",
    "resolve_checkpoint",
    "save_memory",
    "weight_files",
    "write_config",
]


def check_model(
    path_or_id: str | Path | CheckpointFiles,
    variant: str,
    ahn: str | Path | None = None,
    window: int | None = None,
    sinks: int | None = None,
    **options: Any,
) -> list[str]:
    """Everything that `resolve_checkpoint` finds to be wrong, a line each; takes what it takes."""
    try:
        resolve_checkpoint(path_or_id, variant, ahn, window, sinks, **options)
        return []
    except InputError as error:
        return str(error).splitlines()


def load_model(
    path_or_id: str | Path | CheckpointFiles,
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
    rate: int | None = None,
    pooling: str | None = None,
    slots: int | None = None,
) -> Any:
    """Load a model in one of its variants.

    Args:
        path_or_id: folder or hub id of a checkpoint of a known family (see `ahn.families`), or
            one with AHN weights merged in.
        variant: `full`, `window`, `ahn`, `no-write`, `compressive` or `memory-only` (see
            `ahn.VARIANTS`); `memory-only` has no window and no sinks, and uses none.
        ahn: folder or hub id of AHN weights; not needed for `full`, `window` and `compressive`,
            nor when they are merged into the model.
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
        rate: of `compressive`: tokens pooled into one; default: the paper's 4.
        pooling: of `compressive`: `mean` (default) or `max`.
        slots: of `compressive`: pooled slots of each layer; default: the paper's `H d / (2 K)`,
            which take the bytes of a recurrent state in the model's type.

    Returns:
        A `PreTrainedModel` in eval mode; `forward` and `generate` work. Its `config` holds the
        RoPE scaling (`rope_parameters`) and the AHN settings (`ahn`).

    Raises:
        InputError: paths, shapes, keys or settings that do not fit; the message names them. A
            backend that is not installed: it says how to install it.
    """
    checkpoint = resolve_checkpoint(
        path_or_id,
        variant,
        ahn,
        window,
        sinks,
        dtype,
        device,
        device_map=device_map,
        rope_scaling=rope_scaling,
        yarn_factor=yarn_factor,
        backend=backend,
        rate=rate,
        pooling=pooling,
        slots=slots,
    )
    for notice in checkpoint.notices:
        tell_once(notice)
    return load_resolved(checkpoint)


def load_resolved(checkpoint: ResolvedCheckpoint) -> Any:
    """The model that was resolved, in eval mode; what `load_model` returns.

    Raises:
        InputError: what only the weights tell: numbers that are not finite, a device that is too
            small, a configuration that transformers refuses.
    """
    import torch

    checkpoint = checkpoint.downloaded()
    if checkpoint.memory is not None:
        memory = {key: t for key, t in checkpoint.tensors.items() if MEMORY_KEY.match(key)}
        if bad := not_finite(memory):
            raise InputError(
                f"{memory[bad[0]].file}: weights that are not finite numbers: {listed(bad)}"
            )
    model = build_model(
        checkpoint.base.folder(),
        checkpoint.family,
        checkpoint.config,
        checkpoint.settings,
        getattr(torch, checkpoint.dtype),
        tensors=checkpoint.tensors,
        device_map=checkpoint.device_map,
    )
    check_finite(model, checkpoint.path)
    return model.eval()
