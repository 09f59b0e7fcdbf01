"""Models known by name: one file each in `configs/models`. Data only, no torch.

A new file adds a model, which is named after the file. The zoo gives the cost of a model without
its weights and its `config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ahn.cells.registry import CELLS
from ahn.cost.shapes import ModelShape
from common import yaml
from common.errors import InputError
from common.suggestions import did_you_mean

_KEYS = {"hub_id", "max_position_embeddings", "shape", "rope_scaling", "released_ahn"}
_SHAPE_KEYS = {
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
}


@dataclass(frozen=True)
class ZooModel:
    """A published base model.

    Attributes:
        name: name in the zoo, e.g. `qwen2.5-3b`.
        model_type: of its `config.json`.
        hub_id: where its weights are.
        max_position_embeddings: tokens it was trained to attend over, before any extension.
        shape: its sizes.
        released_ahn: hub id of the AHN weights released for it, by memory cell.
        rope_scaling: of its `config.json`; empty: none.
    """

    name: str
    model_type: str
    hub_id: str
    max_position_embeddings: int
    shape: ModelShape
    released_ahn: Mapping[str, str]
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)


def names() -> list[str]:
    """Names of all models in the zoo, sorted by family and size."""
    return sorted(_zoo(), key=lambda name: (name.rsplit("-", 1)[0], _zoo()[name].shape.parameters))


def find(name: str) -> ZooModel:
    """The model of this name or hub id; case and `-Instruct` do not matter.

    Raises:
        InputError: no such model; names the nearest ones.
    """
    wanted = _plain(name)
    for model in _zoo().values():
        if wanted in (model.name, _plain(model.hub_id)):
            return model
    if Path(name).is_dir():
        raise InputError(f"no model {name!r} in the zoo; of a folder tells `ahn info {name}`")
    near = did_you_mean(wanted.rsplit("/", 1)[-1], names(), cutoff=0.4)
    raise InputError(f"no model {name!r} in the zoo{near or '; known: ' + ', '.join(names())}")


def _plain(name: str) -> str:
    return name.strip().lower().replace("-instruct", "")


@cache
def _zoo() -> dict[str, ZooModel]:
    folder = resources.files("configs") / "models"
    files = [file for file in folder.iterdir() if file.name.endswith(".yaml")]
    return {file.name.removesuffix(".yaml"): read(file) for file in files}


def read(file: Traversable) -> ZooModel:
    """Reads one file of the zoo.

    Raises:
        InputError: unknown, missing and invalid entries, each with the file's name.
    """
    entry = yaml.parse(file.read_text("utf-8"), str(file))
    try:
        return _parse(file.name.removesuffix(".yaml"), entry)
    except InputError as error:
        raise error.prefixed(f"{file}: ") from None


def _parse(name: str, entry: Any) -> ZooModel:
    if not isinstance(entry, dict) or not isinstance(entry.get("shape"), dict):
        raise InputError("a model is a mapping with a 'shape'")
    shape, released = entry["shape"], entry.get("released_ahn", {})
    problems = [f"unknown key {key!r}" for key in sorted(set(entry) - _KEYS)]
    problems += [f"unknown key 'shape.{key}'" for key in sorted(set(shape) - _SHAPE_KEYS)]
    problems += [f"'shape.{key}' is missing" for key in sorted(_SHAPE_KEYS - set(shape))]
    if not isinstance(entry.get("hub_id"), str):
        problems.append("'hub_id' must be a string")
    positions = entry.get("max_position_embeddings")
    if not isinstance(positions, int) or positions < 1:
        problems.append("'max_position_embeddings' must be a positive integer")
    if not isinstance(released, dict):
        problems.append("'released_ahn' must be a mapping of memory cell to hub id")
    else:
        problems += [
            f"released_ahn: cell {cell!r} is unknown; one of {', '.join(CELLS)}"
            for cell in released
            if cell not in CELLS
        ]
    scaling = entry.get("rope_scaling", {})
    if not isinstance(scaling, dict):
        problems.append("'rope_scaling' must be a mapping, as in config.json")
    if problems:
        raise InputError(*problems)
    return ZooModel(
        name=name,
        model_type=shape["model_type"],
        hub_id=entry["hub_id"],
        max_position_embeddings=entry["max_position_embeddings"],
        shape=ModelShape.from_config(shape),
        released_ahn=released,
        rope_scaling=scaling,
    )
