"""Tokenised conversations, kept on disk by content, and how they become batches."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info
from transformers import PreTrainedTokenizerBase

from ahn.distill.conversations import Source, find_sources
from ahn.distill.encoding import IGNORED, set_template
from ahn.distill.files import exclusive, first_line, why_not_written
from ahn.distill.gaps import Lengths, PositionGaps
from ahn.distill.recipe import Recipe
from ahn.distill.tokenising import COUNTS, Encoded, EncodedRows, tokenising_processes
from common.errors import InputError
from common.progress import ProgressBar

_FORMAT = 2  # of the files in the cache
_ROWS_A_BATCH = 64


def cache_folder() -> Path:
    """Where tokenised data is kept: `$AHN_BENCH_CACHE`, else `~/.cache/ahn-bench`."""
    return Path(os.environ.get("AHN_BENCH_CACHE", "~/.cache/ahn-bench")).expanduser()


def _key(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, sources: Sequence[Source]) -> str:
    """Changes with everything that decides the token ids."""
    parts = [
        _FORMAT,
        [source.identity for source in sources],
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.chat_template,
        recipe.filter_len,
        recipe.cutoff_len,
        recipe.max_samples,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class Conversations(Dataset[dict[str, Any]]):
    """The samples that a recipe keeps, in the order of its data.

    They are tokenised once and kept in `cache_folder()/tokenized`, under a hash of the data's
    content, the tokenizer, its template and the options that matter; from there they are mapped
    into memory, not read. Of many processes that ask for the same data one tokenises; the others
    wait for it, as long as it takes.

    Args:
        recipe: says which data, and what of it is kept.
        tokenizer: with the recipe's template, see `set_template`.
        sources: the data, where it was looked up before.

    Attributes:
        counts: how many samples were read, kept, left out as too short, cut, or without an
            assistant token; see `EncodedRows`.
        lengths: `[N]` tokens of each.

    Raises:
        InputError: data that cannot be used, a cache that cannot be written; nothing is left to
            train on.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        sources: Sequence[Source] | None = None,
    ) -> None:
        set_template(tokenizer, recipe.template)
        sources = find_sources(recipe.dataset) if sources is None else sources
        path = cache_folder() / "tokenized" / f"{_key(recipe, tokenizer, sources)}.arrow"
        self.from_cache = path.is_file()  # written last
        if not self.from_cache:
            self.from_cache = _tokenise_once(recipe, tokenizer, sources, path)
        self._ids, self._labels, self.counts = _cached(path)
        self.lengths: npt.NDArray[np.int64] = np.diff(self._ids.offsets.to_numpy())
        if not len(self):
            raise InputError(nothing_left(recipe, self.counts))

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "input_ids": self._ids[index].values.to_numpy().tolist(),
            "labels": self._labels[index].values.to_numpy().tolist(),
        }


def nothing_left(recipe: Recipe, counts: dict[str, int]) -> str:
    """Why no sample is left, in words."""
    data = recipe.dataset if isinstance(recipe.dataset, str) else ", ".join(recipe.dataset)
    if counts["read"] and counts["no_label"] == counts["read"] - counts["too_short"] > 0:
        why = (
            "no turn is an assistant's within cutoff_len, so nothing can be learnt; check the "
            "roles, the template and cutoff_len"
        )
    elif counts["too_short"]:
        why = f"all are at most filter_len = {recipe.filter_len} tokens long"
    else:
        why = "there are no rows"
    return f"{data}: no sample left to train on: {why} ({counts})"


