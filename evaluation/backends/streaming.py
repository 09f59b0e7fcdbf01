"""The models of `ahn`: full attention, a window, and a window with a memory of what left it.

The prompt except its last token is *prefilled* here; `generate` then reads the last token and
decodes. So ``decode_seconds`` covers exactly one forward pass per generated token, and
``prefill_seconds`` everything before.

Examples about one document share the beginning of their prompts. Its cache is filled once and
copied per example, which the attention sinks, the ring window and the recurrent state allow
just as keys and values do.
"""

from __future__ import annotations

import gc
import random
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from ahn.cells.base import MemoryCell
from ahn.checkpoints.load import load_resolved
from ahn.checkpoints.locate import CheckpointFiles
from ahn.checkpoints.names import ahn_path
from ahn.checkpoints.placement import DTYPE_BYTES, resolve_device
from ahn.checkpoints.resolve import (
    ResolvedCheckpoint,
    default_variant,
    memory_settings,
    resolve_checkpoint,
)
from ahn.checkpoints.rope import with_rope
from ahn.config import AHNConfig, LayerLayout
from ahn.cost.accounting import cache_bytes, flops
from ahn.models.cache import AHNCache
from ahn.ops.selector import asked, pick
from ahn.released import read_ahn_config
from common.errors import InputError, Problems
from evaluation.backends.base import (
    Answer,
    Backend,
    Cost,
    Document,
    Ids,
    Question,
    Reader,
    RunSettings,
)
from evaluation.backends.cache_bytes import held
from evaluation.backends.generation import stop_ids
from evaluation.backends.peak import GpuPeak, cpu_peak
from evaluation.backends.requests import VariantRequest, tokens

Layouts = Callable[[int, int | None], Sequence[LayerLayout]]
"""What layers see of a document, from its tokens and the bytes that it may take."""


@dataclass(frozen=True)
class Kind:
    """One way of seeing the past.

    Attributes:
        summary: for people.
        needs_window: it keeps sinks and a window.
        needs_memory: it has AHN weights.
        sizable: its window can be chosen for each document (`--budget`).
    """

    summary: str
    needs_window: bool
    needs_memory: bool
    sizable: bool = False


KINDS: dict[str, Kind] = {
    "full": Kind("every token sees every earlier token", False, False),
    "window": Kind("sinks and a sliding window, nothing else", True, False, True),
    "ahn": Kind("sinks, window, and a memory of what left the window", True, True),
    "no-write": Kind("as ahn, but nothing is written into the memory", True, True),
}


class StreamingModels:
    """What the variants of one run share: the files of model and memories, and what they say."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings

    @cached_property
    def base(self) -> CheckpointFiles:
        """The base model.

        Raises:
            InputError: none was given, or no such embedded one.
        """
        if not self.settings.model:
            raise InputError("--model: none given")
        return CheckpointFiles(self.settings.model)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The base model's `config.json`, with its positions stretched where that is asked."""
        config, factor = self.base.config, self.settings.yarn_factor
        return dict(config) if factor is None else with_rope(config, None, factor)

    @cached_property
    def weights(self) -> dict[str, CheckpointFiles]:
        """The AHN weights that were given, by name."""
        problems, found = Problems(), {}
        for name, place in self.settings.ahn.items():
            with problems.collecting():
                found[name] = CheckpointFiles(ahn_path(place))
        problems.check()
        return found

    @cached_property
    def memories(self) -> dict[str, AHNConfig]:
        """Settings of the AHN weights by name: those given, or (named '') those in the model."""
        if not self.settings.ahn:
            merged = read_ahn_config(self.base.config, self.base.place)
            return {} if merged is None else {"": merged}
        problems, found = Problems(), {}
        for name, files in self.weights.items():
            with problems.collecting():
                found[name] = memory_settings(files)
        problems.check()
        return found

    def of_all(self, setting: str, remedy: str) -> Any:
        """What all AHN weights have as `setting`; None without any.

        Raises:
            InputError: they differ.
        """
        values = {name: getattr(memory, setting) for name, memory in self.memories.items()}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            raise InputError(f"--ahn: the weights differ in their {setting} ({listed}): {remedy}")
        return next(iter(values.values()), None)

    @property
    def full_attention_layers(self) -> tuple[int, ...]:
        """Layers that keep full attention, in every variant with a window."""
        layers = self.of_all("full_attention_layers", "they cannot share a run")
        return tuple(layers or ())

    def default_kinds(self) -> list[str]:
        """What is compared when no variant is named."""
        settings = self.settings
        last = default_variant(self.base, bool(settings.ahn), settings.window is not None)
        return list(KINDS)[: list(KINDS).index(last) + 1]

    @cached_property
    def device_and_dtype(self) -> tuple[str, str]:
        """What `auto` stands for here: a GPU where there is one, and bfloat16 on it."""
        device, dtype = resolve_device(self.settings.device), self.settings.dtype
        if dtype == "auto":
            dtype = "bfloat16" if device.startswith("cuda") else "float32"
        return device, dtype


