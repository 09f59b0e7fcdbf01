"""What a layer does with the tokens of a pass: the interface of all plans.

Chunks (`ahn.models.attention.LayerPlan`), single tokens in place (`ahn.models.decode_step`), packed
documents (`ahn.models.packing`) and layers without a window (`ahn.models.memory_plan`) have one
each.  Attention drives a plan through this
interface and does not ask which one it has.

Shape letters: B batch, T tokens of the pass, N columns, H query heads, K key/value heads,
d head dimension, D hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor


class Buffers(Protocol):
    """What a layer keeps of the past, as far as plans use it: `ahn.models.cache.LayerCache`."""

    @property
    def slots(self) -> Mapping[str, Tensor]:
        """What is kept with each token, by name: `[B, heads, slots, ...]`."""

    def empty(self) -> Self:
        """The same with nothing in it."""

    def joined(self, name: str, new: Tensor, plan: Any) -> Tensor:
        """What buffer `name` holds, in the order of the tokens, then `new`."""

    def store(
        self, new: Mapping[str, Tensor], plan: Any, pooled: Mapping[str, Tensor] = ...
    ) -> None:
        """Keep those of the new tokens, and of the groups they complete, that the layout keeps."""


Past = TypeVar("Past", bound=Buffers)


class Tokens(NamedTuple):
    """The tokens of a pass, as one layer sees them.

    Attributes:
        q: queries after RoPE `[B, H, T, d]`.
        new: what is kept of them, by the name of its buffer: keys and values `[B, K, T, d]` and
            gates `[B, heads, T, ...]`.
        hidden: layer-normed hidden states `[B, T, D]`.
    """

    q: Tensor
    new: Mapping[str, Tensor]
    hidden: Tensor


class Leaving(NamedTuple):
    """What leaves the window during a pass.

    Attributes:
        first_query: queries `first_query ... T-1` read, each after one token has left.
        columns: of those tokens, by name as in `Tokens.new`: `[B, heads, n, ...]`.
        active: `[1 or B, n]` bool, False where no token of the row leaves; None: one does
            everywhere.
    """

    first_query: int
    columns: Mapping[str, Tensor]
    active: Tensor | None


class Plan(ABC):
    """What a layer does with the tokens of a pass.

    Attributes:
        fixed_shapes: whether the next pass will have tensors of the same shapes, so that it is
            worth compiling.
    """

    fixed_shapes: bool = False

    @abstractmethod
    def to(self, device: torch.device | str | int) -> Plan:
        """The plan for layers on another device (accelerate's hooks ask)."""

    def over(
        self,
        past: Past,
        tokens: Tokens,
        work: Callable[[Plan, Past, Tokens], Tensor],
    ) -> Tensor:
        """Do `work` on the tokens; a plan for several documents does it on each.

        Args:
            past: what the layer keeps.
            tokens: of the pass.
            work: `(plan, past, tokens)` to the attention output `[B, T, H, d]`.

        Returns:
            The attention output `[B, T, H, d]`.
        """
        return work(self, past, tokens)

    @abstractmethod
    def look(
        self, past: Buffers, new: Mapping[str, Tensor], evicts: bool
    ) -> tuple[Tensor, Tensor, Leaving | None]:
        """The keys and values that queries look at, and what leaves the window.

        Args:
            past: what the layer keeps; a plan that works in place stores the token here.
            new: see `Tokens`.
            evicts: whether anybody wants what leaves.

        Returns:
            Keys and values `[B, K, N, d]` for `attend`; and what leaves, None: nothing.
        """

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """Attention over sinks and window.

        Args:
            q: `[B, H, T, d]`.
            k: of `look`, `[B, K, N, d]`.
            v: as `k`.
            scaling: factor of the scores.

        Returns:
            `[B, H, T, d]`.
        """

    @abstractmethod
    def keep(self, past: Buffers, new: Mapping[str, Tensor]) -> None:
        """Store what the layout keeps of the tokens, where `look` has not done so."""
