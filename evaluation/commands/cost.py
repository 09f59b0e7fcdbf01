"""`run_eval cost`: what a model costs at a length, per variant, in every accounting, and what every
way of keeping the past has room for at equal cache bytes. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ahn.checkpoints.placement import DTYPE_BYTES
from ahn.cost import zoo
from ahn.cost.accounting import ACCOUNTINGS, added_parameters, cache_bytes, flops
from ahn.cost.equal import CHUNK, EqualBytes, equal_bytes
from ahn.cost.shapes import ModelShape
from common.errors import InputError, Problems
from evaluation.commands.options import Cost

VARIANTS = ("full", "window", "ahn")
FLOP_ACCOUNTINGS = {
    "exact": "exact: visible pairs, head at the last position only",
    "paper": "paper's tables: Table 1; the embedding as a second output head",
    "paper-abstract": "paper's abstract: as its tables, but the memory counted as in exact",
    "paper-free-lookup": "paper's abstract, but the embedding look-up counted as free",
}
CACHE_ACCOUNTINGS = {
    "exact": "exact: bytes allocated, gates and float32 state included",
    "paper": "paper's: elements with content, all in the model's type",
}


_ONLY_WITH_LENGTHS = ("variants", "plot", "accounting")


def check_settings(asked: Cost) -> None:
    """Refuse what goes only with `--lengths`, or not with it.

    Raises:
        InputError: everything that is wrong.
    """
    problems = Problems()
    if asked.lengths and "length" in asked.model_fields_set:
        problems.add("--length: one length, and --lengths are several; give one of the two")
    if not asked.lengths:
        for key in _ONLY_WITH_LENGTHS:
            if getattr(asked, key):
                problems.add(f"--{key.removesuffix('s')}: goes with --lengths (1k,2k or 0..256k)")
        if isinstance(asked.window, list):
            problems.add("--window: several go with --lengths (1k,2k or 0..256k)")
    problems.check()


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
    check_settings(asked)
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
        "equal_bytes": {
            accounting: _as_data(
                equal_bytes(
                    shape,
                    length,
                    dtype_bytes=DTYPE_BYTES[asked.dtype],
                    accounting=accounting,
                    **settings,
                )
            )
            for accounting in CACHE_ACCOUNTINGS
        },
    }


def _as_data(table: EqualBytes) -> dict[str, Any]:
    """A table of equal bytes as plain data; what is not known is None, with `missing` why."""
    methods = [
        {
            **asdict(method),
            "share_of_full": _ratio(method.cache_bytes, table.full_bytes),
            "share_of_budget": _ratio(method.cache_bytes, table.budget),
        }
        for method in table.methods
    ]
    return {
        "document_tokens": table.document_tokens,
        "budget_bytes": table.budget,
        "full_bytes": table.full_bytes,
        "share_of_full": table.budget / table.full_bytes,
        "token_bytes": table.token_bytes,
        "tokens_per_layer": table.tokens,
        "compression_ratio": table.compression_ratio,
        "peak_chunk": CHUNK,
        "methods": methods,
    }


def _ratio(part: int | None, whole: int) -> float | None:
    return None if part is None else part / whole


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


def render(costs: dict[str, Any]) -> Group:
    """The tables that are printed."""
    tables = [_variants_table(costs)]
    for accounting, table in costs["equal_bytes"].items():
        tables.append(_equal_table(costs, accounting, table))
    return Group(*tables, Text(_EQUAL_NOTE.format(chunk=CHUNK), style="dim"))


def _variants_table(costs: dict[str, Any]) -> Table:
    """FLOPs and cache of the model's own variants, in every accounting."""
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


_EQUAL_NOTE = (
    "Bytes: of a document that was read, before the question. Tokens kept: in a layer, mean over "
    "layers; pooled and remembered ones are none of them. A press and a quantised cache read the "
    "document as full attention does; where quantised tokens do not all fit, a press in front "
    "keeps that share. Pooled slots fill the budget beside the window; room for rate - 1 tokens "
    "that wait to be pooled comes on top where it is counted (a run counts it in). Operations: of "
    "the document and of one token after it, "
    "exact accounting; dequantising is not counted. Peak: bytes beside the weights (the cache "
    "with activations, and keys and values of one layer), the document read at once or {chunk:,} "
    "tokens at a time; a gap: not possible, or no formula."
)


def _equal_table(costs: dict[str, Any], accounting: str, table: dict[str, Any]) -> Table:
    """Every way of keeping the past at the bytes of the model with a memory."""
    meaning = CACHE_ACCOUNTINGS[accounting].split(":")[0]
    shown = Table(
        title=f"\nAt equal bytes, {meaning} accounting: ahn {costs['cell']} holds "
        f"{_bytes(table['budget_bytes'])} of {table['document_tokens']:,} tokens, "
        f"{_percent(table['share_of_full'])} of full attention; {table['tokens_per_layer']:,} "
        f"tokens a layer, compression ratio {table['compression_ratio']:.5f}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    shown.add_column("method", overflow="fold", max_width=28)
    shown.add_column("sized", overflow="fold")
    names = ("tokens\nkept", "cache", "of full", "of\nbudget", "prefill", "one step")
    for name in (*names, "peak,\nat once", "peak,\nchunks"):
        shown.add_column(name, justify="right", overflow="fold")
    for method in table["methods"]:
        shown.add_row(*_equal_row(method))
    return shown


def _equal_row(method: Mapping[str, Any]) -> list[str]:
    from reports import formats

    if method["missing"]:
        return [method["name"], method["missing"], *[formats.MISSING] * 8]
    return [
        method["name"],
        _sized(method),
        formats.whole(method["kept_tokens"]),
        _bytes(method["cache_bytes"]),
        _percent(method["share_of_full"]),
        formats.percent(method["share_of_budget"]),
        formats.operations(method["prefill_flops"]),
        formats.operations(method["decode_flops"]),
        _bytes(method["peak_whole"]),
        _bytes(method["peak_chunked"]),
    ]


def _sized(method: Mapping[str, Any]) -> str:
    """With which settings a method has its size, in words."""
    settings = method["settings"]
    if "slots" in settings:
        window, slots, reach = (f"{settings[name]:,}" for name in ("window", "slots", "reach"))
        if method["name"].endswith("same window"):
            return f"{slots} pooled, reach {reach}"
        return f"window {window} + {slots} pooled"
    if "share_of_tokens" in settings:
        share = settings["share_of_tokens"]
        if share == 1:
            return f"all; {100 * method['share_of_budget']:.0f} % of the budget"
        return f"{100 * share:.1f} % of the tokens"
    if "tokens_per_layer" in settings:
        layers = settings["tokens_per_layer"]
        return f"layers {layers[0]:,} ... {layers[-1]:,}"
    if "n_sink" in settings:
        return f"n_sink {settings['n_sink']:,} + {settings['window']:,}"
    if "compression_ratio" in settings:
        return f"compression_ratio {settings['compression_ratio']:.5f}"
    if "window" in settings:
        return f"sinks {settings['sinks']:,} + {settings['window']:,}"
    return "every token"


def _bytes(count: int | None) -> str:
    """Bytes with three decimals of GiB: budgets differ in the second."""
    from reports import formats

    if count is None or not 2**29 <= count < 2**40:
        return formats.size(count)
    return f"{count / 2**30:,.3f} GiB"


def _percent(share: float | None) -> str:
    from reports import formats

    return formats.MISSING if share is None else f"{100 * share:.2f} %"
