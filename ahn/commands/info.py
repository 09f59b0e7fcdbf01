"""What a checkpoint or a model of the zoo contains: sizes, memory, window, RoPE. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from ahn.cells.registry import CELLS
from ahn.checkpoints.config_values import check_values
from ahn.checkpoints.keys import MEMORY_KEY, needed_base, needed_memory
from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.rope import rope_parameters, rope_summary
from ahn.checkpoints.safetensors_files import ITEM_BYTES, StoredTensor
from ahn.config import AHNConfig
from ahn.cost import zoo
from ahn.cost.accounting import cache_bytes
from ahn.cost.shapes import ModelShape, added_parameters
from ahn.families import family_of
from ahn.released import read_ahn_config, window_notice
from common.errors import InputError

#: parts of a model, in the order of a table
PARTS = ("embedding", "attention", "mlp", "norms", "lm_head", "memory", "other")


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without loading its weights.

    Attributes:
        name: path, hub id, or name in the zoo.
        kind: `base`, `merged` (base and AHN weights), `ahn` (AHN weights alone), `zoo`.
        model_type: of `config.json`.
        cell: memory cell; None without memory.
        window: sliding window W in tokens, sinks not included.
        sinks: attention sinks in tokens.
        window_notice: warning about the window, see `ahn.released.window_notice`; None: no warning.
        full_attention_layers: layers that keep full attention and have no memory.
        num_hidden_layers: decoder layers.
        rope: RoPE parameters in transformers' form.
        rope_scaling: the same as one line of text.
        max_position_embeddings: positions of the configuration.
        parameters: parameters by part; a tied output head is counted once.
        parameters_total: their sum.
        dtypes: tensors by type, as safetensors names it; empty for a zoo entry.
        disk_bytes: bytes of the tensors on disk; None for a zoo entry.
        memory_bytes: bytes of the weights once loaded in the base's type; in bfloat16 for a zoo
            entry.
        cache_state_bytes: bytes of the memory's states for one sequence, float32 (analytic).
        released_ahn: hub ids of AHN weights released for this model, by cell (zoo).
    """

    name: str
    kind: str
    model_type: str
    cell: str | None
    window: int | None
    sinks: int | None
    window_notice: str | None
    full_attention_layers: tuple[int, ...]
    num_hidden_layers: int
    rope: Mapping[str, Any]
    rope_scaling: str
    max_position_embeddings: int | None
    parameters: Mapping[str, int]
    parameters_total: int
    dtypes: Mapping[str, int] = field(default_factory=dict)
    disk_bytes: int | None = None
    memory_bytes: int | None = None
    cache_state_bytes: int | None = None
    released_ahn: Mapping[str, str] = field(default_factory=dict)


def checkpoint_info(path_or_id: str | Path) -> ModelInfo:
    """Reads `config.json` and the headers of the weights; of a hub id only these are fetched.

    Raises:
        InputError: no checkpoint, a model of no known family, or files that cannot be read.
    """
    files = CheckpointFiles(path_or_id)
    path_or_id, config = files.place, files.config
    family_of(config, path_or_id)
    settings = read_ahn_config(config, path_or_id)
    try:
        shape = ModelShape.from_config(config)
    except InputError as error:
        raise InputError(f"{path_or_id}: config.json: {error}") from None
    check_values(config, path_or_id)
    files.check_stop_tokens(shape.vocab_size)
    tensors = files.tensors
    has_base = "model.embed_tokens.weight" in tensors
    has_memory = any(MEMORY_KEY.match(key) for key in tensors)
    if not has_base and not has_memory:
        raise InputError(f"{path_or_id}: holds neither a base model nor AHN weights")
    if has_memory and settings is None:
        raise InputError(f"{path_or_id}: has AHN weights, but config.json names no cell")
    counted = {
        key: tensor.shape
        for key, tensor in tensors.items()
        if not (key == "lm_head.weight" and shape.tie_word_embeddings)
        and not key.endswith("rotary_emb.inv_freq")
    }
    parameters = count_parts(counted)
    total = sum(parameters.values())
    shown = settings if has_memory else None
    return ModelInfo(
        name=str(path_or_id),
        kind="merged" if has_base and has_memory else "base" if has_base else "ahn",
        model_type=str(config["model_type"]),
        cell=shown.cell if shown else None,
        window=shown.window if shown else None,
        sinks=shown.sinks if shown else None,
        window_notice=window_notice(config, path_or_id) if shown else None,
        full_attention_layers=shown.full_attention_layers if shown else (),
        num_hidden_layers=shape.num_hidden_layers,
        rope=rope_parameters(config),
        rope_scaling=rope_summary(config),
        max_position_embeddings=config.get("max_position_embeddings"),
        parameters=parameters,
        parameters_total=total,
        dtypes=dict(Counter(tensor.dtype for tensor in tensors.values())),
        disk_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        memory_bytes=total * ITEM_BYTES[_loaded_type(tensors)],
        cache_state_bytes=_state_bytes(shape, shown),
    )


