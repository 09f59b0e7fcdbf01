"""`run_eval paper`: the list of tables and figures: what each needs, and what of it is here.

Quick: arithmetic, the hub's cache and record files are looked at; no model is loaded. Hours come
from runs that are there; without any, from a measurement of this device, which the caller makes:
it takes a second, and torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ahn.cost.accounting import flops
from ahn.cost.paper import training_step
from common.settings import settings
from evaluation.paper.costs import printed, shape_of
from evaluation.paper.experiments import POCKET, Experiment, experiments, parts
from evaluation.paper.needs import needs
from evaluation.paper.options import RUNS, PaperRun
from evaluation.paper.speed import Speed, speed_of_runs
from evaluation.paper.state import state_of
from evaluation.paper.study import folder_of, models_of, study
from evaluation.paper.variants import Variant, variants

if TYPE_CHECKING:
    from rich.table import Table

_HERE = {
    "figure3": "costs over length: run_eval cost --lengths; run_eval paper figure3 --model "
    "qwen2.5-3b --data BOOK, or --model pocket",
    "figure5": "of any text: ahn probe; over generated documents: run_eval paper figure5",
}
"""Of those that are no parts x variants."""


def listed(output: Path = Path(RUNS), measured: Speed | None = None) -> dict[str, dict[str, Any]]:
    """Every table and figure: what it needs, and what of it can be had here. Plain data.

    `tokens` are those of one example, at most; `flops` are those of reading all examples at that
    length with every model, method and window, in the exact accounting; None: not arithmetic.
    `training_flops` are those of training, as Table 7 counts a step. `hours` are `flops` at the
    rate that `speed` names; None: nothing was measured. `of` has the same of each model, the pocket
    model among them, with the state of its runs.

    Args:
        output: folder of the paper's runs.
        measured: what this device was measured to do, for models that nothing was run of.
    """
    models = dict.fromkeys(
        model for name, made in experiments().items() if made.parts for model in models_of(name)
    )
    speeds = {model: _speed(model, output, measured) for model in models}
    return {name: _listed(name, made, output, speeds) for name, made in experiments().items()}


def _speed(model: str, output: Path, measured: Speed | None) -> Speed | None:
    """What a model's hours are counted by."""
    found = speed_of_runs(output / model)
    if found is None and model != POCKET:  # whose operations are too small to be products' speed
        return measured
    return found


Speeds = Mapping[str, Speed | None]
"""By model; None: nothing is known."""


def _listed(name: str, made: Experiment, output: Path, speeds: Speeds) -> dict[str, Any]:
    asked = models_of(name) if made.parts else []
    of = {model: _of_model(name, model, output, speeds[model]) for model in asked}
    paper = [of[model] for model in made.models] if made.parts else []
    work = sum(entry["flops"] for entry in paper) if paper else _work(made)
    hours = [entry["hours"] for entry in paper]
    titles = [parts()[part].title for part in made.parts]
    return {
        "title": made.title,
        "models": list(made.models),
        "data": made.data or "; ".join(titles),
        "variants": list(made.methods),
        "windows": list(made.windows),
        "sinks": made.sinks,
        "examples": made.examples or sum(parts()[part].examples for part in made.parts),
        "tokens": made.tokens or max((parts()[part].tokens for part in made.parts), default=0),
        "flops": work,
        "training_flops": _training(made),
        "hours": sum(hours) if hours and None not in hours else None,
        "here": _here(name, made),
        "of": of,
    }


def _of_model(name: str, model: str, output: Path, speed: Speed | None) -> dict[str, Any]:
    """What one model takes of a table or figure, and how far it is."""
    asked = study(name, settings(PaperRun, {"model": model}))
    shape = shape_of(model)
    runs: dict[str, dict[str, Any]] = {}
    work = 0
    for part_name, part in asked.parts.items():
        runs[part_name] = {}
        for variant in asked.variants:
            count = flops(shape, prompt_tokens=part.tokens, **variant.settings).total
            work += part.examples * count
            folder = folder_of(output, model, part_name, variant.name)
            state = state_of(folder)
            runs[part_name][variant.name] = {
                "folder": str(folder),
                "state": state.word(part.examples),
                "answered": state.answered,
                "examples": part.examples,
                **({"problem": state.problem} if state.problem else {}),
            }
    return {
        "parts": {
            part: {"title": parts()[part].title, "stands_for": parts()[part].stands_for}
            for part in asked.parts
        },
        "variants": [variant.name for variant in asked.variants],
        "examples": sum(part.examples for part in asked.parts.values()),
        "tokens": max(part.tokens for part in asked.parts.values()),
        "flops": work,
        "hours": None if speed is None else work / speed.flops_per_second / 3600,
        "speed": None if speed is None else speed.as_data(),
        "needs": [
            {"kind": need.kind, "name": need.name, "from": need.place, "here": need.here}
            for need in needs(asked)
        ],
        "runs": runs,
    }


