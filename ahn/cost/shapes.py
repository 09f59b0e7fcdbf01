"""The sizes of a model, and the parameters that follow from them. Arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ahn.cells.declaration import SizedCell
from ahn.cells.registry import CELLS
from ahn.config import AHNConfig
from common.errors import InputError

#: more than any model has; lists of what a checkpoint must hold are made of this length
_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a Qwen2 or Qwen3 decoder that costs follow from.

    Attributes:
        num_hidden_layers: decoder layers.
        hidden_size: D, width of the residual stream.
        num_attention_heads: H, query heads.
        num_key_value_heads: H_kv, heads of keys and values; divides H.
        head_dim: d, width of one head.
        intermediate_size: width of the gated MLP.
        vocab_size: V, rows of the embedding.
        tie_word_embeddings: the output head is the embedding matrix itself.
        attention_bias: q, k and v projections have biases (Qwen2: yes).
        qk_norm: RMS norms on the heads of q and k (Qwen3: yes).
    """

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool = False
    attention_bias: bool = True
    qk_norm: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be a positive integer, not {value!r}"
            for name, value in vars(self).items()
            if name not in ("tie_word_embeddings", "attention_bias", "qk_norm")
            and (not isinstance(value, int) or isinstance(value, bool) or value <= 0)
        ]
        if not problems and self.num_hidden_layers > _MOST_LAYERS:
            problems.append(f"num_hidden_layers {self.num_hidden_layers:,} is beyond every model")
        if not problems and self.num_attention_heads % self.num_key_value_heads:
            problems.append(
                f"num_attention_heads {self.num_attention_heads} is no multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if problems:
            raise InputError("model shape: " + "; ".join(problems))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """Reads the shape from a checkpoint's `config.json`.

        Raises:
            InputError: another architecture than Qwen2 or Qwen3, or a missing or wrong size.
        """
        given = config.get("model_type")
        model_type = str(given).removesuffix("_ahn")  # ours: the base and its memory
        if model_type not in ("qwen2", "qwen3"):
            raise InputError(f"model_type {given!r} is not supported; qwen2 and qwen3 are")
        required = (
            "num_hidden_layers",
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "vocab_size",
        )
        missing = [key for key in required if config.get(key) is None]
        if missing:
            raise InputError(f"the model's configuration lacks {', '.join(missing)}")
        problems = [
            f"{key} must be true or false, not {config[key]!r}"
            for key in ("tie_word_embeddings", "attention_bias")
            if not isinstance(config.get(key, False), bool)
        ]
        heads, width = config["num_attention_heads"], config["hidden_size"]
        key_heads, head_dim = config.get("num_key_value_heads"), config.get("head_dim")
        if head_dim is None:
            sizes = isinstance(heads, int) and isinstance(width, int) and heads > 0
            head_dim = 128 if model_type == "qwen3" or not sizes else width // heads
        if isinstance(head_dim, int) and head_dim % 2:
            problems.append(f"head_dim {head_dim} is odd; RoPE turns pairs")
        if problems:
            raise InputError("model shape: " + "; ".join(problems))
        return cls(
            **{key: config[key] for key in required},
            num_key_value_heads=heads if key_heads is None else key_heads,
            head_dim=head_dim,
            tie_word_embeddings=config.get("tie_word_embeddings", False),
            attention_bias=model_type == "qwen2" or config.get("attention_bias", False),
            qk_norm=model_type == "qwen3",
        )

    @property
    def parameters(self) -> int:
        """Parameters of the base model, tied embeddings counted once."""
        D, d, I_ = self.hidden_size, self.head_dim, self.intermediate_size
        q_width, kv_width = self.num_attention_heads * d, self.num_key_value_heads * d
        layer = 2 * D * q_width + 2 * D * kv_width + 3 * D * I_ + 2 * D
        layer += (q_width + 2 * kv_width) * self.attention_bias + 2 * d * self.qk_norm
        embeddings = self.vocab_size * D * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * layer + embeddings + D


def sized_cell(shape: ModelShape, cell: str) -> SizedCell:
    """What a memory cell keeps, stores and costs in one layer of a model.

    Raises:
        InputError: unknown cell, or one that cannot have this model's sizes.
    """
    heads, d = shape.num_attention_heads, shape.head_dim
    return CELLS.find(cell).sized(shape.hidden_size, heads, d)


def memory_shapes(shape: ModelShape, cell: str) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter that `cell` has in one layer, by its name in a checkpoint.

    Raises:
        InputError: as `sized_cell`.
    """
    return sized_cell(shape, cell).parameters


def added_parameters(
    shape: ModelShape,
    cell: str,
    *,
    full_attention_layers: Collection[int] = (),
    layers: Mapping[int, Mapping[str, Any]] | None = None,
) -> int:
    """Parameters that memory cells add to the base model, in the released layout.

    Args:
        shape: the base model.
        cell: of all layers that have none of their own.
        full_attention_layers: layers without a memory.
        layers: settings of single layers, see `AHNConfig.layers`.

    Raises:
        InputError: unknown cell, or a layer that the model does not have.
    """
    config = AHNConfig(
        cell=cell, full_attention_layers=tuple(full_attention_layers), layers=layers or {}
    )
    return sum(
        prod(size)
        for layout in config.layouts(shape.num_hidden_layers)
        if layout.cell is not None
        for size in memory_shapes(shape, layout.cell).values()
    )
