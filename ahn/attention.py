"""Which key a query sees, and attention over just those keys.

A forward pass brings a chunk of T tokens; the cache holds some earlier ones in *slots*. For a
layer with S sinks and a window of W tokens, token `j` of a sequence lives in slot `j` if `j < S`,
else in slot `S + (j - S) mod W`: the sinks stay, the rest is a ring. With full attention token
`j` lives in slot `j`.  Everything here is index arithmetic on that rule, done once per forward
pass and shared by all layers of one layout.

Shape letters: B batch, b = 1 or B (1 when all rows are alike), T tokens of the chunk, C cached
slots, N = C + T columns, H query heads, K key/value heads, d head dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ahn.config import LayerLayout

#: At most so many query-key pairs are masked at a time; longer chunks go in query blocks.
_PAIRS = 1 << 23
_QUERY_BLOCK = 1024


@dataclass(frozen=True)
class MemoryStep:
    """Which columns leave the window during a chunk, and which queries arrive then.

    Attributes:
        first_query: queries `first_query ... T-1` read the memory.
        columns: `[b, n]`, the column that is written before each of them reads.
        writes: `[b, n]` bool, False where a row writes nothing at that step; None: all write.
    """

    first_query: int
    columns: Tensor
    writes: Tensor | None


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


class Chunk:
    """Positions of one forward pass: how far each row is, and which tokens are padding.

    Args:
        tokens: T.
        seen: tokens of each row before this chunk (padding not counted): an int when all rows
            are alike, else `[B]`.
        attention_mask: `[B, >= T]`, 1 for tokens and 0 for padding; only the last T columns are
            read. Padding may stand left or right of a row's tokens, not between them.
        device: of the index tensors.

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
        self._plans: dict[tuple[int | None, int], LayerPlan] = {}
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
            start = seen if isinstance(seen, int) else seen[:, None]
            self.index = (steps + start).reshape(-1, tokens)  # [b, T]
            self.valid = None
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
            self.after = torch.as_tensor(seen, device=device) + counts

    def position_ids(self) -> Tensor:
        """`[b, T]`: each token's own position in its row; padding gets 0."""
        return self.index.clamp(min=0)

    def plan(self, layout: LayerLayout) -> LayerPlan:
        """What a layer of this layout does with the chunk; made once, then shared."""
        key = (layout.window, layout.sinks)
        if key not in self._plans:
            self._plans[key] = LayerPlan(self, layout.window, layout.sinks)
        return self._plans[key]