def make_variant(request: VariantRequest, settings: RunSettings) -> StreamingBackend:
    """A variant of one of `KINDS`; options `window`, `sinks` (tokens) and `weights` (a name).

    Raises:
        InputError: everything that is wrong with it; see `ahn.resolve_checkpoint`.
    """
    kind, models, problems = KINDS[request.kind], settings.once(StreamingModels), Problems()
    readers: dict[str, Any] = {}
    sizable = kind.sizable and settings.budget is not None and "window" not in request.options
    if kind.needs_window:
        readers |= {"window": tokens, "sinks": tokens}
    if kind.needs_memory:
        readers["weights"] = str
    own = request.take(**readers)
    window, sinks = own.get("window", settings.window), own.get("sinks", settings.sinks)
    if sizable and window is None:
        window = 1  # it has one for each document
    problems.add(*map(_by_flag, AHNConfig.problems(request.kind, None, window, sinks)))
    device, dtype = "cpu", "float32"
    with problems.collecting(), _naming_flags():
        device, dtype = models.device_and_dtype
    with problems.collecting():
        _check_agreement(request, models, window, sinks)
    problems.check()
    keeping_all, name = models.full_attention_layers, None
    if kind.needs_memory or (kind.needs_window and (keeping_all or None in (window, sinks))):
        # a window alone is that of the weights, and the same layers keep full attention
        name = own.get("weights", next(iter(settings.ahn), None))
    if name is not None and name not in models.weights:
        named = ", ".join(filter(None, models.weights))
        there = named or ("one without a name" if models.weights else "none")
        raise InputError(f"--variant {request}: no AHN weights {name!r} (--ahn gives {there})")
    memory = None if name is None else models.weights[name]
    with _naming_flags():
        checkpoint = resolve_checkpoint(
            models.base,
            request.kind,
            memory,
            window,
            sinks,
            dtype,
            device,
            yarn_factor=settings.yarn_factor,
        )
    if checkpoint.context is None:
        raise InputError(f"--model: {models.base}: config.json has no max_position_embeddings")
    seen, notices = checkpoint.settings, list(checkpoint.notices)
    if kind.needs_window and not sizable and sinks is None and seen.window < seen.sinks:
        notices.append(
            f"--window: {seen.window} tokens are fewer than the {seen.sinks} sinks (the default; "
            "see --sinks)"
        )
    read = memory is not None and bool(kind.needs_memory or keeping_all)
    return StreamingBackend(
        request.name,
        request.kind,
        checkpoint,
        str(memory) if read else None,
        settings.yarn_factor,
        tuple(notices),
        sizable,
    )


