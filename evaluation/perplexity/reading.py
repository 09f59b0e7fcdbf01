"""One variant reads the text: its records are written as they come, or held against those there.

A variant that was interrupted goes on from the past that was kept in a file, or else reads the text
again from its start. What it reads once more is held against its records: losses that differ are of
another model, machine or setting, and are not gone on with.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np

from common.errors import InputError
from evaluation.backends.base import Backend
from evaluation.backends.local import free_memory, is_out_of_memory
from evaluation.backends.peak import GpuPeak, cpu_peak
from evaluation.perplexity.store import PerplexityStore, cache_path
from evaluation.perplexity.streams import Losses, TextStream, stream_of
from evaluation.perplexity.text import TokenText
from reports.perplexity import BlockRecord

CHECKPOINT_SECONDS = 300.0
MOST_CHECKPOINT_BYTES = 4 << 30
MOST_PROFILED = 24
"""Blocks of which a CPU's peak is measured."""
_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Nats a token by which the loss of a block may differ that is read once more: rounding."""

Watch = Callable[[int, int, str], None]
"""Is told of tokens that are done, of all, and of whom."""


class UnusableLoss(RuntimeError):
    """A loss that is not finite."""


class Reading:
    """A variant that reads a text.

    Args:
        backend: the variant.
        text: what is read.
        store: holds the records.
        chunk: tokens that are read at once.
        with_peak: whether the peak of memory is measured.
        watch: is told how far it is.
        checkpoint_seconds: time after which the past is written to a file again.
    """

    def __init__(
        self,
        backend: Backend,
        text: TokenText,
        store: PerplexityStore,
        chunk: int,
        with_peak: bool = True,
        watch: Watch | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        self._backend = backend
        self._text = text
        self._store = store
        self._chunk = chunk
        self._watch = watch
        self._checkpoint_seconds = checkpoint_seconds
        self._block = store.info.block_tokens
        blocks = math.ceil(text.tokens / self._block)
        every = max(1, math.ceil(blocks / MOST_PROFILED))
        # the last whole block, too: what it costs in the end is what people ask for
        ends = {blocks - 1, max(0, text.tokens // self._block - 1)}
        self._profiled = {*range(0, blocks, every), *ends} if with_peak else set()
        self._with_peak = with_peak

    @property
    def name(self) -> str:
        """Of the variant."""
        return self._backend.name

    def read(self, tokenizer: object, seed: int = 0) -> str | None:
        """Read the text to its end.

        Returns:
            Why it did not get there; None: it did.

        Raises:
            InputError: what is read once more differs from the records, or nothing can be written.
        """
        store, name = self._store, self.name
        if store.done(name) == self._text.tokens:
            cache_path(store.folder, name).unlink(missing_ok=True)
            return None
        store.retry(name)
        why = None
        try:
            self._read(tokenizer, seed)
        except Exception as error:
            if isinstance(error, UnusableLoss):
                why = str(error)
            elif is_out_of_memory(error):
                why = f"out of memory ({str(error).splitlines()[0] if str(error) else 'the host'})"
            else:
                raise
        free_memory()
        if why is not None:
            store.fail(name, why)
        else:
            cache_path(store.folder, name).unlink(missing_ok=True)
        return why

    def _read(self, tokenizer: object, seed: int) -> None:
        reader = self._backend.open(tokenizer, seed)
        try:
            self._store.describe(self.name, reader.describe())
            stream = self._begin(stream_of(reader))
            saved = time.monotonic()
            while stream.seen < self._text.tokens:
                self._one_block(stream)
                if time.monotonic() - saved > self._checkpoint_seconds:
                    self._checkpoint(stream)
                    saved = time.monotonic()
        finally:
            reader.close()

    def _begin(self, stream: TextStream) -> TextStream:
        """The stream, at the place that was kept in a file, where one can be used."""
        path = cache_path(self._store.folder, self.name)
        if not path.is_file() or not self._store.done(self.name):
            return stream
        try:
            stream.restore(path)
        except InputError as error:
            self._store.warnings.append(f"{error}; {self.name} reads the text again")
            return stream
        done = self._store.done(self.name)
        if stream.seen > done or stream.seen % self._block:
            raise InputError(
                f"{path}: holds {stream.seen:,} tokens, the records {done:,}: delete it, and the "
                "text is read again"
            )
        return stream

    def _checkpoint(self, stream: TextStream) -> None:
        if stream.cache_bytes() <= MOST_CHECKPOINT_BYTES and stream.seen < self._text.tokens:
            with suppress(InputError):  # a disk that is full; the records are what counts
                stream.save(cache_path(self._store.folder, self.name))

    def _one_block(self, stream: TextStream) -> None:
        first = stream.seen
        end = min(first + self._block, self._text.tokens)
        there = self._store.records(self.name)
        number = first // self._block
        if number < len(there):
            losses = self._losses(stream, first, end)
            self._compare(there[number], self._sum(losses, first))
        else:
            self._store.append(self._measured(stream, first, end, number in self._profiled))
        if self._watch is not None:
            self._watch(stream.seen, self._text.tokens, self.name)

    def _measured(self, stream: TextStream, first: int, end: int, profiled: bool) -> BlockRecord:
        """Read a block; its record."""
        found: list[Losses] = []
        before = stream.cache_bytes()
        on_cpu = stream.device.type == "cpu"
        meter = GpuPeak(stream.device) if self._with_peak else None
        started = time.perf_counter()
        peak: int | None = None
        if profiled and on_cpu:
            work = partial(self._losses, stream, first, end)
            peak = before + cpu_peak(lambda: found.append(work()), quiet=True)
        else:
            found.append(self._losses(stream, first, end))  # on the host: all work is done
        seconds = time.perf_counter() - started
        if meter is not None and not on_cpu:
            peak = meter.bytes(before)
        return BlockRecord(
            variant=self.name,
            first=first,
            tokens=end - first,
            scored=self._count(first, end),
            loss=self._sum(found[0], first),
            peak_bytes=peak,
            cache_bytes=stream.cache_bytes(),
            seconds=None if profiled and on_cpu else seconds,
            start=self._store.start,
        )

    def _losses(self, stream: TextStream, first: int, end: int) -> Losses:
        """Losses of the tokens from `first` to `end`, in chunks."""
        text = self._text
        found = np.concatenate(
            [
                stream.losses(text.inputs[at:to], text.targets[at:to])
                for at in range(first, end, self._chunk)
                for to in (min(at + self._chunk, end),)
            ]
        )
        if not np.isfinite(found).all():
            place = first + int(np.argmin(np.isfinite(found)))
            dtype = self._store.info.variants[self.name].get("dtype")
            raise UnusableLoss(
                f"the loss of token {place:,} is {found[place - first]}: the model's numbers leave "
                f"the range of {dtype}, or its weights are damaged"
            )
        return found

    def _sum(self, losses: Losses, first: int) -> float:
        """The losses that count, from token `first` on, together."""
        counts = self._text.scored
        return float((losses if counts is None else losses[counts[first:][: len(losses)]]).sum())

    def _count(self, first: int, end: int) -> int:
        counts = self._text.scored
        return end - first if counts is None else int(counts[first:end].sum())

    def _compare(self, record: BlockRecord, loss: float) -> None:
        dtype = str(self._store.info.variants[self.name].get("dtype"))
        off = abs(loss - record.loss) / max(1, record.scored)
        if off > _TOLERANCE.get(dtype, 1e-4):
            raise InputError(
                f"{self._store.folder / self.name}.jsonl: tokens {record.first:,} to "
                f"{record.first + record.tokens:,} were read again, and their loss differs by "
                f"{off:.2g} nats a token: another machine, version or setting wrote them. Name "
                "another folder, or give --overwrite"
            )
