"""`kvpress:PRESS`: a stock model whose cache of a document is compressed by a press of kvpress.

The document is read, in full and in one chunk; the press then drops what it thinks matters least,
before any question is known; then the question is read at its true positions, on what is left. So
memory peaks while the document is read, and what is saved is saved afterwards. What the press
computes itself is not counted in FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ahn.checkpoints.placement import DTYPE_BYTES
from ahn.cost.accounting import flops
from common.errors import InputError, Problems
from evaluation.backends.base import Cost, RunSettings
from evaluation.backends.local import seed_everything
from evaluation.backends.presses.library import VERSION, PressSpec, Size, read_request
from evaluation.backends.presses.masks import PressedCache
from evaluation.backends.presses.reading import PressedModel
from evaluation.backends.presses.room import (
    FAMILIES,
    Kept,
    Layers,
    bytes_held,
    kept_of,
    masks_heads,
    target_of,
    tokens_a_layer,
)
from evaluation.backends.requests import VariantRequest
from evaluation.backends.stock import Past, StockBackend, StockReader

_ATTENTION = ("sdpa", "eager")
_OTHERS: Mapping[str, Callable[[str], Any]] = {"attention": str}


class PressBackend(StockBackend):
    """A press on a stock model.

    Args:
        request: the press and its settings (`press_library`); `keep` (tokens) or `ratio` (share
            that is dropped); `attention` (sdpa, eager).
        settings: of the run; without `keep` and `ratio` its budget decides what is kept.

    Raises:
        InputError: everything that is wrong with it.
    """

    needs_boundary = True
    readers = _OTHERS

    def __init__(self, request: VariantRequest, settings: RunSettings) -> None:
        problems = Problems()
        spec, size = PressSpec(""), Size()
        with problems.collecting():
            spec, size = read_request(request, _OTHERS)
        given = {key: text for key, text in request.options.items() if key in _OTHERS}
        with problems.collecting():
            super().__init__(replace(request, options=given), settings)
        problems.check()
        self.spec, self.size = spec, size
        chosen = bool(size.described()) or spec.sized is None
        self.sizable = not chosen and settings.budget is not None
        where = f"--variant {request}"
        if not chosen and not self.sizable:
            problems.add(
                f"{where}: how much is kept? keep=TOKENS, ratio=SHARE (that is dropped), or "
                "--budget for all variants"
            )
        problems.add(*(f"{where}: {problem}" for problem in self._problems_of_model()))
        with problems.collecting(f"{where}: "):
            self.options["attention"] = self._attention()
        problems.check()
        self.notices = tuple(f"{self.name}: {notice}" for notice in self._notices(settings))

    def _problems_of_model(self) -> list[str]:
        """Why the press cannot work on this model."""
        kind, spec = self.models.config["model_type"], self.spec
        if kind not in FAMILIES:
            return [f"kvpress works on {', '.join(FAMILIES)}, not on {kind}"]
        problems = [
            f"{part.name} does not work on {kind}"
            for part in spec.all
            if kind in part.traits.not_for
        ]
        windows = self.layers.windows
        if self.layers.pressed < len(windows) and kind != "gemma3":
            problems.append(
                f"{len(windows) - self.layers.pressed} of the model's {len(windows)} layers slide, "
                f"which kvpress does not know of {kind}"
            )
        shares = spec.fields.get("compression_ratios")
        if shares is not None and len(shares) != len(windows):
            problems.append(
                f"compression_ratios: {len(shares)} shares for a model of {len(windows)} layers"
            )
        return problems

    def _attention(self) -> str:
        """The implementation that the press needs, or that was asked for."""
        asked = self.options.get("attention")
        if asked not in (None, *_ATTENTION):
            raise InputError(f"attention: {asked!r} is none of {', '.join(_ATTENTION)}")
        if self.spec.eager and asked == "sdpa":
            raise InputError("attention: the press needs attention weights: eager")
        if masks_heads(self.spec) and asked == "eager":
            raise InputError("attention: kvpress masks tokens of single heads with sdpa only")
        return asked or ("eager" if self.spec.eager else "sdpa")

    def _notices(self, settings: RunSettings) -> list[str]:
        spec = self.spec
        said = [f"it {note}" for part in spec.all for note in part.traits.notes]
        said += [f"it needs {part.traits.needs}" for part in spec.all if part.traits.needs]
        if spec.masks:
            said.append(f"{spec.masks}: its bytes are those of the whole document")
        if settings.budget is not None and spec.sized is None:
            said.append("its size follows from settings of its own, not from --budget")
        if spec.name == "PyramidKVPress":
            least = spec.fields["beta"] * spec.fields["window_size"]
            if self.size.keep is None or self.size.keep < least:
                said.append(
                    f"where it may keep fewer than {least:,} tokens a layer (beta x window_size), "
                    "all layers may keep equally many, as SnapKV does, to which it falls back"
                )
        return list(dict.fromkeys(said))

    @cached_property
    def layers(self) -> Layers:
        """The caches of the model's layers."""
        config = CONFIG_MAPPING[self.models.config["model_type"]].from_dict(self.models.config)
        return Layers.of(config, DTYPE_BYTES[self.dtype])

    def identity(self) -> Mapping[str, Any]:
        """See `Backend`."""
        chosen = "the run's budget" if self.sizable else "its own settings"
        return {
            **super().identity(),
            "kvpress": VERSION,
            "press": self.spec.described(),
            "size": dict(self.size.described()) or chosen,
        }

    def weight_files(self) -> Sequence[Path]:
        """See `Backend`: those of the model, and statistics in a folder of the user's."""
        folders = self.folders.get("folders", ())
        own = [file for folder in folders for file in sorted(Path(folder).glob("*"))]
        return [*super().weight_files(), *(file for file in own if file.is_file())]

    @property
    def folders(self) -> Mapping[str, list[str]]:
        """Folders with statistics for the press, under `folders`; nothing where there are none."""
        given = [part.fields.get("stats_folder") for part in self.spec.all]
        return {"folders": [str(folder) for folder in given if folder]} if any(given) else {}

    def describe(self) -> Mapping[str, Any]:
        """See `Backend`."""
        freed = f"no: {self.spec.masks}" if self.spec.masks else "yes"
        return {**super().describe(), **self.folders, "frees_memory": freed}

    def _kept(self, document_tokens: int, budget: int | None) -> Kept | None:
        if not document_tokens:
            return Kept(0, 0)
        return kept_of(self.spec, self.size, self.layers, document_tokens, budget)

    def kept(self, document_tokens: int, budget: int) -> float:
        """See `Backend`; of a press that keeps whole chunks, the most that it may keep."""
        kept, layers = self._kept(document_tokens, budget), self.layers
        slots = None if kept is None else kept.visible
        if slots is None:
            slots = target_of(self.spec, self.size, layers, document_tokens, budget).slots
        assert slots is not None, "it is sizable"
        slots += layers.sliding_tokens(document_tokens) * layers.heads
        return tokens_a_layer(slots, layers)

    def document_bytes(self, tokens: int) -> int | None:
        """See `Backend`."""
        kept = None if self.sizable else self._kept(tokens, None)
        return None if kept is None else bytes_held(kept, self.layers, tokens)

    def cost(
        self,
        prompt_tokens: int,
        generated_tokens: int,
        document_tokens: int | None = None,
        budget: int | None = None,
    ) -> Cost:
        """See `Backend`: the document as full attention reads it, then the slots that are kept.

        What the press itself computes is not counted.
        """
        if document_tokens is None or (self.sizable and document_tokens and budget is None):
            return Cost()
        document, kept = document_tokens, None
        with suppress(InputError):  # the document cannot be pressed so far
            kept = self._kept(document, budget)
        if kept is None:
            return Cost()
        new = prompt_tokens - document
        held = bytes_held(kept, self.layers, document, new + max(generated_tokens - 1, 0))
        return Cost(self._flops(kept, document, new, generated_tokens), held)

    def _flops(self, kept: Kept, document: int, new: int, generated: int) -> int | None:
        shape = self.models.shape
        if shape is None or any(part.traits.again for part in self.spec.all):
            return None
        reading = 0
        if document:
            counted = flops(shape, "full", document)
            reading = counted.total - counted.parts["lm_head"]  # its logits are not computed

        def after(slots: int) -> int:
            return flops(shape, "full", slots + new, generated, reused_tokens=slots).total

        # Linear in the slots that are seen, so the mean of the layers stands for all of them.
        mean = Fraction(kept.visible, self.layers.room(document).per_token)
        whole = int(mean)
        more = (mean - whole) * (after(whole + 1) - after(whole)) if mean > whole else 0
        return reading + after(whole) + round(more)

    def open(self, tokenizer: Any, seed: int) -> PressReader:
        """See `Backend`.

        Raises:
            InputError: the weights are not those of the model, or what the press needs is not here.
        """
        seed_everything(seed)
        model = self._load()
        if not self.models.files.is_folder:
            # Presses look for what belongs to a model by its name on the hub.
            model.config.name_or_path = str(self.models.files.place)
        return PressReader(model, tokenizer, PressedModel(self.spec, self.size, model, seed))


class PressReader(StockReader):
    """A stock model that presses what it reads of documents.

    Args:
        model: that was loaded.
        tokenizer: makes texts of ids.
        presses: reads its documents.
    """

    def __init__(self, model: Any, tokenizer: Any, presses: PressedModel) -> None:
        self._presses = presses
        super().__init__(model, tokenizer)
        if self.reading == "whole prompt":
            raise InputError(f"a press cannot be used with this model: {self.fallback}")

    def new_cache(self) -> PressedCache:
        """See `StockReader`."""
        return self._presses.new_cache()

    def read_document(self, ids: torch.Tensor, past: Past, budget: int | None) -> None:
        """See `StockReader`: in one chunk, and then it is pressed."""
        cache = self.new_cache()
        self._presses.read(ids, cache, budget)
        past.cache = cache
        past.seen = ids.shape[1] if cache.next_position is None else cache.next_position

    def kept(self, past: Past, document_tokens: int) -> float | None:
        """See `LocalReader`: tokens that heads look at, measured."""
        return self._presses.kept_tokens(past.cache)
