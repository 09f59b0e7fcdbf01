"""A cache on disk: a document read once and asked later, in another process.

One safetensors file: the tensors of every layer, and in its metadata what they belong to.  A cache
means something to the model that made it only, so it names that model by its shape, its layouts
and a fingerprint of its weights, and another one refuses it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ahn.cells.base import kept_dtype
from ahn.cells.registry import CELLS
from ahn.config import LayerLayout
from ahn.cost.accounting import layer_slots
from ahn.models.weights import stored_weights
from common.errors import InputError
from common.writing import replacing

#: of the file; a reader refuses what it does not know
FORMAT = "ahn-cache"
VERSION = 1
_KEY = "ahn_cache"
#: fields of every layout
_LAYOUT = ("window", "sinks", "cell", "write")
_SHAPE = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rope",
    "dtype",
)


def identify(model: Any) -> dict[str, Any]:
    """What a cache of this model belongs to: shape, rotary embedding, dtype, and weights."""
    config = model.config
    heads = config.num_attention_heads
    # the names of its weights are others than those of the language model around it
    part = {"part": "stack"} if model.base_model is model else {}
    return part | {
        "model_type": config.model_type,
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "vocab_size": config.vocab_size,
        "rope": json.loads(json.dumps(getattr(config, "rope_parameters", None), default=str)),
        "dtype": str(model.dtype).removeprefix("torch."),
        # what lies on the meta device has no values to compare
        "weights": None if any(p.is_meta for p in model.parameters()) else fingerprint(model),
    }


@torch.no_grad()
def fingerprint(model: Any, samples: int = 64) -> str:
    """SHA-256 of up to `samples` values of every stored tensor, their names and shapes.

    Tells one model from another and before from after training; it is no protection against
    weights made to collide.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(stored_weights(model)):
        flat = parameter.detach().flatten()
        step = max(1, flat.numel() // samples)
        values = flat[::step][:samples].float().cpu().contiguous()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class SavedCache:
    """What a file of `AHNCache.save` holds."""

    layouts: Sequence[LayerLayout]
    """Window, sinks and cell of each layer."""
    tensors: Sequence[Mapping[str, Tensor]]
    """The tensors of each layer by name: `keys`, `values`, and what its cell declares; of a layer
    that has its memory alone, the states."""
    rows: int | None
    """Batch size; None: the cache is empty."""
    seen: int | list[int]
    """Tokens of each row; one number where all rows have as many."""
    columns: int
    """Columns of the input so far, padding counted."""
    model: Mapping[str, Any]
    """`identify(model)` of the model that made the cache."""


def write_cache(saved: SavedCache, path: Path) -> None:
    """Write a cache to `path`; folders on the way are made, a reader never sees half a file.

    Raises:
        InputError: the file cannot be written there, or is there and no saved cache.
    """
    if path.is_file() and path.stat().st_size and not _is_cache(path):
        raise InputError(
            f"{path}: is there already and holds no saved cache, so it is not replaced; name "
            "another file, or delete this one"
        )
    tensors = {
        f"layers.{index}.{name}": tensor.detach().cpu().contiguous()
        for index, layer in enumerate(saved.tensors)
        for name, tensor in layer.items()
    }
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "model": dict(saved.model),
        "layouts": [
            {name: getattr(layout, name) for name in _LAYOUT} | layout.pooled
            for layout in saved.layouts
        ],
        "rows": saved.rows,
        "seen": saved.seen,
        "columns": saved.columns,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as beside:
            save_file(tensors, beside, metadata={_KEY: json.dumps(facts, sort_keys=True)})
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: the cache cannot be written: {error}") from None


def read_cache(path: Path) -> SavedCache:
    """Read what `write_cache` wrote; the tensors are on the CPU.

    Raises:
        InputError: no such file, no cache, a damaged one, or one of another version.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            facts = _facts(path, file.metadata())
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, struct.error) as error:
        raise InputError(
            f"{path}: not a saved cache, or a damaged one ({error}); only safetensors files of "
            "AHNCache.save are read"
        ) from None
    try:
        layouts = [LayerLayout(**layout) for layout in facts["layouts"]]
        problems = _problems(facts, layouts, tensors)
    except InputError as error:  # a layout that cannot be, or a cell that is not installed
        raise error.prefixed(f"{path}: ") from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its metadata does not fit this version: {error!r}") from None
    if problems:
        raise InputError(*(f"{path}: {problem}" for problem in problems))
    by_layer: list[dict[str, Tensor]] = [{} for _ in layouts]
    for key, tensor in tensors.items():
        _, index, name = key.split(".")
        by_layer[int(index)][name] = tensor
    return SavedCache(
        layouts, by_layer, facts["rows"], facts["seen"], facts["columns"], facts["model"]
    )


def _is_cache(path: Path) -> bool:
    """Whether a file is a whole one of `write_cache`, of this version or another."""
    try:
        with safe_open(path, framework="pt") as file:
            return _KEY in (file.metadata() or {})
    except (SafetensorError, OSError, struct.error):
        return False


def _facts(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    try:
        facts = json.loads((metadata or {})[_KEY])
        known = facts["format"] == FORMAT
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise InputError(f"{path}: a safetensors file, but not a saved cache (AHNCache.save)")
    if facts.get("version") != VERSION:
        raise InputError(
            f"{path}: a cache of format version {facts.get('version')}, this package reads "
            f"{VERSION}; read the document again with the model"
        )
    return facts


def _problems(
    facts: Mapping[str, Any], layouts: list[LayerLayout], tensors: Mapping[str, Tensor]
) -> list[str]:
    """What does not fit between the metadata and the tensors."""
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    model, rows, seen = facts["model"], facts["rows"], facts["seen"]
    heads, kv_heads, d = (
        int(model[key]) for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    dtype = getattr(torch, model["dtype"])
    if not isinstance(seen, int) and (len(seen) != rows or not all(type(n) is int for n in seen)):
        return [f"'seen' must be {rows} whole numbers, one a row, not {seen!r}"]
    longest = seen if isinstance(seen, int) else max(seen)
    if not isinstance(facts["columns"], int) or facts["columns"] < longest or longest < 0:
        return [f"'columns' {facts['columns']!r} and 'seen' {seen!r} contradict each other"]
    if len(layouts) != model["num_hidden_layers"]:
        return [f"{len(layouts)} layouts for {model['num_hidden_layers']} layers"]
    for index, layout in enumerate(layouts if rows else []):
        slots = layer_slots(layout, longest)
        names: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        if layout.attends:
            names = dict.fromkeys(("keys", "values"), ((rows, kv_heads, slots, d), dtype))
        if layout.cell is not None:
            cell = CELLS.find(layout.cell).sized(int(model["hidden_size"]), heads, d)
            gates = cell.gates if layout.attends else {}
            for name, (first, *rest) in gates.items():
                kept = kept_dtype(cell.declaration.gates[name].dtype, dtype)
                names[name] = ((rows, first, slots, *rest), kept)
            for name, shape in cell.states.items():
                kept = kept_dtype(cell.declaration.states[name].dtype, dtype)
                names[name] = ((rows, *shape), kept)
        wanted |= {f"layers.{index}.{name}": what for name, what in names.items()}
    found = [f"{key} is missing" for key in sorted(wanted.keys() - tensors.keys())]
    found += [f"{key} belongs to no cache" for key in sorted(tensors.keys() - wanted.keys())]
    for key in sorted(wanted.keys() & tensors.keys()):
        shape, kind = wanted[key]
        if tensors[key].dtype == dtype != kind:
            return [
                f"{key} was computed in half precision by an earlier version; read the document "
                "again"
            ]
        if tuple(tensors[key].shape) != shape or tensors[key].dtype != kind:
            found.append(
                f"{key} is {list(tensors[key].shape)} {tensors[key].dtype}, the rest of the file "
                f"says {list(shape)} {kind}"
            )
    return found


def mismatches(saved: Mapping[str, Any], model: Any) -> list[str]:
    """Why a cache that belongs to `saved` is not one of this model; empty when it is."""
    if saved.get("part") == "stack":
        model = model.base_model
    elif model.base_model is model:
        return [
            "a causal language model, which must be the first to use it again (load(path, model))"
        ]
    own = identify(model)
    found = [
        f"{key} was {saved.get(key)!r}, the model's is {own[key]!r}"
        for key in _SHAPE
        if saved.get(key) != own[key]
    ]
    if not found and own["weights"] is not None and saved.get("weights") != own["weights"]:
        found.append("the weights are others: another checkpoint, or trained further since")
    return found