class LayerPlan:
    """The index arithmetic of one chunk for one window and number of sinks."""

    def __init__(self, chunk: Chunk, window: int | None, sinks: int) -> None:
        self.chunk, self.window, self.sinks = chunk, window, sinks
        #: slots in use before this chunk, and after it
        self.cached = self._slots(chunk.seen)
        self.kept = self._slots(chunk.after)
        #: one token for every row: it is stored first and attends to the slots as they lie,
        #: so that decoding copies no keys
        self.in_place = chunk.tokens == 1 and chunk.valid is None
        if self.in_place:
            self.keys = self._held(chunk.after, self.kept)
        else:
            held = self._held(chunk.seen, self.cached)
            rows = max(held.shape[0], chunk.index.shape[0])
            #: `[b, N]` token in each column, -1: none
            self.keys = torch.cat([held.expand(rows, -1), chunk.index.expand(rows, -1)], 1)
        self._mask: Tensor | None = None

    def _slots(self, seen: int | Tensor) -> int:
        longest = seen if isinstance(seen, int) else int(seen.max())
        return longest if self.window is None else min(longest, self.sinks + self.window)

    def _held(self, seen: int | Tensor, count: int) -> Tensor:
        """`[b, count]` token in each slot when `seen` tokens have passed, -1: empty."""
        device = self.chunk.index.device
        slots = torch.arange(count, device=device)
        length = torch.as_tensor(seen, device=device).reshape(-1, 1)  # [b, 1]
        held = slots.expand(length.shape[0], -1)
        if self.window is not None:
            laps = torch.div(length - 1 - slots, self.window, rounding_mode="floor")
            held = torch.where(slots < self.sinks, slots, slots + laps * self.window)
        return torch.where(slots < length, held, -1)

    @property
    def causal(self) -> bool:
        """Whether plain causal attention over the chunk is the whole story."""
        chunk = self.chunk
        reach = self.window is None or chunk.tokens <= self.sinks + self.window
        return self.cached == 0 and chunk.valid is None and reach

    @property
    def everything(self) -> bool:
        """Whether the queries see every column: one token, rows alike, keys in their slots."""
        return self.in_place and isinstance(self.chunk.seen, int)

    def visible(self, first: int, last: int, columns: Tensor | slice) -> Tensor:
        """Mask `[b, 1, last - first, columns]` of queries `first ... last - 1`; True: seen."""
        query = self.chunk.index[:, first:last, None]
        key = self.keys[:, None, columns]
        seen = (key >= 0) & (key <= query)
        if self.window is not None:
            seen &= (key < self.sinks) | (key > query - self.window)
        # a padding query sees everything, so that its softmax is finite; nobody reads it
        return (seen | (query < 0))[:, None]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """Attention of the chunk's queries.

        Args:
            q: `[B, H, T, d]`.
            k: `[B, K, N, d]`, cached slots first, then the chunk; or all slots, if `in_place`.
            v: `[B, K, N, d]`.
            scaling: factor of the scores.

        Returns:
            `[B, H, T, d]`.
        """
        tokens, columns = q.shape[2], k.shape[2]
        if self.causal or self.everything:
            return _attention(q, k, v, None, scaling)
        if tokens * columns <= _PAIRS:
            if self._mask is None:
                self._mask = self.visible(0, tokens, slice(None))
            return _attention(q, k, v, self._mask, scaling)
        outputs = []
        for first in range(0, tokens, _QUERY_BLOCK):
            last = min(first + _QUERY_BLOCK, tokens)
            block = self._columns(first, last)
            outputs.append(
                _attention(
                    q[:, :, first:last],
                    k[:, :, block],
                    v[:, :, block],
                    self.visible(first, last, block),
                    scaling,
                )
            )
        return torch.cat(outputs, 2)

    def _columns(self, first: int, last: int) -> Tensor:
        """Columns that any of the queries `first ... last - 1` may see."""
        device = self.keys.device
        if self.window is None:
            return torch.arange(self.cached + last, device=device)
        low = max(0, first - self.window + 1)
        cached = self.cached if low == 0 else min(self.cached, self.sinks)
        # a row's sinks stand behind its left padding
        padding = 0
        if self.chunk.valid is not None:
            padding = int(self.chunk.valid.int().argmax(1).max())
        head = min(low, padding + self.sinks)
        return torch.cat(
            [
                torch.arange(cached, device=device),
                torch.arange(self.cached, self.cached + head, device=device),
                torch.arange(self.cached + low, self.cached + last, device=device),
            ]
        )

    def memory_step(self) -> MemoryStep | None:
        """What leaves the window, and who reads then; None when nothing leaves."""
        if self.window is None or self.chunk.tokens == 0:
            return None
        sinks, window, index = self.sinks, self.window, self.chunk.index
        seen = self.chunk.seen
        if self.chunk.valid is None and isinstance(seen, int):
            first = max(0, sinks + window - seen)
            if first >= self.chunk.tokens:
                return None
            leaving = index[:, first:] - window  # [1, n]
            slots = sinks + (leaving - sinks) % window
            columns = torch.where(leaving < seen, slots, self.cached + leaving - seen)
            return MemoryStep(first, columns, None)
        leaving = index - window  # [B, T]
        writes = leaving >= sinks
        reading = writes.any(0)
        if not bool(reading.any()):
            return None
        first = int(reading.int().argmax())
        leaving, writes = leaving[:, first:].clamp(min=sinks), writes[:, first:]
        length = torch.as_tensor(seen, device=index.device).reshape(-1, 1)
        left = torch.zeros_like(length)
        if self.chunk.valid is not None:
            left = self.chunk.valid.int().argmax(1)[:, None]
        slots = sinks + (leaving - sinks) % window
        columns = torch.where(leaving < length, slots, self.cached + left + leaving - length)
        last = self.cached + (0 if self.in_place else self.chunk.tokens) - 1
        columns = columns.clamp(max=last)  # where nothing is written
        return MemoryStep(first, columns, writes)

    def slot_write(self) -> SlotWrite:
        """Which tokens of the chunk stay in the cache."""
        index, after = self.chunk.index, self.chunk.after
        last = torch.as_tensor(after, device=index.device).reshape(-1, 1)
        keep = index >= 0
        if self.window is not None:
            keep = keep & ((index < self.sinks) | (index >= last - self.window))
        if index.shape[0] == 1:
            if self.window is None or self.chunk.tokens == 1:  # all stay; no sync with a GPU
                tokens = torch.arange(self.chunk.tokens, device=index.device)
            else:
                tokens = keep[0].nonzero()[:, 0]
            rows, kept = None, index[0, tokens]
        else:
            rows, tokens = keep.nonzero(as_tuple=True)
            kept = index[rows, tokens]
        if self.window is not None:
            kept = torch.where(
                kept < self.sinks, kept, self.sinks + (kept - self.sinks) % self.window
            )
        return SlotWrite(rows, tokens, kept)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """torch's attention; without a mask it is causal (or, for one token, sees everything)."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and mask is not None and q.is_cuda:
        # CUDA's fused kernels take a mask or grouped heads, not both; the other way out is a
        # kernel that holds all scores
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


def take(x: Tensor, columns: Tensor) -> Tensor:
    """Pick columns of `x [B, heads, N, ...]`: `columns [1, n]` for all rows alike, or `[B, n]`."""
    if columns.shape[0] == 1:
        return x.index_select(2, columns[0])
    index = columns[:, None].reshape(columns.shape[0], 1, -1, *([1] * (x.dim() - 3)))
    return x.gather(2, index.expand(-1, x.shape[1], -1, *x.shape[3:]))