def _check_agreement(
    request: VariantRequest, models: StreamingModels, window: int | None, sinks: int | None
) -> None:
    """Refuse what is missing, and AHN weights that differ in what all variants share.

    Raises:
        InputError: there is no model, window or memory, or the weights differ.
    """
    kind, problems = KINDS[request.kind], Problems()
    _ = models.base.config, models.full_attention_layers
    if kind.needs_window:
        if window is None:
            window = models.of_all("window", "give --window for all")
        if window is None:
            problems.add(f"--window: needed by {request.name}")
        if sinks is None:
            models.of_all("sinks", "give --sinks for all")
    if kind.needs_memory and not models.memories:
        problems.add(
            f"--ahn: needed by {request.name} (AHN weights, or a model with AHN weights merged "
            "into it)"
        )
    problems.check()


@contextmanager
def _naming_flags() -> Iterator[None]:
    """Name arguments in problems by their flags: `window must` becomes `--window: must`."""
    try:
        yield
    except InputError as error:
        raise InputError(*map(_by_flag, error.problems)) from None


def _by_flag(problem: str) -> str:
    word, _, rest = problem.partition(" ")
    return f"--{word}: {rest}" if word in ("window", "sinks", "device", "dtype") else problem


class StreamingBackend(Backend):
    """A variant of a model of `ahn`.

    Args:
        name: in records.
        kind: one of `KINDS`.
        checkpoint: what is loaded.
        ahn: place of the AHN weights, as given.
        yarn_factor: as given.
        notices: what people must be told.
        sizable: its window follows from a budget for each document.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        checkpoint: ResolvedCheckpoint,
        ahn: str | None = None,
        yarn_factor: float | None = None,
        notices: Sequence[str] = (),
        sizable: bool = False,
    ) -> None:
        self.sizable = sizable
        self.name = name
        self.kind = kind
        self.checkpoint = checkpoint
        self.notices = notices
        self.device = checkpoint.device
        self.context = checkpoint.context
        self.parameters = checkpoint.shape.parameters
        self._ahn = ahn
        self._yarn_factor = yarn_factor

    @property
    def _seen(self) -> dict[str, Any]:
        """Window, sinks, cell and layers with full attention, as far as this kind has them."""
        settings, kind = self.checkpoint.settings, KINDS[self.kind]
        return {
            "window": settings.window if kind.needs_window and not self.sizable else None,
            "sinks": settings.sinks if kind.needs_window else None,
            "cell": settings.cell if kind.needs_memory else None,
            "full_attention_layers": settings.full_attention_layers if kind.needs_window else (),
        }

    @property
    def _own_layers(self) -> dict[str, Any]:
        """Settings of single layers, by number, under `layers`; nothing where there are none."""
        layers = self.checkpoint.settings.layers
        if not layers or not KINDS[self.kind].needs_window:
            return {}
        return {"layers": {str(number): dict(own) for number, own in layers.items()}}

    def identity(self) -> Mapping[str, Any]:
        """See `Backend`."""
        stretched = {} if self._yarn_factor is None else {"yarn_factor": self._yarn_factor}
        return stretched | {
            **self._seen,
            **self._own_layers,
            "full_attention_layers": list(self._seen["full_attention_layers"]),
            "dtype": self.checkpoint.dtype,
            "device": (self.device or "").split(":")[0],
        }

    def weight_files(self) -> Sequence[Path]:
        """See `Backend`."""
        return self.checkpoint.weight_files

    def describe(self) -> Mapping[str, Any]:
        """See `Backend`."""
        return {
            "name": self.name,
            "variant": self.kind,
            "path": self.checkpoint.path,
            "ahn": self._ahn,
            **self._seen,
            **self._own_layers,
            "dtype": self.checkpoint.dtype,
            "device": self.device,
            "yarn_factor": self._yarn_factor,
        }

    def cost(
        self,
        prompt_tokens: int,
        generated_tokens: int,
        document_tokens: int | None = None,
        budget: int | None = None,
    ) -> Cost:
        """See `Backend`: "exact" accounting; the last generated token is never read."""
        seen = self._settings_of_cost()
        if self.sizable:
            seen["window"] = self.window_for(document_tokens or prompt_tokens, budget)
        counted = flops(
            self.checkpoint.shape,
            self.kind,
            prompt_tokens,
            generated_tokens,
            accounting="exact",
            **seen,
        )
        held = self._held(prompt_tokens + max(generated_tokens - 1, 0), seen)
        return Cost(int(counted.total), held)

    def _settings_of_cost(self) -> dict[str, Any]:
        seen = {**self._seen, "sinks": self._seen["sinks"] or 0}
        seen["layers"] = self.checkpoint.settings.layers if self._own_layers else None
        return seen

    def _held(self, tokens: int, seen: Mapping[str, Any]) -> int:
        of_element = DTYPE_BYTES[self.checkpoint.dtype]
        return cache_bytes(
            self.checkpoint.shape, self.kind, tokens, dtype_bytes=of_element, **seen
        ).total

    def document_bytes(self, tokens: int) -> int | None:
        """See `Backend`."""
        return None if self.sizable else self._held(tokens, self._settings_of_cost())

    def window_for(self, document_tokens: int, budget: int | None) -> int:
        """The largest window whose bytes after a document are within a budget.

        Without a budget the window holds the document.

        Raises:
            InputError: no window is small enough.
        """
        seen = self._settings_of_cost()
        most = max(1, document_tokens - seen["sinks"])

        def beyond(window: int) -> bool:
            return self._held(document_tokens, seen | {"window": window}) > (budget or 0)

        if budget is None or not beyond(most):
            return most
        found = bisect_left(range(1, most + 1), True, key=beyond)
        if not found:
            least = self._held(document_tokens, seen | {"window": 1})
            raise InputError(
                f"{self.name} holds {least:,} bytes with its {seen['sinks']} sinks and a window of "
                f"one token, and the budget is {budget:,}"
            )
        return found

    def kept(self, document_tokens: int, budget: int) -> float:
        """See `Backend`."""
        return kept_tokens(document_tokens, self.layouts(document_tokens, budget))

    def layouts(self, document_tokens: int, budget: int | None) -> list[LayerLayout]:
        """What each layer sees of a document that may take so many bytes."""
        settings, count = self.checkpoint.settings, self.checkpoint.shape.num_hidden_layers
        if self.sizable:
            settings = settings.with_span(self.window_for(document_tokens, budget), None)
        return list(settings.layouts(count))

    def open(self, tokenizer: Any, seed: int) -> Reader:
        """See `Backend`."""
        seed_everything(seed)
        layouts = self.layouts if self.sizable else None
        return StreamingReader(load_resolved(self.checkpoint), tokenizer, layouts)


def kept_tokens(tokens: int, layouts: Sequence[LayerLayout]) -> float:
    """How many of a document's tokens a layer keeps as they are, mean over layers."""
    spans = [tokens if x.window is None else min(tokens, x.sinks + x.window) for x in layouts]
    return sum(spans) / len(spans)


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


