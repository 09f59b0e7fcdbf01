"""A small Qwen2 from scratch, started so that it can learn to look things up.

What a tiny model does not find by itself in a few million tokens is *key matching*: attend from
a key to the place where the same key stood, and read what follows.  The start below builds the
two halves of it and leaves the rest to training:

- layer 0: query and key biases make head `h` attend `h + 1` positions back, so that each token
  carries the tokens before it;
- later layers: `W_q` starts near `W_k`, so that equal contents attend to each other, and `W_o`
  near the transpose of `W_v`, so that what is read can be written out.  (Compare Trockman and
  Kolter, "Mimetic Initialization of Self-Attention Layers", 2023.)
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from ahn.distill.recipe import BaseModelRecipe
from common.errors import InputError

#: scale of the W_q that is copied from W_k, and of what stays random
_KEY_COPY, _NOISE = 1.5, 0.3
#: options that the model reads and its configuration class does not list
_READ_IF_THERE = {"head_dim", "rope_scaling", "rope_theta"}


def new_base_model(recipe: BaseModelRecipe, seed: int) -> Qwen2ForCausalLM:
    """A randomly started Qwen2 in float32; the same seed gives the same weights.

    Raises:
        InputError: a configuration that Qwen2 does not have.
    """
    unknown = sorted(recipe.config.keys() - Qwen2Config().to_dict().keys() - _READ_IF_THERE)
    if unknown:
        raise InputError(f"base.config: Qwen2 has no option {unknown[0]!r}")
    torch.manual_seed(seed)
    try:
        model = Qwen2ForCausalLM(Qwen2Config(**recipe.config)).float()
    except Exception as error:  # of transformers' and huggingface_hub's checks, of torch
        raise InputError(f"base.config: {' '.join(str(error).split())}") from error
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" in name or "lm_head" in name:
                nn.init.normal_(parameter, std=model.config.hidden_size**-0.5)
            elif parameter.dim() == 2:
                share = 0.5 if "o_proj" in name or "down_proj" in name else 1.0
                nn.init.normal_(parameter, std=share * parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if recipe.structured_start:
            _offset_heads(model, recipe.offset_logit)
            _matching_heads(model)
    return model


def _offset_heads(model: Qwen2ForCausalLM, offset_logit: float) -> None:
    """Layer 0: head h looks h + 1 positions back, by biases that RoPE turns apart."""
    config = model.config
    attention = model.model.layers[0].self_attn
    head_dim = attention.head_dim
    inv_freq = model.model.rotary_emb.inv_freq  # [d/2]
    # a key bias of this length gives the wanted logit after the scaling by sqrt(d)
    length = (offset_logit * head_dim**0.5 / (head_dim // 2)) ** 0.5
    key = torch.zeros(config.num_key_value_heads, head_dim)
    key[:, : head_dim // 2] = length
    query = torch.zeros(config.num_attention_heads, head_dim)
    for head in range(config.num_attention_heads):
        angle = -(head + 1) * inv_freq
        query[head] = length * torch.cat([angle.cos(), angle.sin()])
    attention.k_proj.bias.copy_(key.flatten())
    attention.q_proj.bias.copy_(query.flatten())
    attention.q_proj.weight.mul_(0.2)
    attention.k_proj.weight.mul_(0.2)


def _matching_heads(model: Qwen2ForCausalLM) -> None:
    """Later layers: W_q near W_k, W_o near W_v transposed."""
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    for layer in model.model.layers[1:]:
        attention = layer.self_attn
        d = attention.head_dim
        repeat = heads // kv_heads
        key = attention.k_proj.weight.view(kv_heads, d, -1).repeat_interleave(repeat, 0)
        query = attention.q_proj.weight.view(heads, d, -1)
        query.copy_(_KEY_COPY * key + _NOISE * query)
        value = attention.v_proj.weight.view(kv_heads, d, -1).repeat_interleave(repeat, 0)
        output = attention.o_proj.weight.view(config.hidden_size, heads, d)
        output.copy_(_NOISE * output + value.permute(2, 0, 1) / heads)
