"""What a table or figure asks of a model: parts x variants, with weights and rows. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ahn.cost import zoo
from common.errors import InputError, Problems
from common.settings import flags_of, settings
from common.suggestions import did_you_mean
from evaluation.paper.experiments import POCKET, Part, experiments, parts
from evaluation.paper.options import PaperRun
from evaluation.paper.training import trainings
from evaluation.paper.variants import WEIGHTS, Variant, variants
from evaluation.plan.configuration import RunConfiguration
from evaluation.plan.tasks import resolve_tasks

_ON_POCKET = {"dtype": "float32", "device": "cpu"}
"""As the pocket suite's own preset."""


@dataclass(frozen=True)
class Study:
    """What is run of one model: every part with every variant.

    Attributes:
        name: of the table or figure.
        title: for people.
        model: name of its folder: `qwen2.5-3b`, `pocket`.
        base: weights of the base model: folder or hub id.
        ahn: AHN weights that the variants read: folder or hub id by name.
        parts: what is asked, by name.
        variants: who answers.
        data: folders of rows by benchmark; a benchmark that is not there has them from its hub.
    """

    name: str
    title: str
    model: str
    base: str
    ahn: Mapping[str, str]
    parts: Mapping[str, Part]
    variants: Sequence[Variant]
    data: Mapping[str, str]


def models_of(name: str) -> list[str]:
    """The models that a table or figure can be run of."""
    made = experiments()[name]
    return [*made.models, *([POCKET] if made.pocket else [])]


def model_of(name: str, given: str) -> str:
    """The name of a model of a table or figure: also by hub id, or as the paper writes it.

    Raises:
        InputError: the table or figure has no such model.
    """
    known = models_of(name)
    plain = given.strip().lower().rsplit("/", 1)[-1].removesuffix("-instruct")
    if plain not in known:
        raise InputError(
            f"--model: {name} has no {given!r}; one of {', '.join(known)}"
            + did_you_mean(plain, known)
        )
    return plain


def study(name: str, asked: PaperRun) -> Study:
    """What a table or figure runs of a model.

    Raises:
        InputError: what is asked is not in it.
    """
    made, problems = experiments()[name], Problems()
    if asked.model is None:
        raise InputError(f"--model: needed by {name}; one of {', '.join(models_of(name))}")
    model = model_of(name, asked.model)
    sweep = made.sweep_of(model)
    trained = trainings(model, asked.ahn) if made.training else []
    chosen = variants(made.methods, sweep.windows, sweep.sinks, [t.name for t in trained])
    if asked.variants:
        there = [variant.name for variant in chosen]
        problems.add(
            *(
                f"--variant: {name} of {model} has no {unknown!r}; one of {', '.join(there)}"
                + did_you_mean(unknown, there)
                for unknown in asked.variants
                if unknown not in there
            )
        )
        chosen = [variant for variant in chosen if variant.name in asked.variants]
    every = {part: parts()[part] for part in made.parts_of(model)}
    needed = list(dict.fromkeys(variant.weights for variant in chosen if variant.weights))
    weights = {t.name: t.weights or t.recipe.output_dir for t in trained if t.name in needed}
    if not trained:
        with problems.collecting():
            weights = weights_of(model, needed, asked.ahn)
    with problems.collecting():
        data = _data(name, every, asked.data)
    problems.check()
    base = asked.base or (POCKET if model == POCKET else zoo.find(model).hub_id)
    return Study(name, made.title, model, base, weights, every, chosen, data)


