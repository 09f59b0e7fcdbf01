"""`run_eval cost --lengths`: FLOPs and cache bytes of variants over the length of a text. No torch.

Arithmetic of `ahn.cost`, for any model whose shape is known and any number of tokens. The picture
is drawn by `reports.cost_curves`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ahn.checkpoints.placement import DTYPE_BYTES
from ahn.config import VARIANTS as KINDS
from ahn.config import LayerLayout, example_layout
from ahn.cost.accounting import layout_bytes, layout_flops, variant_layouts
from ahn.cost.shapes import ModelShape
from common.errors import InputError, Problems
from common.suggestions import did_you_mean
from common.writing import write_whole
from evaluation.backends.requests import VariantRequest, parse_request, tokens, whole
from evaluation.commands.cost import (
    CACHE_ACCOUNTINGS,
    FLOP_ACCOUNTINGS,
    VARIANTS,
    check_settings,
    find_shape,
)
from evaluation.commands.options import Cost
from reports import formats
from reports.cost_curves import CostCurve, html_file, svg_file
from reports.targets import check_cost_target


@dataclass(frozen=True)
class CostedVariant:
    """A variant whose costs follow from its settings.

    Attributes:
        name: in tables and figures.
        kind: one of `ahn.config.VARIANTS`.
        settings: what it looks at: window, sinks, cell, rate, slots.
        layouts: what each layer keeps.
    """

    name: str
    kind: str
    settings: Mapping[str, Any]
    layouts: Sequence[LayerLayout]


def costed_variants(
    shape: ModelShape,
    texts: Sequence[str],
    windows: Sequence[int],
    sinks: int,
    cell: str,
) -> list[CostedVariant]:
    """The variants that are asked for; one with a window of the command's is one for each of them.

    Args:
        shape: of the model.
        texts: `KIND[:key=value,...]`; options window, sinks, cell, rate, slots, pooling, name.
        windows: of those that say none; of several the size stands behind the name.
        sinks: of those that say none.
        cell: of those that say none.

    Raises:
        InputError: everything that is wrong with them.
    """
    problems, found = Problems(), dict[str, CostedVariant]()
    for text in texts:
        with problems.collecting():
            for variant in _variants_of(shape, text, windows, sinks, cell):
                same = found.setdefault(variant.name, variant)
                if same != variant:
                    problems.add(
                        f"--variant: two variants are called {variant.name}; give one of them a "
                        "name of its own (KIND:name=...)"
                    )
    problems.check()
    return list(found.values())


def _variants_of(
    shape: ModelShape, text: str, windows: Sequence[int], sinks: int, cell: str
) -> Iterator[CostedVariant]:
    if not text:
        raise InputError("--variant: no name is given")
    request = parse_request(text)
    if request.kind not in KINDS:
        raise InputError(
            f"--variant: the costs of {request.kind!r} over the length are not known (known: "
            f"{', '.join(KINDS)}){did_you_mean(request.kind, KINDS, most=1)}"
        )
    seen = example_layout(request.kind)
    readers: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    if seen.window:
        readers |= {"window": tokens, "sinks": tokens}
        settings |= {"window": windows[0], "sinks": sinks}
    if seen.cell is not None:
        readers["cell"] = str
        settings["cell"] = cell
    if seen.slots:
        readers |= {"rate": tokens, "slots": whole, "pooling": str}
    own = request.take(**readers)
    settings |= own
    if len(windows) == 1 or not seen.window or "window" in own:
        yield _made(shape, request, settings)
        return
    for window in windows:
        named = replace(request, name=f"{request.name}-{window}")
        yield _made(shape, named, settings | {"window": window})


def _made(shape: ModelShape, request: VariantRequest, settings: Mapping[str, Any]) -> CostedVariant:
    try:
        layouts = variant_layouts(shape, request.kind, **settings)
    except InputError as error:
        raise error.prefixed(f"--variant {request}: ") from None
    said = dict(settings)
    if layouts[0].slots:
        said |= {"rate": layouts[0].rate, "slots": layouts[0].slots}
    return CostedVariant(request.name, request.kind, said, layouts)


def cost_curve(
    shape: ModelShape,
    variant: CostedVariant,
    lengths: Sequence[int],
    generated: int = 0,
    dtype_bytes: int = 2,
    accounting: str = "exact",
) -> CostCurve:
    """FLOPs of prompt and answer, and bytes held at its end, at each length.

    Args:
        shape: of the model.
        variant: whose costs.
        lengths: tokens of the prompt, each at least 1.
        generated: tokens of the answer; the last one is never read.
        dtype_bytes: of an element of keys and values.
        accounting: of `ahn.cost.accounting`; all but `exact` count bytes as the paper does.
    """
    bytes_as = accounting if accounting in CACHE_ACCOUNTINGS else "paper"
    points = []
    for length in lengths:
        work = layout_flops(shape, variant.layouts, length, generated, accounting=accounting)
        held = layout_bytes(
            shape,
            variant.layouts,
            length + max(generated - 1, 0),
            dtype_bytes=dtype_bytes,
            accounting=bytes_as,
        )
        points.append((length, int(work.total), int(held.total)))
    return CostCurve(variant.name, tuple(points))


@dataclass(frozen=True)
class CostsOverLength:
    """What `run_eval cost --lengths` found.

    Attributes:
        data: plain data, as `--json` prints it.
        curves: a line for each variant.
        full: full attention, which shares are of.
        about: model and settings in words.
    """

    data: dict[str, Any]
    curves: list[CostCurve]
    full: CostCurve
    about: str


def costs_over_length(asked: Cost) -> CostsOverLength:
    """FLOPs and cache bytes of every variant at every length.

    Raises:
        InputError: there is no such model, or a variant cannot be.
    """
    check_settings(asked)
    shape = find_shape(asked.model)
    windows = asked.window if isinstance(asked.window, list) else [asked.window]
    accounting = asked.accounting or "exact"
    variants = costed_variants(shape, asked.variants or VARIANTS, windows, asked.sinks, asked.cell)

    def curve(variant: CostedVariant) -> CostCurve:
        return cost_curve(
            shape, variant, asked.lengths, asked.generate, DTYPE_BYTES[asked.dtype], accounting
        )

    curves = [curve(variant) for variant in variants]
    (whole_past,) = costed_variants(shape, ["full"], windows, asked.sinks, asked.cell)
    full = curve(whole_past)
    cache_as = accounting if accounting in CACHE_ACCOUNTINGS else "paper"
    data = {
        "model": asked.model,
        "generated_tokens": asked.generate,
        "dtype": asked.dtype,
        "accounting": {
            "flops": FLOP_ACCOUNTINGS[accounting],
            "cache_bytes": CACHE_ACCOUNTINGS[cache_as],
        },
        "lengths": list(asked.lengths),
        "variants": {
            variant.name: {"variant": variant.kind, **variant.settings, **_amounts(line, full)}
            for variant, line in zip(variants, curves, strict=True)
        },
    }
    answer = f" with {asked.generate:,} generated" if asked.generate else ""
    about = f"{asked.model}, {asked.dtype}, one sequence{answer}; {accounting} accounting"
    return CostsOverLength(data, curves, full, about)


def _amounts(curve: CostCurve, full: CostCurve) -> dict[str, list[float]]:
    """The amounts at each length, and their shares of full attention's."""
    pairs = list(zip(curve.points, full.points, strict=True))
    return {
        "flops": [flops for _, flops, _ in curve.points],
        "cache_bytes": [held for _, _, held in curve.points],
        "flops_of_full": [mine[1] / whole[1] for mine, whole in pairs],
        "cache_bytes_of_full": [mine[2] / whole[2] for mine, whole in pairs],
    }


