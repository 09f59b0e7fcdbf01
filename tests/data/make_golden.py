"""Make `tests/data/golden`: tiny random models with what the dense oracle says they answer.

    python -m tests.data.make_golden

Weights are drawn by `numpy.random.RandomState`, whose stream numpy keeps for ever; everything else
follows from them by `tests/ahn/dense_oracle.py`. What the files hold is in `tests/data/README.md`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from tests.ahn.dense_oracle import IGNORED, Array, DenseModel, training_losses

FOLDER = Path(__file__).parent / "golden"
VOCABULARY, HIDDEN, INTERMEDIATE = 29, 24, 32
#: tokens that are chosen greedily after each prompt
STEPS = 8
#: a greedy choice is stored only where the second best token is this far behind
LEAST_GAP = 1e-2


@dataclass(frozen=True)
class Model:
    """A tiny model: its name is `{family}-{cell}` with a word for what is special about it."""

    family: str
    cell: str
    heads: int = 4
    key_heads: int = 2
    head_dim: int = 6  # Qwen2's is HIDDEN / heads
    layers: int = 3
    full_attention: tuple[int, ...] = ()
    tied: bool = False
    word: str = ""

    @property
    def name(self) -> str:
        return "-".join(part for part in (self.family, self.cell, self.word) if part)


@dataclass(frozen=True)
class Case:
    """One window, and prompts of these lengths under it."""

    name: str
    lengths: tuple[int, ...]
    window: int
    sinks: int


@dataclass(frozen=True)
class Batch:
    """A training batch: lengths of its rows, and W_total and sinks of the student."""

    name: str
    lengths: tuple[int, ...]
    total: int
    sinks: int
    unlabelled: tuple[tuple[int, int], ...] = field(default=())  # spans, in every row


MODELS = (
    Model("qwen2", "GatedDeltaNet", full_attention=(1,)),
    Model("qwen2", "DeltaNet", layers=2, tied=True),
    Model("qwen2", "Mamba2", full_attention=(0,)),
    Model("qwen3", "GatedDeltaNet", head_dim=10, layers=2),
    Model("qwen3", "DeltaNet", key_heads=1, head_dim=4, full_attention=(2,)),
    Model("qwen3", "Mamba2", key_heads=4, head_dim=8, layers=2, tied=True),
    Model("qwen3", "GatedDeltaNet", heads=6, head_dim=4, layers=2, word="3-in-a-group"),
)
CASES = (
    Case("batch", (38, 16, 5), window=9, sinks=4),
    Case("no-sinks", (30,), window=8, sinks=0),
    Case("more-sinks-than-window", (31,), window=3, sinks=11),
    Case("more-sinks-than-prompt", (7,), window=2, sinks=10),  # evicts from the fifth step
    Case("just-lossless", (13,), window=9, sinks=4),  # the first step evicts
    Case("window-of-one", (17,), window=1, sinks=0),
)
BATCHES = (
    Batch("sinks", (30, 24), total=10, sinks=3, unlabelled=((0, 6), (13, 15), (20, 22))),
    Batch("no-sinks", (26,), total=8, sinks=0),
)


def config_of(model: Model) -> dict[str, Any]:
    """`config.json`, with the keys of a released checkpoint."""
    config: dict[str, Any] = {
        "architectures": [f"{model.family.title()}ForCausalLM"],
        "model_type": model.family,
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_heads,
        "hidden_act": "silu",
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": model.tied,
        "use_sliding_window": False,
        "torch_dtype": "float32",
        "_layer_implementation": f"{model.family.title()}MemDecoderLayer",
        "_ahn_implementation": model.cell,
        "ahn_position": "prefix",
        "sliding_window": 9,
        "sliding_window_type": "fixed",
        "num_attn_sinks": 4,
        "loss_type": ["kl"],
        "fa_layer_ids": ",".join(map(str, model.full_attention)),
        "use_q_proj": False,
        "use_ahn_router": False,
        "use_normalized_l2": True,
    }
    if model.family == "qwen3":
        config |= {"head_dim": model.head_dim, "attention_bias": False}
    return config


def shapes_of(model: Model) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every parameter's name and shape."""
    H, d, D = model.heads, model.head_dim, HIDDEN
    yield "model.embed_tokens.weight", (VOCABULARY, D)
    for layer in range(model.layers):
        prefix = f"model.layers.{layer}."
        for name, heads in (("q", H), ("k", model.key_heads), ("v", model.key_heads)):
            yield f"{prefix}self_attn.{name}_proj.weight", (heads * d, D)
            if model.family == "qwen2":
                yield f"{prefix}self_attn.{name}_proj.bias", (heads * d,)
            elif name != "v":
                yield f"{prefix}self_attn.{name}_norm.weight", (d,)
        yield f"{prefix}self_attn.o_proj.weight", (D, H * d)
        yield f"{prefix}mlp.gate_proj.weight", (INTERMEDIATE, D)
        yield f"{prefix}mlp.up_proj.weight", (INTERMEDIATE, D)
        yield f"{prefix}mlp.down_proj.weight", (D, INTERMEDIATE)
        yield f"{prefix}input_layernorm.weight", (D,)
        yield f"{prefix}post_attention_layernorm.weight", (D,)
        if layer not in model.full_attention:
            for name, shape in memory_shapes(model).items():
                yield f"{prefix}ahn.fn.{name}", shape
    yield "model.norm.weight", (D,)
    if not model.tied:
        yield "lm_head.weight", (VOCABULARY, D)


