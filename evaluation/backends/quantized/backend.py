"""`quantized`: a stock model whose keys and values are kept in 8, 4 or 2 bits.

`quantized:bits=4` is asked like `hf`, with a cache of `evaluation.backends.quantized.cache`. How a
document is read is part of what is compared:

- `chunk=whole`, the default: in one pass, in which attention sees keys and values as they are.
  Each layer is quantised as soon as it has been computed. This takes the activations of a whole
  document. The question and the answer see the quantised document.
- `chunk=TOKENS`: in pieces; each sees the earlier ones quantised, some of them several times (see
  `quantized_cache`). Needs less memory, and gives other logits.

Questions and answers wait in full precision until `residual` tokens are together; then all that is
kept is quantised again, as transformers does it.

With `--budget`, a document that fits is kept whole, and the record says how much of the budget it
takes. Of one that does not fit, tokens are dropped before it is quantised: a press chooses them
(`press=snapkv`, after a pass in full precision), and without one the first `sinks` and the last
tokens stay, as in StreamingLLM. `keep=TOKENS` drops without a budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ahn.checkpoints.placement import DTYPE_BYTES
from ahn.cost.accounting import flops
from common.errors import InputError, Problems
from evaluation.backends.base import Cost, Ids, Reader, RunSettings
from evaluation.backends.local import seed_everything
from evaluation.backends.presses.backend import PressBackend
from evaluation.backends.presses.library import PressSpec, Size, read_request
from evaluation.backends.presses.reading import PressedModel
from evaluation.backends.presses.room import Layers, kept_of, target_of
from evaluation.backends.presses.sizes import count_kept, share_to_drop, sized_press
from evaluation.backends.quantized.cache import (
    AXES,
    BITS,
    DEFAULT_BACKEND,
    DEFAULT_RESIDUAL,
    PACKAGES,
    KVShape,
    Scheme,
    default_group,
    quantize,
)
from evaluation.backends.requests import VariantRequest, tokens
from evaluation.backends.stock import Past, StockBackend, StockModels, StockReader

INSTALL = "pip install 'ahn-bench[quantized]'"
DEFAULT_SINKS = 4
_FP8_VERSION = "1"
"""Of the format of `quantized_cache.Fp8Layer`."""
_MODULES = {"hqq": "hqq", "quanto": "optimum.quanto"}
_SMALLEST_GROUP = 8


def kv_shapes(settings: RunSettings) -> tuple[KVShape, ...]:
    """Keys and values of each layer of the run's model, found without weights.

    Raises:
        InputError: not all of its layers keep keys and values of all tokens.
    """
    models = settings.once(StockModels)
    place, kind = models.files.place, models.config["model_type"]
    config = CONFIG_MAPPING[kind].from_dict(models.config)
    try:
        cache = DynamicCache(config=config)
        _check_layers(cache, place)
        dtype = getattr(torch, models.device_and_dtype[1])
        with torch.device("meta"), torch.inference_mode():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
            ids = torch.zeros(1, 1, dtype=torch.long)
            cache = model(input_ids=ids, past_key_values=cache, use_cache=True).past_key_values
    except InputError:
        raise
    except Exception as error:  # whatever a model's own code raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{place}: {kind} cannot be quantized: it does not take transformers' cache ({reason})"
        ) from error
    _check_layers(cache, place)
    found = [(layer.keys, layer.values) for layer in cache.layers]
    if not all(isinstance(keys, torch.Tensor) and keys.dim() == 4 for keys, _ in found):
        raise InputError(f"{place}: {kind} cannot be quantized: some layers keep no keys")
    return tuple(KVShape(k.shape[1], k.shape[3], v.shape[3]) for k, v in found)


def _check_layers(cache: Any, place: Path | str) -> None:
    """Refuse layers that do not keep the keys and values of all tokens.

    Raises:
        InputError: which layers, and what they keep.
    """
    layers = getattr(cache, "layers", [])
    others = {n: type(x).__name__ for n, x in enumerate(layers) if type(x) is not DynamicLayer}
    if others:
        number, name = next(iter(others.items()))
        raise InputError(
            f"{place}: only models whose layers all have full attention can be quantized; here "
            f"{len(others)} of {len(layers)} do not (layer {number}: {name}); ask it as hf"
        )


@dataclass(frozen=True)
class Fit:
    """What becomes of a document.

    Attributes:
        kept: tokens that stay in each layer.
        quantized: of them, those that are quantised.
        waiting: of them, those in full precision.
        again: it is quantised once more after it was read, because tokens are dropped or none may
            wait.
    """

    kept: int
    quantized: int
    waiting: int
    again: bool


def _bits(text: str) -> int:
    if text not in ("8", "4", "2"):
        raise ValueError(f"{text!r} is none of 8, 4, 2")
    return int(text)


def _backend(text: str) -> str:
    if text not in BITS:
        raise ValueError(f"{text!r} is none of {', '.join(BITS)}")
    return text


def _group(text: str) -> int:
    if not text.isdecimal() or int(text) < _SMALLEST_GROUP or int(text) % _SMALLEST_GROUP:
        raise ValueError(f"{text!r} is no multiple of {_SMALLEST_GROUP}")
    return int(text)


def _axis(text: str) -> int:
    if text not in ("0", "1", "-1"):
        raise ValueError(f"{text!r} is none of 0, 1 (hqq), 0, -1 (quanto)")
    return int(text)


def _from_0(text: str) -> int:
    if (number := tokens(text)) < 0:
        raise ValueError(f"{text!r} is below 0")
    return number


def _from_1(text: str) -> int:
    if (number := tokens(text)) < 1:
        raise ValueError(f"{text!r} is below 1")
    return number


class QuantizedBackend(StockBackend):
    """A model of transformers with a quantised cache; see the module.

    Args:
        request: options `bits` (8, 4 or 2; needed), `backend` (quanto: 4 or 2 bits, the default of
            these; hqq: 8, 4 or 2, the default of 8; fp8: 8, needs no package), `group` (elements
            that share a scale), `axis_key` and `axis_value` (what a group is; see
            `quantized_cache`), `residual` (tokens that wait unquantised, 128), `chunk` (tokens
            read at a time, or `whole`), `keep` (tokens of a document that stay), `sinks` (first
            tokens that stay where others are dropped, 4), `attention` (as of `hf`), and `press`
            (of kvpress) with its own fields.
        settings: of the run.

    Raises:
        InputError: everything that is wrong with it.
    """

    needs_boundary = True
    readers: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        **StockBackend.readers,
        "bits": _bits,
        "backend": _backend,
        "group": _group,
        "axis_key": _axis,
        "axis_value": _axis,
        "residual": _from_0,
        "sinks": _from_0,
        "keep": _from_1,
        "press": str,
    }

    def __init__(self, request: VariantRequest, settings: RunSettings) -> None:
        own, of_press = dict(request.options), {}
        if "press" in own:
            # Whatever is wrong with an option of any kind; what can be chosen is told.
            read_request(request, {**self.readers, "chunk": str})
            fields = [key for key in own if key not in self.readers]
            of_press = {key: own.pop(key) for key in ("press", *fields)}
            of_press |= {key: own[key] for key in ("keep", "attention") if key in own}
        if own.get("chunk") == "whole":
            del own["chunk"]
        super().__init__(replace(request, options=own), settings)
        self._where = f"--variant {request}"
        problems = Problems()
        if "bits" not in self.options:
            problems.add(f"{self._where}: how many bits? (bits=8, bits=4 or bits=2)")
        self.shapes: tuple[KVShape, ...] = ()
        with problems.collecting():
            self.shapes = settings.once(kv_shapes)
        problems.check()
        problems.add(*self._wrong_scheme())
        self.press: PressBackend | None = None
        if of_press:
            part = replace(request, options=of_press)
            try:
                self.press = PressBackend(part, settings)
            except InputError as error:
                asked = f"--variant {part}"
                problems.add(*(text.replace(asked, self._where) for text in error.problems))
        if self.press is not None:
            problems.add(*self._wrong_press(self.press))
            self.options["attention"] = self.press.options["attention"]
            self.notices = self.press.notices
        elif self.options.get("sinks", 0) > self.options.get("keep", self.context or 2**62):
            problems.add(f"{self._where}: more sinks than tokens that are kept (keep)")
        problems.check()
        self.scheme = self._scheme()
        try:
            self.scheme.layer()
        except (AttributeError, ImportError, ValueError) as error:  # whatever a package misses
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"{self._where}: {self.scheme.backend} cannot be used ({reason}): {INSTALL}"
            ) from error
        chosen = "keep" in self.options or self.own_size
        self.sizable = settings.budget is not None and not chosen
        if self.press is not None:
            self.sizable = self.press.sizable

    # -- what was asked for -------------------------------------------------------------------

    def _wrong_scheme(self) -> Iterator[str]:
        """What is wrong with bits, back-end, group and axes."""
        options, where = self.options, self._where
        backend, bits = self._backend, options["bits"]
        if bits not in BITS[backend]:
            able = ", ".join(name for name, choices in BITS.items() if bits in choices)
            has = ", ".join(map(str, BITS[backend]))
            yield f"{where}: {backend} has {has} bits; {bits} bits: backend={able}"
        module = _MODULES.get(backend)
        if module is not None and not _is_installed(module):
            yield (
                f"{where}: backend={backend} needs {PACKAGES[backend]}: {INSTALL} (backend=fp8, "
                "8 bits, needs no package)"
            )
        for key in ("group", "axis_key", "axis_value", "residual"):
            if key not in options:
                continue
            if backend == "fp8":
                yield (
                    f"{where}: {key}: fp8 has a scale for each token and head, and quantises each "
                    "token once"
                )
            elif key.startswith("axis") and options[key] not in AXES[backend]:
                axes = " or ".join(map(str, sorted(AXES[backend])))
                yield f"{where}: {key}: of {backend} it is {axes}"
        if backend == "fp8" and (self.device or "").startswith("mps"):
            yield f"{where}: fp8 is not there on mps; choose --device cpu, or another back-end"

    def _wrong_press(self, press: PressBackend) -> Iterator[str]:
        """What is wrong with a press on top of a quantised cache."""
        name = press.spec.name
        if press.spec.masks:
            yield f"{self._where}: {name} frees no memory, quantised or not: {press.spec.masks}"
        if press.spec.rotates:
            yield f"{self._where}: {name} moves keys; it works on a cache in full precision only"
        for key, reason in (
            ("chunk", "a press reads a document in one piece"),
            ("sinks", "the press chooses what stays"),
        ):
            if key in self.options:
                yield f"{self._where}: {key}: {reason}"

    @property
    def _backend(self) -> str:
        return str(self.options.get("backend", DEFAULT_BACKEND[self.options["bits"]]))

    def _scheme(self) -> Scheme:
        options = self.options
        backend, bits = self._backend, options["bits"]
        if backend == "fp8":
            return Scheme(backend, bits)
        axis = AXES[backend][0]
        return Scheme(
            backend,
            bits,
            options.get("group", default_group(self.shapes)),
            options.get("axis_key", axis),
            options.get("axis_value", axis),
            options.get("residual", DEFAULT_RESIDUAL),
        )

    def identity(self) -> Mapping[str, Any]:
        """See `Backend`."""
        scheme, options = self.scheme, self.options
        package = PACKAGES.get(scheme.backend)
        found = {
            **super().identity(),
            "chunk": options.get("chunk", "whole"),
            "backend": scheme.backend,
            "backend_version": _FP8_VERSION if package is None else metadata.version(package),
            "bits": scheme.bits,
            "keep": options.get("keep"),
            "sinks": options.get("sinks", DEFAULT_SINKS) if self.press is None else None,
        }
        if self.press is not None:
            of_press = self.press.identity()
            found |= {key: of_press[key] for key in ("kvpress", "press", "size")}
        if scheme.backend != "fp8":
            found |= {
                "group": scheme.group,
                "axis_key": scheme.axis_key,
                "axis_value": scheme.axis_value,
                "residual": scheme.residual,
            }
        return found

    def weight_files(self) -> Sequence[Path]:
        """See `Backend`: those of the press, too."""
        return super().weight_files() if self.press is None else self.press.weight_files()

    def describe(self) -> Mapping[str, Any]:
        """See `Backend`."""
        folders = {} if self.press is None else self.press.folders
        return {**super().describe(), **folders}

    # -- sizes --------------------------------------------------------------------------------

    @property
    def _element(self) -> int:
        return DTYPE_BYTES[self.dtype]

    def _bytes(self, quantized: int, waiting: int) -> int:
        """Bytes of all layers."""
        return sum(
            self.scheme.layer_bytes(shape, quantized, waiting, self._element)
            for shape in self.shapes
        )

    def _as_read(self, document: int) -> tuple[int, int]:
        """Tokens that are quantised, and that wait, after a document that was read as asked."""
        return self.scheme.after(pieces(document, self.options.get("chunk")))

    def fit(self, document: int, budget: int | None) -> Fit:
        """What becomes of a document of so many tokens; a press may keep fewer.

        Raises:
            InputError: the budget is too small for a token, or for the press.
        """
        budget = budget if self.sizable else None
        as_read = self._as_read(document)
        wanted = self._wanted(document)
        if wanted is None and budget is not None and self._bytes(*as_read) > budget:
            wanted = self._most(document, budget)
        if wanted is None or (wanted >= document and budget is None):
            return Fit(document, *as_read, again=False)
        kept = min(wanted, document)
        if self.press is not None and kept < document:
            # refuses what the press does not reach
            target_of(
                self.press.spec,
                Size(),
                self.press.layers,
                document,
                self.in_full_precision(document, kept),
            )
        return Fit(kept, kept, 0, again=True)

    def _wanted(self, document: int) -> int | None:
        """Tokens to keep by the variant's own options; None: the budget decides, or all."""
        if self.press is None:
            kept: int | None = self.options.get("keep")
            return kept
        wanted = self.press.size.tokens(document)
        return None if wanted is None else max(wanted, self.press.spec.least)

    def in_full_precision(self, document: int, kept: int) -> int:
        """Bytes of so many tokens in full precision, by which a press is sized."""
        assert self.press is not None
        layers = self.press.layers
        return kept * layers.room(document).per_token * layers.slot

    def _most(self, document: int, budget: int) -> int:
        """Tokens that fit a budget.

        Raises:
            InputError: not one fits.
        """
        scheme, shapes, element = self.scheme, self.shapes, self._element
        if self._bytes(document, 0) <= budget:
            return document
        spare = self._spare
        most = scheme.most_tokens(shapes, element, budget - spare, document)
        if most < 1:
            raise InputError(
                f"{self.name}: {budget:,} bytes hold no token: the first takes "
                f"{self._bytes(1, 0) + spare:,}"
            )
        return most

    def _by_layer(self, document: int, budget: int | None) -> list[tuple[int, int]] | None:
        """Tokens of each layer that are quantised, and that wait; None: known once it was read."""
        fit, press = self.fit(document, budget), self.press
        if press is None or (fit.kept == document and not self.own_size):
            return [(fit.quantized, fit.waiting)] * len(self.shapes)
        target = None if self.own_size else self.in_full_precision(document, fit.kept)
        room = press.layers.room(document)
        kept = slots_by_layer(press.spec, press.layers, document, target)
        return None if kept is None else [(slots // room.heads, 0) for slots in kept]

    @cached_property
    def _spare(self) -> int:
        """Bytes that are left free: under a press each layer may fill up a group of its own."""
        if self.press is None:
            return 0
        return sum(self.scheme.padding(shape, self._element) for shape in self.shapes)

    def kept(self, document_tokens: int, budget: int) -> float:
        """See `Backend`; of a press that keeps whole chunks, the most that it may keep."""
        layers = self._by_layer(document_tokens, budget)
        if layers is None:
            return self.fit(document_tokens, budget).kept
        return float(mean_kept(layers))

    def document_bytes(self, tokens: int) -> int | None:
        """See `Backend`."""
        layers = None if self.sizable else self._by_layer(tokens, None)
        return None if layers is None else self._bytes_by_layer(layers)

    def _bytes_by_layer(self, layers: Sequence[tuple[int, int]]) -> int:
        return sum(
            self.scheme.layer_bytes(shape, *held, self._element)
            for shape, held in zip(self.shapes, layers, strict=True)
        )

    @property
    def own_size(self) -> bool:
        """Whether settings of the press alone say what is kept."""
        return self.press is not None and self.press.spec.sized is None

    def cost(
        self,
        prompt_tokens: int,
        generated_tokens: int,
        document_tokens: int | None = None,
        budget: int | None = None,
    ) -> Cost:
        """See `Backend`: products of matrices; that keys and values are unpacked is not counted.

        The document costs what it costs with full attention, question and answer what they see of
        it. Not counted is what a press computes.
        """
        if document_tokens is None or (self.sizable and document_tokens and budget is None):
            return Cost()
        document, layers = document_tokens, [(0, 0)] * len(self.shapes)
        if document:
            found = self._by_layer(document, budget)
            if found is None:
                return Cost()
            layers = found
        question = prompt_tokens - document
        # All of the question but its last token is one chunk; then token by token.
        chunks = [max(question - 1, 0), *[1] * generated_tokens]
        at_end = self._bytes_by_layer([self.scheme.after(chunks, held) for held in layers])
        return Cost(self._flops(layers, document, question, generated_tokens), at_end)

    def _flops(
        self, layers: Sequence[tuple[int, int]], document: int, question: int, generated: int
    ) -> int | None:
        shape, press = self.models.shape, self.press
        again = press is not None and any(part.traits.again for part in press.spec.all)
        if shape is None or question < 1 or again:
            return None

        def after(kept: int) -> int:
            """Of question and answer, after so many tokens in each layer."""
            return flops(
                shape, "full", kept + question, generated, accounting="exact", reused_tokens=kept
            ).total

        whole = flops(shape, "full", document + question, generated, accounting="exact").total
        # Linear in what is kept, so the mean of the layers stands for all of them.
        mean = mean_kept(layers)
        low = int(mean)
        more = (mean - low) * (after(low + 1) - after(low)) if mean > low else 0
        return whole - after(document) + after(low) + round(more)

    # -- reading ------------------------------------------------------------------------------

    def open(self, tokenizer: Any, seed: int) -> Reader:
        """See `Backend`.

        Raises:
            InputError: the weights are not those of the model, or the model cannot go on from a
                cache.
        """
        seed_everything(seed)
        model = self._load()
        if self.press is not None and not self.models.files.is_folder:
            # Presses look for what belongs to a model by its name on the hub.
            model.config.name_or_path = str(self.models.files.place)
        return QuantizedReader(model, tokenizer, self, seed)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def pieces(document: int, chunk: int | None) -> Iterator[int]:
    """Lengths of the pieces in which a document is read."""
    step = chunk or max(document, 1)
    yield from (min(step, document - start) for start in range(0, document, step))


def slots_by_layer(
    spec: PressSpec, layers: Layers, document: int, budget: int | None
) -> list[int] | None:
    """Slots of all heads that a press keeps in each layer; None: it depends on the document.

    Args:
        spec: the press.
        layers: of the model, all with full attention.
        document: tokens.
        budget: bytes in full precision; None: the press' own settings.
    """
    if kept_of(spec, Size(), layers, document, budget) is None:
        return None
    press, room = spec.make(), layers.room(document)
    if budget is not None:
        share = share_to_drop(spec, press, room, budget // layers.slot)
        sized_press(spec, press).compression_ratio = share
    return [count_kept(spec, press, replace(room, numbers=(n,))) for n in room.numbers]


def mean_kept(layers: Sequence[tuple[int, int]]) -> Fraction:
    """Tokens, quantised or not, mean over layers."""
    return Fraction(sum(map(sum, layers)), len(layers))


class QuantizedReader(StockReader):
    """A loaded model with a quantised cache.

    Args:
        model: of `AutoModelForCausalLM`.
        tokenizer: makes texts of ids.
        backend: what was asked for.
        seed: of presses that draw.

    Raises:
        InputError: the model does not go on from a cache with several tokens as it should.
    """

    def __init__(self, model: Any, tokenizer: Any, backend: QuantizedBackend, seed: int) -> None:
        super().__init__(model, tokenizer, backend.options.get("chunk"))
        if self.reading == "whole prompt":
            raise InputError(f"{backend.name}: {self.fallback}: nothing is left to be quantized")
        self.backend = backend
        self.layers = len(backend.shapes)
        self.pressed: PressedModel | None = None
        if backend.press is not None:
            self.pressed = PressedModel(backend.press.spec, Size(), model, seed)

    def fill(self, ids: Ids, budget: int | None = None) -> Past:
        """See `LocalReader`."""
        past = super().fill(ids, budget)
        if past.cache is None:
            past.cache = self.backend.scheme.cache(self.layers)
        return past

    def read_document(self, ids: torch.Tensor, past: Past, budget: int | None) -> None:
        """See `StockReader`."""
        scheme, document = self.backend.scheme, ids.shape[1]
        fit = None if self.backend.own_size else self.backend.fit(document, budget)
        if self.pressed is not None and (fit is None or fit.kept < document):
            cache = self.pressed.new_cache()
            size = None if fit is None else self.backend.in_full_precision(document, fit.kept)
            self.pressed.read(ids, cache, size)
            quantize(cache, scheme)
            past.cache, past.seen = cache, document
            return
        # What is dropped at once is not quantised before.
        in_full = fit is not None and fit.again and self.chunk is None
        past.cache = (
            DynamicCache(config=self.model.config) if in_full else scheme.cache(self.layers)
        )
        for length in ids.split(list(pieces(document, self.chunk)), 1):
            self._pass(length, past)
        if fit is not None and fit.again:
            kept = self._first_and_last(document, fit.kept)
            quantize(past.cache, scheme, [kept] * self.layers)

    def _first_and_last(self, document: int, kept: int) -> torch.Tensor | None:
        """Indices `[kept]` of the first and the last tokens; None: all."""
        if kept == document:
            return None
        first = min(self.backend.options.get("sinks", DEFAULT_SINKS), kept)
        places = [*range(first), *range(document - (kept - first), document)]
        return torch.tensor(places, device=self.device)

    def kept(self, past: Past, document_tokens: int) -> float | None:
        """See `LocalReader`."""
        return mean_slots(past.cache.layers)

    def describe(self) -> Mapping[str, Any]:
        """See `Reader`."""
        found = {**super().describe(), "cache": type(self.backend.scheme.layer()).__name__}
        return found if self.pressed is None else {**found, **self.pressed.describe()}


def mean_slots(layers: Sequence[Any]) -> float:
    """Tokens that layers hold, mean over them."""
    return sum(layer.get_seq_length() for layer in layers) / len(layers)
