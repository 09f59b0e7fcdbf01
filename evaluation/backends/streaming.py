"""The models of `ahn`: full attention, a window, and what remains of what left it.

Attention sinks, the ring window and the recurrent state are copied for the questions about one
document just as keys and values are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

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
from ahn.cost.accounting import layout_bytes, layout_flops
from ahn.cost.budget import fit_layouts, smallest
from ahn.families import find_family
from ahn.models.cache import AHNCache
from ahn.ops.selector import asked, pick
from ahn.released import read_ahn_config
from common.errors import InputError, Problems
from evaluation.backends.base import (
    Backend,
    Cost,
    Ids,
    Question,
    Reader,
    RunSettings,
)
from evaluation.backends.local import LocalReader, seed_everything
from evaluation.backends.requests import VariantRequest, tokens, whole

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
        pools: what leaves the window is pooled; the number of pooled slots can be chosen, too.
    """

    summary: str
    needs_window: bool
    needs_memory: bool
    sizable: bool = False
    pools: bool = False

    @property
    def has_layers(self) -> bool:
        """Whether layers may differ: in what they see, or in keeping full attention."""
        return self.needs_window or self.needs_memory


KINDS: dict[str, Kind] = {
    "full": Kind("every token sees every earlier token", False, False),
    "window": Kind("sinks and a sliding window, nothing else", True, False, True),
    "ahn": Kind("sinks, window, and a memory of what left the window", True, True),
    "no-write": Kind("as ahn, but nothing is written into the memory", True, True),
    "compressive": Kind(
        "sinks, window, and the pooled keys and values of what left it", True, False, True, True
    ),
    "memory-only": Kind("the memory alone: no sinks, no window", False, True),
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
        """What is compared when no variant is named; of a model of no family of ours, itself."""
        settings = self.settings
        kind = self.base.config.get("model_type")
        if find_family(kind) is None and read_ahn_config(self.base.config, self.base.place) is None:
            return ["hf"]
        windowed = settings.window is not None or bool(settings.windows)
        last = default_variant(self.base, bool(settings.ahn), windowed)
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

    Kinds that pool also have `rate` (tokens), `pooling` (`mean`, `max`) and `slots`. Where a budget
    sizes them, options that are given stay: the window follows from the budget, or, where that is
    an option, the number of slots.

    Raises:
        InputError: everything that is wrong with it; see `ahn.resolve_checkpoint`.
    """
    kind, models, problems = KINDS[request.kind], settings.once(StreamingModels), Problems()
    readers: dict[str, Any] = {}
    size = _size_to_choose(request, settings)
    if kind.needs_window:
        readers |= {"window": tokens, "sinks": tokens}
    if kind.needs_memory:
        readers["weights"] = str
    if kind.pools:
        readers |= {"rate": tokens, "pooling": str, "slots": whole}
    own = request.take(**readers)
    pooled = {key: own[key] for key in ("rate", "pooling", "slots") if key in own}
    window, sinks = own.get("window", settings.window), own.get("sinks", settings.sinks)
    if size == "window" and window is None:
        window = 1  # it has one for each document
    problems.add(*map(_by_flag, AHNConfig.problems(request.kind, None, window, sinks)))
    wrong = AHNConfig.problems(request.kind, None, None, None, **pooled)
    problems.add(*(f"--variant {request}: {problem}" for problem in wrong))
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
    with _naming_flags(), _offering_hf(models):
        checkpoint = resolve_checkpoint(
            models.base,
            request.kind,
            memory,
            window,
            sinks,
            dtype,
            device,
            yarn_factor=settings.yarn_factor,
            **pooled,
        )
    if checkpoint.context is None:
        raise InputError(f"--model: {models.base}: config.json has no max_position_embeddings")
    seen, notices = checkpoint.settings, list(checkpoint.notices)
    if kind.needs_window and size is None and sinks is None and seen.window < seen.sinks:
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
        size,
    )


def _size_to_choose(request: VariantRequest, settings: RunSettings) -> str | None:
    """What a budget chooses for each document: `window`, `slots`; None: nothing."""
    kind = KINDS[request.kind]
    if not kind.sizable or settings.budget is None:
        return None
    if "window" not in request.options:
        return "window"
    return "slots" if kind.pools and "slots" not in request.options else None


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


@contextmanager
def _offering_hf(models: StreamingModels) -> Iterator[None]:
    """Where a model is of no family of ours, say how it can be asked."""
    try:
        yield
    except InputError as error:
        if find_family(models.base.config.get("model_type")) is not None:
            raise
        raise InputError(
            *(f"{problem}; others are asked as --variant hf" for problem in error.problems)
        ) from None


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
        size: what follows from a budget for each document: `window` or `slots`.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        checkpoint: ResolvedCheckpoint,
        ahn: str | None = None,
        yarn_factor: float | None = None,
        notices: Sequence[str] = (),
        size: str | None = None,
    ) -> None:
        self.size = size
        self.sizable = size is not None
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
        """Window, sinks, cell and layers with full attention, as far as this kind has them.

        And what is pooled how, where it pools.
        """
        settings, kind = self.checkpoint.settings, KINDS[self.kind]
        pooled = {
            "rate": settings.rate,
            "pooling": settings.pooling,
            "slots": None if self.size == "slots" else settings.slots,
        }
        return (pooled if kind.pools else {}) | {
            "window": settings.window if kind.needs_window and self.size != "window" else None,
            "sinks": settings.sinks if kind.needs_window else None,
            "cell": settings.cell if kind.needs_memory else None,
            "full_attention_layers": settings.full_attention_layers if kind.has_layers else (),
        }

    @property
    def _own_layers(self) -> dict[str, Any]:
        """Settings of single layers, by number, under `layers`; nothing where there are none."""
        layers = self.checkpoint.settings.layers
        if not layers or not KINDS[self.kind].has_layers:
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
        document = prompt_tokens if document_tokens is None else document_tokens
        layouts = self.layouts(document, budget)
        counted = layout_flops(self.checkpoint.shape, layouts, prompt_tokens, generated_tokens)
        return Cost(
            int(counted.total), self._held(prompt_tokens + max(generated_tokens - 1, 0), layouts)
        )

    def _held(self, tokens: int, layouts: Sequence[LayerLayout]) -> int:
        of_element = DTYPE_BYTES[self.checkpoint.dtype]
        return layout_bytes(self.checkpoint.shape, layouts, tokens, dtype_bytes=of_element).total

    def document_bytes(self, tokens: int) -> int | None:
        """See `Backend`."""
        return None if self.sizable else self._held(tokens, self.layouts(tokens, None))

    def kept(self, document_tokens: int, budget: int) -> float:
        """See `Backend`."""
        return kept_tokens(document_tokens, self.layouts(document_tokens, budget))

    def layouts(self, document_tokens: int, budget: int | None) -> Sequence[LayerLayout]:
        """What each layer sees of a document that may take so many bytes.

        A window that is sized is the largest one whose bytes after the document are within the
        budget, pooled slots that are sized are the most. Of a document that fits whole, the window
        holds as much of what follows it as the budget has room for. Without a budget, as where
        there is no document, the window holds everything, and slots are as many as the paper's.

        Raises:
            InputError: no size is small enough.
        """
        settings, shape = self.checkpoint.settings, self.checkpoint.shape
        if self.size == "window" and budget is None:
            return self._holding(max(document_tokens, self.context or 0))
        layouts = self._holding(document_tokens)
        if self.size is None or budget is None:
            return layouts
        whole_fits = self.size == "window" or all(
            layout.groups(document_tokens) <= layout.slots for layout in layouts
        )
        if whole_fits and self._held(document_tokens, layouts) <= budget:
            return self._with_spare(document_tokens, budget)
        of_element = DTYPE_BYTES[self.checkpoint.dtype]
        try:
            return fit_layouts(
                shape, layouts, budget, self.size, tokens=document_tokens, dtype_bytes=of_element
            )
        except InputError:
            seen = next(layout for layout in layouts if layout.window is not None)
            sinks = f"its {settings.sinks} sinks"
            least = self._held(document_tokens, smallest(layouts, self.size))
            if self.size == "slots":
                kept = f"{sinks}, a window of {seen.window} and one pooled slot"
            elif seen.slots:
                kept = f"{sinks}, {seen.slots} pooled slots and a window of one token"
            else:
                kept = f"{sinks} and a window of one token"
            raise InputError(
                f"{self.name} holds {least:,} bytes with {kept}, and the budget is {budget:,}"
            ) from None

    def _holding(self, number: int) -> Sequence[LayerLayout]:
        """Layouts whose window, where it is sized, holds so many tokens, sinks among them."""
        settings = self.checkpoint.settings
        if self.size == "window":
            settings = settings.with_span(max(1, number - settings.sinks), None)
        return settings.layouts(self.checkpoint.shape.num_hidden_layers)

    def _with_spare(self, document_tokens: int, budget: int) -> Sequence[LayerLayout]:
        """Layouts that hold a document whole, and what follows as far as the budget allows."""
        longest = max(document_tokens, self.context or 0)
        fitting = bisect_right(
            range(document_tokens + 1, longest + 1),
            budget,
            key=lambda number: self._held(number, self._holding(number)),
        )
        return self._holding(document_tokens + fitting)

    def open(self, tokenizer: Any, seed: int) -> Reader:
        """See `Backend`."""
        seed_everything(seed)
        layouts = self.layouts if self.sizable else None
        return StreamingReader(load_resolved(self.checkpoint), tokenizer, layouts)


def kept_tokens(tokens: int, layouts: Sequence[LayerLayout]) -> float:
    """How many of a document's tokens a layer keeps as they are, mean over layers."""
    return sum(layout.lossless(tokens) for layout in layouts) / len(layouts)


class StreamingReader(LocalReader):
    """A loaded model.

    Args:
        model: of `ahn.load_model`.
        tokenizer: its tokenizer.
        layouts: what its layers see, from the tokens of a document and the bytes that it may take;
            None: what the model says.
    """

    def __init__(self, model: Any, tokenizer: Any, layouts: Layouts | None = None) -> None:
        super().__init__(model, tokenizer)
        self._layouts = layouts
        # `generate` fills what a call leaves open from here; each call comes with all settings.
        model.generation_config = GenerationConfig()

    def describe(self) -> Mapping[str, Any]:
        """See `Reader`."""
        layers = self.model.layout
        cells = [layer.cell for layer in layers if layer.cell is not None]
        return {
            "cell": cells[0] if cells else None,
            "parameters": self.model.num_parameters(),
            "layout": [
                {"window": layer.window, "sinks": layer.sinks, "cell": layer.cell, **layer.pooled}
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

    def fill(self, ids: Ids, budget: int | None = None) -> AHNCache:
        """See `LocalReader`."""
        cache: AHNCache = self.model.new_cache()
        if self._layouts is not None:
            cache = AHNCache(list(self._layouts(len(ids), budget)), self.model)
        self.prefill(ids, cache)
        return cache

    def prefill(self, ids: Ids, cache: AHNCache) -> None:
        """See `LocalReader`."""
        if len(ids):
            self.model(
                input_ids=self.as_batch(ids),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                layout=_layouts_of(cache),
            )

    def decode(self, prompt: torch.Tensor, cache: AHNCache, question: Question) -> list[int]:
        """See `LocalReader`."""
        stop = list(question.stop)
        output = self.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=cache,
            generation_config=question.settings,
            layout=_layouts_of(cache),
            **({"stop_strings": stop, "tokenizer": self.tokenizer} if stop else {}),
        )
        new_ids: list[int] = output[0, prompt.shape[1] :].tolist()
        return new_ids

    def copy(self, cache: AHNCache) -> AHNCache:
        """See `LocalReader`."""
        return cache.copy()

    def used(self, cache: AHNCache) -> int:
        """See `LocalReader`."""
        return int(cache.nbytes)

    def kept(self, cache: AHNCache, document_tokens: int) -> float:
        """See `LocalReader`."""
        return kept_tokens(document_tokens, _layouts_of(cache))


def _layouts_of(cache: AHNCache) -> list[LayerLayout]:
    return [layer.layout for layer in cache.layers]