def _work(made: Experiment) -> int | None:
    """FLOPs of what is described by its examples alone."""
    if not made.models or not made.methods:
        return None
    chosen: Sequence[Variant] = variants(made.methods, made.windows, made.sinks)
    return sum(
        made.examples * flops(shape_of(model), prompt_tokens=made.tokens, **one.settings).total
        for model in made.models
        for one in chosen
    )


def _training(made: Experiment) -> int | None:
    """FLOPs of what is trained first: Table 7's count of a step, the teacher's pass not in it."""
    if made.training is None:
        return None
    sizes = printed().tables["table7"].sizes
    return sum(
        made.training.runs
        * made.training.steps
        * training_step(shape_of(model), "ahn", cell="GatedDeltaNet", **sizes)
        for model in made.models
    )


def _here(name: str, made: Experiment) -> str:
    if made.arithmetic == "all":
        return f"all of it: run_eval paper {name}"
    if not made.parts:
        return _HERE[name]
    costs = f"its costs: run_eval paper {name}; " if made.arithmetic else ""
    return f"{costs}run_eval paper {name} --model {'|'.join(models_of(name))}"


def listing(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """The list as a table."""
    from rich import box
    from rich.table import Table

    from reports import formats

    table = Table(
        title="The AHN paper (arXiv 2510.07318v2); FLOPs: exact accounting, every example at so "
        "many tokens",
        title_justify="left",
        caption_justify="left",
        caption="\n".join(_notes(found)),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 1, 0),
    )
    for heading in ("", "what is asked of whom", "what is here"):
        table.add_column(heading, overflow="fold")
    for heading in ("examples", "tokens", "FLOPs", "hours"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, made in found.items():
        counted = (formats.whole(made[key]) if made[key] else "" for key in ("examples", "tokens"))
        work = "" if not made["examples"] else formats.operations(made["flops"])
        if made["training_flops"] is not None:
            work += f"\n+ training\n{formats.operations(made['training_flops'])}"
        asked = [made["title"], made["data"], ", ".join(made["models"])]
        asked += [", ".join(made["variants"])]
        table.add_row(
            name,
            "\n".join(line for line in dict.fromkeys(asked) if line),
            "\n".join([made["here"], *_states(made["of"])]),
            *counted,
            work,
            "" if not made["of"] else _hours(made["hours"]),
        )
    return table


def _hours(hours: float | None) -> str:
    if hours is None:
        return "?"
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _states(of: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines on the models: weights, rows and runs; those of which the same is true together."""
    models: dict[str, list[str]] = {}
    for model, entry in of.items():
        models.setdefault(_state(entry), []).append(model)
    return [f"{', '.join(names)}: {told}" for told, names in models.items()]


def _state(entry: Mapping[str, Any]) -> str:
    states = [run for by_variant in entry["runs"].values() for run in by_variant.values()]
    done = sum(run["state"] == "done" for run in states)
    partly = [run for run in states if run["state"] == "partly"]
    told = "nothing run" if not done and not partly else f"{done} of {len(states)} runs done"
    if partly:
        answered = sum(run["answered"] for run in partly)
        asked = sum(run["examples"] for run in partly)
        told += f", {len(partly)} partly ({answered:,} of {asked:,} examples)"
    unreadable = sum("problem" in run for run in states)
    if unreadable:
        told += f", {unreadable} cannot be read (--json says why)"
    if entry["hours"] is not None:
        told += f", {_hours(entry['hours'])} hours in all"
    missing = []
    for kind in ("weights", "rows"):
        of_kind = [need for need in entry["needs"] if need["kind"] == kind]
        names = [need["name"] for need in of_kind if not need["here"]]
        missing += [kind if len(names) == len(of_kind) else f"{kind} of {', '.join(names)}"] * bool(
            names
        )
    here = f"not here: {', '.join(missing)}" if missing else "weights and rows here"
    return f"{told}; {here}"


def _notes(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where hours are from, and what they leave out."""
    speeds = {
        entry["speed"]["told"]: None
        for made in found.values()
        for entry in made["of"].values()
        if entry["speed"]
    }
    notes = [f"hours: {told}" for told in speeds]
    if any(made["of"] and made["hours"] is None for made in found.values()):
        notes.append(
            "hours: ? where nothing was run or measured: without --no-estimate, matrix products "
            "are measured on this device (about a second)"
        )
    notes.append("Tables share records: what one has run is not run again by another.")
    return notes
