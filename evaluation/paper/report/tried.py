"""Which of the paper's settings a variant of a run is of, and in what it differs.

A method is known by what `run.json` says of the variant (kind, pooling, cell, layers), never by its
name; a model by its shape, whatever folder it came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ahn.cost import zoo
from ahn.cost.accounting import added_parameters, variant_layouts
from ahn.cost.paper import METHODS
from ahn.cost.shapes import ModelShape
from common.errors import InputError
from evaluation.commands.cost import find_shape
from evaluation.paper.costs import printed
from evaluation.paper.experiments import POCKET, TRAININGS
from evaluation.paper.scores import Expected, expected
from reports.leaderboard import Column, TaskKey, columns_of
from reports.run_folders import Run

PURE_RNN = "Pure RNN"

_CELLS = {str(of["cell"]): method for method, of in METHODS.items() if "cell" in of}
_POOLINGS = {"max": "CT-Max", "mean": "CT-Average"}
_KINDS = {"full": "Full Attn", "window": "Sinks + SWA", "memory-only": PURE_RNN}
_DTYPE = "bfloat16"
_SEED = re.compile(r"-seed(\d+)")


@dataclass(frozen=True)
class Tried:
    """A variant of a run, in the paper's terms.

    Attributes:
        column: its records.
        model: by the paper's name, or `pocket`; None: another.
        method: by the name in the tables; None: the paper has no such method.
        window: tokens, sinks not among them; None: it has none.
        sinks: likewise.
        training: a key of `TRAININGS`, where the memory's weights are named so.
        seed: of that training, as it is named.
        released: whether the memory's weights are named as the released ones.
        remarks: in what the variant differs from the paper's, whatever the task.
        unfit: why it stands in no table; empty: it may.
    """

    column: Column
    model: str | None
    method: str | None
    window: int | None
    sinks: int | None
    training: str | None
    seed: str
    released: bool
    remarks: tuple[str, ...]
    unfit: str

    @property
    def name(self) -> str:
        """Run and variant."""
        return f"{self.column.run.path.name}/{self.column.variant}"

    def task_remarks(self, task: TaskKey) -> tuple[str, ...]:
        """In what the records of a task differ from the paper's, beside `remarks`."""
        return tuple(_task_remarks(self.column, task, expected().get(task.benchmark)))


@cache
def shapes() -> Mapping[str, ModelShape]:
    """The paper's models and the pocket model, by their names."""
    found = {title: zoo.find(name).shape for title, name in printed().models.items()}
    return {**found, POCKET: find_shape(POCKET)}


def all_tried(runs: Sequence[Run]) -> list[Tried]:
    """Every variant of the runs, in their order."""
    return [_tried(column) for column in columns_of(runs)]


def _tried(column: Column) -> Tried:
    described = column.run.info.models.get(column.variant, {})
    model, known_by = _model_of(column, described)
    method = method_of(described, column.kind)
    return Tried(
        column=column,
        model=model,
        method=method,
        window=None if method in (None, "Full Attn", PURE_RNN) else _tokens(described, "window"),
        sinks=None if method in (None, "Full Attn", PURE_RNN) else _tokens(described, "sinks"),
        training=_training_of(column.variant, described),
        seed="".join(_SEED.findall(_names(column.variant, described))[:1]),
        released=model is not None and _is_released(str(described.get("ahn")), model),
        remarks=()
        if model is None or method is None
        else tuple(_remarks(column, described, model, known_by)),
        unfit=_unfit(described, model, method),
    )


def _tokens(described: Mapping[str, Any], name: str) -> int:
    """A number of tokens; -1, which fits nothing, where a file says something else."""
    value = described.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _unfit(described: Mapping[str, Any], model: str | None, method: str | None) -> str:
    if model is None:
        return "not one of the paper's models"
    if method is None:
        return "not one of the paper's methods"
    if described.get("full_attention_layers") and method != "Full Attn":
        return "some of its layers have full attention"
    return ""


def _model_of(column: Column, described: Mapping[str, Any]) -> tuple[str | None, str]:
    """The model, and by what it is known: `shape` or `name`."""
    count, layers = described.get("parameters"), described.get("layout")
    if isinstance(count, int):
        for title, shape in shapes().items():
            added = _added(shape, described.get("cell"))
            deep = isinstance(layers, list) and len(layers) != shape.num_hidden_layers
            if added is not None and count == shape.parameters + added and not deep:
                return title, "shape"
        return None, ""
    path = described.get("path")
    if isinstance(path, str) and (Path(path) / "config.json").is_file():
        try:
            found = find_shape(path)
        except InputError:
            return None, ""
        return next((t for t, shape in shapes().items() if shape == found), None), "shape"
    return next((t for t in shapes() if _bears(column, described, t)), None), "name"


def _added(shape: ModelShape, cell: Any) -> int | None:
    if cell is None:
        return 0
    return added_parameters(shape, cell) if str(cell) in _CELLS else None


