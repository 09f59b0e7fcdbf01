"""The `config.json` of AHN checkpoints.

Released checkpoints and this package have different key names; they are translated here only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ahn.config import PAPER_SINKS, PAPER_WINDOW, AHNConfig
from ahn.families import family_of, find_family
from common.errors import InputError

#: Keys that say how the memory was trained. They have no effect at inference.
_TRAINING_KEYS = (
    "loss_type",
    "ahn_position",
    "sliding_window_type",
    "use_normalized_l2",
    "use_layerwise_decay",
    "is_causal",
)
#: Keys that a released configuration has, a base model's has not, and some code reads. Released
#: files also hold keys that nothing reads (`dy_num_attn_sinks`, `save_ahn_only` ...).
RELEASED_KEYS = {
    "_ahn_implementation",
    "_layer_implementation",
    "fa_layer_ids",
    "num_attn_sinks",
    "use_ahn_router",
    "use_q_proj",
    *_TRAINING_KEYS,
}

#: Key of a merged folder's `config.json`: the AHN weights' own `config.json`, unchanged.
ORIGIN_KEY = "ahn_checkpoint"

#: Values of `sliding_window_type` for which training ignores `sliding_window`: `random` draws a
#: window for each batch, `linear` uses a fraction of the batch's length.
_VARYING_WINDOWS = ("random", "linear")
#: Windows of the paper's evaluations, in tokens: LV-Eval and InfiniteBench, LongBench.
_EVALUATED_WINDOWS = (PAPER_WINDOW, 8_064)


def read_ahn_config(config: Mapping[str, Any], where: str | Path) -> AHNConfig | None:
    """The AHN settings of a `config.json`, of ours or of a released one.

    A released `sliding_window` that is a leftover of training is ignored: the paper's window and
    sinks are used instead, and `window_notice` says so.

    Returns:
        The settings; None if the configuration has none.

    Raises:
        InputError: an unknown cell, an invalid value, or an option that this package does not
            compute (`use_q_proj`, `use_ahn_router`: inference with them is faulty in the reference
            implementation, so there is no correct result to compare with).
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
    layer, family = config.get("_layer_implementation"), find_family(config.get("model_type"))
    if layer is not None and family is not None and layer != family.released_layer:
        problems.append(
            f"_layer_implementation: {layer!r}, but model_type {config['model_type']!r} has "
            f"{family.released_layer!r}"
        )
    window, sinks = config.get("sliding_window"), config.get("num_attn_sinks")
    layers, wrong = _layer_ids(config.get("fa_layer_ids"))
    problems += wrong + AHNConfig.problems("ahn", cell, window, sinks, layers)
    if window is None or _window_is_a_leftover(config):
        window = PAPER_WINDOW
    sinks = PAPER_SINKS if sinks is None else sinks
    if problems:
        raise InputError(*(f"{where}: config.json: {problem}" for problem in problems))
    return AHNConfig(cell=cell, window=window, sinks=sinks, full_attention_layers=layers)


def _window_is_a_leftover(config: Mapping[str, Any]) -> bool:
    """Whether a released configuration's `sliding_window` does not describe inference.

    A configuration with a window for inference also has `num_attn_sinks`, as our trainer's has.
    """
    varied = config.get("sliding_window_type") in _VARYING_WINDOWS
    return varied and config.get("num_attn_sinks") is None


def window_notice(
    config: Mapping[str, Any],
    where: str | Path,
    window: int | None = None,
    sinks: int | None = None,
) -> str | None:
    """The warning about the window that a configuration gives.

    Args:
        config: a `config.json` with AHN settings.
        where: its folder or hub id.
        window: the user's window in tokens; it replaces the configuration's, without a warning.
        sinks: the user's number of sinks.

    Returns:
        One line; None if no warning is needed.
    """
    if window is not None:
        return None
    if config.get("ahn"):
        return _early_merge_notice(config, where)
    found = config.get("sliding_window")
    if config.get("_ahn_implementation") is None or found in (None, PAPER_WINDOW):
        return None
    if not _window_is_a_leftover(config):
        return None
    return (
        f"{where}: config.json: sliding_window {found} is a leftover of training "
        f"(sliding_window_type {config['sliding_window_type']}, no num_attn_sinks) and is not "
        f"used; used are the paper's window of {PAPER_WINDOW} tokens and "
        f"{PAPER_SINKS if sinks is None else sinks} sinks; window= and sinks= (--window, --sinks) "
        "set others"
    )


