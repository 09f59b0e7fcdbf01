"""Table 4's trainings: what each is, what it costs, and where its weights are. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.names import embedded_memories
from ahn.cost.accounting import flops
from ahn.cost.paper import training_step
from ahn.cost.shapes import ModelShape
from ahn.distill.recipe import Recipe, load_recipe
from common.errors import InputError, Problems
from common.suggestions import did_you_mean
from evaluation.commands.cost import find_shape
from evaluation.paper.experiments import TRAININGS
from evaluation.paper.files import Strict, read
from tasks.published import Source

if TYPE_CHECKING:
    from rich.table import Table

TABLE = "table4"
ROWS = tuple(reversed(TRAININGS))
"""Its rows, the paper's own recipe first."""
#: Options in which a training may differ from its recipe: where things lie (data and base are
#: compared by their content), what is logged and kept, and how a batch is dealt out to devices.
_ELSEWHERE = {
    "dataset",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "logging_steps",
    "model_name_or_path",
    "output_dir",
    "per_device_train_batch_size",
    "preprocessing_num_workers",
    "report_to",
    "save_steps",
    "save_total_limit",
    "threads",
    "training_arguments",
}


class Size(Strict):
    """How a model is trained."""

    recipes: tuple[str, ...] = Field(min_length=1)
    """Files of `configs/train`, one for each seed, `{name}` being the row's."""
    steps: int
    sequences: int
    """Of a step."""
    length: int
    """Of a sequence in tokens, at most."""
    start: str
    """The command before the recipe's name."""


class _Trained(Strict):
    source: Source
    models: dict[str, Size]


@cache
def sizes() -> Mapping[str, Size]:
    """How each model of the table is trained."""
    return read("training.yaml", _Trained).models


@dataclass(frozen=True)
class Training:
    """One training of the table.

    Attributes:
        row: of the table: `kl-random` ...
        name: of the weights: the row's, with the seed where a row has several.
        recipe: what is trained.
        file: the recipe's, below a checkout.
        command: that trains it.
        steps: of the optimiser.
        tokens: of all steps, at most.
        window: lossless positions that are trained with, at most; sinks among them.
        flops: of the student, at most, as Table 7 counts a step.
        teacher_flops: of the teacher's forward passes with full attention, which Table 7 leaves
            out; 0: it has none.
        weights: folder, hub id or name of the embedded memory; empty: there are none.
        found: how they were found, in words.
        log: the `training.json` beside them; empty: there is none.
    """

    row: str
    name: str
    recipe: Recipe
    file: str
    command: str
    steps: int
    tokens: int
    window: int
    flops: int
    teacher_flops: int
    weights: str = ""
    found: str = ""
    log: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The row's, and the seed."""
        return f"{TRAININGS[self.row]}, seed {self.recipe.seed}"


def trainings(model: str, given: Mapping[str, str]) -> list[Training]:
    """The table's trainings for a model, row by row, with the weights that are here.

    Args:
        model: key of `sizes`.
        given: folders or hub ids of weights, by name; also of further seeds, as
            `kl-random-seed7`.

    Raises:
        InputError: a name that is none; weights that were trained for another row.
    """
    size, problems = sizes()[model], Problems()
    made = [_training(model, size, row, n) for row in ROWS for n in range(_seeds(size))]
    known = {training.name for training in made}
    for name in given:
        if name in known:
            continue
        row, _, seed = name.partition("-seed")
        if row in ROWS and re.fullmatch(r"\d{1,9}", seed):
            made.append(_training(model, size, row, 0, int(seed)))
        else:
            problems.add(
                f"--ahn: weights of {TABLE} are called {', '.join(sorted(known))}, as "
                f"{made[0].name}=PATH; not {name!r}" + did_you_mean(name, known)
            )
    made.sort(key=lambda training: ROWS.index(training.row))
    found = []
    for training in made:
        with problems.collecting():
            found.append(_with_weights(training, given.get(training.name)))
    problems.check()
    return found


def _seeds(size: Size) -> int:
    return len(size.recipes)


def _training(model: str, size: Size, row: str, number: int, seed: int | None = None) -> Training:
    """The training of a row with its recipe of that number, or that recipe with another seed."""
    file = f"configs/train/{size.recipes[number].format(name=row)}.yaml"
    recipe = load_recipe(str(resources.files("configs") / file.removeprefix("configs/")))
    command = f"{size.start} {file}"
    if seed is not None:
        folder = f"{recipe.output_dir.removesuffix(f'-seed{recipe.seed}')}-seed{seed}"
        recipe = recipe.model_copy(update={"seed": seed, "output_dir": folder})
        command += f" --seed {seed} --output_dir {folder}"
    several = _seeds(size) > 1 or seed is not None
    window = _largest_window(recipe, size.length)
    shape = find_shape(model)
    step = training_step(
        shape,
        "ahn",
        size.length,
        batch_size=size.sequences,
        window=window - recipe.num_attn_sinks,
        sinks=recipe.num_attn_sinks,
        cell=recipe.ahn_implementation,
    )
    return Training(
        row=row,
        name=f"{row}-seed{recipe.seed}" if several else row,
        recipe=recipe,
        file=file,
        command=command,
        steps=size.steps,
        tokens=size.steps * size.sequences * size.length,
        window=window,
        flops=size.steps * step,
        teacher_flops=size.steps * _teacher(shape, size) if recipe.losses != ["ce"] else 0,
    )


