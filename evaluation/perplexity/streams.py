"""A text read on, chunk after chunk, and what each of its tokens cost: minus its log-probability.

A stream holds the past of one reader and nothing else of the text: logits are made into losses at
once, some positions at a time, so that never more than `HEAD_TOKENS` times the vocabulary of them
is there in float32.

Whether a back-end can read a text on is asked of `cannot_read_on` before weights are loaded; a
reader's stream is made by `stream_of`. Both take other back-ends, too (`functools.singledispatch`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ahn.models.cache import AHNCache
from common.errors import InputError
from evaluation.backends.base import Backend, Ids, Reader
from evaluation.backends.endpoint.backend import EndpointBackend
from evaluation.backends.local import LocalReader
from evaluation.backends.presses.backend import PressBackend
from evaluation.backends.quantized.backend import QuantizedBackend, QuantizedReader
from evaluation.backends.stock import Past, StockBackend, StockReader
from evaluation.backends.streaming import StreamingBackend, StreamingReader

HEAD_TOKENS = 64
"""Positions whose logits are there at a time in float32."""
Losses = npt.NDArray[np.float64]


class TextStream(ABC):
    """A model in the middle of a text.

    Attributes:
        device: where it computes.
        seen: tokens that were read.
    """

    def __init__(self, reader: LocalReader) -> None:
        self.device = reader.device
        self.seen = 0

    @torch.inference_mode()
    def losses(self, ids: Ids, targets: Ids) -> Losses:
        """Read tokens on top of what was read, and say what those that follow each cost.

        Args:
            ids: the next tokens `[T]`.
            targets: what follows each of them `[T]`.

        Returns:
            Minus the logarithm of the probability of each target `[T]`, in nats: log-softmax in
            float32, or in the model's type where that is finer.
        """
        wanted = torch.from_numpy(targets.astype(np.int64)).to(self.device)
        found = self._losses(torch.from_numpy(ids.astype(np.int64))[None].to(self.device), wanted)
        self.seen += len(ids)
        return found.double().cpu().numpy()

    @abstractmethod
    def _losses(self, ids: Tensor, targets: Tensor) -> Tensor:
        """As `losses`, of `ids [1, T]` and `targets [T]`."""

    @abstractmethod
    def cache_bytes(self) -> int:
        """Bytes in use for the past."""

    def save(self, path: Path) -> bool:
        """Write the past to a file; False: it cannot be written."""
        return False

    def restore(self, path: Path) -> None:
        """Go on from a past that `save` wrote.

        Raises:
            InputError: the file is none of this model's.
        """
        raise InputError(f"{path}: this variant's past is not kept in files")


def _of_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """Losses `[T]` of logits `[T, V]`, in float32 or finer."""
    fine = torch.promote_types(logits.dtype, torch.float32)
    parts = zip(logits.split(HEAD_TOKENS), targets.split(HEAD_TOKENS), strict=True)
    return torch.cat([cross_entropy(a.to(fine), b, reduction="none") for a, b in parts])


class AHNStream(TextStream):
    """Of the models of `ahn`."""

    def __init__(self, reader: StreamingReader) -> None:
        super().__init__(reader)
        self._model = reader.model
        self._cache: AHNCache = self._model.new_cache()

    def _losses(self, ids: Tensor, targets: Tensor) -> Tensor:
        hidden = self._model.model(
            input_ids=ids, past_key_values=self._cache, use_cache=True
        ).last_hidden_state[0]  # [T, D]
        parts = zip(hidden.split(HEAD_TOKENS), targets.split(HEAD_TOKENS), strict=True)
        return torch.cat([_of_logits(self._model.lm_head(some), next_) for some, next_ in parts])

    def cache_bytes(self) -> int:
        """See `TextStream`."""
        return int(self._cache.nbytes)

    def save(self, path: Path) -> bool:
        """See `TextStream`."""
        self._cache.save(path)
        return True

    def restore(self, path: Path) -> None:
        """See `TextStream`."""
        self._cache = AHNCache.load(path, self._model)
        self.seen = self._cache.get_seq_length()


class StockStream(TextStream):
    """Of models of transformers with their own cache, or a quantised one.

    Raises:
        InputError: the model cannot go on from its cache.
    """

    def __init__(self, reader: StockReader) -> None:
        super().__init__(reader)
        if reader.reading == "whole prompt":
            raise InputError(f"a text cannot be read on: {reader.fallback}")
        self._reader = reader
        self._past: Past = reader.fill(np.zeros(0, dtype=np.int32))
        self._one_by_one = reader.reading == "token by token"

    def _losses(self, ids: Tensor, targets: Tensor) -> Tensor:
        step = 1 if self._one_by_one else ids.shape[1]
        parts = zip(ids.split(step, 1), targets.split(step), strict=True)
        read = self._reader.logits
        return torch.cat([_of_logits(read(some, self._past)[0], next_) for some, next_ in parts])

    def cache_bytes(self) -> int:
        """See `TextStream`."""
        return self._reader.used(self._past) or 0


@singledispatch
def cannot_read_on(backend: Backend) -> str | None:
    """Why a back-end cannot give the losses of a text that is read on; None: it can."""
    return (
        f"{type(backend).__name__} does not say how a text is read on "
        "(evaluation.perplexity.streams.cannot_read_on and stream_of)"
    )


@cannot_read_on.register
def _(backend: StreamingBackend) -> str | None:
    return None


@cannot_read_on.register
def _(backend: StockBackend) -> str | None:
    if "chunk" in backend.options:
        return "its option chunk: what is read at once is --chunk-tokens here"
    return None


@cannot_read_on.register
def _(backend: PressBackend) -> str | None:
    return (
        "a press chooses what stays of a document when it was read to its end, and a text that is "
        "read on has no such end: there is no cache in the middle whose losses could be told"
    )


@cannot_read_on.register
def _(backend: QuantizedBackend) -> str | None:
    if backend.press is not None:
        return cannot_read_on.dispatch(PressBackend)(backend)
    for option in ("keep", "sinks", "chunk"):
        if option in backend.options:
            return (
                f"its option {option} is about a document that was read to its end; a text that "
                "is read on has none"
            )
    return None


@cannot_read_on.register
def _(backend: EndpointBackend) -> str | None:
    return "a server answers with text; the losses of a text that it reads are not asked for"


@singledispatch
def stream_of(reader: Reader) -> TextStream:
    """An empty stream of a reader."""
    raise InputError(f"{type(reader).__name__} does not say how a text is read on")


@stream_of.register
def _(reader: StreamingReader) -> TextStream:
    return AHNStream(reader)


@stream_of.register
def _(reader: StockReader) -> TextStream:
    return StockStream(reader)


@stream_of.register
def _(reader: QuantizedReader) -> TextStream:
    return StockStream(reader)


def peak_method(device: Any) -> str | None:
    """How the peak of memory is measured on a device; None: it is not."""
    kind = torch.device(device).type
    if kind == "cuda":
        return "torch's CUDA allocator, in every block; weights not counted"
    if kind == "cpu":
        return "torch's profiler (CPU), in some blocks; weights not counted"
    return None