def check_plot(path: Path) -> None:
    """Refuse a picture that cannot be drawn, or that would replace something else.

    Raises:
        InputError: a format that is not written, or a file that is no such figure.
    """
    ending = path.suffix.lower()
    if ending in (".png", ".jpg", ".jpeg", ".pdf", ".gif", ".webp"):
        raise InputError(
            f"--plot: {path}: no {ending[1:].upper()}, which would need an image library; name it "
            ".svg (browsers and editors read it, and print or convert it), or .html"
        )
    if ending not in (".svg", ".html", ".htm"):
        raise InputError(f"--plot: {path}: a figure ends in .svg or .html")
    try:
        check_cost_target(path)
    except InputError as error:
        raise error.prefixed("--plot: ") from None


def write_plot(path: Path, found: CostsOverLength) -> None:
    """Write the figure, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--plot: {path}: cannot be written ({error.strerror})") from error
    if path.suffix.lower() == ".svg":
        write_whole(path, svg_file(found.curves, found.about))
        return
    counted = found.data["accounting"]
    notes = [
        f"{found.about}.",
        f"FLOPs: {counted['flops']}. Cache: {counted['cache_bytes']}.",
        *(_settings_text(name, said) for name, said in found.data["variants"].items()),
    ]
    title = f"{found.data['model']}: cost over length"
    write_whole(path, html_file(title, notes, found.curves, found.about))


_SAID = ("window", "sinks", "cell", "rate", "slots")


def _settings_text(name: str, said: Mapping[str, Any]) -> str:
    parts = []
    for key in _SAID:
        if key in said:
            value = said[key]
            parts.append(f"{key} {value:,}" if isinstance(value, int) else str(value))
    return f"{name}: {', '.join(parts) or 'every key and value'}"


def render_lengths(found: CostsOverLength) -> Group:
    """The tables that are printed: a line for each length, a column for each variant."""
    counted = found.data["accounting"]
    notes = [_settings_text(name, said) for name, said in found.data["variants"].items()]
    return Group(
        Text(found.about),
        _table(f"FLOPs, {counted['flops']}", found, 1),
        _table(f"cache, {counted['cache_bytes']}", found, 2),
        Text("; ".join(notes), style="dim"),
    )


_MOST_IN_A_LINE = 5
"""Variants whose amounts and shares fit beside one another into a terminal."""


def _table(title: str, found: CostsOverLength, field: int) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("tokens", justify="right")
    for curve in found.curves:
        table.add_column(curve.name, justify="right", overflow="fold")
    write = formats.operations if field == 1 else formats.size
    for number, point in enumerate(found.full.points):
        cells = []
        for curve in found.curves:
            amount = curve.points[number][field]
            between = "\n" if len(found.curves) > _MOST_IN_A_LINE else "  "
            share = f"{between}({formats.percent(amount / point[field])})"
            whole_past = found.data["variants"][curve.name]["variant"] == "full"
            cells.append(write(amount) + ("" if whole_past else share))
        table.add_row(f"{point[0]:,}", *cells)
    return table