def weights_of(model: str, needed: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """AHN weights by name: those given, else those released."""
    known = list(WEIGHTS.values())
    for name in given:
        if name not in known:
            raise InputError(
                f"--ahn: weights are called {', '.join(known)}, as gdn=PATH; not {name!r}"
                + did_you_mean(name, known)
            )
    if model == POCKET:
        released = {name: f"{POCKET}/{name}" for name in known}
    else:
        hub = zoo.find(model).released_ahn
        released = {name: hub[cell] for cell, name in WEIGHTS.items()}
    return {name: given.get(name, released[name]) for name in needed}


def _data(name: str, asked: Mapping[str, Part], given: Mapping[str, str]) -> dict[str, str]:
    """Folders of rows by benchmark."""
    benchmarks = list(dict.fromkeys(str(part.run["benchmark"]) for part in asked.values()))
    if given and POCKET in benchmarks:
        raise InputError("--data: the pocket model's rows are generated here; leave it out")
    if "" in given and (len(benchmarks) > 1 or len(given) > 1):
        raise InputError(
            f"--data: say whose rows these are: {name} asks {', '.join(benchmarks)}, as "
            f"{benchmarks[0]}=PATH"
        )
    known = {str(part.run["benchmark"]) for part in parts().values()} - {POCKET}
    for benchmark in given:
        if benchmark and benchmark not in known:
            raise InputError(
                f"--data: no part of the paper is of {benchmark!r}; one of "
                f"{', '.join(sorted(known))}" + did_you_mean(benchmark, known)
            )
    return {benchmark or benchmarks[0]: path for benchmark, path in given.items()}


def unread(study: Study, asked: PaperRun) -> list[str]:
    """What was given and nothing of the study reads: it may be meant for another table."""
    benchmarks = {part.run["benchmark"] for part in study.parts.values()}
    names = {
        "--ahn": [name for name in asked.ahn if name not in study.ahn],
        "--data": [name for name in asked.data if name and name not in benchmarks],
        "--essay": ["ruler"] if asked.essay is not None and "ruler" not in benchmarks else [],
    }
    return [
        f"{flag}: nothing of {study.name} reads {', '.join(unread)}"
        for flag, unread in names.items()
        if unread
    ]


def configuration(
    study: Study, part: Part, chosen: Iterable[Variant], asked: PaperRun, output: Path
) -> RunConfiguration:
    """The configuration of a run of some variants on a part.

    Raises:
        InputError: a value that no run can have.
    """
    chosen, benchmark = list(chosen), str(part.run["benchmark"])
    machine = {key: getattr(asked, key) for key in _ON_POCKET if key in asked.model_fields_set}
    if study.model == POCKET:
        machine = _ON_POCKET | machine
    given: dict[str, Any] = {
        **part.run,
        **machine,
        **asked.of_run(),
        "model": study.base,
        "ahn": {v.weights: study.ahn[v.weights] for v in chosen if v.weights},
        "variants": [variant.request for variant in chosen],
        "limit": asked.limit or part.limit,
        "output": str(output),
    }
    if benchmark in study.data:
        given["data"] = study.data[benchmark]
    if benchmark == "ruler":
        given["essay"] = asked.essay
    return settings(RunConfiguration, {k: v for k, v in given.items() if v is not None})


def folder_of(output: Path, model: str, part: str, variant: str) -> Path:
    """The run folder of a variant on a part."""
    return output / model / part / variant


def examples_of(part: Part, limit: int | None) -> int:
    """Examples of a part that a variant answers, at most, with so many of each task.

    Args:
        part: what is asked.
        limit: as it was asked for; None: the part's own.
    """
    if limit is None:
        return part.examples
    keys = ("benchmark", "tasks", "lengths", "protocol", "data")
    asked = {key: part.run[key] for key in keys if key in part.run}
    tasks = resolve_tasks(settings(RunConfiguration, asked)).tasks
    return limit * len(tasks) if part.limit else min(part.examples, limit * len(tasks))


def is_run(name: str, asked: PaperRun) -> bool:
    """Whether a table that has costs and scores is to be run, and not only computed.

    Raises:
        InputError: what is asked is not in it, or something is said of a run that there is not.
    """
    alone = "--json" if asked.json_ else "--costs-only" if asked.costs_only else ""
    if asked.model is not None and not alone:
        study(name, asked)
        return True
    fields = type(asked).model_fields
    said = [
        flags_of(key, field)[0]
        for key, field in fields.items()
        if key in asked.model_fields_set and key not in ("model", "costs_only", "json_")
    ]
    if said:
        why = f"with {alone} only costs are printed" if alone else f"{name} runs with --model"
        raise InputError(f"{', '.join(said)}: nothing is run; {why}")
    return False
