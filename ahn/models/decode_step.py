"""One token per row on top of a cache: the plan of a decode step, which works in place.

A token takes the slot of the one that leaves the window. So a step reads that slot (what leaves),
overwrites it, and attends to the slots in the order in which they lie.  What a step needs of
positions is computed here, once for all layers of a layout, and outside of what is compiled: the
layers see tensors of unchanging shape, and nothing that counts tokens. Where a layout pools what
leaves, the token may complete a group: it is pooled into its slot first, since the token takes the
slot of the group's first member.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ahn.config import LayerLayout
from ahn.models.attention import Chunk
from ahn.models.plan import Buffers, Leaving, Plan
from ahn.models.pooling import StepGroups
from ahn.models.slots import held_tokens, ring_slots


class TokenStep(Plan):
    """What a layer of this layout does with one token per row.

    Args:
        chunk: one token per row, none of them padding.
        layout: of the layer.
        allocated: slots that the layer's buffers have, the token's among them.
        fixed: attend to all of them under a mask until all are in use, so that shapes stay as
            they are from step to step; else to those in use.

    Attributes:
        slots: `[b]`, where the token goes, and where the token that leaves is (b: 1 while all rows
            have the same length).
        evicts: whether a token leaves in any row.
        leaves: `[b, 1]` bool, in which rows; None: in all of them.
        mask: `[b, 1, 1, N]` bool, slots in use; None: all N.
        width: N; None: all that are allocated.
        groups: the group that is complete now; None: in no row.
    """

    fixed_shapes = True

    def __init__(self, chunk: Chunk, layout: LayerLayout, allocated: int, fixed: bool) -> None:
        window, sinks = layout.window, layout.sinks
        position = chunk.index[:, 0]  # [b]
        seen = chunk.seen
        least, most = (seen, seen) if isinstance(seen, int) else (int(seen.min()), int(seen.max()))
        self.slots = ring_slots(position, layout.ring, sinks)
        self.evicts = window is not None and most >= sinks + window
        self.leaves: Tensor | None = None
        if window is not None and self.evicts and least < sinks + window:
            self.leaves = (position >= sinks + window)[:, None]
        used = most + 1 if layout.ring is None else min(most + 1, sinks + layout.ring)
        used += min(layout.groups(most + 1), layout.slots)
        width = allocated if fixed else used
        self.width = None if width == allocated else width
        self.mask: Tensor | None = None
        self.groups = StepGroups.of(layout, seen, position)
        # where slots are still added, a block that happens to be full is no shape of its own
        grows = window is None or allocated < sinks + window
        if layout.slots:
            self.mask = _pooled_mask(layout, position, width)
        elif least + 1 < width or (fixed and grows):
            in_use = torch.arange(width, device=position.device) <= position[:, None]
            self.mask = in_use[:, None, None]
        self._elsewhere: dict[str, TokenStep] = {}

    def to(self, device: torch.device | str | int) -> TokenStep:
        """The step for layers on another device, made once for each (accelerate's hooks ask)."""
        target = torch.device(device)
        if target == self.slots.device:
            return self
        if str(target) not in self._elsewhere:
            twin = copy.copy(self)
            twin._elsewhere, twin.slots = {}, self.slots.to(target)
            twin.leaves = None if self.leaves is None else self.leaves.to(target)
            twin.mask = None if self.mask is None else self.mask.to(target)
            twin.groups = None if self.groups is None else self.groups.to(target)
            self._elsewhere[str(target)] = twin
        return self._elsewhere[str(target)]

    def look(
        self, past: Buffers, new: Mapping[str, Tensor], evicts: bool
    ) -> tuple[Tensor, Tensor, Leaving | None]:
        """Stores the token in its slot; what was there leaves the window."""
        leaving = None
        if evicts and self.evicts:
            columns = {name: self.at(past.slots[name]) for name in new}
            leaving = Leaving(0, columns, self.leaves)
        for name, tensor in new.items():
            if self.groups is not None:
                self.groups.write(past.slots[name])
            self.put(past.slots[name], tensor)
        return past.slots["keys"], past.slots["values"], leaving

    def keep(self, past: Buffers, new: Mapping[str, Tensor]) -> None:
        """Nothing: `look` has stored the token."""

    def at(self, buffer: Tensor) -> Tensor:
        """What the token's slot holds: `[B, heads, slots, ...] -> [B, heads, 1, ...]`."""
        if self.slots.shape[0] == 1:
            return buffer.index_select(2, self.slots)
        rows = torch.arange(buffer.shape[0], device=buffer.device)
        return buffer[rows, :, self.slots].unsqueeze(2)

    def put(self, buffer: Tensor, new: Tensor) -> None:
        """Overwrite the slot with `new [B, heads, 1, ...]`."""
        if self.slots.shape[0] == 1:
            buffer.index_copy_(2, self.slots, new)
        else:
            rows = torch.arange(buffer.shape[0], device=buffer.device)
            buffer[rows, :, self.slots] = new[:, :, 0]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """Attention of the token `q [B, H, 1, d]` over the slots `k`, `v [B, K, slots, d]`."""
        if self.width is not None:
            k, v = k[:, :, : self.width], v[:, :, : self.width]
        # the query heads of a group become the queries of their key head: no head is repeated
        grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[-1])  # [B, K, H / K, d]
        output = F.scaled_dot_product_attention(grouped, k, v, attn_mask=self.mask, scale=scaling)
        return output.reshape(q.shape)


def _pooled_mask(layout: LayerLayout, position: Tensor, width: int) -> Tensor:
    """`[b, 1, 1, width]` bool: slots that the token at `position [b]` sees, its own among them."""
    assert layout.window is not None and layout.ring is not None
    length = position[:, None] + 1
    groups = (length - layout.sinks - layout.window).clamp(min=0) // layout.rate
    lossless = min(width, layout.sinks + layout.ring)
    held = held_tokens(length, lossless, layout.ring, layout.sinks)
    pooled = held < layout.sinks + groups * layout.rate  # seen as part of a group, or no more
    tokens = (held >= 0) & ((held < layout.sinks) | ~pooled)
    slots = torch.arange(width - lossless, device=position.device)
    return torch.cat([tokens, slots < groups], 1)[:, None, None]
