"""Loading models: base and memory weights from one folder or two, strictly.

Only safetensors are read; a checkpoint is either used whole or refused with the names of what
does not fit. Every weight gets one type at load: `dtype`, else the base model's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ahn.checkpoint_files import describe_model, local_folder, stored_tensors, weight_files
from ahn.checkpoint_keys import (
    MEMORY_KEY,
    base_problems,
    listed,
    memory_problems,
    needed_base,
    needed_memory,
    router_problems,
    two_sources_problems,
)
from ahn.config import AHNConfig, InputError
from ahn.placement import resolve_device_map, resolve_dtype
from ahn.released import (
    RELEASED_KEYS,
    model_family,
    read_ahn_config,
    released_config,
    sliding_layers,
    without_own_window,
)
from ahn.rope import with_rope
from ahn.safetensors_files import StoredTensor, not_finite
from ahn.shapes import ModelShape

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
]


@dataclass(frozen=True)
class Checkpoint:
    """What is to be loaded, settled from configurations alone.

    Attributes:
        path: base model, or merged model: folder or hub id.
        config: its `config.json`, with the RoPE scaling that was asked for.
        family: `qwen2` or `qwen3`.
        shape: its sizes.
        settings: cell, window, sinks, layers with full attention, variant.
        source: where the memory's weights are; None: the variant needs none.
    """

    path: str | Path
    config: dict[str, Any]
    family: str
    shape: ModelShape
    settings: AHNConfig
    source: str | Path | None

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
) -> Checkpoint:
    """What `load_model` would load, from the configurations of base and memory.

    Raises:
        InputError: everything that is wrong with the arguments or the configurations.
    """
    problems = AHNConfig.problems(variant, None, window, sinks)
    if problems:
        raise InputError("\n".join(problems))
    config = describe_model(path_or_id)
    family = model_family(path_or_id, config)
    own = read_ahn_config(config, path_or_id)
    source: str | Path | None = None
    settings = own
    if AHNConfig(variant=variant).layer(0).cell is not None:
        source = ahn if ahn is not None else (path_or_id if own is not None else None)
        if source is None:
            raise InputError(
                f"variant {variant!r} needs memory weights: {path_or_id} has none, pass ahn= "
                "(--ahn) with a folder or hub id of AHN weights"
            )
    if ahn is not None:
        ahn_json = describe_model(ahn)
        if model_family(ahn, ahn_json) != family:
            raise InputError(
                f"{ahn}: trained for {ahn_json.get('model_type')}, but {path_or_id} is "
                f"{config.get('model_type')}"
            )
        settings = read_ahn_config(ahn_json, ahn)
        if settings is None:
            raise InputError(
                f"{ahn}: config.json names no cell (_ahn_implementation); not an AHN checkpoint"
            )
    settings = settings or AHNConfig()
    settings = replace(
        settings,
        variant=variant,
        window=settings.window if window is None else window,
        sinks=settings.sinks if sinks is None else sinks,
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
    sliding = sliding_layers(config) if own is None else []
    if sliding and (variant == "full" or window is None):
        raise InputError(
            f"{path_or_id}: config.json has use_sliding_window: true: {len(sliding)} of its "
            "layers have a window of their own, which no variant here computes; replace it "
            "with a window of yours (window=, --window; variants window, ahn, no-write), or "
            "set use_sliding_window to false"
        )
    try:
        config = with_rope(config, rope_scaling, yarn_factor)
    except InputError as error:
        raise InputError(f"{path_or_id}: {error}") from None
    return Checkpoint(path_or_id, config, family, shape, settings, source)


def checkpoint_tensors(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint, base and memory, by key.

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
        problems += memory_problems(source, held, needed, checkpoint.settings.cell)
        tensors = tensors | held
    else:
        problems += router_problems(path, tensors)
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
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
) -> Any:
    """Load a model in one of its variants.

    Args:
        path_or_id: folder or hub id of a Qwen2/Qwen3 checkpoint, or one with AHN weights merged in.
        variant: `full`, `window`, `ahn` or `no-write` (see `ahn.VARIANTS`).
        ahn: folder or hub id of AHN weights; not needed for `full` and `window`, nor when they
            are merged into the model.
        window: sliding window W in tokens, the current one included, sinks not; default: the AHN
            checkpoint's, else the paper's 32,640.
        sinks: attention sinks in tokens; default as for `window`, else 128. More sinks than
            window are fine.
        dtype: torch dtype or its name, for all weights (memory included); default: the base
            model's. States and norms are computed in float32 whatever it is.
        device: where to put the model; `auto`: a GPU where there is one; default: CPU.
        device_map: instead of `device`, as in transformers: `auto`, or modules to devices.
        rope_scaling: as in transformers, e.g. `{"rope_type": "yarn", "factor": 4.0}`; default:
            the checkpoint's.
        yarn_factor: short for `rope_scaling` with YaRN.

    Returns:
        A `PreTrainedModel` in eval mode; `forward` and `generate` work. Its `config` holds the
        RoPE scaling (`rope_parameters`) and the AHN settings (`ahn`).

    Raises:
        InputError: paths, shapes, keys or settings that do not fit; the message names them.
    """
    checkpoint = resolve_checkpoint(
        path_or_id, variant, ahn, window, sinks, rope_scaling, yarn_factor
    )
    # first everything that needs no weights, so that nothing is loaded half (or downloaded)
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
    _check_finite(model, path_or_id)
    return model.eval()


def _check_memory_finite(tensors: Mapping[str, StoredTensor], checkpoint: Checkpoint) -> None:
    if checkpoint.source is None:
        return
    bad = not_finite({key: t for key, t in tensors.items() if MEMORY_KEY.match(key)})
    if bad:
        raise InputError(
            f"{tensors[bad[0]].file}: weights that are not finite numbers: {listed(bad)}"
        )


def _check_finite(model: Any, path: str | Path) -> None:
    import torch

    if offloaded := [name for name, p in model.named_parameters() if p.is_meta]:
        raise InputError(
            f"{path}: does not fit where device_map puts it: {listed(offloaded)} would be "
            "offloaded, which is not supported (a memory's weights must lie where it computes); "
            "take a smaller dtype, or device='cpu'"
        )
    bad = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if bad:
        raise InputError(
            f"{path}: weights that are not finite numbers in {model.dtype}: {listed(bad)}"
        )


def build_model(
    folder: Path,
    family: str,
    config: Mapping[str, Any],
    settings: AHNConfig,
    dtype: Any,
    *,
    tensors: Mapping[str, StoredTensor] | None = None,
    device_map: Any = None,
) -> Any:
    """The model of `ahn.modeling` with the folder's weights; memories it lacks are fresh.

    Args:
        folder: of the base model.
        family: `qwen2` or `qwen3`.
        config: its `config.json`.
        settings: what AHN adds.
        dtype: torch dtype of all weights, or `auto`.
        tensors: where every weight lies, also outside `folder`; default: the folder's.
        device_map: as in transformers.
    """
    from ahn import modeling

    classes: dict[str, tuple[Any, Any]] = {
        "qwen2": (modeling.Qwen2AHNConfig, modeling.Qwen2AHNForCausalLM),
        "qwen3": (modeling.Qwen3AHNConfig, modeling.Qwen3AHNForCausalLM),
    }
    config_class, model_class = classes[family]
    values = {k: v for k, v in config.items() if k not in RELEASED_KEYS | {"ahn", "model_type"}}
    own = config_class(ahn=settings.to_dict(), **without_own_window(values))
    own.architectures = [model_class.__name__]
    tensors = stored_tensors(folder) if tensors is None else tensors
    with _without_load_report(), _one_folder(folder, tensors) as joined:
        try:
            model, info = model_class.from_pretrained(
                joined,
                config=own,
                dtype=dtype,
                device_map=device_map,
                use_safetensors=True,
                output_loading_info=True,
            )
        except ValueError as error:
            if device_map is None:
                raise
            raise InputError(f"device_map {device_map!r}: {error}") from error
    model.config._name_or_path = model.name_or_path = str(folder)
    stray = [k for k in info["unexpected_keys"] if not MEMORY_KEY.match(k)]
    absent = [k for k in info["missing_keys"] if not MEMORY_KEY.match(k)]
    problems = []
    if stray:
        problems.append(f"{folder}: keys that the model has not: {listed(stray)}")
    if absent:
        problems.append(f"{folder}: weights are missing: {listed(absent)}")
    if info["mismatched_keys"]:
        problems.append(f"{folder}: shapes do not fit: {info['mismatched_keys']}")
    if problems:
        raise InputError("\n".join(problems))
    return model


@contextmanager
def _one_folder(folder: Path, tensors: Mapping[str, StoredTensor]) -> Iterator[Path]:
    """All files of base and memory behind one index, as links: transformers loads one folder."""
    with tempfile.TemporaryDirectory(prefix="ahn-load-") as made:
        joined = Path(made)
        links: dict[Path, str] = {}
        for tensor in tensors.values():
            if tensor.file not in links:
                links[tensor.file] = f"weights-{len(links):05d}.safetensors"
                (joined / links[tensor.file]).symlink_to(tensor.file.resolve())
        index = {
            "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
            "weight_map": {key: links[tensor.file] for key, tensor in tensors.items()},
        }
        (joined / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        for name in ("config.json", "generation_config.json"):  # for `generate`'s defaults
            if (folder / name).is_file():
                (joined / name).symlink_to((folder / name).resolve())
        yield joined


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Keys are accounted for here; transformers' table of them would only frighten."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def save_memory(model: Any, folder: Path, base_config: Mapping[str, Any], **training: Any) -> None:
    """Write an AHN-only folder: `model.safetensors` with released key names, and `config.json`.

    Args:
        model: a model of `ahn.modeling` with memories.
        folder: made when absent.
        base_config: the base model's `config.json`.
        training: further keys of a released configuration (`loss_type` ...).
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: p.detach().cpu().contiguous()
        for name, p in model.named_parameters()
        if MEMORY_KEY.match(name)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = released_config(base_config, AHNConfig(**model.config.ahn), **training)
    write_config(folder, config)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write `config.json`."""
    text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
