"""Analytic cost against what torch measures: the flop counter, and the bytes of real caches."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from ahn.cost import ModelShape, flops

SIZES = {
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


def measured(model, tokens: int, **inputs) -> tuple[dict[str, int], object]:
    """FLOPs of one forward pass by module name, and its output."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        output = model(torch.arange(tokens)[None] % 200, logits_to_keep=1, **inputs)
    return {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}, output


def by_part(counts: dict[str, int]) -> dict[str, int]:
    def of(*names: str) -> int:
        return sum(count for module, count in counts.items() if module.rsplit(".", 1)[-1] in names)

    projections = of("q_proj", "k_proj", "v_proj", "o_proj")
    return {
        "projections": projections,
        "mlp": of("mlp"),
        "attention": of("self_attn") - projections,
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
    assert parts["attention"] == dense
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
