"""The paper's benchmarks as parts of its experiments, and what stands for them on pocket."""

from __future__ import annotations

from ahn.cost.accounting import flops
from evaluation.paper.costs import shape_of
from evaluation.paper.experiments import POCKET, Part, Sweep, experiments, parts
from evaluation.paper.report.measured import Tasks
from evaluation.paper.scores import expected
from evaluation.paper.variants import variants
from reports import formats


def stand_in(benchmark: str) -> Part:
    """What stands for a benchmark on the pocket model."""
    return parts()[f"{POCKET}-{expected()[benchmark].part}"]


def pocket_tasks(benchmark: str) -> Tasks:
    """Its tasks."""
    run = stand_in(benchmark).run
    return [(POCKET, f"{task}_{length}") for length in run["lengths"] for task in run["tasks"]]


def pocket_sweep(name: str) -> Sweep:
    """Windows and sinks of a table or figure on the pocket model; the first is the table's own."""
    found = experiments()[name].pocket or experiments()["table2"].pocket
    assert found is not None, "Table 2 is run on the pocket model"
    return found


def short(task: str) -> str:
    """A pocket task without what all of them have in common."""
    return task.removeprefix(f"{POCKET}_")


def effort(name: str, model: str) -> str:
    """What a table or figure takes of one model: examples, tokens, variants, FLOPs."""
    made = experiments()[name]
    asked = [parts()[part] for part in made.parts_of(model)]
    if not asked:
        what = "a text" if made.examples == 1 else f"{made.examples:,} examples"
        return f"{made.data}; {what} of up to {made.tokens:,} tokens"
    sweep = made.sweep_of(model)
    ways = variants(made.methods, sweep.windows, sweep.sinks)
    work = sum(
        part.examples * flops(shape_of(model), prompt_tokens=part.tokens, **way.settings).total
        for part in asked
        for way in ways
    )
    examples = sum(part.examples for part in asked)
    windows = f" at {len(sweep.windows)} windows" if len(sweep.windows) > 1 else ""
    return (
        f"{examples:,} examples of up to {max(part.tokens for part in asked):,} tokens for each of "
        f"{', '.join(made.methods)}{windows}; {formats.operations(work)}, exact accounting"
    )