def _bears(column: Column, described: Mapping[str, Any], title: str) -> bool:
    """Whether the base weights are named after a model."""
    names = [str(n) for n in (column.model, described.get("path"), described.get("model")) if n]
    if title == POCKET:
        return any(Path(name).name == POCKET for name in names)
    return any(title.lower() in name.lower() for name in names)


def method_of(described: Mapping[str, Any], kind: str) -> str | None:
    """The method of a variant of this kind, by the name in the tables; None: the paper has none."""
    if kind == "ahn":
        return _CELLS.get(str(described.get("cell")))
    if kind == "compressive":
        return _POOLINGS.get(str(described.get("pooling")))
    if kind == "memory-only" and described.get("cell") != "GatedDeltaNet":
        return None
    return _KINDS.get(kind)


def _names(variant: str, described: Mapping[str, Any]) -> str:
    return f"{variant} {Path(str(described.get('ahn') or '')).name}"


def _training_of(variant: str, described: Mapping[str, Any]) -> str | None:
    if not described.get("ahn"):
        return None
    return next((name for name in TRAININGS if name in _names(variant, described)), None)


def released(model: str, cell: str) -> str:
    """Name of the memory's weights that the authors, or this package, released."""
    short = _CELLS[cell].removeprefix("AHN-")
    if model == POCKET:
        return short.lower()
    size = model.split("-")[1]
    return f"AHN-{short}-for-Qwen-2.5-Instruct-{size}"


def _remarks(
    column: Column, described: Mapping[str, Any], model: str, known_by: str
) -> Iterator[str]:
    """What of the variant differs from the paper's setting."""
    pocket = model == POCKET
    path = described.get("path") or column.model or "unknown"
    if known_by == "name":
        yield "the model is known by its name alone"
    elif not _bears(column, described, model):
        yield f"weights from {Path(str(path)).name}, known as {model} by their shape alone"
    cell, ahn = described.get("cell"), described.get("ahn")
    if str(cell) in _CELLS:
        name = Path(str(ahn or "")).name
        if _training_of(column.variant, described) is None and not _is_released(str(ahn), model):
            yield f"memory weights {name or 'not named'} (released: {released(model, str(cell))})"
    dtype = described.get("dtype")
    if not pocket and dtype != _DTYPE:
        yield f"{dtype or 'type not recorded'} (paper: {_DTYPE})"
    factor = described.get("yarn_factor")
    if factor is not None:
        yield f"RoPE stretched (YaRN, factor {factor}); paper: not"
    decoding = column.run.info.generation.get(column.variant, {})
    if decoding.get("do_sample"):
        yield f"sampled, temperature {decoding.get('temperature', 'unknown')} (paper: greedy)"
    if (decoding.get("num_beams") or 1) != 1:
        yield f"{decoding['num_beams']} beams"
    if described.get("variant") == "compressive":
        yield from _pooled(described, model)
    if column.run.info.configuration.get("budget") is not None:
        yield f"sized to a budget ({column.run.info.configuration['budget']})"


def _is_released(path: str, model: str) -> bool:
    """Whether a folder has the name of released weights, or is a snapshot of theirs."""
    parts = Path(path).parts
    names = {part.rsplit("--", 1)[-1] for part in parts if part.startswith("models--")}
    return any(released(model, cell) in names | {Path(path).name} for cell in _CELLS)


def _pooled(described: Mapping[str, Any], model: str) -> Iterator[str]:
    window = max(1, _tokens(described, "window"))
    layout = variant_layouts(shapes()[model], variant="compressive", window=window)[0]
    for name, usual in (("slots", layout.slots), ("rate", layout.rate)):
        if described.get(name) != usual:
            yield f"{name} {described.get(name)} (paper: {usual})"


def _task_remarks(column: Column, task: TaskKey, paper: Expected | None) -> Iterator[str]:
    """`paper`: how the paper ran it; None: it did not, so that nothing can differ from it."""
    info = column.run.info
    scored = len(column.scored(task))
    failed = len(column.cells[task]) - scored
    planned = column.planned(task.task)
    if paper is not None:
        if task.protocol != paper.protocol:
            yield f"protocol {task.protocol} (paper: {paper.protocol})"
        most = info.tasks.get(task.task, {}).get("max_length")
        if most != paper.max_length:
            said = f"{most:,}" if isinstance(most, int) else "not recorded"
            yield f"prompts of at most {said} tokens (paper: {paper.max_length:,})"
        limit = info.configuration.get("limit")
        every = sum(column.planned(name) or 0 for name in paper.tasks)
        if isinstance(limit, int) and limit == planned and every < paper.examples:
            yield f"the first {limit:,} examples of a data set"
    if failed:
        yield f"{task.task}: {failed:,} of {scored + failed:,} failed"
    if planned is not None and scored + failed < planned:
        yield f"{task.task}: {scored + failed:,} of {planned:,} answered"
