"""Random jumps in positions, so that short texts train long distances."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

Lengths = Sequence[int] | npt.NDArray[np.int64]


class PositionGaps:
    """Random jumps in `position_ids`, drawn for every batch of a run before it starts.

    Most batches of 256 tokens or more get one to four jumps a row, each up to half of `gap`
    (short ones likelier), so that a model that is trained on short texts meets long distances.
    Drawn beforehand, they are the same when a run is resumed in its middle.

    Args:
        lengths: tokens of each sample.
        batches: indices of the samples of each batch.
        gap: largest jump of a row in all, about, in tokens.
        seed: of the draw.
    """

    def __init__(self, lengths: Lengths, batches: Iterable[list[int]], gap: int, seed: int) -> None:
        rng = random.Random(seed)
        self._jumps: dict[int, list[list[tuple[int, int]]]] = {}
        for batch in batches:
            longest = max(int(lengths[index]) for index in batch)
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