def _early_merge_notice(config: Mapping[str, Any], where: str | Path) -> str | None:
    """The warning about a folder of an early `ahn merge`, which may have stored such a leftover.

    Those folders have `ahn_training`, but no copy of the released `config.json`.
    """
    settings, training = config["ahn"], config.get("ahn_training")
    if ORIGIN_KEY in config or not isinstance(training, dict) or not isinstance(settings, dict):
        return None
    kind, window = training.get("sliding_window_type"), settings.get("window")
    if kind not in _VARYING_WINDOWS or window in (None, *_EVALUATED_WINDOWS):
        return None
    if settings.get("sinks") != PAPER_SINKS:
        return None
    return (
        f"{where}: config.json, 'ahn': window {window} with {PAPER_SINKS} sinks is used as it "
        f"stands there, and may be a leftover of training (sliding_window_type {kind}) that an "
        f"early 'ahn merge' wrote down; the paper evaluates with {PAPER_WINDOW}: set window= "
        "(--window), or merge again"
    )


def _layer_ids(given: Any) -> tuple[tuple[int, ...], list[str]]:
    """`fa_layer_ids` (`"0,35"`, or a list) as numbers, and one message per invalid entry."""
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
    """The keys of a configuration that say how its memory was trained."""
    kept = config.get("ahn_training")  # in folders that were merged before `ORIGIN_KEY`
    source: Mapping[str, Any] = kept if isinstance(kept, dict) else config
    return {key: source[key] for key in source if key in _TRAINING_KEYS}


def split_config(
    config: Mapping[str, Any], settings: AHNConfig, where: str | Path
) -> dict[str, Any]:
    """The `config.json` for the AHN weights that are split from a merged model.

    It is the original one, key for key: the copy that `merge` kept, or the model's own if that has
    released names. Only settings that were changed since are replaced.

    Args:
        config: the model's `config.json`.
        settings: `read_ahn_config` of it.
        where: its folder or hub id.

    Raises:
        InputError: the copy in the configuration does not describe AHN weights.
    """
    found = config.get(ORIGIN_KEY)
    if found is None and not config.get("ahn"):
        return dict(config)
    if found is None:
        training = training_keys(config)
        others = {k: v for k, v in config.items() if k not in training}
        return released_config(others, settings, **training)
    before = read_ahn_config(found, f"{where}: {ORIGIN_KEY}") if isinstance(found, dict) else None
    if before is None:
        raise InputError(f"{where}: config.json: {ORIGIN_KEY!r} is no configuration of AHN weights")
    changed: dict[str, Any] = {}
    if found.get("ahn"):
        if before != settings:
            changed["ahn"] = settings.to_dict()
        return dict(found) | changed
    if settings.cell != before.cell:
        changed["_ahn_implementation"] = settings.cell
    if (settings.window, settings.sinks) != (before.window, before.sinks):
        # Both keys: a window without sinks would be read as a leftover of training.
        changed |= {"sliding_window": settings.window, "num_attn_sinks": settings.sinks}
    if settings.full_attention_layers != before.full_attention_layers:
        changed["fa_layer_ids"] = ",".join(map(str, settings.full_attention_layers))
    return dict(found) | changed


def released_config(base: Mapping[str, Any], ahn: AHNConfig, **training: Any) -> dict[str, Any]:
    """A `config.json` with the key names of released checkpoints, for AHN-only folders."""
    dropped = ("ahn", "ahn_training", ORIGIN_KEY, "_name_or_path")
    config = {k: v for k, v in base.items() if k not in dropped}
    family = family_of(config)
    config.update(
        model_type=family.model_type,
        architectures=[family.stock_class],
        _layer_implementation=family.released_layer,
        _ahn_implementation=ahn.cell,
        sliding_window=ahn.window,
        num_attn_sinks=ahn.sinks,
        fa_layer_ids=",".join(map(str, ahn.full_attention_layers)),
        use_q_proj=False,
        use_ahn_router=False,
        **training,
    )
    if ahn.layers:  # released keys say nothing of single layers
        config["ahn"] = ahn.to_dict()
    return config


def merged_config(
    base: Mapping[str, Any], settings: Mapping[str, Any], origin: Mapping[str, Any]
) -> dict[str, Any]:
    """A `config.json` of our own model types, for a folder with base and memory weights.

    Args:
        base: the base model's `config.json`.
        settings: the fields of `AHNConfig`.
        origin: the memory's `config.json`, kept whole so that `split` gives it back.
    """
    # A base whose configuration names a cell was an AHN model once; those keys no longer apply.
    void = RELEASED_KEYS if base.get("_ahn_implementation") is not None else set()
    config = {k: v for k, v in base.items() if k not in void | {"_name_or_path"}}
    family = family_of(config)
    return config | {
        "model_type": family.ahn_model_type,
        "architectures": [family.ahn_class],
        "ahn": dict(settings),
        ORIGIN_KEY: dict(origin),
    }
