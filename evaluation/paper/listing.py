"""`run_eval paper`: the list of tables and figures, with what each needs. No torch, no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ahn.config import example_layout
from ahn.cost import zoo
from ahn.cost.accounting import flops
from ahn.cost.paper import variant_of
from evaluation.paper.experiments import Experiment, experiments

if TYPE_CHECKING:
    from rich.table import Table


def listed() -> dict[str, dict[str, Any]]:
    """Every table and figure: what it needs, and what of it can be had here. Plain data.

    `tokens` are those of one example, at most; `flops` are those of reading all examples at that
    length with every model, method and window, in the exact accounting; None: not arithmetic.
    """
    return {
        name: {
            "title": made.title,
            "models": list(made.models),
            "data": made.data,
            "variants": [*made.methods, *made.more_methods],
            "windows": [*made.windows, *([made.window] if made.window else [])],
            "sinks": made.sinks,
            "examples": made.examples,
            "tokens": made.tokens,
            "flops": _work(made),
            "here": _here(name, made),
        }
        for name, made in experiments().items()
    }


def _work(made: Experiment) -> int | None:
    if made.training or made.more_methods or not made.models:
        return None
    total = 0
    for model in made.models:
        shape = zoo.find(model).shape
        for method in made.methods:
            settings = dict(variant_of(method))
            bounded = example_layout(settings["variant"]).window is not None
            for window in (made.windows or (made.window,)) if bounded else (None,):
                settings |= {"window": window, "sinks": made.sinks}
                total += made.examples * flops(shape, prompt_tokens=made.tokens, **settings).total
    return total


def _here(name: str, made: Experiment) -> str:
    if made.arithmetic == "all":
        return f"all of it: run_eval paper {name}"
    if made.arithmetic:
        return f"its costs: run_eval paper {name}; its scores cannot be run by this command yet"
    return "cannot be run by this command yet"


def refusal(name: str) -> str:
    """Why a table or figure that needs a model is not made."""
    made = experiments()[name]
    return (
        f"{name} ({made.title}) needs answers of a model, and this command does not run it yet; "
        "run_eval paper lists what it needs, and configs/eval/paper-*.yaml are presets of runs of "
        "LV-Eval, InfiniteBench and LongBench"
    )


def listing(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """The list as a table."""
    from rich import box
    from rich.table import Table

    from reports import formats

    table = Table(
        title="The AHN paper (arXiv 2510.07318v2); FLOPs: exact accounting, every example at so "
        "many tokens",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for heading in ("", "what", "models", "variants", "data", "here"):
        table.add_column(heading, overflow="fold")
    for heading in ("examples", "tokens", "FLOPs"):
        table.add_column(heading, justify="right")
    for name, made in found.items():
        counted = (formats.whole(made[key]) if made[key] else "" for key in ("examples", "tokens"))
        work = made["flops"]
        table.add_row(
            name,
            made["title"],
            ", ".join(made["models"]),
            ", ".join(made["variants"]),
            made["data"],
            made["here"],
            *counted,
            "" if not made["examples"] else formats.operations(work),
        )
    return table
