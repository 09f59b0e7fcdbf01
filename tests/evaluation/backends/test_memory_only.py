"""`--variant memory-only`: what it has no use for, its constant cost, and a run with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ahn
from ahn.config import LayerLayout
from ahn.cost import cache_bytes
from common.errors import InputError
from evaluation.backends.base import RunSettings
from evaluation.backends.requests import parse_request
from evaluation.backends.streaming import StreamingBackend, make_variant
from evaluation.commands.tables import _window
from evaluation.plan.variants import variant_requests
from reports.variant_text import variant_text
from tests.evaluation.conftest import SINKS, WINDOW, records_of

GDN = str(ahn.POCKET_PATH / "gdn")


def made(text: str = "memory-only", **changes: Any) -> StreamingBackend:
    given: dict[str, Any] = {"model": "pocket", "ahn": {"": GDN}, "dtype": "float32"}
    return make_variant(parse_request(text), RunSettings(**given | {"device": "cpu"} | changes))


def test_it_has_no_window_and_no_size_and_says_so() -> None:
    backend = made()
    assert set(backend.layouts(480, None)) == {LayerLayout(0, cell="GatedDeltaNet")}
    assert not backend.sizable and backend.notices == ()
    said = backend.describe()
    assert (said["window"], said["sinks"], said["cell"]) == (None, None, "GatedDeltaNet")
    assert _window(said, backend.sizable) == "none"
    assert variant_text(said) == "GatedDeltaNet alone"
    told = made(window=64, sinks=4)
    assert list(told.notices) == [
        "window 64, sinks 4: not used, variant 'memory-only' has no window and no sinks"
    ]
    assert told.identity() == backend.identity(), "what is not used changes no answer"


@pytest.mark.parametrize("option", ["window=64", "sinks=4", "slots=2"])
def test_options_of_other_variants_are_refused(option: str) -> None:
    with pytest.raises(InputError, match=option.split("=")[0]):
        made(f"memory-only:{option}")


def test_it_needs_weights_and_stands_for_each_of_several() -> None:
    with pytest.raises(InputError, match="--ahn: needed by memory-only"):
        made(ahn={})
    names = [request.name for request in variant_requests("memory-only", ["gdn", "dn"])]
    assert names == ["memory-only-gdn", "memory-only-dn"]


def test_its_bytes_do_not_grow_and_its_cost_does_so_by_the_token() -> None:
    backend = made()
    shape = backend.checkpoint.shape
    states = cache_bytes(shape, "memory-only", 1, cell="GatedDeltaNet", dtype_bytes=4).total
    assert backend.document_bytes(10) == backend.document_bytes(10**6) == states
    assert backend.cost(10**6, 1).cache_bytes == states
    costs = [backend.cost(tokens, 1).flops for tokens in (1000, 2000, 3000)]
    assert all(cost is not None for cost in costs)
    assert costs[2] - costs[1] == costs[1] - costs[0]  # type: ignore[operator]
    assert backend.kept(5000, states) == 0


@pytest.mark.slow
def test_a_run_measures_what_arithmetic_says(
    run_eval: Any, tiny: Path, memory: Path, data: Path, tmp_path: Path
) -> None:
    result = run_eval(
        "longbench", "--model", tiny, "--ahn", memory, "--data", data, "--tasks", "hotpotqa",
        "--limit", 2, "--max-length", 200, "--no-report", "--dtype", "float32", "--device", "cpu",
        "--window", WINDOW, "--sinks", SINKS, "--variant", "ahn,memory-only",
        "--output", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "not used, variant 'memory-only' has no window" in " ".join(result.stderr.split())
    found = records_of(tmp_path / "run")
    alone = [record for record in found if record["variant"] == "memory-only"]
    assert len(alone) == 2 and len(found) == 4
    for record in found:
        assert record["cache_bytes_measured"] == record["cache_bytes_analytic"] > 0
    assert len({record["cache_bytes_measured"] for record in alone}) == 1
    models = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["models"]
    assert {layer["window"] for layer in models["memory-only"]["layout"]} == {0}
