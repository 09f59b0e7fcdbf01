"""The model as the equations say it, position by position: no cache, no chunks, no masks.

Projections, norms and RoPE are the model's, which are transformers'; what is seen, written and read
is computed here. Each row stands alone, without padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-5) ** -0.5 * weight


def read_memory(cell: Any, name: str, h: Tensor, q: Tensor, k: Tensor, v: Tensor, span: Any) -> Any:
    """What the memory adds for positions `span ...` `[n, H, d]`; `q, k, v [L, H, d]`.

    `span = sinks + window`: position `p` writes `p - window`, which is the sinks-th first.
    """
    heads, d = q.shape[1:]
    sinks, total = span
    state, out = torch.zeros(heads, d, d, dtype=q.dtype), []
    for p in range(total, len(q)):
        j = p - (total - sinks)
        if name == "Mamba2":
            dt = F.softplus(cell.dt_proj(h[j]) + cell.dt_bias)  # [H]
            key = k[j] / k[j].norm(dim=-1, keepdim=True).clamp(min=1e-12)
            query = q[p] / q[p].norm(dim=-1, keepdim=True).clamp(min=1e-12)
            state = torch.exp(-dt * cell.A_log.exp())[:, None, None] * state
            state = state + dt[:, None, None] * v[j][:, :, None] * key[:, None, :]  # [H, d_v, d_k]
            o = (state * query[:, None, :]).sum(-1)
            y = rms((o * F.silu(cell.g_proj(h[p]))[:, None]).flatten(), cell.norm.weight)
            y = y.view(heads, d)
        else:
            beta = torch.sigmoid(cell.b_proj(h[j]))
            g = torch.zeros_like(beta)
            if name == "GatedDeltaNet":
                g = -cell.A_log.exp() * F.softplus(cell.a_proj(h[j]) + cell.dt_bias)
            key = k[j] / (k[j].pow(2).sum(-1, keepdim=True) + 1e-6).sqrt()
            query = q[p] / (q[p].pow(2).sum(-1, keepdim=True) + 1e-6).sqrt() * d**-0.5
            state = g.exp()[:, None, None] * state  # [H, d_k, d_v]
            held = (state * key[:, :, None]).sum(1)
            state = state + key[:, :, None] * (beta[:, None] * (v[j] - held))[:, None, :]
            o = (state * query[:, :, None]).sum(1)
            y = rms(o, cell.o_norm.weight) * F.silu(cell.g_proj(h[p]))[:, None]
        out.append(torch.stack([y[n] @ cell.o_proj.weight[n] for n in range(heads)]))
    return torch.stack(out) if out else q.new_zeros(0, heads, d)


@torch.no_grad()
def logits(model: Any, row: Tensor, read: Any = read_memory) -> Tensor:
    """`[L]` tokens to `[L, V]` logits; `read` computes what the memory adds, as `read_memory`."""
    hidden = model.model.embed_tokens(row)
    cos, sin = model.model.rotary_emb(hidden[None], torch.arange(len(row))[None])
    for layer, seen in zip(model.model.layers, model.layout, strict=True):
        attention = layer.self_attn
        h = layer.input_layernorm(hidden)
        q, k, v = (
            projection(h).unflatten(-1, (-1, attention.head_dim))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        q, k = (
            x[0].transpose(0, 1)
            for x in apply_rotary_pos_emb(
                q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin
            )
        )
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        rows = []
        for p in range(len(row)):
            keys = list(range(p + 1))
            if seen.window is not None:
                keys = [j for j in keys if j < seen.sinks or j > p - seen.window]
            scores = torch.einsum("hd,jhd->hj", q[p], k[keys]) * attention.head_dim**-0.5
            rows.append(torch.einsum("hj,jhd->hd", scores.softmax(-1), v[keys]))
        a = torch.stack(rows)
        if seen.cell is not None and seen.window is not None and seen.write:
            span = (seen.sinks, seen.sinks + seen.window)
            said = read(layer.ahn.fn, seen.cell, h, q, k, v, span)
            a = torch.cat([a[: span[1]], a[span[1] :] + said])
        hidden = hidden + attention.o_proj(a.flatten(1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(model.model.norm(hidden))