class StreamingReader(Reader):
    """A loaded model.

    Args:
        model: of `ahn.load_model`.
        tokenizer: its tokenizer.
        layouts: what its layers see, from the tokens of a document and the bytes that it may take;
            None: what the model says.
    """

    def __init__(self, model: Any, tokenizer: Any, layouts: Layouts | None = None) -> None:
        self._layouts = layouts
        # `generate` fills what a call leaves open from here; each call comes with all settings.
        model.generation_config = GenerationConfig()
        self.model = model
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device

    def describe(self) -> Mapping[str, Any]:
        """See `Reader`."""
        layers = self.model.layout
        cells = [layer.cell for layer in layers if layer.cell is not None]
        return {
            "cell": cells[0] if cells else None,
            "parameters": self.model.num_parameters(),
            "layout": [
                {"window": layer.window, "sinks": layer.sinks, "cell": layer.cell}
                for layer in layers
            ],
        }

    def forms(self) -> Mapping[str, str]:
        """See `Reader`: the form of the memory's recurrence; nothing without a memory.

        `AHN_BACKEND`, the weights' configuration and the packages that are installed choose it.
        """
        cells = (module for module in self.model.modules() if isinstance(module, MemoryCell))
        cell = next((cell for cell in cells if cell.declaration.recurrence is not None), None)
        if cell is None:
            return {}
        return {
            phase: pick(
                asked(cell.backend),
                self.device.type,
                self.model.dtype,
                cell.head_dim,
                one_token,
                cell.declaration.recurrence == "delta_rule",
                False,
            )
            for phase, one_token in (("prefill", False), ("decode", True))
        }

    def read(self, ids: Ids, budget: int | None = None) -> StreamingDocument:
        """See `Reader`. It is read with its first question, whose time it is part of."""
        layouts = None if self._layouts is None else self._layouts(max(len(ids), 1), budget)
        return StreamingDocument(self, ids, layouts)

    def peak(self, ids: Ids, question: Question, budget: int | None = None) -> int | None:
        """See `Reader`: on a CPU; on a GPU each answer tells it."""
        if self.device.type != "cpu":
            return None
        return cpu_peak(lambda: self.read(ids, budget).ask(question))

    def close(self) -> None:
        """See `Reader`."""
        self.model = None
        free_memory()

    def prefill(self, ids: Ids, cache: Any) -> None:
        """Read `ids` into `cache`."""
        if len(ids):
            self.model(
                input_ids=self.as_batch(ids),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                layout=[layer.layout for layer in cache.layers],
            )

    def new_cache(self, layouts: Sequence[LayerLayout] | None = None) -> AHNCache:
        """An empty cache for the model, whose layers see what `layouts` say."""
        return self.model.new_cache() if layouts is None else AHNCache(list(layouts), self.model)

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


