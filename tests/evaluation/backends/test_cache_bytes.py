"""Bytes of any cache, against the storages that a forward pass leaves behind."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from evaluation.backends.cache_bytes import held

TOKENS = 96
COMMON = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
STATES = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-sliding": ("Mistral", {"sliding_window": 32}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "phi3": ("Phi3", {}),
    "olmo2": ("Olmo2", {}),
    "gemma2": ("Gemma2", {"sliding_window": 32}),
    "gemma3": ("Gemma3Text", {"sliding_window": 32, "sliding_window_pattern": 4}),
    "gpt-oss": ("GptOss", {"sliding_window": 32, "num_local_experts": 2, "num_experts_per_tok": 1}),
    "deepseek-v3": ("DeepseekV3", {
        "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1,
        "moe_intermediate_size": 32, "first_k_dense_replace": 4, "kv_lora_rank": 16,
        "q_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
        "num_key_value_heads": 4, "head_dim": 8,
    }),
    "qwen3-next": ("Qwen3Next", {
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
        "linear_value_head_dim": 16, "num_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    }),
    "mamba": ("Mamba", {"state_size": 8}),
    "mamba2": ("Mamba2", {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 1}),
    "falcon-h1": ("FalconH1", STATES | {"mamba_d_ssm": 128}),
    "bamba": ("Bamba", STATES | {"attn_layer_indices": [1, 3]}),
    "jamba": ("Jamba", {
        "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2,
        "attn_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 8,
    }),
    "lfm2": ("Lfm2", {
        "full_attn_idxs": [1, 3],
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    }),
    "minimax": ("MiniMax", {"num_local_experts": 2, "num_experts_per_tok": 1}),
    "rwkv": ("Rwkv", {"attention_hidden_size": 64, "context_length": 256}),
}  # fmt: skip


def tiny(name: str) -> Any:
    kind, own = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**(COMMON | own))
    head = kind if kind == "Rwkv" else kind.removesuffix("Text")
    found = getattr(transformers, f"{kind}ForCausalLM", None)
    made = found or getattr(transformers, f"{head}ForCausalLM")
    torch.manual_seed(0)
    return made(config).eval()


def cache_of(output: Any) -> Any:
    for name in ("past_key_values", "cache_params", "state"):
        if (cache := getattr(output, name, None)) is not None:
            return cache
    raise AssertionError(f"no cache in {list(output)}")


def storages() -> dict[int, int]:
    """Every storage that a tensor of this process holds, by its address, with its bytes."""
    gc.collect()
    found = {}
    for value in gc.get_objects():
        if type(value) in (Tensor, torch.nn.Parameter):  # compiled code leaves fake ones
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_it_counts_every_storage_that_a_forward_pass_leaves(name: str) -> None:
    model = tiny(name)
    ids = torch.arange(TOKENS).remainder(60)[None] + 3
    with torch.no_grad():
        model(ids, use_cache=True)  # tables that are made once
        before = storages()
        cache = cache_of(model(ids, use_cache=True))
        left = sum(size for place, size in storages().items() if place not in before)
    found = held(cache)
    assert found.stored == left > 0
    assert 0 < found.used <= found.stored
    assert sum(found.parts.values()) == found.used


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", {"keys_values": 2 * TOKENS * 2 * 16 * 4 * 4}),
        ("mamba2", {"conv", "state"}),
        ("qwen3-next", {"keys_values", "conv", "state"}),
    ],
)
def test_parts_are_named_by_what_they_are(name: str, expected: Any) -> None:
    with torch.no_grad():
        cache = cache_of(tiny(name)(torch.ones(1, TOKENS, dtype=torch.long), use_cache=True))
    parts = {kind: size for kind, size in held(cache).parts.items() if size > 1000}
    assert parts == expected if isinstance(expected, dict) else set(parts) == expected


def test_a_sliding_layer_uses_its_window_and_holds_the_prompt() -> None:
    with torch.no_grad():
        cache = cache_of(
            tiny("mistral-sliding")(torch.ones(1, TOKENS, dtype=torch.long), use_cache=True)
        )
    of_a_token = 2 * 2 * 16 * 4 * 4
    found = held(cache)
    assert found.parts["keys_values"] == 31 * of_a_token
    assert found.stored >= TOKENS * of_a_token


def test_our_own_cache_is_counted_as_it_counts_itself() -> None:
    import ahn

    model = ahn.load_model(ahn.POCKET_PATH, "ahn", ahn.POCKET_PATH / "gdn", window=32, sinks=4)
    cache = model.new_cache()
    with torch.no_grad():
        model(torch.ones(1, 200, dtype=torch.long), past_key_values=cache)
    found = held(cache)
    assert found.used == found.stored == cache.nbytes
    assert set(found.parts) == {"keys_values", "state", "gates"}


class Holder:
    __slots__ = ("rows",)

    def __init__(self, rows: Any) -> None:
        self.rows = rows


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda x: [x, (x, {"a": x}), {"s": {"t": x}}],
        Holder,
        lambda x: Holder([Holder({"x": x[:, :5]}), x[:, 5:]]),
        lambda x: {"a": x, "b": x[:, 2:], "c": x.expand(4, *x.shape)},
    ],
    ids=["nested", "slots", "two views", "overlapping views"],
)
def test_elements_that_are_reached_twice_count_once(wrapped: Callable[[Tensor], Any]) -> None:
    x = torch.zeros(8, 10)
    found = held(wrapped(x))
    assert (found.used, found.stored) == (320, 320)


def test_what_belongs_to_the_model_is_not_counted() -> None:
    holder = Holder({"module": torch.nn.Linear(9, 9), "make": torch.zeros, "mine": torch.zeros(3)})
    assert held(holder).used == 12
    ring: list[Any] = [torch.zeros(2)]
    ring.append(ring)
    assert held(ring).used == 8 and held().used == 0
