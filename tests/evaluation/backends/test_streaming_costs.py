"""The FLOPs of a record, counted once more token by token, from the sizes of the tiny model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ahn.checkpoints.placement import DTYPE_BYTES
from ahn.checkpoints.resolve import ResolvedCheckpoint
from ahn.config import AHNConfig
from ahn.cost.shapes import ModelShape
from evaluation.backends.streaming import StreamingBackend
from tests.evaluation.conftest import SINKS, WINDOW, records_of

LAYERS, D, H, H_KV, WIDTH, MLP, VOCABULARY = 2, 32, 4, 2, 8, 64, 259
SHAPE = ModelShape(LAYERS, D, H, H_KV, WIDTH, MLP, VOCABULARY, tie_word_embeddings=True)


def counted(variant: str, prompt: int, generated: int, keeping_all: Sequence[int] = ()) -> int:
    """Multiplications and additions of a GatedDeltaNet model, as `ahn.cost` says in words."""
    total = 0
    for position in range(prompt + max(generated - 1, 0)):
        for layer in range(LAYERS):
            bounded = variant != "full" and layer not in keeping_all
            total += 2 * (2 * D * H * WIDTH + 2 * D * H_KV * WIDTH)  # q and o, k and v
            total += 2 * 3 * D * MLP
            keys = min(position + 1, SINKS + WINDOW) if bounded else position + 1
            total += 2 * 2 * keys * H * WIDTH  # scores and values
            if bounded and variant in ("ahn", "no-write"):
                total += 2 * 2 * D * H  # strength and decay of every token's write
                if position >= SINKS + WINDOW:  # one token has left, and this one reads
                    total += 2 * D * H  # output gate
                    total += H * (3 * 2 * WIDTH * WIDTH)  # S^T k, the update, S^T q
                    total += H * 2 * WIDTH * WIDTH  # read-out
        if position >= prompt - 1:
            total += 2 * D * VOCABULARY
    return total


def backend(variant: str, dtype: str = "float32", **changes: Any) -> StreamingBackend:
    files: Any = None  # costs follow from the sizes alone
    settings = AHNConfig("GatedDeltaNet", WINDOW, SINKS, variant=variant, **changes)
    return StreamingBackend(
        "x",
        variant,
        ResolvedCheckpoint(files, files, {}, "qwen2", SHAPE, settings, {}, (), dtype, {"": "cpu"}),
    )


@pytest.mark.parametrize("variant", ["full", "window", "ahn", "no-write"])
@pytest.mark.parametrize(("prompt", "generated"), [(1, 0), (1, 1), (60, 7), (300, 40)])
def test_an_examples_flops_are_those_of_its_tokens(
    variant: str, prompt: int, generated: int
) -> None:
    found = backend(variant).cost(prompt, generated).flops
    assert found == counted(variant, prompt, generated)


def test_layers_that_keep_full_attention_are_counted_as_such() -> None:
    kept = backend("ahn", full_attention_layers=(1,))
    assert kept.cost(300, 40).flops == counted("ahn", 300, 40, keeping_all=(1,))
    # 300 tokens take two blocks of 256 positions, the bounded layer as many as it may see
    positions = 512 + SINKS + WINDOW
    keys_values = positions * 2 * H_KV * WIDTH * 4
    gates, state = (SINKS + WINDOW) * H * (4 + 4), H * WIDTH * WIDTH * 4
    assert kept.cost(300, 1).cache_bytes == keys_values + gates + state


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_the_cache_is_as_wide_as_the_models_type(dtype: str) -> None:
    element = {"float64": 8, "float32": 4}.get(dtype, 2)
    found = backend("full", dtype).cost(300, 0).cache_bytes
    assert found == LAYERS * 512 * 2 * H_KV * WIDTH * element


@pytest.mark.slow
def test_records_hold_the_flops_of_what_was_read_and_answered(
    run_eval: Any, tiny: Path, memory: Path, data: Path, tmp_path: Path
) -> None:
    result = run_eval(
        "longbench", "--model", tiny, "--ahn", memory, "--data", data, "--tasks", "hotpotqa",
        "--variant", "full,window,ahn", "--limit", 2, "--max-length", 200, "--no-report",
        "--dtype", "float32", "--device", "cpu", "--output", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    found = records_of(tmp_path / "run")
    assert len(found) == 6
    for record in found:
        read, answered = record["prompt_tokens"], record["generated_tokens"]
        assert read > SINKS + WINDOW and answered > 1
        assert record["flops"] == counted(record["variant"], read, answered)


def test_settings_of_single_layers_are_in_costs_identity_and_description(
    tiny: Path, tmp_path: Path
) -> None:
    from ahn.checkpoints.load import build_model, describe_model, save_memory
    from evaluation.backends.base import RunSettings
    from evaluation.backends.requests import VariantRequest
    from evaluation.backends.streaming import make_variant

    def made(layers: dict[int, dict[str, Any]]) -> Any:
        config = describe_model(tiny)
        settings = AHNConfig(window=WINDOW, sinks=SINKS, layers=layers)
        folder = tmp_path / f"memory{len(layers)}"
        save_memory(build_model(tiny, "qwen2", config, settings, torch.float32), folder, config)
        given = RunSettings(
            model=str(tiny), ahn={"": str(folder)}, dtype="float32", device="cpu",
        )  # fmt: skip
        return make_variant(VariantRequest("ahn", {}, "ahn"), given)

    alike, unlike = made({}), made({1: {"window": 8, "sinks": 0}})
    assert "layers" not in alike.identity() and "layers" not in alike.describe()
    assert unlike.identity()["layers"] == {"1": {"window": 8, "sinks": 0}}
    assert unlike.describe()["layers"] == {"1": {"window": 8, "sinks": 0}}
    of_a_token = 2 * 2 * 8 * 4  # keys and values, key heads, head dimension, float32
    gates = 4 * (4 + 4)
    fewer = (WINDOW + SINKS - 8) * (of_a_token + gates)
    bytes_of = [backend.cost(500, 1).cache_bytes for backend in (alike, unlike)]
    assert bytes_of[0] - bytes_of[1] == fewer
    assert alike.cost(500, 1).flops > unlike.cost(500, 1).flops
