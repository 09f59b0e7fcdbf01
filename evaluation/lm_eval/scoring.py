"""Log-likelihoods of continuations, streamed: the logits of a long text are never held whole.

A context that several continuations share (multiple choice) is read once; its cache is then
forked, which sinks, ring window and memory allow as keys and values do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evaluation.plan.prompts import SMALLEST_SHARED_TOKENS

LOGITS_AT_ONCE = 256  # positions; times the vocabulary, in float32


@dataclass(frozen=True)
class Scored:
    """One continuation to be scored: `context` is not empty, `continuation` neither."""

    index: int
    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def read(self) -> int:
        """Tokens that the model reads: all but the last."""
        return len(self.context) + len(self.continuation) - 1


@dataclass(frozen=True)
class Likelihood:
    """Sum of log-probabilities (nats, float32) and whether greedy decoding gives the same."""

    index: int
    log_probability: float
    is_greedy: bool


def cut_left(
    index: int, context: Sequence[int], continuation: Sequence[int], max_length: int
) -> Scored:
    """Keep the last `max_length` + 1 tokens, as lm-eval's `hf` model does.

    Raises `ValueError` where the continuation alone is longer than `max_length`.
    """
    if not context or not continuation:
        raise ValueError("a context and a continuation of at least one token are needed")
    if len(continuation) > max_length:
        raise ValueError(
            f"a continuation of {len(continuation)} tokens is longer than max_length {max_length}"
        )
    kept = max_length + 1 - len(continuation)
    return Scored(index, tuple(context[-kept:]), tuple(continuation))


class LikelihoodScorer:
    """Scores continuations with a model of this package.

    Args:
        model: a causal model of `ahn`, in evaluation mode.
        pad_token_id: any id; padding is masked.
    """

    def __init__(self, model: Any, pad_token_id: int) -> None:
        self._model = model
        self._pad = pad_token_id
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def score(self, items: Sequence[Scored], batch_size: int) -> Iterator[Likelihood]:
        """The likelihood of each item, longest first, shared contexts in one go."""
        by_context: dict[tuple[int, ...], list[Scored]] = {}
        for item in items:
            by_context.setdefault(item.context, []).append(item)
        alone: list[Scored] = []
        for context, group in by_context.items():
            if len(group) > 1 and len(context) > SMALLEST_SHARED_TOKENS:
                yield from self._shared(context, group, batch_size)
            else:
                alone += group
        alone.sort(key=lambda item: -item.read)
        for start in range(0, len(alone), batch_size):
            yield from self._batch(alone[start : start + batch_size])

    def _shared(
        self, context: tuple[int, ...], group: list[Scored], batch_size: int
    ) -> Iterator[Likelihood]:
        """Continuations of one context: read it once, fork its cache for every batch."""
        cache = self._model.new_cache()
        self._model(
            input_ids=self._tensor([context[:-1]]),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        group = sorted(group, key=lambda item: -len(item.continuation))
        for start in range(0, len(group), batch_size):
            items = group[start : start + batch_size]
            fork = cache.copy()
            fork.batch_repeat_interleave(len(items))
            rows = [(context[-1], *item.continuation[:-1]) for item in items]
            width = max(map(len, rows))
            # Padding follows the text here: causal attention keeps it out of what is scored,
            # and the forked cache is thrown away.
            ids = self._tensor([(*row, *[self._pad] * (width - len(row))) for row in rows])
            targets = self._targets([(*i.continuation,) for i in items], width, left=False)
            yield from self._read(items, ids, None, targets, fork)

    def _batch(self, items: list[Scored]) -> Iterator[Likelihood]:
        """Unrelated texts, padded on the left, where a mask keeps the padding out of the past."""
        width = max(item.read for item in items)
        rows = [(*item.context, *item.continuation)[:-1] for item in items]
        ids = self._tensor([(*[self._pad] * (width - len(row)), *row) for row in rows])
        mask = None
        if any(len(row) < width for row in rows):
            mask = torch.ones_like(ids)
            for number, row in enumerate(rows):
                mask[number, : width - len(row)] = 0
        targets = self._targets([item.continuation for item in items], width, left=True)
        yield from self._read(items, ids, mask, targets, self._model.new_cache())

    def _read(
        self, items: list[Scored], ids: Tensor, mask: Tensor | None, targets: Tensor, cache: Any
    ) -> Iterator[Likelihood]:
        """Stream `ids` `[B, T]` through; sum up where `targets` `[B, T]` are not -100."""
        total = torch.zeros(len(items), dtype=torch.float32, device=self._device)
        greedy = torch.ones(len(items), dtype=torch.bool, device=self._device)
        before = cache.get_seq_length()
        size = self._model.prefill_chunk_size
        if mask is not None and before:
            raise ValueError("a padded batch starts with an empty cache")
        for start in range(0, ids.shape[1], size):
            end = min(start + size, ids.shape[1])
            hidden = self._model.model(
                input_ids=ids[:, start:end],
                attention_mask=None if mask is None else mask[:, :end],
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state  # [B, t, D]
            wanted = targets[:, start:end]
            row, column = (wanted != -100).nonzero(as_tuple=True)
            if not len(row):
                continue
            for part in torch.arange(len(row), device=self._device).split(LOGITS_AT_ONCE):
                rows = row[part]
                logits = self._model.lm_head(hidden[rows, column[part]]).float()  # [N, V]
                chosen = wanted[rows, column[part]]
                log_probabilities = logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
                total.index_add_(0, rows, log_probabilities)
                greedy[rows[logits.argmax(-1) != chosen]] = False
        for item, value, same in zip(items, total.tolist(), greedy.tolist(), strict=True):
            yield Likelihood(item.index, value, same)

    def _targets(self, continuations: list[tuple[int, ...]], width: int, left: bool) -> Tensor:
        """`[B, width]`: at each position the id that it has to predict, -100 where none counts."""
        targets = torch.full((len(continuations), width), -100)
        for row, continuation in enumerate(continuations):
            ids = torch.tensor(continuation)
            if left:
                targets[row, width - len(ids) :] = ids
            else:
                targets[row, : len(ids)] = ids
        return targets.to(self._device)

    def _tensor(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self._device)


def with_smaller_batches(
    attempt: Callable[[int], Any], batch_size: int, is_out_of_memory: Callable[[Exception], bool]
) -> tuple[Any, int]:
    """`attempt(batch_size)`, halved as often as memory runs out; the result and the size.

    Raises what `attempt` raised where one row does not fit either.
    """
    while True:
        try:
            return attempt(batch_size), batch_size
        except Exception as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
            batch_size //= 2
