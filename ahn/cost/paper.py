"""The cost columns of the AHN paper's tables (arXiv 2510.07318v2). Arithmetic, no torch.

What is counted is `accounting="paper"` of `ahn.cost.accounting`: Table 1. *Mixing* is what mixes
tokens (projections of q, k, v and o, attention, memory); *model* adds the MLP, the output head and
the embedding as a second one. Bytes are those of the cache with 4 to an element.

What the formula gives, and what it does not
--------------------------------------------
- 3B and 14B: every cell of tables 2 and 9 as printed; of 14B's rows with a memory three are within
  one unit of the last digit. They come out, and all of Table 7 with them, where the output gate (a
  product `D H` a token) is left out: `output_gate=False`. Table 1 has it, so tables 2 and 9 keep
  it.
- 7B: the printed FLOPs are 6 to 8 % below the formula's, in all three tables alike; the bytes and
  the parameters are as printed, and the ratios of mixing (48.15 for the printed 48.2 of Mamba2 and
  DN). Table 7's full attention less its window is
  `2 * 2 * 128 * (L - W)^2 * layers * H d`, so `layers * H d` = 92,618 +- 78, where the model has
  28 * 3,584 = 100,352. No whole number of layers and heads of 64 to 256 dimensions gives that; what
  is linear in the length is as of 26 of the 28 layers. The rows are of no shape that a model has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ahn.config import example_layout
from ahn.cost.accounting import FlopCount, added_parameters, cache_bytes, flops, variant_layouts
from ahn.cost.shapes import ModelShape
from common.errors import InputError
from common.suggestions import did_you_mean

__all__ = ["CELL_BYTES", "METHODS", "MethodCost", "method_cost", "training_step", "variant_of"]

#: bytes of an element of the cache in the paper's tables
CELL_BYTES = 4

#: the paper's methods as variants of a run, by the names of its tables
METHODS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "Full Attn": {"variant": "full"},
        "Sinks + SWA": {"variant": "window"},
        "CT-Max": {"variant": "compressive"},
        "CT-Average": {"variant": "compressive"},
        "AHN-Mamba2": {"variant": "ahn", "cell": "Mamba2"},
        "AHN-DN": {"variant": "ahn", "cell": "DeltaNet"},
        "AHN-GDN": {"variant": "ahn", "cell": "GatedDeltaNet"},
    }
)
#: Table 8 has one more: the memory without sinks and window, whose cost the paper does not print
_MEMORY_ALONE = {"Pure RNN": {"variant": "memory-only", "cell": "GatedDeltaNet"}}
#: Table 7 writes two of them out
_WRITTEN_OUT = {"Full attention": "Full Attn", "Attention Sinks + SWA": "Sinks + SWA"}


def variant_of(method: str) -> Mapping[str, Any]:
    """The variant, and the cell where it has one, that a row of the paper's tables is of.

    Raises:
        InputError: the paper has no such method.
    """
    known = {**METHODS, **_MEMORY_ALONE}
    found = known.get(_WRITTEN_OUT.get(method, method))
    if found is None:
        raise InputError(
            f"the paper has no method {method!r}; one of {', '.join(known)}"
            + did_you_mean(method, known)
        )
    return found


@dataclass(frozen=True)
class MethodCost:
    """What a method costs at a length, as tables 2 and 9 count.

    Attributes:
        base_parameters: of the model without a memory, tied embeddings counted once.
        extra_parameters: of the memory.
        mixing_flops: of one sequence.
        model_flops: of one sequence.
        cache_bytes: after one sequence.
    """

    base_parameters: int
    extra_parameters: int
    mixing_flops: int
    model_flops: int
    cache_bytes: int

    def columns(self, full: MethodCost) -> tuple[float, ...]:
        """Table 9's eight columns, unrounded, with `full` as 100 %.

        Parameters in millions and percent, FLOPs of mixing in 1e15 and percent, of the model
        likewise, bytes of the cache in 1e9 and percent.
        """
        return (
            self.extra_parameters / 1e6,
            100 * self.extra_parameters / self.base_parameters,
            self.mixing_flops / 1e15,
            100 * self.mixing_flops / full.mixing_flops,
            self.model_flops / 1e15,
            100 * self.model_flops / full.model_flops,
            self.cache_bytes / 1e9,
            100 * self.cache_bytes / full.cache_bytes,
        )


def method_cost(
    shape: ModelShape,
    method: str,
    length: int,
    *,
    window: int,
    sinks: int,
    output_gate: bool = True,
) -> MethodCost:
    """What one of the paper's methods costs for one sequence, in the paper's accounting.

    Args:
        shape: the base model.
        method: a row of tables 2 and 9, see `METHODS`.
        length: L, tokens of the sequence.
        window: W, the current token included.
        sinks: S; the paper's lossless W is the sum of both.
        output_gate: count it, as Table 1 does; see the module's head.

    Raises:
        InputError: a method that the paper does not have, or sizes that no run can have.
    """
    settings: dict[str, Any] = {"window": window, "sinks": sinks, **variant_of(method)}
    count = _forward(shape, length, settings, output_gate)
    mixing = sum(count.parts[name] for name in ("projections", "attention", "memory"))
    held = cache_bytes(shape, tokens=length, dtype_bytes=CELL_BYTES, accounting="paper", **settings)
    cell = settings.get("cell")
    return MethodCost(
        base_parameters=shape.parameters,
        extra_parameters=0 if cell is None else added_parameters(shape, cell),
        mixing_flops=mixing,
        model_flops=count.total,
        cache_bytes=held.total,
    )


def training_step(
    shape: ModelShape,
    variant: str,
    length: int,
    *,
    batch_size: int,
    window: int | None = None,
    sinks: int = 0,
    cell: str | None = None,
    output_gate: bool = False,
) -> int:
    """FLOPs of one training step as Table 7 counts: twice the forward pass of each sequence.

    A backward pass by itself is twice a forward pass, so that a whole step would be three of them;
    the printed figures are of two.

    Args:
        shape: the base model.
        variant: one of `ahn.config.VARIANTS`; what it does not look at is ignored.
        length: L, tokens of each sequence.
        batch_size: sequences.
        window: W, the current token included.
        sinks: S.
        cell: memory cell, for `ahn` and `no-write`.
        output_gate: count the memory's, which Table 7 leaves out.

    Raises:
        InputError: sizes that no run can have.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    settings = {"variant": variant, "window": window, "sinks": sinks, "cell": cell}
    return 2 * batch_size * _forward(shape, length, settings, output_gate).total


def _forward(
    shape: ModelShape, length: int, settings: Mapping[str, Any], output_gate: bool
) -> FlopCount:
    count = flops(shape, prompt_tokens=length, accounting="paper", **settings)
    if output_gate or example_layout(settings["variant"]).cell is None:
        return count
    layouts = variant_layouts(shape, **settings)
    gate = 2 * shape.hidden_size * shape.num_attention_heads
    left_out = sum(
        max(length - layout.sinks - layout.window, 0) * gate
        for layout in layouts
        if layout.cell is not None and layout.window is not None
    )
    parts = {**count.parts, "memory": count.parts["memory"] - left_out}
    return FlopCount(count.prefill - left_out, count.decode, parts)
