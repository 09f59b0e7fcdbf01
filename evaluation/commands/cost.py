"""`run_eval cost`: what a model costs at a length, per variant, in every accounting. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ahn.checkpoints.placement import DTYPE_BYTES
from ahn.cost import zoo
from ahn.cost.accounting import ACCOUNTINGS, added_parameters, cache_bytes, flops
from ahn.cost.shapes import ModelShape
from common.errors import InputError
from evaluation.commands.options import Cost

VARIANTS = ("full", "window", "ahn")
FLOP_ACCOUNTINGS = {
    "exact": "exact: visible pairs, head at the last position only",
    "paper": "paper's: the embedding counted as a second output head",
    "paper-free-lookup": "paper's, but the embedding look-up counted as free",
}
CACHE_ACCOUNTINGS = {
    "exact": "exact: bytes allocated, gates and float32 state included",
    "paper": "paper's: elements with content, all in the model's type",
}


def find_shape(model: str) -> ModelShape:
    """Shape of a model of the zoo, of a folder with ``config.json``, or of a hub id."""
    if model == "pocket" or Path(model).exists():
        return _described_shape(model)
    try:
        return zoo.find(model).shape
    except InputError:
        if "/" not in model:
            raise
    return _described_shape(model)


def _described_shape(model: str) -> ModelShape:
    import ahn

    return ModelShape.from_config(ahn.describe_model(model))


def cost_table(asked: Cost) -> dict[str, Any]:
    """Costs of every variant, as plain data.

    FLOPs and bytes are for one sequence. ``change_percent`` is relative to full attention in the
    same accounting.

    Raises:
        InputError: there is no such model.
    """
    shape = find_shape(asked.model)
    length, generated = asked.length, asked.generate
    settings = asked.model_dump(include={"window", "sinks", "cell"})
    in_cache = length + max(generated - 1, 0)
    variants: dict[str, dict[str, Any]] = {}
    for variant in VARIANTS:
        entry: dict[str, Any] = {"flops": {}, "cache_bytes": {}}
        for accounting in ACCOUNTINGS:
            count = flops(shape, variant, length, generated, accounting=accounting, **settings)
            entry["flops"][accounting] = {
                "prefill": count.prefill,
                "decode": count.decode,
                "total": count.total,
                "parts": count.parts,
            }
        for accounting in CACHE_ACCOUNTINGS:
            held = cache_bytes(
                shape,
                variant,
                in_cache,
                dtype_bytes=DTYPE_BYTES[asked.dtype],
                accounting=accounting,
                **settings,
            )
            entry["cache_bytes"][accounting] = {
                "keys_values": held.keys_values,
                "gates": held.gates,
                "state": held.state,
                "total": held.total,
            }
        variants[variant] = entry
    _add_changes(variants)
    return {
        "model": asked.model,
        "length": length,
        "generated_tokens": generated,
        **settings,
        "dtype": asked.dtype,
        "parameters": {"base": shape.parameters, "ahn": added_parameters(shape, asked.cell)},
        "accountings": {"flops": FLOP_ACCOUNTINGS, "cache_bytes": CACHE_ACCOUNTINGS},
        "variants": variants,
    }


def _add_changes(variants: dict[str, dict[str, Any]]) -> None:
    for entry in variants.values():
        for quantity, by_accounting in entry.items():
            for accounting, values in by_accounting.items():
                whole = variants["full"][quantity][accounting]["total"]
                values["change_percent"] = 100 * (values["total"] / whole - 1)


def _cells(variants: dict[str, dict[str, Any]], quantity: str, accounting: str) -> Sequence[str]:
    from reports import formats

    write = formats.operations if quantity == "flops" else formats.size
    cells = []
    for variant, entry in variants.items():
        values = entry[quantity][accounting]
        change = "" if variant == "full" else f"  ({values['change_percent']:+.1f} %)"
        cells.append(write(values["total"]) + change)
    return cells


def render(costs: dict[str, Any]) -> Table:
    """The table that is printed."""
    generated = costs["generated_tokens"]
    table = Table(
        title=f"{costs['model']}, {costs['length']:,} tokens"
        + (f" and {generated:,} generated" if generated else "")
        + f"; window {costs['window']:,}, sinks {costs['sinks']:,}, {costs['cell']}, "
        f"{costs['dtype']}; one sequence, analytic",
        title_justify="left",
    )
    table.add_column("")
    for variant in costs["variants"]:
        table.add_column(variant, justify="right", no_wrap=True)
    for accounting, meaning in FLOP_ACCOUNTINGS.items():
        table.add_row(f"FLOPs, {meaning}", *_cells(costs["variants"], "flops", accounting))
    table.add_section()
    for accounting, meaning in CACHE_ACCOUNTINGS.items():
        table.add_row(f"cache, {meaning}", *_cells(costs["variants"], "cache_bytes", accounting))
    return table
