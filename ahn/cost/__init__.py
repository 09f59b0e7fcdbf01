"""What a model's forward pass and its cache cost: arithmetic, no torch."""

from __future__ import annotations

from ahn.cost.accounting import (
    ACCOUNTINGS,
    BLOCK,
    Accounting,
    CacheBytes,
    FlopCount,
    allocated_slots,
    cache_bytes,
    flops,
    layer_slots,
    layout_bytes,
    layout_flops,
    variant_layouts,
)
from ahn.cost.budget import fit_layouts
from ahn.cost.shapes import ModelShape

__all__ = [
    "ACCOUNTINGS",
    "BLOCK",
    "Accounting",
    "CacheBytes",
    "FlopCount",
    "ModelShape",
    "allocated_slots",
    "cache_bytes",
    "fit_layouts",
    "flops",
    "layer_slots",
    "layout_bytes",
    "layout_flops",
    "variant_layouts",
]
