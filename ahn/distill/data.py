"""Tokenised conversations, kept on disk by content, and how they become batches."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, IterableDataset, Sampler
from transformers import PreTrainedTokenizerBase

from ahn.config import InputError
from ahn.distill.conversations import Source, find_sources, messages_of, open_hub, read_rows
from ahn.distill.encoding import IGNORED, Sample, encode, set_template
from ahn.distill.gaps import Lengths, PositionGaps
from ahn.distill.recipe import Recipe

_FORMAT = 1  # of the files in the cache
_ROWS_A_BATCH = 64
COUNTS = ("read", "kept", "too_short", "cut", "no_label")


def cache_folder() -> Path:
    """Where tokenised data is kept: `$AHN_BENCH_CACHE`, else `~/.cache/ahn-bench`."""
    return Path(os.environ.get("AHN_BENCH_CACHE", "~/.cache/ahn-bench")).expanduser()


class _Filter:
    """Encodes rows and leaves out what a recipe leaves out, counting."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self._recipe = recipe
        self._tokenizer = tokenizer
        self.counts = dict.fromkeys(COUNTS, 0)

    def __call__(self, row: Any, where: str) -> Sample | None:
        recipe, counts = self._recipe, self.counts
        counts["read"] += 1
        try:
            sample = encode(self._tokenizer, messages_of(row, where))
        except InputError as error:
            text = str(error)
            raise InputError(text if text.startswith(where) else f"{where}: {text}") from None
        if not sample.input_ids:  # no assistant turn at all
            counts["no_label"] += 1
            return None
        if len(sample.input_ids) <= recipe.filter_len:
            counts["too_short"] += 1
            return None
        if len(sample.input_ids) > recipe.cutoff_len:
            counts["cut"] += 1
            sample = Sample(
                sample.input_ids[: recipe.cutoff_len], sample.labels[: recipe.cutoff_len]
            )
        if all(label == IGNORED for label in sample.labels):
            counts["no_label"] += 1
            return None
        counts["kept"] += 1
        return sample


def _key(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, sources: Sequence[Source], hubs: list[Any]
) -> str:
    """Changes with everything that decides the token ids."""
    parts = [
        _FORMAT,
        [source.identity(hub) for source, hub in zip(sources, hubs, strict=True)],
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.chat_template,
        recipe.filter_len,
        recipe.cutoff_len,
        recipe.max_samples,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _sources(recipe: Recipe, streaming: bool) -> tuple[list[Source], list[Any]]:
    sources = find_sources(recipe.dataset)
    return sources, [open_hub(s, streaming) if s.hub is not None else None for s in sources]


class Conversations(Dataset[dict[str, Any]]):
    """The samples that a recipe keeps, in the order of its data.

    They are tokenised once and kept in `cache_folder()/tokenized`, under a hash of the data's
    content, the tokenizer, its template and the options that matter; from there they are mapped
    into memory, not read.

    Attributes:
        counts: how many samples were read, kept, left out as too short, cut, or without an
            assistant token.
        lengths: `[N]` tokens of each.

    Raises:
        InputError: data that cannot be used; nothing is left to train on.
    """

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        import pyarrow

        set_template(tokenizer, recipe.template)
        sources, hubs = _sources(recipe, streaming=False)
        path = cache_folder() / "tokenized" / f"{_key(recipe, tokenizer, sources, hubs)}.arrow"
        self.from_cache = path.is_file()  # written last
        if not self.from_cache:
            _tokenise(recipe, tokenizer, sources, hubs, path)
        table = pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()
        self._ids = table["input_ids"].combine_chunks()
        self._labels = table["labels"].combine_chunks()
        self.counts: dict[str, int] = json.loads(path.with_suffix(".json").read_text())
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


def _tokenise(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Source],
    hubs: Sequence[Any],
    path: Path,
) -> None:
    """Write the samples to `path`, whole or not at all."""
    import pyarrow
    from tqdm import tqdm

    tokens = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema([("input_ids", tokens), ("labels", tokens)])
    keep = _Filter(recipe, tokenizer)
    rows: list[Sample] = []

    def flush(writer: Any) -> None:
        columns = [
            pyarrow.array([s.input_ids for s in rows], tokens),
            pyarrow.array([s.labels for s in rows], tokens),
        ]
        writer.write_batch(pyarrow.record_batch(columns, schema=schema))
        rows.clear()

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    bar = tqdm(desc="tokenising", unit=" samples", mininterval=1, leave=False)
    try:
        with (
            bar,
            pyarrow.OSFile(str(unfinished), "wb") as file,
            pyarrow.ipc.new_file(file, schema) as writer,
        ):
            for where, row in _rows(sources, hubs):
                if recipe.max_samples is not None and keep.counts["kept"] >= recipe.max_samples:
                    break
                sample = keep(row, where)
                bar.update(1)
                if sample is not None:
                    rows.append(sample)
                    if len(rows) == _ROWS_A_BATCH:
                        flush(writer)
            flush(writer)
        path.with_suffix(".json").write_text(json.dumps(keep.counts), encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise InputError(
            f"{path.parent}: the tokenised data cannot be written: {error}; free space there, or "
            "set AHN_BENCH_CACHE to another folder"
        ) from None
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _rows(sources: Sequence[Source], hubs: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    for source, hub in zip(sources, hubs, strict=True):
        yield from read_rows(source, hub)


class StreamedConversations(IterableDataset[dict[str, Any]]):
    """The same samples, read, tokenised and forgotten one by one (`streaming: true`).

    Attributes:
        counts: as of `Conversations`, so far, over all epochs.
    """

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        set_template(tokenizer, recipe.template)
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._sources, self._hubs = _sources(recipe, streaming=True)
        self.counts = dict.fromkeys(COUNTS, 0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        keep = _Filter(self._recipe, self._tokenizer)
        keep.counts = self.counts
        kept = 0
        most = self._recipe.max_samples
        for where, row in _rows(self._sources, self._hubs):
            if most is not None and kept >= most:
                break
            sample = keep(row, where)
            if sample is not None:
                yield {"index": kept, "input_ids": sample.input_ids, "labels": sample.labels}
                kept += 1
        if not kept:
            raise InputError(nothing_left(self._recipe, self.counts))


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
