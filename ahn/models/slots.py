"""Where tokens are kept: slots of a ring, and picking and writing them.

Shape letters: b batch or 1 (1 when all rows have the same length).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SlotWrite:
    """Which tokens of the chunk are kept, and where.

    Attributes:
        rows: `[n]` batch rows, or None when every row does the same.
        tokens: `[n]` token positions in the chunk.
        slots: `[n]` their slots.
    """

    rows: Tensor | None
    tokens: Tensor
    slots: Tensor

    def to(self, device: torch.device) -> SlotWrite:
        """The same with tensors on another device."""
        rows = None if self.rows is None else self.rows.to(device)
        return SlotWrite(rows, self.tokens.to(device), self.slots.to(device))

    def clone(self) -> SlotWrite:
        """The same with tensors of its own."""
        rows = None if self.rows is None else self.rows.clone()
        return SlotWrite(rows, self.tokens.clone(), self.slots.clone())

    def put(self, buffer: Tensor, new: Tensor) -> None:
        """Write `new [B, heads, T, ...]` into `buffer [B, heads, slots, ...]`, in place."""
        if self.rows is None:
            buffer.index_copy_(2, self.slots, new.index_select(2, self.tokens))
        else:
            buffer[self.rows, :, self.slots] = new[self.rows, :, self.tokens]


def ring_slots(positions: Tensor, ring: int | None, sinks: int) -> Tensor:
    """The slot in which the token at each position is kept.

    Args:
        positions: of tokens.
        ring: slots behind the sinks; None: one for each token.
        sinks: first tokens, which stay.
    """
    if ring is None:
        return positions
    return torch.where(positions < sinks, positions, sinks + (positions - sinks) % ring)


def held_tokens(length: Tensor, count: int, ring: int | None, sinks: int) -> Tensor:
    """`[b, count]` token in each slot when `length [b, 1]` tokens have passed, -1: empty."""
    slots = torch.arange(count, device=length.device)
    held = slots.expand(length.shape[0], -1)
    if ring is not None:
        laps = torch.div(length - 1 - slots, ring, rounding_mode="floor")
        held = torch.where(slots < sinks, slots, slots + laps * ring)
    return torch.where(slots < length, held, -1)


def take(x: Tensor, columns: Tensor | slice) -> Tensor:
    """Pick columns of `x [B, heads, N, ...]`: the same for all rows, or `[B, n]`."""
    if isinstance(columns, slice):
        return x[:, :, columns]
    if columns.shape[0] == 1:
        return x.index_select(2, columns[0])
    index = columns[:, None].reshape(columns.shape[0], 1, -1, *([1] * (x.dim() - 3)))
    return x.gather(2, index.expand(-1, x.shape[1], -1, *x.shape[3:]))