def memory_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Parameters of the memory of one layer."""
    H, d, D = model.heads, model.head_dim, HIDDEN
    decay: dict[str, tuple[int, ...]] = {"A_log": (H,), "dt_bias": (H,)}
    if model.cell == "Mamba2":
        gates: dict[str, tuple[int, ...]] = {
            f"{name}_proj.{part}": (H, D) if part == "weight" else (H,)
            for name in ("dt", "g")
            for part in ("weight", "bias")
        }
        return gates | {"norm.weight": (H * d,), "o_proj.weight": (H, d, d)} | decay
    delta = {"b_proj.weight": (H, D), "g_proj.weight": (H, D), "o_norm.weight": (d,)}
    delta |= {"o_proj.weight": (H, d, d)}
    if model.cell == "DeltaNet":
        return delta
    return delta | {"a_proj.weight": (H, D), "D": (H,)} | decay


def weights_of(model: Model, seed: int) -> dict[str, Array]:
    """Float32 weights that all say something: no zeros, no ones, decays that can be seen."""
    random = np.random.RandomState(seed)
    weights: dict[str, Array] = {}
    for name, shape in shapes_of(model):
        noise = random.standard_normal(shape)
        if "norm" in name:
            value = 1 + 0.2 * noise
        elif name.endswith(("A_log", "dt_bias")):
            value = -1 + 0.5 * noise
        elif name.endswith("bias"):
            value = 0.2 * noise
        elif name.endswith("ahn.fn.o_proj.weight"):
            value = 0.4 * noise
        else:
            value = 1.5 * noise / np.sqrt(shape[-1])
        weights[name] = value.astype(np.float32)
    return weights


def greedy(dense: DenseModel, prompt: Array, window: int, sinks: int) -> Array | None:
    """The prompt and the best `STEPS` tokens after it; None where a choice was a close one."""
    tokens = prompt
    for _ in range(STEPS):
        last = dense.run(tokens, window, sinks).logits[-1]
        second, best = np.argsort(last)[-2:]
        if last[best] - last[second] < LEAST_GAP:
            return None
        tokens = np.append(tokens, best)
    return tokens


def case_vectors(dense: DenseModel, case: Case, random: Any) -> dict[str, Array]:
    """Tokens, logits and states of each prompt of a case, and its two baselines."""
    found: dict[str, Array] = {}
    for row, length in enumerate(case.lengths):
        tokens = None
        while tokens is None:
            prompt = random.randint(0, VOCABULARY, length)
            tokens = greedy(dense, prompt, case.window, case.sinks)
        whole = dense.run(tokens, case.window, case.sinks)
        before = dense.run(tokens[:length], case.window, case.sinks)
        prefix = f"{case.name}.{row}."
        found[prefix + "tokens"] = tokens
        found[prefix + "logits"] = whole.logits
        found[prefix + "state_after_prompt"] = np.stack(before.states)
        found[prefix + "state_after_all"] = np.stack(whole.states)
        if row == 0:
            window = dense.run(tokens, case.window, case.sinks, memory=False)
            found[prefix + "window_logits"] = window.logits[-STEPS:]
            found[prefix + "full_logits"] = dense.run(tokens).logits[-STEPS:]
    return found


def direction(shape: tuple[int, ...]) -> Array:
    """The direction `cos 1, cos 2, ...` in which a parameter of this shape is moved."""
    return np.cos(np.arange(1, 1 + int(np.prod(shape)))).reshape(shape)


def batch_vectors(dense: DenseModel, batch: Batch, random: Any) -> dict[str, Array]:
    """Tokens and labels, the losses, and their slopes along each memory parameter's direction.

    The slope is a difference quotient of fourth order; the teacher has no memory and so no slope.
    """
    rows = [random.randint(0, VOCABULARY, length) for length in batch.lengths]
    labels = [row.copy() for row in rows]
    for row in labels:
        for start, end in batch.unlabelled:
            row[start:end] = IGNORED
    teacher = [dense.run(row) for row in rows]

    def losses() -> Array:
        student = [dense.run(row, batch.total - batch.sinks, batch.sinks) for row in rows]
        return np.array(list(training_losses(teacher, student, labels, batch.total).values()))

    prefix = f"train.{batch.name}."
    found = {prefix + "losses": losses()}
    for number, row in enumerate(rows):
        found[f"{prefix}{number}.tokens"], found[f"{prefix}{number}.labels"] = row, labels[number]
    for name, weight in dense.weights.items():
        if ".ahn.fn." not in name or name.endswith(".fn.D"):
            continue
        step, along = 1e-3, direction(weight.shape)
        at = {}
        for steps in (-2, -1, 1, 2):
            dense.weights[name] = weight + steps * step * along
            at[steps] = losses()
        dense.weights[name] = weight
        slope = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * step)
        found[f"{prefix}slope.{name}"] = slope
    return found


def make(model: Model, seed: int) -> tuple[dict[str, Any], dict[str, Array], dict[str, Array]]:
    """Configuration, weights and vectors of one model."""
    config, weights = config_of(model), weights_of(model, seed)
    dense = DenseModel(config, weights)
    random = np.random.RandomState(1000 + seed)
    vectors: dict[str, Array] = {}
    for case in CASES:
        vectors |= case_vectors(dense, case, random)
    for batch in BATCHES:
        vectors |= batch_vectors(dense, batch, random)
    return config, weights, vectors


def main() -> None:
    for seed, model in enumerate(MODELS):
        config, weights, vectors = make(model, seed)
        folder = FOLDER / model.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
        (folder / "vectors.safetensors").write_bytes(save(vectors))
        print(f"{folder.name}: {sum(f.stat().st_size for f in folder.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
