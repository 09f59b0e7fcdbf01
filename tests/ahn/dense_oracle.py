"""The whole model in float64, from its configuration and its weights alone.

Only numpy: no torch, no transformers and nothing of `ahn` is used, so that an error there cannot
be here too. Every position attends to a list of keys that is written out, every layer keeps all
keys and values, every row stands alone: no cache, no chunks, no masks, no padding. Source of the
equations: Fang et al., "Artificial Hippocampus Networks", arXiv 2510.07318, and the parameter
names of its released checkpoints. (`tests/ahn/equations.py` computes the same steps with a
model's own projections, norms and RoPE, so that gradients flow through them.)

Letters in comments: L tokens, V vocabulary, D hidden size, H query heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # float64, or whole numbers for tokens and labels

IGNORED = -100


@dataclass(frozen=True)
class Run:
    """What one row gives.

    Attributes:
        logits: `[L, V]`; row p is what the model says after reading token p.
        attention: for each layer `[L, H * d]`, attention and memory before `o_proj`.
        states: for each layer the memory after the last token, `[H, d_k, d_v]` (Mamba2
            `[H, d_v, d_k]`); zeros where nothing was written.
    """

    logits: Array
    attention: list[Array]
    states: list[Array]


def sigmoid(x: Array) -> Array:
    """Without overflow for any float."""
    return np.exp(-np.logaddexp(0.0, -x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def softmax(x: Array) -> Array:
    """Over the last dimension."""
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def log_softmax(x: Array) -> Array:
    """Over the last dimension."""
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def rms_norm(x: Array, weight: Array, epsilon: float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


def linear(weights: Mapping[str, Array], name: str, x: Array) -> Array:
    """A projection by its weight `[out, in]` and, where it has one, its bias."""
    projected = x @ weights[f"{name}.weight"].T
    return projected + weights[f"{name}.bias"] if f"{name}.bias" in weights else projected


def rope(x: Array, angle: Array) -> Array:
    """Turn `[H, d]` by the angles `[d / 2]`; dimension i is paired with dimension i + d / 2."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def llama3_frequencies(frequencies: Array, rope: Mapping[str, Any]) -> Array:
    """Llama 3.1's stretch of RoPE: slow turns become `factor` times slower, fast ones stay.

    Source: `apply_scaling` in Meta's reference code (github.com/meta-llama/llama-models,
    models/llama3/model.py). A frequency that turns `original_max_position_embeddings` tokens at
    least `high_freq_factor` times stays; at most `low_freq_factor` times, it is divided; between
    these it is interpolated linearly.
    """
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return kept * frequencies + (1 - kept) * frequencies / rope["factor"]


