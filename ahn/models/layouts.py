"""Layouts as text: what each layer of a model sees of the past. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from ahn.config import LayerLayout


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
