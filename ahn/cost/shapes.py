"""The sizes of a model and its number of parameters. Arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from ahn.cells.declaration import SizedCell
from ahn.cells.registry import CELLS
from ahn.config import AHNConfig
from ahn.families import family_of
from common.errors import InputError

#: more than any model has; lists of what a checkpoint must hold are made of this length
_MOST_LAYERS = 10_000
#: fields of a shape that are true or false
_SWITCHES = ("tie_word_embeddings", "attention_bias", "qk_norm", "output_bias", "mlp_bias")


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder that costs follow from, of any family of `ahn.families`.

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
        output_bias: attention's output projection has a bias.
        mlp_bias: the MLP's three projections have biases.
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
    output_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be a positive integer, not {value!r}"
            for name, value in vars(self).items()
            if name not in _SWITCHES
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
            InputError: a model of no family, or a missing or wrong size.
        """
        family = family_of(config)
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
        switches = {
            "tie_word_embeddings": family.value(config, "tie_word_embeddings", False),
            **family.biases(config),
        }
        problems = [
            f"{getattr(family, name, None) or name} must be true or false, not {value!r}"
            for name, value in switches.items()
            if not isinstance(value, bool)
        ]
        heads, width = config["num_attention_heads"], config["hidden_size"]
        key_heads = family.value(config, "num_key_value_heads")
        head_dim = config.get("head_dim")
        if head_dim is None:
            head_dim = family.defaults.get("head_dim")
        if head_dim is None:
            sizes = isinstance(heads, int) and isinstance(width, int) and heads > 0
            head_dim = width // heads if sizes else 128  # wrong sizes are told below
        if isinstance(head_dim, int) and head_dim % 2:
            problems.append(f"head_dim {head_dim} is odd; RoPE turns pairs")
        if problems:
            raise InputError("model shape: " + "; ".join(dict.fromkeys(problems)))
        return cls(
            **{key: config[key] for key in required},
            num_key_value_heads=heads if key_heads is None else key_heads,
            head_dim=head_dim,
            tie_word_embeddings=switches["tie_word_embeddings"],
            attention_bias=switches["qkv_bias"],
            qk_norm=family.qk_norm,
            output_bias=switches["output_bias"],
            mlp_bias=switches["mlp_bias"],
        )

    @property
    def parameters(self) -> int:
        """Parameters of the base model, tied embeddings counted once."""
        D, d, I_ = self.hidden_size, self.head_dim, self.intermediate_size
        q_width, kv_width = self.num_attention_heads * d, self.num_key_value_heads * d
        layer = 2 * D * q_width + 2 * D * kv_width + 3 * D * I_ + 2 * D
        layer += (q_width + 2 * kv_width) * self.attention_bias + 2 * d * self.qk_norm
        layer += D * self.output_bias + (2 * I_ + D) * self.mlp_bias
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
