"""The AHN paper's tables of costs, computed, beside the printed cells.

No torch, no model. What the paper prints is data (`configs/published/paper`); what is ours is
`ahn.cost.paper`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from ahn.cost import zoo
from ahn.cost.accounting import ModelShape
from ahn.cost.paper import CELL_BYTES, METHODS, method_cost, training_step, variant_of
from ahn.cost.shapes import sized_cell
from common.errors import InputError
from common.suggestions import did_you_mean
from evaluation.commands.cost import find_shape
from evaluation.commands.options import TrainingStep
from evaluation.paper.experiments import POCKET
from evaluation.paper.files import Strict, read
from tasks.published import Source

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table


class PrintedTable(Strict):
    """A table of costs as the paper prints it."""

    title: str
    settings: dict[str, int]
    """Length, window, sinks, and the sequences of a training step."""
    pocket: dict[str, int] = {}
    """The same for the pocket model, where it is computed of it."""
    columns: tuple[str, ...] = Field(min_length=1)
    decimals: tuple[int, ...]
    """Decimals that a column is printed with."""
    rows: dict[str, dict[str, tuple[float, ...]]]
    """By model and method."""

    @property
    def sizes(self) -> dict[str, Any]:
        """The settings as arguments of a count."""
        return dict(self.settings)

    def sizes_of(self, title: str) -> dict[str, Any]:
        """The same for a model of `_models`."""
        return dict(self.pocket if title == POCKET else self.settings)

    def methods_of(self, title: str) -> tuple[str, ...]:
        """The rows of a model; of one that the paper has not, those of its first."""
        return tuple(self.rows.get(title) or next(iter(self.rows.values())))

    @model_validator(mode="after")
    def _is_a_rectangle(self) -> PrintedTable:
        every = [self.decimals, *(cells for rows in self.rows.values() for cells in rows.values())]
        if any(len(cells) != len(self.columns) for cells in every):
            raise ValueError(f"not every row has {len(self.columns)} cells")
        return self


class _Costs(Strict):
    source: Source
    models: dict[str, str]
    tables: dict[str, PrintedTable]


@cache
def printed() -> _Costs:
    """The paper's tables of costs."""
    return read("costs.yaml", _Costs)


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper beside what is computed.

    Attributes:
        name: as a command.
        title: of the table.
        columns: with their units.
        decimals: of each column, as printed.
        ours: by model and method; unrounded.
        published: likewise, as printed; empty: the paper has formulas only.
        notes: what must be known to compare.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    decimals: tuple[int, ...]
    ours: Mapping[str, Mapping[str, tuple[float, ...]]]
    published: Mapping[str, Mapping[str, tuple[float, ...]]]
    notes: tuple[str, ...]


_SLIP_OF_7B = (
    "7B: the paper's FLOPs, and the model's ratios, do not follow from its formula in any table; "
    "its ratios of mixing (within 0.06), bytes and parameters do. See docs/paper.md."
)
_SCORES = (
    "Costs. The scores of Table 2 need answers of a model: run_eval paper table2 --model MODEL "
    "runs them, run_eval paper report sets them beside the published ones."
)
_GATE = (
    "Rows of 14B with a memory are within one unit of the last digit: printed are those without "
    "the memory's output gate, which Table 1 counts."
)
_PARTS = {
    "table2": (1, 3, 5, 7),
    "table9": tuple(range(8)),
}


def paper_table(name: str, model: str | None = None) -> PaperTable:
    """A table of costs, computed.

    Args:
        name: `table1`, `table2`, `table7` or `table9`.
        model: only this one, by its name in the zoo or in the paper, or `pocket`, which the paper
            has not; None: the paper's three.

    Raises:
        InputError: there is no such model.
    """
    models = _models(model)
    if name == "table1":
        return _table_1(models)
    table = printed().tables[name]
    made = _training if name == "table7" else _inference
    ours = {title: made(name, table, shape, title) for title, shape in models.items()}
    notes = [_SLIP_OF_7B] if any("7B" in title for title in models) else []
    if name == "table2":
        notes.append(_SCORES)
    if name == "table7":
        notes.append("Twice the forward FLOPs of each sequence, the memory's output gate left out.")
    elif any("14B" in title for title in models):
        notes.append(_GATE)
    title = table.title
    if POCKET in models:
        sizes = ", ".join(f"{key} {value:,}" for key, value in table.pocket.items())
        title = f"{title.partition(':')[0]} with {sizes}".replace("_", " ")
    return PaperTable(
        name,
        title,
        table.columns,
        table.decimals,
        ours,
        {title: table.rows[title] for title in models if title in table.rows},
        tuple(notes),
    )


def shape_of(model: str) -> ModelShape:
    """The shape of one of the paper's models, or of the pocket model."""
    return find_shape(POCKET) if model == POCKET else zoo.find(model).shape


def _models(model: str | None) -> dict[str, ModelShape]:
    """Shapes by the paper's names."""
    known = printed().models
    plain = "" if model is None else model.strip().lower()
    if plain == POCKET:
        return {POCKET: find_shape(POCKET)}
    wanted = [
        title
        for title, name in known.items()
        if model is None or plain.rsplit("/", 1)[-1] in (name, title.lower())
    ]
    if not wanted:
        there = [*known.values(), POCKET]
        raise InputError(
            f"--model: the paper has no {model!r}; one of {', '.join(there)}"
            + did_you_mean(str(model), there)
        )
    return {title: zoo.find(known[title]).shape for title in wanted}


