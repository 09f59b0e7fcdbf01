"""Analytic cost against what torch measures: the flop counter, and the bytes of real caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from ahn.cells import CELLS
from ahn.cost.accounting import ModelShape, added_parameters, cache_bytes, flops
from ahn.cost.shapes import memory_shapes
from ahn.models.causal_lm import (
    Qwen2AHNConfig,
    Qwen2AHNForCausalLM,
    Qwen3AHNConfig,
    Qwen3AHNForCausalLM,
)
from ahn.models.weights import stored_weights

SIZES: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 200,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def qwen2() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, attn_implementation="eager")).eval()


def measured(model: Any, tokens: int, **inputs: Any) -> tuple[dict[str, int], Any]:
    """FLOPs of one forward pass by module name, and its output.

    Attention runs in its plain form: the counter does not know torch's fused kernel for CPUs.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        output = model(torch.arange(tokens)[None] % 200, logits_to_keep=1, **inputs)
    return {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}, output


def by_part(counts: dict[str, int]) -> dict[str, int]:
    """The same by the names of `FlopCount.parts`; what the memory's scan multiplies is `scan`."""

    def of(*names: str) -> int:
        return sum(count for module, count in counts.items() if module.rsplit(".", 1)[-1] in names)

    def in_cell(module: str) -> bool:
        return ".ahn.fn." in module

    layers = {name: count for name, count in counts.items() if not in_cell(name)}
    cell = sum(count for name, count in counts.items() if in_cell(name))
    projections = sum(
        count
        for name, count in layers.items()
        if name.rsplit(".", 1)[-1] in ("q_proj", "k_proj", "v_proj", "o_proj")
    )
    return {
        "projections": projections,
        "mlp": of("mlp"),
        "attention_and_scan": of("self_attn") - projections - cell,
        "cell_projections": cell,
        "lm_head": of("lm_head"),
        "rope": of("rotary_emb"),
        "total": counts["Global"],
    }


@pytest.mark.parametrize("tokens", [1, 17, 64])
def test_transformers_qwen2_executes_the_analytic_count(qwen2, tokens):
    """Linear layers to the FLOP; eager attention multiplies the masked half too: `4 H d L^2`."""
    shape = ModelShape.from_config(qwen2.config.to_dict())
    expected = flops(shape, "full", tokens)
    parts = by_part(measured(qwen2, tokens)[0])
    for name in ("projections", "mlp", "lm_head"):
        assert parts[name] == expected.parts[name]
    dense = 3 * 4 * 4 * 16 * tokens**2
    assert parts["attention_and_scan"] == dense
    # Visible pairs are (L^2 + L) / 2 of the L^2 that eager attention multiplies.
    assert expected.parts["attention"] * 2 * tokens == dense * (tokens + 1)
    # RoPE's table of angles is a product to the counter, an element-wise one to us.
    assert parts["total"] - parts["rope"] - dense == (
        expected.prefill - expected.parts["attention"]
    )


def test_a_decode_step_executes_the_analytic_count(qwen2):
    """With one query nothing is masked: attention is exact as well."""
    shape = ModelShape.from_config(qwen2.config.to_dict())
    _, output = measured(qwen2, 33, use_cache=True)
    counts, _ = measured(qwen2, 1, use_cache=True, past_key_values=output.past_key_values)
    parts = by_part(counts)
    assert parts["total"] - parts["rope"] == flops(shape, "full", 33, 2).decode


FAMILIES: dict[str, tuple[Any, Any]] = {
    "qwen2": (Qwen2AHNConfig, Qwen2AHNForCausalLM),
    "qwen3": (Qwen3AHNConfig, Qwen3AHNForCausalLM),
}


def ours(family: str = "qwen2", **ahn: Any) -> tuple[Any, ModelShape, dict[str, Any]]:
    """A tiny streaming model, its shape, and its settings as the cost functions take them."""
    torch.manual_seed(0)
    config_class, model_class = FAMILIES[family]
    settings: dict[str, Any] = {"window": 24, "sinks": 4, "cell": "GatedDeltaNet"} | ahn
    model = model_class(config_class(**SIZES, ahn=settings)).eval()
    shape = ModelShape.from_config(SIZES | {"model_type": family})
    return model, shape, {key: value for key, value in settings.items() if key != "variant"}


