"""Several documents in one row: where they begin, and what keeps them apart.

trl's packing, transformers' `DataCollatorWithFlattening` and others put documents one behind
another and tell where each begins by `position_ids` that begin anew, or by `cu_seq_lens`.  Each
document then has sinks, a window and a memory of its own, as if it were alone: what works position
by position (projections, norms, MLP) runs over the batch as it is, attention and memory over one
document at a time.  A past belongs to one document a row, so a packed batch neither uses nor fills
a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ahn.config import LayerLayout
from ahn.models.attention import Chunk
from ahn.models.plan import Buffers, Leaving, Past, Plan, Tokens

Span = tuple[int, int]


@dataclass(frozen=True)
class Documents:
    """The documents of a batch.

    Attributes:
        tokens: T, columns of the batch.
        rows: for each row `(first column, column after the last)` of its documents, in order.
            Columns between them are padding.
    """

    tokens: int
    rows: tuple[tuple[Span, ...], ...]

    @cached_property
    def lengths(self) -> list[tuple[int, bool]]:
        """The batch `[B * T]` taken apart in order: tokens of each part, and whether it is one."""
        parts = []
        for row in self.rows:
            column = 0
            for first, end in row:
                parts += [(first - column, False)] if first > column else []
                parts.append((end - first, True))
                column = end
            parts += [(self.tokens - column, False)] if self.tokens > column else []
        return parts

    def position_ids(self) -> Tensor:
        """`[B, T]` on the CPU: each token's own position in its document; padding gets 0."""
        counted = [torch.arange(n) if real else torch.zeros(n).long() for n, real in self.lengths]
        return torch.cat(counted).view(len(self.rows), self.tokens)

    def firsts(self) -> Tensor:
        """`[B, T]` bool on the CPU: the first token of each document."""
        first = torch.zeros(len(self.rows), self.tokens, dtype=torch.bool)
        for row, spans in enumerate(self.rows):
            first[row, [start for start, _ in spans]] = True
        return first

    def pieces(self, row: int, size: int) -> list[Span]:
        """Runs of whole documents of a row, at most `size` tokens each; a longer one stands alone.

        Returns:
            `(first column, column after the last)` of each run.
        """
        runs: list[Span] = []
        for first, end in self.rows[row]:
            if runs and end - runs[-1][0] <= size:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((first, end))
        return runs

    def within(self, row: int, first: int, end: int) -> Documents:
        """The documents of one row between two columns, as a batch of their own."""
        inside = [(a - first, b - first) for a, b in self.rows[row] if first <= a and b <= end]
        return Documents(end - first, (tuple(inside),))


def find_documents(
    rows: int,
    tokens: int,
    position_ids: Tensor | None,
    mask: Tensor | None,
    seen: int | Tensor = 0,
    boundaries: Sequence[int] | None = None,
    numbers: Tensor | None = None,
) -> Documents | None:
    """Where documents begin in a batch.

    A document begins where `position_ids` begin anew: at 0, or at the number that its row begins
    with. Positions that only jump ahead are gaps in one document.

    Args:
        rows: B.
        tokens: T, at least 1.
        position_ids: `[1 or B, T]`; None: `boundaries` tell, else there is one document a row.
        mask: `[B, T]`, 1 for tokens and 0 for padding; None: there is none.
        seen: tokens of each row before these, in a cache: an int or `[B]`.
        boundaries: of the documents of all rows, counted through the batch `[B * T]`: 0, ...,
            `B * T`.
        numbers: `[1 or B, T]`, the document of each token (`seq_idx`), which must agree.

    Returns:
        None when each row holds one document.

    Raises:
        ValueError: positions that fall without beginning anew, or lie before what the cache holds,
            or contradict the boundaries; numbers alone, or other documents by them.
    """
    if numbers is not None:
        _check_numbers(rows, tokens, numbers, position_ids is None and boundaries is None)
    if tokens <= 1:
        if tokens and position_ids is not None and position_ids.device.type == "cpu":
            first = position_ids.expand(rows, -1)[:, 0]  # nobody waits for a GPU for one token
            if bool(((first < seen) & (True if mask is None else mask[:, 0])).any()):
                _refuse_what_lies_behind(first.tolist(), seen)
        return None
    starts: list[set[int]] = [set() for _ in range(rows)]  # besides each row's first token
    if boundaries is not None:
        starts = _starts(boundaries, rows, tokens)
    if position_ids is not None:
        begins, firsts = _begins(position_ids.expand(rows, -1), mask, seen)
        if boundaries is None:
            _refuse_what_only_falls(position_ids, firsts, begins)
            starts = begins
        for row, (found, told) in enumerate(zip(begins, starts, strict=True)):
            if found - told:
                raise ValueError(
                    f"position_ids do not increase at row {row}, column {min(found - told)}, where "
                    "by cu_seq_lens_q no document begins"
                )
    if numbers is not None:
        _refuse_other_numbers(numbers.expand(rows, -1), mask, starts)
    if not any(starts):
        return None
    valid = None if mask is None else mask.bool().cpu()
    spans = []
    for row, inner in enumerate(starts):
        start, end = 0, tokens
        if valid is not None:
            columns = valid[row].nonzero().flatten()
            start, end = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
        cuts = [start, *sorted(column for column in inner if start < column < end), end]
        spans.append(tuple((a, b) for a, b in zip(cuts, cuts[1:], strict=False) if b > a))
    return Documents(tokens, tuple(spans))