def free_memory() -> None:
    """Give unused memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class StreamingDocument(Document):
    """The beginning of some prompts, and its cache once it was read."""

    def __init__(
        self, reader: StreamingReader, ids: Ids, layouts: Sequence[LayerLayout] | None = None
    ) -> None:
        self._reader = reader
        self._ids = ids
        self._layouts = layouts
        self._cache: Any = None
        self._bytes: int | None = None

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
        reader, settings = self._reader, question.settings
        if question.seed is not None:
            torch.manual_seed(question.seed)
        peak = GpuPeak(reader.device)
        copy = 0 if self._cache is None else int(self._cache.nbytes)
        started = reader.now()
        cache, reused = self._take_cache(keep)
        reader.prefill(question.ids[:-1], cache)
        prefilled = reader.now()
        prompt = reader.as_batch(np.concatenate([self._ids, question.ids]))
        stop = list(question.stop)
        output = reader.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=cache,
            generation_config=settings,
            layout=[layer.layout for layer in cache.layers],
            **({"stop_strings": stop, "tokenizer": reader.tokenizer} if stop else {}),
        )
        new_ids: list[int] = output[0, prompt.shape[1] :].tolist()
        finished = reader.now()
        ended = bool(new_ids) and new_ids[-1] in stop_ids(settings)
        whole = reader.tokenizer.decode(new_ids, skip_special_tokens=True)
        text = before_stop(whole, stop)
        return Answer(
            text=text,
            finish_reason="stop" if text != whole else "eos" if ended else "length",
            generated_tokens=len(new_ids),
            prefill_seconds=prefilled - started,
            decode_seconds=finished - prefilled,
            reused_tokens=reused,
            cache_bytes=int(cache.nbytes),
            token_ids=new_ids,
            kept_tokens=kept_tokens(len(self._ids), [layer.layout for layer in cache.layers]),
            document_bytes=self._bytes,
            cache_stored=held(cache).stored,
            peak_bytes=peak.bytes(copy),
        )

    def _take_cache(self, keep: bool) -> tuple[Any, int]:
        """A cache that holds the document, and how many of its tokens were there already."""
        cache, self._cache = self._cache, None
        reused = 0 if cache is None else len(self._ids)
        if cache is None:
            cache = self._reader.new_cache(self._layouts)
            self._reader.prefill(self._ids, cache)
            self._bytes = int(cache.nbytes)
        if keep and len(self._ids):
            self._cache = cache.copy()
        return cache, reused