VARIANT_CELLS = [("full", "GatedDeltaNet"), ("window", "GatedDeltaNet")] + [
    (variant, cell) for variant in ("ahn", "no-write") for cell in CELLS
]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "cell"), VARIANT_CELLS)
def test_token_by_token_our_model_executes_the_analytic_count(variant, cell):
    """One token at a time nothing is masked and the memory is in its recurrent form: to the FLOP.

    The rank-1 update is an element-wise product to the counter and is added by hand; the head is
    computed once, for the last token, as in `flops`.
    """
    tokens = 61
    model, shape, settings = ours(variant=variant, cell=cell)
    model.prefill_chunk_size = 1
    counts, _ = measured(model, tokens, use_cache=True)
    parts = by_part(counts)
    expected = flops(shape, variant, tokens, **settings)
    updates = 0 if variant in ("full", "window") else 3 * (tokens - 28) * 4 * 2 * 16 * 16
    assert parts["total"] - parts["rope"] + updates == expected.prefill
    for name in ("projections", "mlp", "lm_head"):
        assert parts[name] == expected.parts[name]


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [16, 50, 200])
@pytest.mark.parametrize(("variant", "cell"), VARIANT_CELLS)
def test_in_chunks_our_model_multiplies_more_only_in_attention_and_memory(variant, cell, chunk):
    """A chunk's queries meet every cached slot and the whole chunk: `4 H d T (C + T)`, masked.

    The memory's chunked form multiplies more than the recurrence, too: `6 d^2 + 6 C d` for `6 d^2`
    per head and token, C its block of at most 64 tokens; 5 times with d = 16 (1.5 with 128), and
    blocks are padded.
    """
    tokens = 200
    model, shape, settings = ours(variant=variant, cell=cell)
    model.prefill_chunk_size = chunk
    counts, _ = measured(model, tokens, use_cache=True)
    parts = by_part(counts)
    expected = flops(shape, variant, tokens, **settings)
    for name in ("projections", "mlp", "lm_head"):
        assert parts[name] == expected.parts[name]
    limit = tokens if variant == "full" else 28
    pairs = sum(
        len(range(start, min(start + chunk, tokens)))
        * (min(start, limit) + len(range(start, min(start + chunk, tokens))))
        for start in range(0, tokens, chunk)
    )
    scan = parts["attention_and_scan"] - 3 * 4 * 4 * 16 * pairs
    recurrence = expected.parts["memory"] - parts["cell_projections"]
    if variant in ("full", "window"):
        assert scan == recurrence == 0
    else:
        assert 0 < scan < 8 * recurrence


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 27, 28, 29, 255, 256, 257, 600])
@pytest.mark.parametrize(("variant", "cell"), VARIANT_CELLS)
def test_cache_bytes_are_those_of_the_real_cache(variant, cell, tokens):
    model, shape, settings = ours(variant=variant, cell=cell)
    cache = model.new_cache()
    assert cache.nbytes == 0
    measured(model, tokens, past_key_values=cache)
    expected = cache_bytes(shape, variant, tokens, dtype_bytes=4, **settings)
    assert cache.nbytes == expected.total
    measured(model, 1, past_key_values=cache)
    expected = cache_bytes(shape, variant, tokens + 1, dtype_bytes=4, **settings)
    assert cache.nbytes == expected.total


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [1, 100, 1024])
def test_cache_bytes_hold_for_any_chunk_batch_type_and_layer_mix(family, chunk):
    model, shape, settings = ours(family, variant="ahn", window=300, full_attention_layers=(1,))
    model = model.to(torch.bfloat16)
    model.prefill_chunk_size = chunk
    cache = model.new_cache()
    with torch.no_grad():
        model(torch.zeros(3, 520, dtype=torch.long), past_key_values=cache, logits_to_keep=1)
    expected = cache_bytes(shape, "ahn", 520, dtype_bytes=2, batch_size=3, **settings)
    assert expected.gates and expected.state
    assert cache.nbytes == expected.total


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("variant", "cell"), VARIANT_CELLS)
@torch.no_grad()
def test_cache_bytes_in_half_precision_part_by_part(variant, cell, dtype):
    model, shape, settings = ours(variant=variant, cell=cell)
    model, cache, tokens = model.to(dtype), model.to(dtype).new_cache(), 0
    for more in (20, 30, 1, 260):  # within the window, beyond it, a decode step, several tokens
        output = model(torch.ones(2, more, dtype=torch.long), past_key_values=cache)
        tokens += more
        expected = cache_bytes(shape, variant, tokens, dtype_bytes=2, batch_size=2, **settings)
        held = [layer.tensors() for layer in cache.layers]
        parts = {
            "keys_values": ("keys", "values"),
            "gates": ("write", "log_decay"),
            "state": ("state",),
        }
        for part, names in parts.items():
            found = sum(x[name].nbytes for x in held for name in names if name in x)
            assert found == getattr(expected, part), (part, tokens)
        assert cache.nbytes == expected.total
    assert output.logits.dtype == dtype and bool(torch.isfinite(output.logits).all())


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_has_its_sizes_listed(cell):
    shape = ModelShape.from_config(SIZES | {"model_type": "qwen2"})
    real = CELLS.implementation(cell)(64, 4, 16)
    listed = memory_shapes(shape, cell)
    assert listed == {name: tuple(p.shape) for name, p in stored_weights(real)}


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_the_real_model(family):
    for cell in CELLS:
        model, shape, _ = ours(family, cell=cell, full_attention_layers=(2,))
        memory = sum(p.numel() for name, p in stored_weights(model) if ".ahn." in name)
        assert memory == added_parameters(shape, cell, full_attention_layers=[2])
        assert model.num_parameters() == shape.parameters + memory