def _begins(
    ids: Tensor, mask: Tensor | None, seen: int | Tensor
) -> tuple[list[set[int]], list[int]]:
    """Columns at which the positions `[B, T]` of a row do not increase, and each row's first one.

    There are no first ones where nothing begins anew: a GPU's tensors are looked at once.
    """
    falls, first = ids[:, 1:] <= ids[:, :-1], ids[:, 0]
    if mask is not None:
        real = mask.to(ids.device)
        falls = falls & real[:, 1:] & real[:, :-1]
        first = ids.gather(1, real.int().argmax(1, keepdim=True))[:, 0]
        # a row of padding lies nowhere
        first = torch.where(real.any(1), first, torch.iinfo(first.dtype).max)
    behind = first < (seen if isinstance(seen, int) else seen.to(ids.device))
    if not bool(behind.any() | falls.any()):
        return [set() for _ in ids], []
    _refuse_what_lies_behind(first.tolist(), seen)
    return [
        {n + 1 for n in row.nonzero().flatten().tolist()} for row in falls.cpu()
    ], first.tolist()


def _check_numbers(rows: int, tokens: int, numbers: Tensor, alone: bool) -> None:
    if alone:
        raise ValueError(
            "seq_idx alone is refused: documents of a packed batch are told by position_ids that "
            "begin anew at 0, or by cu_seq_lens_q and cu_seq_lens_k"
        )
    if numbers.dim() != 2 or numbers.shape[0] not in (1, rows) or numbers.shape[1] != tokens:
        raise ValueError(f"seq_idx must be [1 or {rows}, {tokens}], not {tuple(numbers.shape)}")


def _refuse_other_numbers(numbers: Tensor, mask: Tensor | None, starts: list[set[int]]) -> None:
    """Hold `seq_idx [B, T]` against where documents begin, between tokens that are no padding."""
    told = torch.zeros(numbers.shape, dtype=torch.bool)
    for row, columns in enumerate(starts):
        told[row, sorted(columns)] = True
    differ = (numbers[:, 1:] != numbers[:, :-1]).cpu() != told[:, 1:]
    if mask is not None:
        real = mask.cpu()
        differ &= real[:, 1:] & real[:, :-1]
    if bool(differ.any()):
        row, column = differ.nonzero()[0].tolist()
        raise ValueError(
            f"seq_idx tells of other documents than position_ids or cu_seq_lens_q do: row {row}, "
            f"column {column + 1}"
        )


