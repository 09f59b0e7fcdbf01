"""Tiny random models of many architectures of transformers."""

from __future__ import annotations

from typing import Any

import torch
import transformers

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
