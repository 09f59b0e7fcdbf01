"""From rows to samples: encoded, filtered, shortened and counted, in one process or several.

Rows are read in one process; encoding, which takes most of the time, is shared out. Results come
back in the order of the rows, so that nothing depends on the number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from ahn.distill.conversations import Source, messages_of, read_rows
from ahn.distill.encoding import IGNORED, encode_turns, sample_of, shortened
from ahn.distill.recipe import Recipe
from common.errors import InputError

#: what is counted, in this order
COUNTS = ("read", "kept", "too_short", "cut", "answers_cut", "no_label")
#: rows that a process encodes at a time
_CHUNK = 16
#: bytes of data for which starting processes (a fraction of a second) pays, and most processes
_WORTH_SHARING, _MOST_PROCESSES = 4 << 20, 16


@dataclass(frozen=True)
class Encoded:
    """What became of a row.

    Attributes:
        input_ids: `[L]` int32; None where the row is left out.
        labels: `[L]` int32, -100 outside answers.
        counts: names among `COUNTS` that it adds one to.
        error: why it cannot be used, for `InputError`.
    """

    input_ids: npt.NDArray[np.int32] | None = None
    labels: npt.NDArray[np.int32] | None = None
    counts: tuple[str, ...] = ()
    error: str | None = None


def encode_row(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, where: str, row: Any) -> Encoded:
    """Encode one row as a recipe asks for it."""
    try:
        turns = encode_turns(tokenizer, messages_of(row, where))
    except InputError as error:
        text = str(error)
        return Encoded(error=text if text.startswith(where) else f"{where}: {text}")
    length = sum(map(len, turns))
    counts = ["read"]
    if not turns:
        return Encoded(counts=(*counts, "no_label"))
    if length <= recipe.filter_len:
        return Encoded(counts=(*counts, "too_short"))
    if length > recipe.cutoff_len:
        counts.append("cut")
        whole = sum(len(turn.answer) for turn in turns)
        turns = shortened(turns, recipe.cutoff_len)
        if sum(len(turn.answer) for turn in turns) < whole:
            counts.append("answers_cut")
    sample = sample_of(turns)
    if all(label == IGNORED for label in sample.labels):
        return Encoded(counts=(*counts, "no_label"))
    return Encoded(
        np.array(sample.input_ids, np.int32),
        np.array(sample.labels, np.int32),
        (*counts, "kept"),
    )


class EncodedRows:
    """The samples that a recipe keeps of some sources, in their order.

    Args:
        recipe: what is left out, what is cut, how many are kept.
        tokenizer: with its chat template.
        sources: where the rows come from.
        processes: that encode besides this one; 0: this one does.

    Attributes:
        counts: of what was read so far; see `COUNTS`. `cut`: longer than `cutoff_len`, and
            shortened; `answers_cut`: those of them that lost a part of an answer, too.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        sources: Sequence[Source],
        processes: int = 0,
    ) -> None:
        self._recipe = recipe
        self._sources = sources
        self._processes = processes
        self._encoder = _Encoder(recipe, tokenizer)
        self.counts = dict.fromkeys(COUNTS, 0)

    def __iter__(self) -> Iterator[Encoded]:
        """Raises InputError at a row that cannot be used."""
        most = self._recipe.max_samples
        for result in self._results():
            if most is not None and self.counts["kept"] >= most:
                break
            if result.error is not None:
                raise InputError(result.error)
            for name in result.counts:
                self.counts[name] += 1
            if result.input_ids is not None:
                yield result

    def _results(self) -> Iterator[Encoded]:
        loader = DataLoader(
            self._encoder,
            batch_sampler=_chunks(_rows(self._sources)),
            num_workers=self._processes,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # of worker seeds; the run's own stays untouched
        )
        try:
            for chunk in loader:
                yield from chunk
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise InputError(
                "a process that tokenises was killed; if memory is short, give fewer "
                f"(preprocessing_num_workers, now {self._processes})"
            ) from error


class _Encoder(Dataset[Encoded]):
    """A map from rows to results; a `DataLoader` shares them out and keeps their order."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self._recipe = recipe
        self._tokenizer = tokenizer

    def __getitem__(self, row: Any) -> Encoded:
        if isinstance(row, Encoded):  # reading it failed
            return row
        return encode_row(self._recipe, self._tokenizer, *row)


def _as_it_is(chunk: list[Encoded]) -> list[Encoded]:
    return chunk


def _rows(sources: Sequence[Source]) -> Iterator[Any]:
    """Place and row, or the error that ends the reading, in its turn."""
    try:
        for source in sources:
            yield from read_rows(source)
    except InputError as error:
        yield Encoded(error=str(error))


def _chunks(rows: Iterable[Any]) -> Iterator[list[Any]]:
    rows = iter(rows)
    while chunk := list(islice(rows, _CHUNK)):
        yield chunk


def tokenising_processes(recipe: Recipe, sources: Sequence[Source]) -> int:
    """How many processes tokenise: as many as asked for, else one a core where it pays."""
    if recipe.preprocessing_num_workers is not None:
        return recipe.preprocessing_num_workers
    known = all(source.hub is None for source in sources)
    size = sum(path.stat().st_size for source in sources for path in source.files)
    if known and size < _WORTH_SHARING:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, _MOST_PROCESSES) if (cores or 1) > 1 else 0
