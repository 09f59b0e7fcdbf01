"""What `ahn info` prints for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ahn.commands.info import ModelInfo

_KINDS = {
    "base": "base model, without memory",
    "merged": "base model and AHN weights",
    "ahn": "AHN weights alone",
    "zoo": "from its shape; nothing was read",
}


def millions(parameters: int) -> str:
    """As the paper writes it: `13.0M`."""
    return f"{parameters / 1e6:,.1f}M"


def megabytes(size: int) -> str:
    """Decimal megabytes or gigabytes."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"


def print_info(info: ModelInfo, console: Console | None = None) -> None:
    """A table of everything that is known about a model."""
    console = console or Console()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(info):
        table.add_row(Text(name), Text(value))
    console.print(table)


def _rows(info: ModelInfo) -> list[tuple[str, str]]:
    rows = [
        ("model", f"{info.name} ({_KINDS[info.kind]})"),
        ("type", f"{info.model_type}, {info.num_hidden_layers} layers"),
    ]
    if info.cell is not None:
        keeping = ", ".join(map(str, info.full_attention_layers)) or "none"
        rows += [
            ("memory cell", info.cell),
            ("window", f"{info.window:,} tokens"),
            ("sinks", f"{info.sinks:,} tokens"),
            ("full attention", f"layers: {keeping}"),
        ]
    if info.window_notice is not None:
        rows.append(("notice", info.window_notice))
    positions = f", {info.max_position_embeddings:,} positions" if _is_number(info) else ""
    rows.append(("RoPE scaling", info.rope_scaling + positions))
    rows += [
        (f"  {part}", f"{millions(count)} ({count:,})") for part, count in info.parameters.items()
    ]
    position = len(rows) - len(info.parameters)
    total = info.parameters_total
    rows.insert(position, ("parameters", f"{millions(total)} ({total:,})"))
    if info.kind == "zoo" and "memory" in info.parameters:
        rows.append(("added by memory", millions(info.parameters["memory"])))
    if info.dtypes:
        kinds = ", ".join(f"{dtype} ({count} tensors)" for dtype, count in info.dtypes.items())
        rows.append(("stored as", kinds))
    if info.disk_bytes is not None:
        rows.append(("on disk", megabytes(info.disk_bytes)))
    if info.memory_bytes is not None:
        how = "in bfloat16" if info.kind == "zoo" else "in the base's type"
        rows.append(("in memory", f"{megabytes(info.memory_bytes)} {how}"))
    if info.cache_state_bytes is not None:
        rows.append(("state", f"{megabytes(info.cache_state_bytes)} a sequence (float32)"))
    rows += [(f"released {cell}", hub_id) for cell, hub_id in info.released_ahn.items()]
    return rows


def _is_number(info: ModelInfo) -> bool:
    return isinstance(info.max_position_embeddings, int)


def print_zoo(rows: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """The zoo: a line a model, and the released AHN weights below it."""
    console = console or Console()
    if not console.is_terminal:
        console.width = 120  # names in full where nothing is wrapped by hand
    cells = list(rows[0]["added_parameters"])
    table = Table(box=None)
    for title in ("model", "hub id", "parameters", *[f"+ {cell}" for cell in cells]):
        table.add_column(title, overflow="fold")
    for row in rows:
        added = [millions(row["added_parameters"][cell]) for cell in cells]
        table.add_row(row["name"], row["hub_id"], millions(row["parameters"]), *added)
    console.print(table)
    console.print("\nReleased AHN weights:")
    for row in rows:
        for cell, hub_id in row["released_ahn"].items():
            console.print(Text(f"  {row['name']}  {cell}  {hub_id}"))
