"""Which key a query sees, and attention over just those keys.

A forward pass brings a chunk of T tokens; the cache holds some earlier ones in *slots*. For a
layer with S sinks and a window of W tokens, token `j` of a sequence is kept in slot `j` if `j < S`,
else in slot `S + (j - S) mod W`: the sinks stay, the rest is a ring. With full attention token
`j` is kept in slot `j`.  Layouts that pool what leaves have a few slots more
(`ahn.models.pooling`).  Everything here is index arithmetic on that rule, done once per forward
pass and shared by all layers of one layout.

Shape letters: B batch, b = 1 or B (1 when all rows have the same length), T tokens of the chunk,
C cached slots, N = C + T columns, H query heads, K key/value heads, d head dimension.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ahn.config import LayerLayout
from ahn.models.memory_plan import MemoryPlan
from ahn.models.plan import Buffers, Leaving, Plan
from ahn.models.pooling import ChunkGroups, visible_until
from ahn.models.slots import SlotWrite, held_tokens, ring_slots, take
from ahn.models.window_attention import mask_free, split_attention, takes_flash

#: At most so many query-key pairs are masked at a time; longer chunks go in query blocks.
_PAIRS = 1 << 23
_QUERY_BLOCK = 1024


@dataclass(frozen=True)
class MemoryStep:
    """Which columns leave the window during a chunk, and which queries read then.

    Attributes:
        first_query: queries `first_query ... T-1` each follow a token that leaves.
        columns: the column of that token: a slice while all rows have the same length, else
            `[B, n]`.
        writes: `[b, n]` bool, False where no token of a row leaves; None: one does in all rows.
    """

    first_query: int
    columns: Tensor | slice
    writes: Tensor | None

    def to(self, device: torch.device) -> MemoryStep:
        """The same with tensors on another device."""
        columns = self.columns if isinstance(self.columns, slice) else self.columns.to(device)
        writes = None if self.writes is None else self.writes.to(device)
        return MemoryStep(self.first_query, columns, writes)


class Chunk:
    """Positions of one forward pass: how far each row is, and which tokens are padding.

    Args:
        tokens: T.
        seen: tokens of each row before this chunk (padding not counted): an int when all rows
            have the same length, else `[B]` on the CPU, so that looking at it waits for no GPU.
        attention_mask: `[B, >= T]`, 1 for tokens and 0 for padding; only the last T columns are
            read. Padding may stand left or right of a row's tokens, not between them.
        device: of the index tensors.

    Attributes:
        index: `[b, T]` position of each token in its row, -1: padding.
        valid: `[B, T]` bool, False for padding; None: there is none.
        left: `[B]` padding before each row's first token; None: there is none.
        after: as `seen`, after this chunk.

    Raises:
        ValueError: a mask of another shape, or padding between tokens.
    """

    def __init__(
        self,
        tokens: int,
        seen: int | Tensor,
        attention_mask: Tensor | None,
        device: torch.device,
    ) -> None:
        self.tokens = tokens
        self.seen = seen
        steps = torch.arange(tokens, device=device)
        valid: Tensor | None = None
        if attention_mask is not None and tokens > 0:
            if attention_mask.dim() != 2 or attention_mask.shape[1] < tokens:
                raise ValueError(
                    f"attention_mask must be [batch, >= {tokens}], 1 for tokens and 0 for padding, "
                    f"not {tuple(attention_mask.shape)}"
                )
            valid = attention_mask[:, -tokens:].to(device=device, dtype=torch.bool)
            if bool(valid.all()):
                valid = None
        if valid is None:
            start = seen if isinstance(seen, int) else seen.to(device)[:, None]
            self.index = (steps + start).expand(1 if isinstance(seen, int) else len(seen), -1)
            self.valid = None
            self.left: Tensor | None = None
            self.after: int | Tensor = seen + tokens
        else:
            counts = valid.sum(1)  # [B]
            left = valid.int().argmax(1)  # padding before the first token
            inside = (steps >= left[:, None]) & (steps < (left + counts)[:, None])
            if not torch.equal(inside, valid):
                raise ValueError(
                    "attention_mask has padding between the tokens of a row (generate() guesses "
                    "a mask from pad tokens in the prompt: pass attention_mask)"
                )
            start = torch.as_tensor(seen, device=device) - left
            self.index = torch.where(valid, steps + start[:, None], -1)  # [B, T], -1: padding
            self.valid = valid
            self.left = left
            self.after = torch.as_tensor(seen) + counts.cpu()

    def position_ids(self) -> Tensor:
        """`[b, T]`: each token's own position in its row; padding gets 0."""
        return self.index.clamp(min=0)

    def plan(self, layout: LayerLayout) -> LayerPlan:
        """What a layer of this layout, which attends to tokens, does with the chunk."""
        return LayerPlan(self, layout)

    def plans(self, layouts: Sequence[LayerLayout]) -> list[Plan]:
        """One for each layer, shared by layers whose queries see the same."""
        # not kept by the chunk: plans refer to it, and a cycle would keep masks in memory
        made: dict[tuple[Any, ...], Plan] = {}
        for layout in layouts:
            if layout.span not in made:
                plan = self.plan(layout) if layout.attends else MemoryPlan(self.valid)
                made[layout.span] = plan
        return [made[layout.span] for layout in layouts]