def zoo_info(
    name: str,
    cell: str | None = None,
    window: int | None = None,
    sinks: int | None = None,
) -> ModelInfo:
    """A model of the zoo and what a memory cell would add to it, computed from its shape.

    Args:
        name: of the zoo, or a hub id.
        cell: memory cell; None: the base model alone.
        window: in tokens; default: the paper's.
        sinks: in tokens; default: the paper's.

    Raises:
        InputError: unknown model or cell, or an invalid window or number of sinks.
    """
    model = zoo.find(name)
    problems = AHNConfig.problems("ahn", cell, window, sinks)
    if problems:
        raise InputError(*problems)
    shapes = dict(needed_base(model.shape))
    settings = None
    if cell is not None:
        default = AHNConfig(cell=cell)
        settings = AHNConfig(
            cell=cell,
            window=default.window if window is None else window,
            sinks=default.sinks if sinks is None else sinks,
        )
        shapes |= needed_memory(model.shape, settings)
    parameters = count_parts(shapes)
    total = sum(parameters.values())
    return ModelInfo(
        name=model.name,
        kind="zoo",
        model_type=model.model_type,
        cell=cell,
        window=settings.window if settings else None,
        sinks=settings.sinks if settings else None,
        window_notice=None,
        full_attention_layers=(),
        num_hidden_layers=model.shape.num_hidden_layers,
        rope=dict(model.rope_scaling),
        rope_scaling=rope_summary({"rope_scaling": model.rope_scaling}),
        max_position_embeddings=model.max_position_embeddings,
        parameters=parameters,
        parameters_total=total,
        memory_bytes=2 * total,
        cache_state_bytes=_state_bytes(model.shape, settings),
        released_ahn=model.released_ahn,
    )


def zoo_table() -> list[dict[str, Any]]:
    """Every model of the zoo: name, hub id, parameters, what each cell adds, released weights."""
    rows = []
    for name in zoo.names():
        model = zoo.find(name)
        rows.append(
            {
                "name": name,
                "hub_id": model.hub_id,
                "parameters": model.shape.parameters,
                "added_parameters": {
                    cell: added_parameters(model.shape, cell) for cell in CELLS.builtin
                },
                "released_ahn": dict(model.released_ahn),
            }
        )
    return rows


def count_parts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Parameters by part of the model, in the order of `PARTS`; absent parts are left out."""
    counts: Counter[str] = Counter()
    for key, shape in shapes.items():
        counts[_part(key)] += prod(shape)
    return {part: counts[part] for part in PARTS if counts[part]}


def _part(key: str) -> str:
    if MEMORY_KEY.match(key):
        return "memory"
    if "norm" in key.rsplit(".", 2)[-2]:  # q_norm and k_norm too
        return "norms"
    for mark, part in (
        ("embed_tokens", "embedding"),
        ("self_attn", "attention"),
        ("mlp", "mlp"),
        ("lm_head", "lm_head"),
    ):
        if mark in key:
            return part
    return "other"


def _loaded_type(tensors: Mapping[str, StoredTensor]) -> str:
    """The type a checkpoint is loaded in: that of its embedding; without one, the most frequent."""
    if (embedding := tensors.get("model.embed_tokens.weight")) is not None:
        return embedding.dtype
    return Counter(tensor.dtype for tensor in tensors.values()).most_common(1)[0][0]


def _state_bytes(shape: ModelShape, settings: AHNConfig | None) -> int | None:
    if settings is None:
        return None
    return cache_bytes(
        shape,
        "ahn",
        settings.window + settings.sinks,
        window=settings.window,
        sinks=settings.sinks,
        cell=settings.cell,
        full_attention_layers=settings.full_attention_layers,
        layers=settings.layers,
    ).state
