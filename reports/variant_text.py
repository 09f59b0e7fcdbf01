"""What a variant keeps of the past, in a few words, from what `run.json` says of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_EVERYTHING = "every key and value"
_NAMED = ("bits", "group", "keep", "rate", "pooling", "slots", "model_type", "model")
"""Settings of other kinds that are told, where a variant has them."""


def variant_text(model: Mapping[str, Any]) -> str:
    """A line on a variant.

    Args:
        model: `models` of `run.json`, of this variant; empty: nothing is known of it.
    """
    kind = model.get("variant")
    window, sinks, cell = model.get("window"), model.get("sinks"), model.get("cell")
    parts = []
    if window is not None:
        parts.append(f"{sinks or 0} sinks + window {window}")
    elif sinks is not None and kind not in (None, "full") and "cell" in model:
        parts.append(f"{sinks} sinks + window sized to the budget")
    if cell:
        alone = "window" in model and window is None and sinks is None
        parts.append(f"{cell} alone" if alone else str(cell))
    if kind in (None, "full") and not parts:
        return _EVERYTHING
    press = model.get("press")
    if isinstance(press, Mapping):
        press = press.get("press")
    if isinstance(press, str) and press:
        parts.append(press)
    parts += [
        f"{name.replace('_', ' ')} {model[name]}"
        for name in _NAMED
        if isinstance(model.get(name), (str, int, float)) and model[name] != ""
    ]
    freed = model.get("frees_memory")
    if isinstance(freed, str) and freed.startswith("no"):
        parts.append("hides tokens, frees no memory")
    return ", ".join(parts) or str(kind)