class LayerPlan(Plan):
    """The index arithmetic of one chunk for one layout.

    Columns are what `LayerCache.joined` makes: what the cache holds, then the chunk. While all
    rows have the same length they are in the order of their positions, so that the window of a
    run of queries, and what leaves it, are slices. Behind them stand the columns of pooled groups.

    Args:
        chunk: the tokens.
        layout: of the layers; what they do with what leaves the window does not matter here.

    Attributes:
        uniform_rows: whether all rows have the same length and there is no padding.
        groups: pooled groups of tokens; None: the layout has none.
    """

    def __init__(self, chunk: Chunk, layout: LayerLayout) -> None:
        self.chunk, self.layout = chunk, layout
        self.window, self.sinks, self.ring = layout.window, layout.sinks, layout.ring
        sinks = self.sinks
        #: `[b, T]` position of each token, -1: padding
        self.index = chunk.index
        #: padding before the first token of the row that has most
        self.padding = 0 if chunk.left is None else int(chunk.left.max())
        #: slots in use before this chunk
        self.cached = self._slots(chunk.seen)
        self.uniform_rows = chunk.valid is None and isinstance(chunk.seen, int)
        device = chunk.index.device
        length = torch.as_tensor(chunk.seen, device=device).reshape(-1, 1)  # [b, 1]
        held = held_tokens(length, self.cached, self.ring, sinks)
        if self.ring_offset:
            ring = held[:, sinks:].roll(-self.ring_offset, 1)
            held = torch.cat([held[:, :sinks], ring], 1)
        rows = max(held.shape[0], chunk.index.shape[0])
        #: `[b, N]` token in each column, or the first one that sees its group; -1: none
        self.keys = torch.cat([held.expand(rows, -1), chunk.index.expand(rows, -1)], 1)
        #: `[b, N]` first position that does not see the column any more; None: all later ones do
        self._until = None if self.window is None else visible_until(self.keys, layout)
        #: columns of tokens; those of groups follow
        self._tokens = self.keys.shape[1]
        self.groups: ChunkGroups | None = None
        if layout.slots:
            self.groups = ChunkGroups(
                layout,
                chunk.seen,
                chunk.after,
                self.cached,
                chunk.tokens,
                chunk.left,
                self.uniform_rows,
                device,
            )
            assert self._until is not None
            self.keys = torch.cat([self.keys, self.groups.opens], 1)
            self._until = torch.cat([self._until, self.groups.closes], 1)
        self._mask: Tensor | None = None
        self._elsewhere: dict[str, LayerPlan] = {}

    def to(self, device: torch.device | str | int) -> LayerPlan:
        """The plan for layers on another device, made once for each (accelerate's hooks ask)."""
        target = torch.device(device)
        if target == self.keys.device:
            return self
        if str(target) not in self._elsewhere:
            twin = copy.copy(self)
            twin._mask, twin._elsewhere = None, {}
            twin.keys, twin.index = self.keys.to(target), self.index.to(target)
            twin._until = None if self._until is None else self._until.to(target)
            twin.groups = None if self.groups is None else self.groups.to(target)
            twin.slot_write = self.slot_write.to(target)
            twin.memory_step = None if self.memory_step is None else self.memory_step.to(target)
            self._elsewhere[str(target)] = twin
        return self._elsewhere[str(target)]

    @property
    def ring_offset(self) -> int:
        """Index of the ring's slot that holds the oldest token.

        Only defined when all rows have the same length; 0 otherwise.
        """
        seen = self.chunk.seen
        if not self.uniform_rows or self.ring is None or not isinstance(seen, int):
            return 0
        return (seen - self.sinks) % self.ring if seen > self.sinks + self.ring else 0

    def _slots(self, seen: int | Tensor) -> int:
        longest = seen if isinstance(seen, int) else int(seen.max())
        return longest if self.ring is None else min(longest, self.sinks + self.ring)

    @property
    def causal(self) -> bool:
        """Whether plain causal attention over the chunk is all there is to compute."""
        chunk = self.chunk
        reach = self.ring is None or chunk.tokens <= self.sinks + self.ring
        return self.cached == 0 and chunk.valid is None and reach

    def visible(self, first: int, last: int, columns: Tensor | slice) -> Tensor:
        """Mask `[b, 1, last - first, columns]` of queries `first ... last - 1`; True: seen."""
        query = self.index[:, first:last, None]
        key = self.keys[:, None, columns]
        seen = (key >= 0) & (key <= query)
        if self._until is not None:
            seen &= query < self._until[:, None, columns]
        # a padding query sees everything, so that its softmax is finite; nobody reads it
        return (seen | (query < 0))[:, None]

    def look(
        self, past: Buffers, new: Mapping[str, Tensor], evicts: bool
    ) -> tuple[Tensor, Tensor, Leaving | None]:
        """All columns; what leaves the window is picked from them."""
        joined = {name: past.joined(name, tensor, self) for name, tensor in new.items()}
        if self.groups is not None:
            joined = {
                name: self.groups.beside(tensor, past.slots.get(name))
                for name, tensor in joined.items()
            }
        step = self.memory_step if evicts else None
        leaving = None
        if step is not None:
            columns = {name: take(x, step.columns) for name, x in joined.items()}
            leaving = Leaving(step.first_query, columns, step.writes)
        return joined["keys"], joined["values"], leaving

    def keep(self, past: Buffers, new: Mapping[str, Tensor]) -> None:
        """Store those tokens of the chunk that stay in the window, and the groups it completes."""
        pooled = {}
        if self.groups is not None and self.groups.new:
            pooled = {
                name: self.groups.pool(past.joined(name, tensor, self))
                for name, tensor in new.items()
            }
        past.store(new, self, pooled)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """Attention of the chunk's queries.

        Args:
            q: `[B, H, T, d]`.
            k: `[B, K, N, d]`, what the cache holds, then the chunk, then pooled groups.
            v: `[B, K, N, d]`.
            scaling: factor of the scores.

        Returns:
            `[B, H, T, d]`.
        """
        tokens, columns = q.shape[2], k.shape[2]
        if self.causal:
            return _attention(q, k, v, None, scaling)
        if (
            mask_free(q)
            and self.uniform_rows
            and isinstance(self.chunk.seen, int)
            and self.groups is None  # which queries see a group is no window
        ):
            return split_attention(q, k, v, self.chunk.seen, self.window, self.sinks, scaling)
        if tokens * columns <= _PAIRS:
            if self._mask is None:
                self._mask = self.visible(0, tokens, slice(None))
            return _attention(q, k, v, self._mask, scaling)
        outputs = []
        size = min(_QUERY_BLOCK, max(1, _PAIRS // columns))
        for first in range(0, tokens, size):
            last = min(first + size, tokens)
            block = self._columns(first, last)
            outputs.append(
                _attention(
                    q[:, :, first:last],
                    take(k, block),
                    take(v, block),
                    self.visible(first, last, block if isinstance(block, slice) else block[0]),
                    scaling,
                )
            )
        return torch.cat(outputs, 2)

    def _columns(self, first: int, last: int) -> Tensor | slice:
        """Columns that any of the queries `first ... last - 1` may see; a tensor is `[1, n]`."""
        columns = self._token_columns(first, last)
        if self.groups is None:
            return columns
        if isinstance(columns, slice):
            columns = torch.arange(columns.stop, device=self.keys.device)[None]
        queries = self.index[:, first:last] + 1
        low, high = self.groups.seen_by(queries.amin(1), queries.amax(1))
        new = self._tokens + self.groups.held
        held = torch.arange(self._tokens, new, device=columns.device)
        fresh = torch.arange(new + low, new + high, device=columns.device)
        return torch.cat([columns, held[None], fresh[None]], 1)

    def _token_columns(self, first: int, last: int) -> Tensor | slice:
        device = self.keys.device
        if self.ring is None:
            return slice(0, self.cached + last)
        if self.uniform_rows:
            # the oldest column that `first` may see beside the sinks, which stand before it
            oldest = self.cached + first - self.ring + 1
            if oldest <= self.sinks:
                return slice(0, self.cached + last)
            sinks = torch.arange(self.sinks, device=device)
            window = torch.arange(oldest, self.cached + last, device=device)
            return torch.cat([sinks, window])[None]
        low = max(0, first - self.ring + 1)
        # a row's tokens follow its left padding: the row with most padding reaches back furthest
        in_ring = first - self.padding < self.ring - 1
        cached = self.cached if in_ring else min(self.cached, self.sinks)
        head = min(low, self.padding + self.sinks)
        return torch.cat(
            [
                torch.arange(cached, device=device),
                torch.arange(self.cached, self.cached + head, device=device),
                torch.arange(self.cached + low, self.cached + last, device=device),
            ]
        )[None]

    @cached_property
    def memory_step(self) -> MemoryStep | None:
        """What leaves the window, and which queries read then; None when nothing leaves."""
        if self.window is None or self.groups is not None or self.chunk.tokens == 0:
            return None
        sinks, window, index = self.sinks, self.window, self.index
        seen, tokens = self.chunk.seen, self.chunk.tokens
        if self.uniform_rows and isinstance(seen, int):
            first = max(0, sinks + window - seen)
            if first >= tokens:
                return None
            # the columns end with position seen + tokens - 1, and those up to W before are there
            start = self.cached + first - window
            return MemoryStep(first, slice(start, start + tokens - first), None)
        leaving = index - window  # [B, T]
        writes = leaving >= sinks
        reading = writes.any(0)
        if not bool(reading.any()):
            return None
        first = int(reading.int().argmax())
        leaving, writes = leaving[:, first:].clamp(min=sinks), writes[:, first:]
        length = torch.as_tensor(seen, device=index.device).reshape(-1, 1)
        left = torch.zeros_like(length) if self.chunk.left is None else self.chunk.left[:, None]
        slots = ring_slots(leaving, window, sinks)
        columns = torch.where(leaving < length, slots, self.cached + left + leaving - length)
        columns = columns.clamp(max=self.cached + tokens - 1)  # where nothing is written
        return MemoryStep(first, columns, writes)

    @cached_property
    def slot_write(self) -> SlotWrite:
        """Which tokens of the chunk stay in the cache."""
        index, seen = self.index, self.chunk.seen
        if self.uniform_rows and isinstance(seen, int):  # without waiting for a GPU
            last = seen + self.chunk.tokens
            kept = torch.arange(seen, last, device=index.device)
            if self.ring is not None and last - max(seen, self.sinks) > self.ring:
                sinks = kept[: max(0, self.sinks - seen)]
                kept = torch.cat([sinks, kept[-self.ring :]])
            return SlotWrite(None, kept - seen, ring_slots(kept, self.ring, self.sinks))
        after = torch.as_tensor(self.chunk.after, device=index.device).reshape(-1, 1)
        keep = index >= 0
        if self.ring is not None:
            keep = keep & ((index < self.sinks) | (index >= after - self.ring))
        rows, tokens = keep.expand(after.shape[0], -1).nonzero(as_tuple=True)
        kept = index.expand(after.shape[0], -1)[rows, tokens]
        return SlotWrite(rows, tokens, ring_slots(kept, self.ring, self.sinks))


def repeats_heads(
    groups: int,
    masked: bool,
    dtype: torch.dtype,
    head_dim: int,
    capability: tuple[int, int] | None,
) -> bool:
    """Whether keys and values are repeated for their groups of query heads.

    On a GPU only flash attention knows grouped heads: half types, no mask, from Ampere on, up to
    256 dimensions. For anything else torch falls back to a kernel that holds all scores (38.7 GB a
    layer at 24,576 tokens and 16 heads in float32). With equal heads it has one that does not.

    Args:
        groups: query heads of a key head.
        masked: whether attention is under a mask; else it is causal.
        dtype: of the queries.
        head_dim: d.
        capability: the GPU's compute capability; None: not a CUDA device.
    """
    if groups == 1 or capability is None:
        return False
    return masked or not takes_flash(dtype, head_dim, capability)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """torch's attention; without a mask it is causal."""
    groups = q.shape[1] // k.shape[1]
    capability = torch.cuda.get_device_capability(q.device) if q.is_cuda else None
    if repeats_heads(groups, mask is not None, q.dtype, q.shape[-1], capability):
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        groups = 1
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None and q.shape[2] > 1,
        scale=scaling,
        enable_gqa=groups > 1,
    )
