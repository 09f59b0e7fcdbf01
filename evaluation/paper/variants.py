"""The paper's methods as variants of a run, named so that tables and figures share records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ahn.config import example_layout
from ahn.cost.paper import variant_of

WEIGHTS: Mapping[str, str] = MappingProxyType(
    {"GatedDeltaNet": "gdn", "DeltaNet": "dn", "Mamba2": "mamba2"}
)
"""Names of the AHN weights of a run, by memory cell."""
_POOLING = {"CT-Max": "max", "CT-Average": "mean"}


@dataclass(frozen=True)
class Variant:
    """One of the paper's methods, at one window.

    Attributes:
        name: in records, and of its folder.
        request: what `--variant` says.
        method: in the paper's words.
        settings: arguments of a count: `variant`, `cell`, `window`, `sinks`.
        weights: name of the AHN weights that it reads; empty: none.
    """

    name: str
    request: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""


def variant(method: str, window: int, sinks: int, weights: str = "") -> Variant:
    """A method of the paper's tables as a variant.

    Args:
        method: `Full Attn`, `Sinks + SWA`, `CT-Max`, `CT-Average`, `AHN-GDN`, `Pure RNN` ...
        window: tokens behind the sinks; not looked at where a method has none.
        sinks: tokens.
        weights: name of the AHN weights, where it is not that of the method's cell.

    Raises:
        InputError: the paper has no such method.
    """
    made = variant_of(method)
    kind, cell = made["variant"], made.get("cell")
    weights = weights or (WEIGHTS[cell] if cell else "")
    pooling = _POOLING.get(method, "")
    words, options = [kind, pooling, weights], {"pooling": pooling}
    settings = dict(made)
    if example_layout(kind).window:
        words.append(str(window))
        options |= {"window": str(window), "sinks": str(sinks)}
        settings |= {"window": window, "sinks": sinks}
    name = "-".join(word for word in words if word)
    options |= {"weights": weights, "name": "" if name == kind else name}
    told = ",".join(f"{key}={value}" for key, value in options.items() if value)
    return Variant(name, f"{kind}:{told}" if told else kind, method, settings, weights)


def variants(
    methods: Sequence[str], windows: Sequence[int], sinks: int, trained: Sequence[str] = ()
) -> list[Variant]:
    """Every method at every window; one without a window once.

    Args:
        methods: of the paper.
        windows: tokens behind the sinks.
        sinks: tokens.
        trained: names of the weights that a method with a memory reads, one after another. Default:
            those of its cell.
    """
    found = {
        made.name: made
        for window in windows
        for method in methods
        for name in (trained if "cell" in variant_of(method) and trained else ("",))
        for made in (variant(method, window, sinks, name),)
    }
    return list(found.values())