class DenseModel:
    """A model of any family with memories.

    Args:
        config: `config.json` of a checkpoint, with `_ahn_implementation` and `fa_layer_ids`.
        weights: its tensors, by their names in the checkpoint.

    Attributes:
        frequencies: of RoPE, in radians a position, `[d / 2]`.
    """

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Array]) -> None:
        self.config = config
        self.weights = {name: np.asarray(w, dtype=np.float64) for name, w in weights.items()}
        self.cell = str(config["_ahn_implementation"])
        self.full_layers = {int(x) for x in str(config["fa_layer_ids"]).split(",") if x}
        self.heads = int(config["num_attention_heads"])
        self.d = int(config.get("head_dim") or config["hidden_size"] // self.heads)
        half = self.d // 2
        rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta")}
        self.frequencies: Array = float(rope["rope_theta"]) ** (-np.arange(half) / half)
        if rope.get("rope_type") == "llama3":
            self.frequencies = llama3_frequencies(self.frequencies, rope)

    def run(
        self,
        tokens: Sequence[int] | Array,
        window: int | None = None,
        sinks: int = 0,
        memory: bool = True,
    ) -> Run:
        """Read a row of tokens.

        Args:
            tokens: `[L]`.
            window: tokens that a query sees back, itself included; None: all of them; 0: none,
                it hears its memory alone.
            sinks: first tokens that every query sees.
            memory: keep what leaves the window.
        """
        x = self.weights["model.embed_tokens.weight"][np.asarray(tokens)]
        attention, states = [], []
        for index in range(int(self.config["num_hidden_layers"])):
            lossy = window if index not in self.full_layers else None
            x, heard, state = self._layer(index, x, lossy, sinks, memory)
            attention.append(heard)
            states.append(state)
        x = rms_norm(x, self.weights["model.norm.weight"], self.config["rms_norm_eps"])
        tied = bool(self.config["tie_word_embeddings"])
        head = self.weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
        return Run(x @ head.T, attention, states)

    def _layer(
        self, index: int, x: Array, window: int | None, sinks: int, memory: bool
    ) -> tuple[Array, Array, Array]:
        """`[L, D]` in and out, the attention before `o_proj`, and the state."""
        epsilon = self.config["rms_norm_eps"]
        own = {
            name.removeprefix(f"model.layers.{index}."): w
            for name, w in self.weights.items()
            if name.startswith(f"model.layers.{index}.")
        }
        h = rms_norm(x, own["input_layernorm.weight"], epsilon)
        q, k, v = self._projected(own, h)
        a = np.zeros_like(q)
        for p in range(len(h)):
            seen = [j for j in range(p + 1) if window is None or j < sinks or j > p - window]
            for n in range(self.heads if seen else 0):
                weight = softmax(k[seen, n] @ q[p, n] / np.sqrt(self.d))
                a[p, n] = weight @ v[seen, n]
        state = np.zeros((self.heads, self.d, self.d))
        if memory and window is not None:
            cell = {
                name.removeprefix("ahn.fn."): w
                for name, w in own.items()
                if name.startswith("ahn.fn.")
            }
            for p in range(sinks + window, len(h)):
                j = p - window  # leaves the window now
                state = self.written(cell, state, h[j], k[j], v[j])
                a[p] += self.read(cell, state, h[p], q[p])
        heard = a.reshape(len(h), -1)
        x = x + linear(own, "self_attn.o_proj", heard)
        h = rms_norm(x, own["post_attention_layernorm.weight"], epsilon)
        inner = silu(linear(own, "mlp.gate_proj", h)) * linear(own, "mlp.up_proj", h)
        return x + linear(own, "mlp.down_proj", inner), heard, state

    def _projected(self, own: Mapping[str, Array], h: Array) -> tuple[Array, Array, Array]:
        """q, k, v `[L, H, d]`: k and v repeated for their query heads, q and k turned."""
        found = []
        for name in "qkv":
            projected = linear(own, f"self_attn.{name}_proj", h).reshape(len(h), -1, self.d)
            if f"self_attn.{name}_norm.weight" in own:
                norm = own[f"self_attn.{name}_norm.weight"]
                projected = rms_norm(projected, norm, self.config["rms_norm_eps"])
            if name != "v":
                turned = [rope(row, p * self.frequencies) for p, row in enumerate(projected)]
                projected = np.stack(turned)
            found.append(np.repeat(projected, self.heads // projected.shape[1], axis=1))
        return found[0], found[1], found[2]

    def written(self, cell: Mapping[str, Array], state: Array, h: Array, k: Array, v: Array) -> Any:
        """The state after a token with layer-normed `h [D]` and `k, v [H, d]` is written."""
        found = np.zeros_like(state)
        for n in range(self.heads):
            if self.cell == "Mamba2":
                step = cell["dt_proj.weight"][n] @ h + cell["dt_proj.bias"][n] + cell["dt_bias"][n]
                step = softplus(step)
                key = k[n] / max(np.sqrt(k[n] @ k[n]), 1e-12)
                decay = np.exp(-step * np.exp(cell["A_log"][n]))
                found[n] = decay * state[n] + step * np.outer(v[n], key)
            else:
                beta = sigmoid(cell["b_proj.weight"][n] @ h)
                g = np.float64(0.0)
                if self.cell == "GatedDeltaNet":
                    step = softplus(cell["a_proj.weight"][n] @ h + cell["dt_bias"][n])
                    g = -np.exp(cell["A_log"][n]) * step
                key = k[n] / np.sqrt(k[n] @ k[n] + 1e-6)
                faded = np.exp(g) * state[n]
                found[n] = faded + np.outer(key, beta * (v[n] - faded.T @ key))
        return found

    def read(self, cell: Mapping[str, Array], state: Array, h: Array, q: Array) -> Array:
        """What the memory says `[H, d]` to a token with layer-normed `h [D]` and `q [H, d]`."""
        o = np.zeros_like(q)
        for n in range(self.heads):
            if self.cell == "Mamba2":
                query = q[n] / max(np.sqrt(q[n] @ q[n]), 1e-12)
                gate = silu(cell["g_proj.weight"][n] @ h + cell["g_proj.bias"][n])
                o[n] = state[n] @ query * gate
            else:
                query = q[n] / np.sqrt(q[n] @ q[n] + 1e-6) / np.sqrt(self.d)
                gate = silu(cell["g_proj.weight"][n] @ h)
                o[n] = rms_norm(state[n].T @ query, cell["o_norm.weight"], 1e-5) * gate
        if self.cell == "Mamba2":
            o = rms_norm(o.reshape(-1), cell["norm.weight"], 1e-5).reshape(o.shape)
        return np.stack([o[n] @ cell["o_proj.weight"][n] for n in range(self.heads)])


def training_losses(
    teacher: Sequence[Run], student: Sequence[Run], labels: Sequence[Array], total: int
) -> dict[str, float]:
    """The terms of self-distillation over a batch.

    Args:
        teacher: the rows, read with full attention.
        student: the same rows, read with a window of `total` less its sinks, and the memory.
        labels: for each row `[L]`, -100 where a token carries no loss.
        total: positions that are lossless, window and sinks together.

    Returns:
        `kl` over the labelled positions at or beyond `total`; `kl_prediction` and `ce` over the
        positions there that predict a labelled token; `distill` over all positions there, each
        layer's outputs L2-normalised, and `distill_raw` without.
    """
    kl, kl_prediction, ce = [], [], []
    for full, short, row in zip(teacher, student, labels, strict=True):
        wanted, said = log_softmax(full.logits), log_softmax(short.logits)
        divergence = (np.exp(wanted) * (wanted - said)).sum(-1)
        for p in range(total, len(row)):
            if row[p] != IGNORED:
                kl.append(divergence[p])
            if p + 1 < len(row) and row[p + 1] != IGNORED:
                kl_prediction.append(divergence[p])
                ce.append(-said[p, row[p + 1]])
    distill: dict[bool, list[float]] = {True: [], False: []}
    for normalized, found in distill.items():
        for index in range(len(teacher[0].attention)):
            errors = []
            for full, short in zip(teacher, student, strict=True):
                for p in range(total, len(full.logits)):
                    a, b = full.attention[index][p], short.attention[index][p]
                    if normalized:
                        a, b = a / np.sqrt(a @ a), b / np.sqrt(b @ b)
                    errors.append(((a - b) ** 2).mean())
            found.append(float(np.mean(errors)))
    return {
        "kl": float(np.mean(kl)),
        "kl_prediction": float(np.mean(kl_prediction)),
        "ce": float(np.mean(ce)),
        "distill": float(np.mean(distill[True])),
        "distill_raw": float(np.mean(distill[False])),
    }
