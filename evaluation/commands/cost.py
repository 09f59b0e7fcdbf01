"""`run_eval cost`: what a model costs at a length, per variant, in every accounting. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ahn.checkpoints.placement import DTYPE_BYTES
from ahn.config import MOST_TOKENS, AHNConfig
from ahn.cost import zoo
from ahn.cost.accounting import ACCOUNTINGS, added_parameters, cache_bytes, flops
from ahn.cost.shapes import ModelShape
from common.errors import InputError

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


def cost_table(
    model: str,
    length: int,
    generated: int,
    window: int,
    sinks: int,
    cell: str,
    dtype: str,
) -> dict[str, Any]:
    """Costs of every variant, as plain data; raises `InputError` with every problem.

    FLOPs and bytes are for one sequence. ``change_percent`` is relative to full attention in the
    same accounting.
    """
    if not model:
        raise InputError("--model: none given")
    problems = AHNConfig.problems("ahn", cell, window, sinks)
    if dtype not in DTYPE_BYTES:
        problems.append(f"--dtype: {dtype!r} is unknown; one of {', '.join(DTYPE_BYTES)}")
    counts = {"length": length, "generate": generated}
    problems += [
        f"--{flag}: {count} is more than the {MOST_TOKENS:,} tokens that are counted"
        for flag, count in counts.items()
        if count > MOST_TOKENS
    ]
    if length < 1:
        problems.append(f"--length: must be at least 1 token, not {length}")
    if generated < 0:
        problems.append(f"--generate: must be 0 or more tokens, not {generated}")
    shape: ModelShape | None = None
    try:
        shape = find_shape(model)
    except InputError as error:
        problems += str(error).splitlines()
    if problems or shape is None:
        raise InputError(*problems)

    settings: dict[str, Any] = {"window": window, "sinks": sinks, "cell": cell}
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
                dtype_bytes=DTYPE_BYTES[dtype],
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
        "model": model,
        "length": length,
        "generated_tokens": generated,
        **settings,
        "dtype": dtype,
        "parameters": {"base": shape.parameters, "ahn": added_parameters(shape, cell)},
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
