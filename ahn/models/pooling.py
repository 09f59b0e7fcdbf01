"""Groups of tokens that left the window, pooled to one key and one value each.

The Compressive Transformer of the AHN paper (arXiv 2510.07318, section 3.1; after arXiv
1911.05507): with S sinks, a window of W tokens and a rate c, group `i` is the tokens
`S + i c ... S + (i + 1) c - 1`. When `n` tokens have passed, `G(n) = max(0, n - S - W) // c` groups
have left the window whole. Each of these is pooled: its keys (after RoPE) become their mean or
maximum, and so do its values. The last M groups stay visible. The tokens of a group that has left
the window in part *wait*: they are seen as they are. At rate 1 that is a window of `W + M` tokens.

So a query at position `p` sees token `j` if `j < S` or `S + c G(p + 1) <= j <= p`, and group `i` if
`G(p + 1) - M <= i < G(p + 1)`: closed forms in `p`, so that a chunk needs no recurrence.

Where it is kept: token `j` in slot `j` if `j < S`, else in slot `S + (j - S) mod (W + c - 1)`,
which has room for the waiting tokens; group `i` in slot `S + W + c - 1 + i mod M` of the same
buffer, so that attention reads one tensor. The first group is whole one token after that ring is
full.

Shape letters as in `ahn.models.attention`; n groups.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ahn.config import LayerLayout
from ahn.models.slots import SlotWrite, held_tokens, ring_slots, take


def _mean(members: Tensor) -> Tensor:
    return members.mean(3)


def _max(members: Tensor) -> Tensor:
    return members.amax(3)


#: by name, what makes `[B, heads, n, d]` of `[B, heads, n, c, d]`
POOLS: Mapping[str, Callable[[Tensor], Tensor]] = {"mean": _mean, "max": _max}


def pooled_slot(group: Tensor, layout: LayerLayout) -> Tensor:
    """The slot in which each pooled group is kept."""
    assert layout.ring is not None
    return layout.sinks + layout.ring + group % layout.slots


def visible_until(tokens: Tensor, layout: LayerLayout) -> Tensor:
    """The first position whose query does not see each of these tokens any more.

    Sinks are seen for ever. Without pooling (rate 1) that is a window's edge: `j + W`.
    """
    assert layout.window is not None
    last_in_group = layout.sinks + ((tokens - layout.sinks) // layout.rate + 1) * layout.rate - 1
    return torch.where(
        tokens < layout.sinks, torch.iinfo(torch.long).max, last_in_group + layout.window
    )


class ChunkGroups:
    """The groups that the queries of one chunk see, and those that it completes.

    Pooled columns stand behind the columns of tokens: the `held` ones of the cache in the order of
    their slots, then the `new` ones.

    Args:
        layout: with pooled slots.
        seen: tokens of each row before the chunk: an int, or `[B]`.
        after: as `seen`, after it.
        cached: columns of tokens that come from the cache.
        tokens: T.
        left: `[B]` padding before each row's first token; None: there is none.
        uniform: all rows have the same length and there is no padding; columns of tokens are in the
            order of their positions.
        device: of the tensors.

    Attributes:
        held: pooled columns that come from the cache.
        new: groups that the chunk completes in the row with most of them.
        opens: `[b, held + new]` position of the first query that sees each pooled column, -1: none.
        closes: as `opens`, of the first one that does not see it any more.
        write: which of the new groups stay in the cache, and where.
    """

    def __init__(
        self,
        layout: LayerLayout,
        seen: int | Tensor,
        after: int | Tensor,
        cached: int,
        tokens: int,
        left: Tensor | None,
        uniform: bool,
        device: torch.device,
    ) -> None:
        assert layout.window is not None and layout.ring is not None
        rate, sinks = layout.rate, layout.sinks
        self.layout = layout
        #: groups before and after the chunk, `[b, 1]` on the CPU
        self._before, self._after = (
            (torch.as_tensor(n).reshape(-1, 1).cpu() - sinks - layout.window).clamp(min=0) // rate
            for n in (seen, after)
        )
        self.held = min(int(self._before.max()), layout.slots)
        self.new = int((self._after - self._before).max())
        before, done = self._before.to(device), self._after.to(device)
        fresh = before + torch.arange(self.new, device=device)  # [b, n]
        fresh = torch.where(fresh < done, fresh, -1)
        held = held_tokens(before, self.held, layout.slots, 0)
        rows = max(len(before), len(done))
        groups = torch.cat([held.expand(rows, -1), fresh.expand(rows, -1)], 1)
        first = sinks + layout.window - 1 + (groups + 1) * rate
        self.opens = torch.where(groups >= 0, first, -1)
        self.closes = first + layout.slots * rate
        if uniform and isinstance(seen, int):
            start = cached + sinks + int(self._before) * rate - seen
            self._columns: Tensor | slice = slice(start, start + self.new * rate)
            kept = torch.arange(max(0, self.new - layout.slots), self.new, device=device)
            self.write = SlotWrite(None, kept, pooled_slot(fresh[0, kept], layout))
            return
        members = sinks + before * rate + torch.arange(self.new * rate, device=device)
        length = torch.as_tensor(seen, device=device).reshape(-1, 1)
        shift = 0 if left is None else left[:, None]
        columns = torch.where(
            members < length,
            ring_slots(members, layout.ring, sinks),
            cached + shift + members - length,
        )
        self._columns = columns.clamp(max=cached + tokens - 1)  # where a row has no such group
        rows_kept, kept = ((fresh >= 0) & (fresh >= done - layout.slots)).nonzero(as_tuple=True)
        self.write = SlotWrite(rows_kept, kept, pooled_slot(fresh[rows_kept, kept], layout))

    def to(self, device: torch.device) -> ChunkGroups:
        """The same with tensors on another device."""
        twin = copy.copy(self)
        twin.opens, twin.closes = self.opens.to(device), self.closes.to(device)
        twin.write = self.write.to(device)
        if isinstance(self._columns, Tensor):
            twin._columns = self._columns.to(device)
        return twin

    def pool(self, columns: Tensor) -> Tensor:
        """The new groups `[B, heads, new, d]` of the columns of tokens `[B, heads, N, d]`."""
        members = take(columns, self._columns)
        return POOLS[self.layout.pooling](members.unflatten(2, (self.new, self.layout.rate)))

    def beside(self, columns: Tensor, buffer: Tensor | None) -> Tensor:
        """Columns of tokens, then those of groups.

        Args:
            columns: of tokens, `[B, heads, N, d]`.
            buffer: what the cache holds, `[B, heads, slots, d]`.
        """
        parts = [columns]
        if self.held and buffer is not None:
            assert self.layout.ring is not None
            first = self.layout.sinks + self.layout.ring
            parts.append(buffer[:, :, first : first + self.held])
        if self.new:
            parts.append(self.pool(columns))
        return columns if len(parts) == 1 else torch.cat(parts, 2)

    def seen_by(self, first: Tensor, last: Tensor) -> tuple[int, int]:
        """New groups that any query of a block may see: the first, and the one after the last.

        Args:
            first: `[b]` tokens of each row up to the block's first query, that one included.
            last: as `first`, of its last query.
        """
        layout = self.layout
        assert layout.window is not None
        lossless = layout.sinks + layout.window
        low, high = (
            (n.cpu()[:, None] - lossless).clamp(min=0) // layout.rate - self._before
            for n in (first, last)
        )
        most = max(0, min(int(high.max()), self.new))  # a block may be all padding
        return max(0, min(int(low.min()) - layout.slots, most)), most


class StepGroups:
    """The group that one more token a row completes, pooled in place.

    Args:
        layout: with pooled slots.
        position: `[b]` of the token in its row.

    Attributes:
        members: `[b, c]` slots of the group's tokens.
        target: `[b]` slot of the pooled group.
        completes: `[b]` bool, in which rows there is one; None: in all.
    """

    def __init__(self, layout: LayerLayout, position: Tensor, completes: Tensor | None) -> None:
        assert layout.window is not None
        self.pool = POOLS[layout.pooling]
        self.completes = completes
        gone = position - layout.window + 1  # tokens that left the window, sinks among them
        first = (gone - layout.rate).clamp(min=layout.sinks)
        tokens = first[:, None] + torch.arange(layout.rate, device=position.device)
        self.members = ring_slots(tokens, layout.ring, layout.sinks)
        self.target = pooled_slot((first - layout.sinks) // layout.rate, layout)

    @classmethod
    def of(cls, layout: LayerLayout, seen: int | Tensor, position: Tensor) -> StepGroups | None:
        """What the next token of each row completes; None: in no row a group.

        Args:
            layout: of the layer.
            seen: tokens of each row before this one: an int, or `[B]` on the CPU.
            position: as `seen`, `[b]` on the model's device.
        """
        if not layout.slots or layout.window is None:
            return None
        gone = torch.as_tensor(seen).reshape(-1) + 1 - layout.sinks - layout.window
        complete = (gone > 0) & (gone % layout.rate == 0)
        if not bool(complete.any()):
            return None
        return cls(layout, position, None if bool(complete.all()) else complete.to(position.device))

    def to(self, device: torch.device) -> StepGroups:
        """The same with tensors on another device."""
        twin = copy.copy(self)
        twin.members, twin.target = self.members.to(device), self.target.to(device)
        twin.completes = None if self.completes is None else self.completes.to(device)
        return twin

    def write(self, buffer: Tensor) -> None:
        """Pool the group in `buffer [B, heads, slots, d]`, whose first slot the token takes."""
        pooled = self.pool(take(buffer, self.members).unsqueeze(2))  # [B, heads, 1, d]
        if self.target.shape[0] == 1:
            buffer.index_copy_(2, self.target, pooled)
            return
        rows = torch.arange(buffer.shape[0], device=buffer.device)
        new = pooled[:, :, 0]
        if self.completes is not None:
            new = torch.where(self.completes[:, None, None], new, buffer[rows, :, self.target])
        buffer[rows, :, self.target] = new