def _starts(boundaries: Sequence[int], rows: int, tokens: int) -> list[set[int]]:
    """Columns at which documents begin, besides the first of each row."""
    starts: list[set[int]] = [set() for _ in range(rows)]
    for edge in boundaries:
        if edge < rows * tokens and edge % tokens:
            starts[edge // tokens].add(edge % tokens)
    return starts


def _refuse_what_lies_behind(firsts: list[int], seen: int | Tensor) -> None:
    for row, first in enumerate(firsts):
        before = seen if isinstance(seen, int) else int(seen[row])
        if 0 < before > first:
            raise ValueError(
                f"position_ids: row {row} goes on at position {first}, and the cache holds "
                f"{before} tokens of it already: a new document needs a cache of its own "
                "(model.new_cache()), and positions of one document increase"
            )
        if first < 0:
            raise ValueError(f"position_ids: row {row} begins at position {first}")


def _refuse_what_only_falls(ids: Tensor, firsts: list[int], begins: list[set[int]]) -> None:
    for row, columns in enumerate(begins):
        numbers = ids[row % len(ids)].tolist() if columns else []
        for column in sorted(columns):
            here, before = numbers[column], numbers[column - 1]
            if here not in (0, firsts[row]):
                raise ValueError(
                    f"position_ids: row {row} goes from {before} to {here} at column {column}: "
                    "positions of one document increase, and another one begins at 0 (or where "
                    "its row begins); tell documents that begin elsewhere by cu_seq_lens_q and "
                    "cu_seq_lens_k"
                )


def refuse_cache(cache: object | None, use_cache: bool | None) -> None:
    """A packed batch has no past, and leaves none.

    Raises:
        ValueError: a cache was given or asked for.
    """
    if cache is not None or use_cache:
        raise ValueError(
            "several documents stand in a row (position_ids begin anew, or cu_seq_lens_q tells "
            "so), and a cache holds the past of one: read them with use_cache=False, or each in a "
            "row of its own"
        )


class PackedPlan(Plan):
    """What a layer does with a packed batch: what it does with each document alone.

    Args:
        documents: of the batch.
        plans: by length of a document.
    """

    def __init__(self, documents: Documents, plans: Mapping[int, Plan]) -> None:
        self.documents, self.plans = documents, plans
        self.parts = [length for length, _ in documents.lengths]
        #: numbers of the parts that are documents, by length: equally long ones go together
        self.by_length: dict[int, list[int]] = {}
        for number, (length, real) in enumerate(documents.lengths):
            if real:
                self.by_length.setdefault(length, []).append(number)

    def to(self, device: torch.device | str | int) -> PackedPlan:
        """The plan for layers on another device (accelerate's hooks ask)."""
        moved = {length: plan.to(device) for length, plan in self.plans.items()}
        if all(moved[length] is plan for length, plan in self.plans.items()):
            return self
        return PackedPlan(self.documents, moved)

    def over(
        self,
        past: Past,
        tokens: Tokens,
        work: Callable[[Plan, Past, Tokens], Tensor],
    ) -> Tensor:
        """`work` on the documents of each length, none of which has a past."""
        new = {name: self.apart(x.transpose(1, 2)) for name, x in tokens.new.items()}
        queries, hidden = self.apart(tokens.q.transpose(1, 2)), self.apart(tokens.hidden)
        outputs = {}
        for length, numbers in self.by_length.items():

            def of(parts: Sequence[Tensor], numbers: list[int] = numbers) -> Tensor:
                return torch.stack([parts[number] for number in numbers])  # [n, length, ...]

            documents = Tokens(
                of(queries).transpose(1, 2),
                {name: of(parts).transpose(1, 2) for name, parts in new.items()},
                of(hidden),
            )
            outputs[length] = work(self.plans[length], past.empty(), documents)
        return self.together(outputs, tokens.q.transpose(1, 2))

    def look(
        self, past: Buffers, new: Mapping[str, Tensor], evicts: bool
    ) -> tuple[Tensor, Tensor, Leaving | None]:
        """Never asked: `over` asks the plan of each document."""
        raise NotImplementedError("a packed batch is looked at document by document")

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> Tensor:
        """Never asked, as `look`."""
        raise NotImplementedError("a packed batch is attended to document by document")

    def keep(self, past: Buffers, new: Mapping[str, Tensor]) -> None:
        """Never asked: a packed batch has no cache."""
        raise NotImplementedError("a packed batch has no cache")

    def apart(self, x: Tensor) -> tuple[Tensor, ...]:
        """`[B, T, ...]` taken apart: `[n, ...]` of each part, documents and padding, in order."""
        # split, not a slice each: the gradient of a slice is as large as the whole
        return x.flatten(0, 1).split(self.parts)

    def together(self, outputs: dict[int, Tensor], like: Tensor) -> Tensor:
        """The whole `[B, T, ...]` from the documents of each length `[n, length, ...]`.

        Args:
            outputs: by length, in the order of `by_length`.
            like: `[B, T, ...]`; padding gets zeros of its kind.
        """
        documents = {
            number: part
            for length, output in outputs.items()
            for number, part in zip(self.by_length[length], output.unbind(), strict=True)
        }
        whole = torch.cat(
            [
                documents[number] if number in documents else like.new_zeros(n, *like.shape[2:])
                for number, n in enumerate(self.parts)
            ]
        )
        return whole.view(len(self.documents.rows), self.documents.tokens, *whole.shape[1:])


def packed_plans(
    documents: Documents, layouts: Sequence[LayerLayout], device: torch.device
) -> list[PackedPlan]:
    """One plan for each layer, shared by layers whose queries see the same."""
    lengths = {length for length, real in documents.lengths if real}
    by_length = {n: Chunk(n, 0, None, device).plans(layouts) for n in sorted(lengths)}
    made: dict[tuple[Any, ...], PackedPlan] = {}
    for index, layout in enumerate(layouts):
        if layout.span not in made:
            plan = PackedPlan(documents, {n: plans[index] for n, plans in by_length.items()})
            made[layout.span] = plan
    return [made[layout.span] for layout in layouts]
