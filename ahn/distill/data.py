"""Chat conversations as token ids, with labels on assistant turns only."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from ahn.config import InputError
from ahn.distill.recipe import Recipe

IGNORED = -100


@dataclass(frozen=True)
class Sample:
    """One conversation: `input_ids [L]` and `labels [L]` (-100 outside assistant turns)."""

    input_ids: list[int]
    labels: list[int]


def read_conversations(path: str | Path) -> Iterator[tuple[int, list[dict[str, str]]]]:
    """Line number and `messages` of each line of a chat JSONL file.

    Raises:
        InputError: missing file, a line that is no JSON or has no list of messages with `role`
            and `content`; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such data set")
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{where}: not JSON: {error}") from error
            messages = row.get("messages") if isinstance(row, dict) else None
            if not isinstance(messages, list) or not messages:
                raise InputError(f"{where}: 'messages' is missing or empty")
            for message in messages:
                if not isinstance(message, dict) or not all(
                    isinstance(message.get(key), str) for key in ("role", "content")
                ):
                    raise InputError(f"{where}: each message needs 'role' and 'content'")
            yield number, messages


def encode(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> Sample:
    """Tokenise a conversation with the chat template.

    The template is rendered up to each assistant turn; what the turn adds is labelled.  This
    asks nothing of the template but that a longer conversation begins like a shorter one.

    Raises:
        InputError: the tokenizer has no chat template, or rendering a turn changes the text
            before it.
    """
    if not tokenizer.chat_template:
        raise InputError("the tokenizer has no chat template")
    ids: list[int] = []
    labels: list[int] = []
    done = ""
    for turn, message in enumerate(messages):
        assistant = message["role"] == "assistant"
        if assistant:
            prompt = tokenizer.apply_chat_template(
                messages[:turn], tokenize=False, add_generation_prompt=True
            )
            if not prompt.startswith(done):
                raise InputError("the chat template rewrites earlier turns; cannot label answers")
            more = tokenizer(prompt[len(done) :], add_special_tokens=False)["input_ids"]
            ids += more
            labels += [IGNORED] * len(more)
            full = tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False)
            if not full.startswith(prompt):
                raise InputError("the chat template rewrites earlier turns; cannot label answers")
            more = tokenizer(full[len(prompt) :], add_special_tokens=False)["input_ids"]
            ids += more
            labels += more
            done = full
    return Sample(ids, labels)


class Conversations(Dataset[dict[str, Any]]):
    """The samples that a recipe keeps, in file order.

    Attributes:
        counts: how many samples were read, kept, left out as too short, cut, or without an
            assistant token.
    """

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self.samples: list[Sample] = []
        self.counts = dict.fromkeys(("read", "kept", "too_short", "cut", "no_label"), 0)
        for number, messages in read_conversations(recipe.dataset):
            if recipe.max_samples is not None and len(self.samples) >= recipe.max_samples:
                break
            self.counts["read"] += 1
            try:
                sample = encode(tokenizer, messages)
            except InputError as error:
                raise InputError(f"{recipe.dataset}:{number}: {error}") from None
            if len(sample.input_ids) <= recipe.filter_len:
                self.counts["too_short"] += 1
                continue
            if len(sample.input_ids) > recipe.cutoff_len:
                self.counts["cut"] += 1
                sample = Sample(
                    sample.input_ids[: recipe.cutoff_len], sample.labels[: recipe.cutoff_len]
                )
            if all(label == IGNORED for label in sample.labels):
                self.counts["no_label"] += 1
                continue
            self.counts["kept"] += 1
            self.samples.append(sample)
        if not self.samples:
            raise InputError(f"{recipe.dataset}: no sample left to train on ({self.counts})")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        return {"index": index, "input_ids": sample.input_ids, "labels": sample.labels}


class TokenBudgetBatches(Sampler[list[int]]):
    """Batches in file order, each of at most `tokens` tokens after padding (at least one row).

    The order of the file is the curriculum: nothing is shuffled.
    """

    def __init__(self, samples: Sequence[Sample], tokens: int) -> None:
        self.batches: list[list[int]] = []
        batch: list[int] = []
        longest = 0
        for index, sample in enumerate(samples):
            length = len(sample.input_ids)
            if batch and (len(batch) + 1) * max(longest, length) > tokens:
                self.batches.append(batch)
                batch, longest = [], 0
            batch.append(index)
            longest = max(longest, length)
        self.batches.append(batch)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class PositionGaps:
    """Random jumps in `position_ids`, drawn for every batch of a run before it starts.

    Most batches of 256 tokens or more get one to four jumps a row, each up to half of `gap`
    (short ones likelier), so that a model that is trained on short texts meets long distances.
    Drawn beforehand, they are the same when a run is resumed in its middle.
    """

    def __init__(
        self, samples: Sequence[Sample], batches: Iterable[list[int]], gap: int, seed: int
    ) -> None:
        rng = random.Random(seed)
        self._jumps: dict[int, list[list[tuple[int, int]]]] = {}
        for batch in batches:
            longest = max(len(samples[index].input_ids) for index in batch)
            if longest >= 256 and rng.random() < 0.7:
                rows = []
                for _ in batch:
                    count = rng.randint(1, 4)
                    sizes = [
                        (int(rng.random() ** 2 * gap / 2), rng.randrange(1, longest))
                        for _ in range(count)
                    ]
                    rows.append([(position, size) for size, position in sizes])
                self._jumps[batch[0]] = rows

    def position_ids(self, first: int, rows: int, length: int) -> torch.Tensor | None:
        """`[rows, length]` int64 for the batch that begins with sample `first`, if it has jumps."""
        if first not in self._jumps:
            return None
        jumps = torch.zeros(rows, length, dtype=torch.long)
        for row, drawn in enumerate(self._jumps[first]):
            for position, size in drawn:
                jumps[row, position] += size
        return torch.arange(length) + jumps.cumsum(1)


@dataclass
class Collator:
    """Rows to a batch, padded on the right.

    Output: `input_ids`, `labels`, `attention_mask` `[B, L]` int64, and `position_ids` `[B, L]`
    where `gaps` has some for the batch.
    """

    pad_token_id: int
    gaps: PositionGaps | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)

        def padded(key: str, fill: int) -> torch.Tensor:
            return torch.tensor(
                [row[key] + [fill] * (longest - len(row[key])) for row in rows], dtype=torch.long
            )

        batch = {
            "input_ids": padded("input_ids", self.pad_token_id),
            "labels": padded("labels", IGNORED),
            "attention_mask": torch.tensor(
                [
                    [1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"]))
                    for row in rows
                ],
                dtype=torch.long,
            ),
        }
        if self.gaps is not None:
            positions = self.gaps.position_ids(rows[0]["index"], len(rows), longest)
            if positions is not None:
                batch["position_ids"] = positions
        return batch
