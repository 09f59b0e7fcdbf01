"""Tiny random models; `stock` and `variant` share their base weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ahn.families import family_of
from ahn.models.causal_lm import family_classes

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
#: sinks and window of the tiny models
SINKS, WINDOW = 3, 16

#: RoPE as Llama 3 has it, for so few positions that each of its three ranges has frequencies
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
#: transformers' classes of each family, and what its tiny models have besides `SIZES`
_CLASSES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 20}),
    "llama": (LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA3_ROPE}),
    "mistral": (MistralConfig, MistralForCausalLM, {"head_dim": 20, "sliding_window": None}),
}
FAMILIES = tuple(_CLASSES)


def stock_model(family: str = "qwen2", **options: Any) -> Any:
    """transformers' own model with random weights of a useful size; `options` of its config."""
    config, model, extra = _CLASSES[family]
    torch.manual_seed(0)
    made = model(config(**SIZES | extra | options, initializer_range=0.15)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return made


def variant_model(
    variant: str,
    cell: str = "GatedDeltaNet",
    family: str = "qwen2",
    fresh: bool = False,
    options: dict[str, Any] | None = None,
    **ahn: Any,
) -> Any:
    """Our model with the stock model's weights; memories are random unless `fresh`."""
    classes, options = family_classes(family_of({"model_type": family})), options or {}
    settings = {"variant": variant, "cell": cell, "window": WINDOW, "sinks": SINKS, **ahn}
    given = SIZES | _CLASSES[family][2] | options
    torch.manual_seed(2)
    made = classes.causal_lm(classes.config(ahn=settings, **given, initializer_range=0.15)).eval()
    stock = stock_model(family, **options).state_dict()
    missing, unexpected = made.load_state_dict(stock, strict=False)
    assert not unexpected and all(".ahn.fn." in name for name in missing)
    if not fresh:
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if name.endswith(".ahn.fn.o_proj.weight"):
                    parameter.normal_(std=0.3)
    return made


@pytest.fixture(scope="session")
def models() -> Callable[..., Any]:
    """`models(variant, cell=..., family=...)`: as `variant_model`, made once."""
    made: dict[str, Any] = {}

    def get(variant: str, **options: Any) -> Any:
        key = repr((variant, sorted(options.items())))
        if key not in made:
            made[key] = variant_model(variant, **options)
        return made[key]

    return get


@pytest.fixture(scope="session")
def stock() -> Any:
    """transformers' own Qwen2 with the weights that the variants share."""
    return stock_model()


def tokens(length: int, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """Random token ids `[rows, length]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SIZES["vocab_size"], (rows, length), generator=generator)