def _tokenise_once(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, sources: Sequence[Source], path: Path
) -> bool:
    """Tokenise, unless another process does; then wait for it. Whether it was the other one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(path.with_suffix(".lock")):
            if path.is_file():
                return True
            _tokenise(recipe, tokenizer, sources, path)
            return False
    except OSError as error:
        raise InputError(
            f"{path.parent}: the tokenised data cannot be written: "
            f"{why_not_written(error, path.parent)}; free space there, or set AHN_BENCH_CACHE to "
            "another folder"
        ) from None


def _tokenise(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, sources: Sequence[Source], path: Path
) -> None:
    """Write the samples to `path`, whole or not at all."""
    import pyarrow
    from rich.console import Console

    tokens = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema([("input_ids", tokens), ("labels", tokens)])
    encoded = EncodedRows(recipe, tokenizer, sources, tokenising_processes(recipe, sources))
    rows: list[Encoded] = []

    def flush(writer: Any) -> None:
        columns = [
            pyarrow.array([row.input_ids for row in rows], tokens),
            pyarrow.array([row.labels for row in rows], tokens),
        ]
        writer.write_batch(pyarrow.record_batch(columns, schema=schema))
        rows.clear()

    unfinished = path.with_suffix(f".{os.getpid()}.part")
    try:
        with (
            ProgressBar(Console(stderr=True), "tokenising, samples") as bar,
            pyarrow.OSFile(str(unfinished), "wb") as file,
            pyarrow.ipc.new_file(file, schema) as writer,
        ):
            for row in encoded:
                bar.update(encoded.counts["read"], None)
                rows.append(row)
                if len(rows) == _ROWS_A_BATCH:
                    flush(writer)
            flush(writer)
        path.with_suffix(".json").write_text(json.dumps(encoded.counts), encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _cached(path: Path) -> tuple[Any, Any, dict[str, int]]:
    """Ids, labels and counts of a file in the cache, mapped into memory."""
    import pyarrow

    try:
        table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()
        columns = [table[name].combine_chunks() for name in ("input_ids", "labels")]
        return *columns, json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: the tokenised data cannot be read: {first_line(error)}; remove this file, "
            "and they are tokenised anew"
        ) from None


class StreamedConversations(IterableDataset[dict[str, Any]]):
    """The same samples, read, tokenised and forgotten one by one (`streaming: true`).

    Args:
        recipe: says which data, and what of it is kept.
        tokenizer: with the recipe's template, see `set_template`.
        sources: the data, where it was looked up before; opened for streaming.
        processes: that tokenise. They are this data set's own, not a `DataLoader`'s, so that
            samples, their order and their counts do not depend on their number. In a worker of
            a `DataLoader` each worker gets its share of the samples.

    Attributes:
        counts: as of `Conversations`, of the pass over the data that went furthest.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        sources: Sequence[Source] | None = None,
        processes: int = 0,
    ) -> None:
        set_template(tokenizer, recipe.template)
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._sources = find_sources(recipe.dataset, True) if sources is None else sources
        self._processes = processes
        self.counts = dict.fromkeys(COUNTS, 0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One pass over the data."""
        worker = get_worker_info()
        processes = 0 if worker else self._processes  # workers cannot have workers
        rows = EncodedRows(self._recipe, self._tokenizer, self._sources, processes)
        kept = 0
        for kept, row in enumerate(rows, 1):
            self._count(rows)
            if worker is None or (kept - 1) % worker.num_workers == worker.id:
                assert row.input_ids is not None and row.labels is not None
                yield {
                    "index": kept - 1,
                    "input_ids": row.input_ids.tolist(),
                    "labels": row.labels.tolist(),
                }
        self._count(rows)
        if not kept:
            raise InputError(nothing_left(self._recipe, self.counts))

    def _count(self, rows: EncodedRows) -> None:
        if rows.counts["read"] > self.counts["read"]:
            self.counts = dict(rows.counts)


class Repeated(IterableDataset[dict[str, Any]]):
    """Passes over streamed data without an end; samples are numbered on from pass to pass.

    A run that goes on skips what it had, over as many passes as that was.
    """

    def __init__(self, data: StreamedConversations) -> None:
        self._data = data

    def __iter__(self) -> Iterator[dict[str, Any]]:
        done = 0
        for _ in count():
            before = done
            for sample in self._data:
                done = before + sample["index"] + 1
                yield {**sample, "index": done - 1}


class TokenBudgetBatches(Sampler[list[int]]):
    """Batches in file order, each of at most `tokens` tokens after padding (at least one row).

    The order of the file is the curriculum: nothing is shuffled.

    Args:
        lengths: tokens of each sample.
        tokens: of a batch, padding included.
        multiple_of: the number of batches becomes a multiple of this (processes that share
            them), the first ones being repeated at the end.
    """

    def __init__(self, lengths: Lengths, tokens: int, multiple_of: int = 1) -> None:
        self.batches: list[list[int]] = []
        batch: list[int] = []
        longest = 0
        for index, length in enumerate(map(int, lengths)):
            if batch and (len(batch) + 1) * max(longest, length) > tokens:
                self.batches.append(batch)
                batch, longest = [], 0
            batch.append(index)
            longest = max(longest, length)
        self.batches.append(batch)
        for number in range(-len(self.batches) % multiple_of):
            self.batches.append(self.batches[number])

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


@dataclass
class Collator:
    """Rows to a batch, padded on the right.

    Output: `input_ids`, `labels`, `attention_mask` `[B, L]` int64; `sample` `[1]` int64, the
    number of the first row, from which a batch's window is drawn; and `position_ids` `[B, L]`
    where `gaps` has some for the batch. Rows without labels get none (-100 throughout).
    """

    pad_token_id: int
    gaps: PositionGaps | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch; the class says what is in it."""
        longest = max(len(row["input_ids"]) for row in rows)
        shape = (len(rows), longest)
        batch = {
            "input_ids": torch.full(shape, self.pad_token_id),
            "labels": torch.full(shape, IGNORED),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "sample": torch.tensor([rows[0].get("index", 0)]),
        }
        for number, row in enumerate(rows):
            length = len(row["input_ids"])
            batch["input_ids"][number, :length] = torch.tensor(row["input_ids"])
            batch["attention_mask"][number, :length] = 1
            if row.get("labels") is not None:
                batch["labels"][number, :length] = torch.tensor(row["labels"])
        if self.gaps is not None:
            positions = self.gaps.position_ids(rows[0]["index"], *shape)
            if positions is not None:
                batch["position_ids"] = positions
        return batch
