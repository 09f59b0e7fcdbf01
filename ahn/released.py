"""`config.json` of AHN checkpoints: the released key names and ours, translated here only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ahn.config import PAPER_SINKS, PAPER_WINDOW, AHNConfig, InputError

_FAMILIES = {"qwen2": "qwen2", "qwen2_ahn": "qwen2", "qwen3": "qwen3", "qwen3_ahn": "qwen3"}
_STOCK_CLASS = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_AHN_CLASS = {"qwen2": "Qwen2AHNForCausalLM", "qwen3": "Qwen3AHNForCausalLM"}
_LAYER = {"qwen2": "Qwen2MemDecoderLayer", "qwen3": "Qwen3MemDecoderLayer"}

#: keys that say how the memory was trained; they change nothing at inference
_TRAINING_KEYS = (
    "loss_type",
    "ahn_position",
    "sliding_window_type",
    "use_normalized_l2",
    "use_layerwise_decay",
    "is_causal",
)
#: every key of a released configuration that a base configuration does not have
RELEASED_KEYS = {
    "_ahn_implementation",
    "_layer_implementation",
    "fa_layer_ids",
    "num_attn_sinks",
    "use_ahn_router",
    "use_q_proj",
    *_TRAINING_KEYS,
}


def model_family(path_or_id: str | Path, config: Mapping[str, Any]) -> str:
    """`qwen2` or `qwen3`.

    Raises:
        InputError: another family of models.
    """
    family = _FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise InputError(
            f"{path_or_id}: config.json: model_type {config.get('model_type')!r} is not "
            "supported; Qwen2 (Qwen2.5) and Qwen3 are"
        )
    return family


def read_ahn_config(config: Mapping[str, Any], where: str | Path) -> AHNConfig | None:
    """The AHN settings of a `config.json`, ours or a released one; None when it has none.

    Raises:
        InputError: an unknown cell, a value that no setting can have, or something that this
            package does not compute (`use_q_proj`, `use_ahn_router`: the reference's own
            inference with them is faulty, so that nothing says what is right).
    """
    if config.get("ahn"):
        try:
            return AHNConfig(**config["ahn"])
        except (TypeError, InputError) as error:
            raise InputError(f"{where}: config.json, 'ahn': {error}") from None
    cell = config.get("_ahn_implementation")
    if cell is None:
        return None
    problems = [
        f"{key}: {json.dumps(config[key])}, which is not supported (the released code's "
        "inference with it is faulty)"
        for key in ("use_q_proj", "use_ahn_router")
        if config.get(key)
    ]
    layer, wanted = config.get("_layer_implementation"), _LAYER.get(str(config.get("model_type")))
    if layer is not None and wanted is not None and layer != wanted:
        problems.append(
            f"_layer_implementation: {layer!r}, but model_type {config['model_type']!r} has "
            f"{wanted!r}"
        )
    window, sinks = config.get("sliding_window"), config.get("num_attn_sinks")
    window = PAPER_WINDOW if window is None else window
    sinks = PAPER_SINKS if sinks is None else sinks
    layers, wrong = _layer_ids(config.get("fa_layer_ids"))
    problems += wrong + AHNConfig.problems("ahn", cell, window, sinks, layers)
    if problems:
        raise InputError("\n".join(f"{where}: config.json: {problem}" for problem in problems))
    return AHNConfig(cell=cell, window=window, sinks=sinks, full_attention_layers=layers)


def _layer_ids(given: Any) -> tuple[tuple[int, ...], list[str]]:
    """`fa_layer_ids` (`"0,35"`, or a list) as numbers, and what is wrong with it."""
    parts = given if isinstance(given, (list, tuple)) else str("" if given is None else given)
    if isinstance(parts, str):
        parts = [part.strip() for part in parts.split(",") if part.strip()]
    numbers, wrong = [], []
    for part in parts:
        try:
            if isinstance(part, (bool, float)):
                raise ValueError
            numbers.append(int(part))
        except (TypeError, ValueError):
            wrong.append(f"fa_layer_ids: {part!r} is not the number of a layer ('0,35')")
    return tuple(numbers), wrong


def training_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says about how its memory was trained."""
    kept = config.get("ahn_training")
    source: Mapping[str, Any] = kept if isinstance(kept, dict) else config
    return {key: source[key] for key in source if key in _TRAINING_KEYS}


def released_config(base: Mapping[str, Any], ahn: AHNConfig, **training: Any) -> dict[str, Any]:
    """A `config.json` with the key names of released checkpoints, for AHN-only folders."""
    config = {k: v for k, v in base.items() if k not in ("ahn", "ahn_training", "_name_or_path")}
    family = _FAMILIES[str(config["model_type"])]
    config.update(
        model_type=family,
        architectures=[_STOCK_CLASS[family]],
        _layer_implementation=_LAYER[family],
        _ahn_implementation=ahn.cell,
        sliding_window=ahn.window,
        num_attn_sinks=ahn.sinks,
        fa_layer_ids=",".join(map(str, ahn.full_attention_layers)),
        use_q_proj=False,
        use_ahn_router=False,
        **training,
    )
    return config


def merged_config(
    base: Mapping[str, Any], settings: Mapping[str, Any], training: Mapping[str, Any]
) -> dict[str, Any]:
    """A `config.json` of our own model types, for a folder with base and memory weights.

    Args:
        base: the base model's `config.json`.
        settings: the fields of `AHNConfig`.
        training: `training_keys` of the memory's configuration, kept so that `split` gives them
            back.
    """
    config = {k: v for k, v in base.items() if k not in RELEASED_KEYS | {"_name_or_path"}}
    family = _FAMILIES[str(config["model_type"])]
    config |= {
        "model_type": f"{family}_ahn",
        "architectures": [_AHN_CLASS[family]],
        "ahn": dict(settings),
    }
    if training:
        config["ahn_training"] = dict(training)
    return config


def sliding_layers(config: Mapping[str, Any]) -> list[int]:
    """Layers that the base model itself gives a sliding window (transformers' rule)."""
    layers, kinds = config.get("num_hidden_layers"), config.get("layer_types")
    if isinstance(kinds, list):
        return [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]
    if not config.get("use_sliding_window") or not isinstance(layers, int):
        return []
    if config.get("sliding_window", 4096) is None:
        return []
    first = config.get("max_window_layers", 28)
    return list(range(first, layers)) if isinstance(first, int) else []


def without_own_window(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the base's own sliding window: the layout's replaces it."""
    return {
        k: v
        for k, v in config.items()
        if k not in ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
    }
