"""Layouts: what each layer of a model sees of the past, as text and by token. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from ahn.config import LayerLayout
from common.errors import InputError
from common.probes import Place


def layout_text(layout: LayerLayout) -> str:
    """One layer's layout in a line."""
    if layout.window is None:
        return "full attention"
    if not layout.attends:
        written = "" if layout.write else " (never written to)"
        return f"memory {layout.cell} alone, no window, no sinks{written}"
    seen = f"window {layout.window:,}, sinks {layout.sinks:,}"
    if layout.slots:
        pooled = f"{layout.slots:,} slots for the {layout.pooling} of {layout.rate:,} tokens each"
        return f"{seen}, {pooled}"
    if layout.cell is None:
        return f"{seen}, no memory"
    return f"{seen}, memory {layout.cell}" + ("" if layout.write else " (never written to)")


def layout_table(layouts: Sequence[LayerLayout]) -> str:
    """A line for each run of layers with the same layout: `layers 0-11   window 8,064, ...`."""
    runs: list[tuple[int, int]] = []
    for index, layout in enumerate(layouts):
        if runs and layouts[runs[-1][0]] == layout:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    names = [f"layer {a}" if a == b else f"layers {a}-{b}" for a, b in runs]
    width = max(map(len, names), default=0)
    return "\n".join(
        f"{name:<{width}}   {layout_text(layouts[first])}"
        for name, (first, _) in zip(names, runs, strict=True)
    )


def span_of(layouts: Sequence[LayerLayout]) -> tuple[int, int]:
    """Window and sinks of the layers that have a window.

    Raises:
        InputError: no layer has one, or they differ: then no token is outside for all of them.
    """
    spans = {(seen.window, seen.sinks) for seen in layouts if seen.window is not None}
    if not spans:
        raise InputError(
            "full attention in all layers: nothing is outside of a window; give --window, and "
            "--ahn for a memory"
        )
    if len(spans) > 1:
        told = ", ".join(f"{window} + {sinks}" for window, sinks in sorted(spans))
        raise InputError(
            f"layers have different windows and sinks ({told}): no one set of tokens is outside; "
            "probe a memory whose layers have one window"
        )
    ((window, sinks),) = spans
    assert window is not None
    return window, sinks


def check_length(tokens: int, window: int, sinks: int) -> None:
    """Refuse a text of which nothing is outside of the window.

    Raises:
        InputError: says how long it must be.
    """
    if tokens <= window + sinks:
        raise InputError(
            f"the prompt has {tokens:,} tokens, and all of them are seen with a window of "
            f"{window:,} and {sinks:,} sinks: nothing is outside; give at least "
            f"{window + sinks + 1:,} tokens, or a smaller --window"
        )


def places(tokens: int, layouts: Sequence[LayerLayout]) -> list[Place]:
    """Of each of so many tokens: what the last position sees of it in layers with a window."""
    _, sinks = span_of(layouts)
    # pooled layouts see tokens that wait for their group, too
    recent = max(s.lossless(tokens) for s in layouts if s.window is not None) - sinks
    kinds: list[Place] = []
    for position in range(tokens):
        inside: Place = "sink" if position < sinks else "window"
        kinds.append("outside" if sinks <= position < tokens - recent else inside)
    return kinds
