"""Models on this machine: how a document is read once into a cache, and questions are answered.

The prompt except its last token is *prefilled*; decoding then reads the last token and goes on. So
``decode_seconds`` covers exactly one forward pass per generated token, and ``prefill_seconds``
everything before. A document's cache is filled once and copied per question.
"""

from __future__ import annotations

import gc
import random
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from evaluation.backends.base import Answer, Document, Ids, Question, Reader
from evaluation.backends.cache_bytes import held
from evaluation.backends.generation import stop_ids
from evaluation.backends.peak import GpuPeak, cpu_peak


def seed_everything(seed: int) -> None:
    """Seed all generators and ask for repeatable kernels, as the authors' scripts do."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def before_stop(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first place where one of the texts `stop` begins."""
    ends = [at for end in stop if end and (at := text.find(end)) >= 0]
    return text[: min(ends, default=len(text))]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the machine, had no memory left."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)


def free_memory() -> None:
    """Give unused memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class LocalReader(Reader):
    """A model that is loaded here.

    Args:
        model: a causal language model.
        tokenizer: makes texts of ids.

    Attributes:
        reuses: whether a document is read once for all its questions.
    """

    reuses: bool = True

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device

    @abstractmethod
    def fill(self, ids: Ids, budget: int | None) -> Any:
        """A new cache that holds a document `[T]` (T may be 0), in so many bytes at most."""

    @abstractmethod
    def prefill(self, ids: Ids, cache: Any) -> None:
        """Read `ids [T]` (T may be 0) on top of what a cache holds."""

    @abstractmethod
    def decode(self, prompt: torch.Tensor, cache: Any, question: Question) -> list[int]:
        """Generate on top of a cache that holds all of a prompt but its last token.

        Args:
            prompt: `[1, T]`, all of it.
            cache: see above.
            question: how it is answered.

        Returns:
            The ids that were generated.
        """

    @abstractmethod
    def copy(self, cache: Any) -> Any:
        """A cache with tensors of its own."""

    def used(self, cache: Any) -> int | None:
        """Bytes in use of a cache; None: nothing was read into it yet."""
        return held(cache).used

    def kept(self, cache: Any, document_tokens: int) -> float | None:
        """Tokens of the document in a layer, mean over layers, once it was read; None: unknown."""
        return None

    def read(self, ids: Ids, budget: int | None = None) -> CachedDocument:
        """See `Reader`. It is read with its first question, whose time it is part of."""
        return CachedDocument(self, ids, budget)

    def peak(self, ids: Ids, question: Question, budget: int | None = None) -> int | None:
        """See `Reader`: on a CPU; on a GPU each answer tells it."""
        if self.device.type != "cpu":
            return None
        try:
            return cpu_peak(lambda: self.read(ids, budget).ask(question))
        except MemoryError:  # the answer itself had room, and is what counts
            return None

    def close(self) -> None:
        """See `Reader`."""
        self.model = None
        free_memory()

    def as_batch(self, ids: Ids) -> torch.Tensor:
        """Token ids `[T]` as a tensor `[1, T]` on the model's device."""
        return torch.from_numpy(ids.astype(np.int64))[None].to(self.device)

    def now(self) -> float:
        """Seconds of a clock, when the device has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


class CachedDocument(Document):
    """The beginning of some prompts, and its cache once it was read.

    Args:
        reader: whose.
        ids: token ids `[T]`.
        budget: bytes that may be kept of it.
    """

    def __init__(self, reader: LocalReader, ids: Ids, budget: int | None = None) -> None:
        self._reader = reader
        self._ids = ids
        self._budget = budget
        self._cache: Any = None
        self._bytes: int | None = None
        self._kept: float | None = None

    def ask(self, question: Question, last: bool = True) -> Answer:
        """See `Document`.

        Where memory runs out, the copy of the cache that is kept for the next question may be what
        did not fit: the question is asked once more without it.
        """
        if not len(question.ids):
            raise ValueError("a question has at least one token")
        try:
            return self._answer(question, keep=not last)
        except Exception as error:
            self._forget()
            if last or not is_out_of_memory(error):
                raise
        return self._answer(question, keep=False)

    def _forget(self) -> None:
        self._cache = None
        free_memory()

    @torch.inference_mode()
    def _answer(self, question: Question, keep: bool) -> Answer:
        reader = self._reader
        if question.seed is not None:
            torch.manual_seed(question.seed)
        peak = GpuPeak(reader.device)
        already = 0 if self._cache is None else reader.used(self._cache) or 0
        started = reader.now()
        cache, reused = self._take_cache(keep)
        reader.prefill(question.ids[:-1], cache)
        prefilled = reader.now()
        prompt = reader.as_batch(np.concatenate([self._ids, question.ids]))
        new_ids = reader.decode(prompt, cache, question)
        finished = reader.now()
        ended = bool(new_ids) and new_ids[-1] in stop_ids(question.settings)
        whole = reader.tokenizer.decode(new_ids, skip_special_tokens=True)
        text = before_stop(whole, question.stop)
        return Answer(
            text=text,
            finish_reason="stop" if text != whole else "eos" if ended else "length",
            generated_tokens=len(new_ids),
            prefill_seconds=prefilled - started,
            decode_seconds=finished - prefilled,
            reused_tokens=reused,
            cache_bytes=reader.used(cache),
            token_ids=new_ids,
            kept_tokens=self._kept,
            document_bytes=self._bytes,
            cache_stored=held(cache).stored,
            peak_bytes=peak.bytes(already),
        )

    def _take_cache(self, keep: bool) -> tuple[Any, int]:
        """A cache that holds the document, and how many of its tokens were there already."""
        cache, self._cache = self._cache, None
        reused = 0 if cache is None or not self._reader.reuses else len(self._ids)
        if cache is None:
            cache = self._reader.fill(self._ids, self._budget)
            if len(self._ids):
                self._bytes = self._reader.used(cache)
                self._kept = self._reader.kept(cache, len(self._ids))
        if keep and len(self._ids):
            self._cache = self._reader.copy(cache)
        return cache, reused