def _inference(
    name: str, table: PrintedTable, shape: ModelShape, title: str
) -> dict[str, tuple[float, ...]]:
    sizes = table.sizes_of(title)
    made = {method: method_cost(shape, method, **sizes) for method in table.methods_of(title)}
    full = method_cost(shape, "Full Attn", **sizes)
    columns = {method: cost.columns(full) for method, cost in made.items()}
    return {
        method: tuple(cells[index] for index in _PARTS[name]) for method, cells in columns.items()
    }


def _training(
    name: str, table: PrintedTable, shape: ModelShape, title: str
) -> dict[str, tuple[float, ...]]:
    sizes = table.sizes_of(title)
    return {
        method: (training_step(shape, **sizes, **variant_of(method)) / 1e17,)
        for method in table.methods_of(title)
    }


_FORMULAS = (
    "FLOPs of a layer: full 4 L D H (Nq + Nkv) + 2 H Nq L^2; window and memory "
    "4 L D H (Nq + Nkv) + 2 H Nq W^2 + 2 (L - W) (2 W H Nq + 2 H^2 Nq + 3 D Nq). Cache: full "
    "2 L H Nkv; memory 2 W H Nkv + H^2 Nq. Parameters: 3 D Nq + H^2 Nq.",
    "L tokens, D hidden size, Nq and Nkv query and key/value heads of H dimensions, W window and "
    "sinks. DeltaNet and Mamba2 have 2 D Nq for 3 D Nq; compression by pooling has M slots, "
    "2 (L - W) 2 M H Nq.",
)


def _table_1(models: Mapping[str, ModelShape]) -> PaperTable:
    table = printed().tables["table9"]
    settings = table.sizes_of(next(iter(models)))
    ours: dict[str, dict[str, tuple[float, ...]]] = {}
    for title, shape in models.items():
        layers = shape.num_hidden_layers
        ours[title] = {}
        for method in METHODS:
            cost = method_cost(shape, method, **settings)
            cell = variant_of(method).get("cell")
            added = sized_cell(shape, cell).parameters.values() if cell else ()
            matrices = sum(prod(size) for size in added if len(size) > 1)
            ours[title][method] = (
                cost.mixing_flops / layers / 1e12,
                cost.cache_bytes / CELL_BYTES / layers,
                float(matrices),
            )
    return PaperTable(
        "table1",
        f"Table 1: a layer, its formulas at L = {settings['length']:,} and "
        f"W = {settings['window'] + settings['sinks']:,}",
        ("mixing FLOPs 1e12", "cache elements", "parameters added"),
        (3, 0, 0),
        ours,
        {},
        _FORMULAS,
    )


def as_json(table: PaperTable) -> dict[str, dict[str, list[float]]]:
    """`{model: {method: [columns]}}`, unrounded, in the table's units."""
    return {
        model: {method: list(cells) for method, cells in rows.items()}
        for model, rows in table.ours.items()
    }


def render(table: PaperTable) -> Group:
    """The table that is printed: published, ours and the difference of each cell."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = []
    for model, rows in table.ours.items():
        made = Table(
            title=f"{table.title}, {model}",
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        made.add_column("column")
        made.add_column("method")
        headings = ("published", "ours", "difference") if table.published else ("ours",)
        for heading in headings:
            made.add_column(heading, justify="right")
        for index, column in enumerate(table.columns):
            for method, cells in rows.items():
                published = table.published.get(model, {}).get(method, ())
                cell = published[index] if published else None
                decimals = None if model == POCKET else table.decimals[index]
                figures = _figures(cells[index], cell, decimals)
                made.add_row(column, method, *figures)
            made.add_section()
        shown.append(made)
    return Group(*shown, *(Text(note, style="dim") for note in table.notes))


def _figures(ours: float, published: float | None, decimals: int | None) -> tuple[str, ...]:
    """Cells of a row; ours and the difference with two more decimals than are printed.

    A small model's figures, in the units of large ones, have significant digits instead.
    """
    if decimals is None:
        return (f"{ours:.4g}",)
    if published is None:
        return (f"{ours:,.{decimals}f}",)
    return (
        f"{published:.{decimals}f}",
        f"{ours:.{decimals + 2}f}",
        f"{ours - published:+.{decimals + 2}f}",
    )


# -- a training step -----------------------------------------------------------------------------


def step_costs(asked: TrainingStep) -> dict[str, Any]:
    """FLOPs of one training step of any model, by variant, as Table 7 counts. Plain data.

    Raises:
        InputError: there is no such model.
    """
    shape = find_shape(asked.model)
    settings = asked.model_dump(include={"length", "batch_size", "window", "sinks", "cell"})
    made = {variant: training_step(shape, variant, **settings) for variant in _TRAINED}
    return {
        "model": asked.model,
        **settings,
        "accounting": "paper's Table 7: twice the forward FLOPs, output gate left out",
        "variants": {
            variant: {"flops": count, "change_percent": 100 * (count / made["full"] - 1)}
            for variant, count in made.items()
        },
    }


_TRAINED = ("full", "window", "ahn")


def render_step(costs: Mapping[str, Any]) -> Table:
    """The costs of a training step as a table."""
    from rich.table import Table

    from reports import formats

    table = Table(
        title=f"{costs['model']}: a training step of {costs['batch_size']:,} x {costs['length']:,} "
        f"tokens, window {costs['window']:,}, sinks {costs['sinks']:,}, {costs['cell']}",
        caption=costs["accounting"],
        title_justify="left",
    )
    for heading in ("variant", "FLOPs", "against full"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for variant, made in costs["variants"].items():
        change = "" if variant == "full" else formats.signed_percent(made["change_percent"] / 100)
        table.add_row(variant, formats.operations(made["flops"]), change)
    return table
