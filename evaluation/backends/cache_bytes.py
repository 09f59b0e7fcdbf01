"""How many bytes any cache holds: counted on its tensors, whatever class it is.

Two numbers, because they differ: the bytes of the elements that are *in use*, and the bytes of the
*storages* behind them. A sliding layer of transformers keeps a view of the whole prompt after a
prefill, so it uses a window's bytes and holds a prompt's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_KINDS: tuple[tuple[str, str], ...] = (
    (r"scale|zero|shift|meta", "scales"),
    (r"quantized|qdata|packed|W_q", "quantized"),
    (r"write|log_decay|gate", "gates"),
    (r"conv", "conv"),
    (r"recurrent|ssm|state|temporal", "state"),
    (r"key|value|compressed|kv", "keys_values"),
)
_MOST_OBJECTS = 1_000_000
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device)


@dataclass(frozen=True)
class Held:
    """What a cache holds."""

    used: int
    """Bytes of the elements in use."""
    stored: int
    """Bytes of the storages they lie in, each storage once."""
    parts: Mapping[str, int]
    """`used` by kind: `keys_values`, `state`, `conv`, `gates`, `quantized`, `scales`, `other`."""


def held(*caches: Any) -> Held:
    """The bytes of all tensors that can be reached from some objects, parameters not among them.

    Attributes, lists, tuples, sets and mappings are followed; modules, functions and configurations
    are not. A tensor that is reached twice, and elements that two views share, count once.
    """
    storages: dict[int, int] = {}
    used: dict[int, int] = {}
    parts: dict[str, int] = {}
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in _tensors(caches):
        storage = tensor.untyped_storage()
        place = storage._cdata
        view = (place, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if view in seen:
            continue
        seen.add(view)
        storages[place] = storage.nbytes()
        before = used.get(place, 0)
        # Views of one storage may overlap, and an expanded one repeats its elements.
        used[place] = min(before + tensor.numel() * tensor.element_size(), storage.nbytes())
        kind = _kind(name)
        parts[kind] = parts.get(kind, 0) + used[place] - before
    return Held(sum(used.values()), sum(storages.values()), parts)


def _kind(path: str) -> str:
    """The kind of a tensor by the names that led to it, the nearest first."""
    for name in reversed(path.split(".")):
        for pattern, kind in _KINDS:
            if re.search(pattern, name, re.IGNORECASE):
                return kind
    return "other"


def _tensors(root: Any) -> Iterator[tuple[str, Tensor]]:
    """Every plain tensor below an object with the path of names that led there."""
    todo: list[tuple[str, Any]] = [("", root)]
    seen: set[int] = set()
    alive: list[Any] = []  # ids are only unique while the object is
    while todo:
        path, value = todo.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen.add(id(value))
        alive.append(value)
        if len(seen) > _MOST_OBJECTS:
            raise RuntimeError("a cache of more than a million objects: it cannot be counted")
        if isinstance(value, Tensor):
            inner = getattr(value, "__tensor_flatten__", None)
            if inner is None or type(value) is Tensor:
                yield path, value
                continue
            names, _ = inner()
            todo += [(f"{path}.{name}", getattr(value, name)) for name in names]
        elif isinstance(value, Mapping):
            todo += [(f"{path}.{key}", item) for key, item in value.items()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            todo += [(path, item) for item in value]
        elif not _is_foreign(value):
            todo += [(f"{path}.{name}", item) for name, item in _attributes(value)]


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from list(getattr(value, "__dict__", {}).items())
    for owner in type(value).__mro__:
        slots = owner.__dict__.get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def _is_foreign(value: Any) -> bool:
    """Whether a value belongs to the model or the program rather than to the cache."""
    from transformers import PretrainedConfig

    if isinstance(value, (torch.nn.Module, PretrainedConfig)) or callable(value):
        return True
    return type(value).__module__.split(".")[0] in ("builtins", "weakref", "threading", "logging")
