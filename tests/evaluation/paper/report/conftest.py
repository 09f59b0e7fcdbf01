"""Fabricated runs of the paper's models: descriptions as `run.json` has them, and scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ahn.cost.accounting import added_parameters, variant_layouts
from evaluation.paper.report.tried import released, shapes
from tests.reports.conftest import write_run

MakePaperRun = Callable[..., Path]
OF_7B = "Qwen2.5-7B-Instruct"
Scores = Mapping[str, Sequence[float | None]]

_LIMITS = {"lveval": 256_000, "infinitebench": 128_000, "longbench": 32_000}


def described(model: str, kind: str, **changes: Any) -> dict[str, Any]:
    """A variant as `run.json` describes it; `changes` replace what it says."""
    shape = shapes()[model]
    cell = changes.get("cell", "GatedDeltaNet" if kind in ("ahn", "memory-only") else None)
    bounded = kind in ("window", "ahn", "compressive")
    found: dict[str, Any] = {
        "variant": kind,
        "path": f"/models/{model}",
        "ahn": f"/models/{released(model, cell)}" if cell else None,
        "window": 32640 if bounded else None,
        "sinks": 128 if bounded else None,
        "cell": cell,
        "full_attention_layers": [],
        "dtype": "bfloat16",
        "device": "cuda",
        "yarn_factor": None,
        "parameters": shape.parameters + (added_parameters(shape, cell) if cell else 0),
        "layout": [{}] * shape.num_hidden_layers,
    }
    if kind == "compressive":
        layout = variant_layouts(shape, variant=kind, window=32640, sinks=128)[0]
        found |= {"pooling": "mean", "slots": layout.slots, "rate": layout.rate}
    return found | changes


@pytest.fixture
def paper_run(tmp_path: Path) -> MakePaperRun:
    """Write a run: per variant its kind and changes, and per task its scores."""

    def make(
        name: str,
        variants: Mapping[str, tuple[str, Mapping[str, Any]]],
        scores: Mapping[str, Scores],
        benchmark: str = "longbench",
        model: str = OF_7B,
        protocol: str = "ahn",
        max_length: int | None = None,
        configuration: Mapping[str, Any] | None = None,
        **info: Any,
    ) -> Path:
        tasks = {task: len(s) for of in scores.values() for task, s in of.items()}
        return write_run(
            tmp_path / name,
            scores,
            record={"benchmark": benchmark, "protocol": protocol},
            models={
                v: described(model, kind, **changes) for v, (kind, changes) in variants.items()
            },
            configuration={"model": f"Qwen/{model}", **(configuration or {})},
            tasks={
                task: {
                    "benchmark": benchmark,
                    "protocol": protocol,
                    "template_sha256": "ab" * 32,
                    "max_length": max_length or _LIMITS.get(benchmark, 131072),
                    "examples": count,
                }
                for task, count in tasks.items()
            },
            **info,
        )

    return make