def _largest_window(recipe: Recipe, length: int) -> int:
    if recipe.sliding_window_type == "fixed":
        return recipe.sliding_window
    return max(window for window in recipe.sliding_window_choices if window < length)


def _teacher(shape: ModelShape, size: Size) -> int:
    read_once = flops(shape, prompt_tokens=size.length, variant="full", accounting="paper").total
    return size.sequences * read_once


def _with_weights(training: Training, given: str | None) -> Training:
    """The training with the weights that are given, else trained here, else embedded.

    Raises:
        InputError: they are of another training.
    """
    output, embedded = Path(training.recipe.output_dir), f"ablation/{training.name}"
    if given is not None:
        place, found = given, "given"
    elif (output / "training.json").is_file() and any(output.glob("*.safetensors")):
        place, found = str(output), "trained here"
    elif embedded in embedded_memories():
        place, found = f"pocket/{embedded}", "embedded"
    else:
        return training
    files = CheckpointFiles(place)
    try:
        config = files.config
    except InputError as error:
        raise error.prefixed(f"--ahn {training.name}: " if given else "") from None
    _check(training, place, config)
    return replace(training, weights=place, found=found, log=_log(Path(files.place)))


def _check(training: Training, place: str, config: Mapping[str, Any]) -> None:
    """That weights say nothing of themselves that the row's recipe does not say."""
    recipe = training.recipe
    expected = {
        "_ahn_implementation": recipe.ahn_implementation,
        "loss_type": "+".join(recipe.losses),
        "sliding_window_type": recipe.sliding_window_type,
    }
    for key, wanted in expected.items():
        said = config.get(key)
        said = "+".join(map(str, said)) if isinstance(said, list) else said
        if said is not None and said != wanted:
            raise InputError(
                f"--ahn {training.name}={place}: these weights were trained otherwise: config.json "
                f"has {key} {said}, {training.file} has {wanted}"
            )


def _log(folder: Path) -> Mapping[str, Any]:
    try:
        log = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return log if isinstance(log, dict) else {}


def unlike(made: Iterable[Training]) -> Iterator[str]:
    """Where weights were not trained as their recipes say, or not alike; a line each."""
    contents: dict[tuple[str, str], str] = {}
    defaults = Recipe.model_construct(output_dir="", dataset="").model_dump(mode="json")
    for training in made:
        written = training.log.get("recipe")
        if not isinstance(written, dict):
            continue
        wanted = training.recipe.model_dump(mode="json")
        for key in sorted(wanted.keys() - _ELSEWHERE):
            had = written.get(key, defaults.get(key))
            if had != wanted[key]:
                yield (
                    f"{training.name} was trained with {key} {json.dumps(had)}; "
                    f"{training.file} has {json.dumps(wanted[key])}"
                )
        content = training.log.get("content")
        content = content if isinstance(content, dict) else {}
        for key in ("dataset", "model_name_or_path"):
            if not isinstance(digest := content.get(key), str):
                continue
            first = contents.setdefault((key, digest), training.name)
            others = [name for (k, d), name in contents.items() if k == key and d != digest]
            if others and first == training.name:
                what = "other data" if key == "dataset" else "another base model"
                yield f"{training.name} was trained on {what} than {others[0]}"


def trainings_table(made: Sequence[Training]) -> Table:
    """What is trained, what that costs, and what is here."""
    from rich import box
    from rich.table import Table

    from reports import formats

    table = Table(
        title="Trainings of Table 4 (FLOPs: at most; of the student, as run_eval training-step "
        "counts a step, and of the teacher's forward passes)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("weights", no_wrap=True)
    table.add_column("what", overflow="fold")
    for heading in ("windows", "steps", "tokens", "FLOPs", "teacher"):
        table.add_column(heading, justify="right")
    table.add_column("here", overflow="fold")
    for training in made:
        table.add_row(
            training.name,
            training.title,
            _windows(training),
            formats.whole(training.steps),
            formats.whole(training.tokens),
            formats.operations(training.flops),
            formats.operations(training.teacher_flops) if training.teacher_flops else "none",
            _here(training),
        )
    return table


def _windows(training: Training) -> str:
    fixed = training.recipe.sliding_window_type == "fixed"
    return f"{training.window:,}" if fixed else f"up to {training.window:,}"


def _here(training: Training) -> str:
    if not training.weights:
        return "missing"
    told = f"{training.found}: {training.weights}"
    steps, seconds = training.log.get("steps"), training.log.get("seconds")
    if isinstance(steps, int):
        told += f", {steps:,} steps"
    if isinstance(seconds, int | float):
        told += f", {seconds:,.0f} s"
    return told
