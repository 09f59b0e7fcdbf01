"""The presses of kvpress: which can be asked for, what each needs, and how it is asked for.

A press is named by its class without `Press`, in any case: `kvpress:snapkv`. Every argument of its
constructor is an option. A press that works through another one names it with `inner`, and gives
that one's options behind its name: `kvpress:adakv,inner=snapkv,snapkv.window_size=32`.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Literal, Union

from common.errors import InputError, Problems
from common.suggestions import did_you_mean
from evaluation.backends.presses.shims import import_kvpress, quiet
from evaluation.backends.requests import VariantRequest, tokens

VERSION = "0.5.5"
"""The version whose presses are described here. Others count tokens differently."""
INSTALL = f"pip install 'ahn-bench[kvpress]', then pip install --no-deps kvpress=={VERSION}"
"""kvpress asks for older versions of transformers and pandas than are needed: hence `--no-deps`."""


@dataclass(frozen=True)
class Traits:
    """What is to be known about a press.

    Attributes:
        refused: why it cannot be asked for.
        size: its own setting that decides how much it keeps; a number of tokens cannot.
        masks: it masks tokens of single heads, or zeroes channels, and frees no memory; the text
            says which.
        eager: it needs attention weights, which only the slowest form of attention gives.
        needs: what it loads from the hub, or from elsewhere in the network.
        not_for: families of models that it cannot press.
        again: it reads the document more than once.
        notes: what people must be told.
    """

    refused: str = ""
    size: str = ""
    masks: str = ""
    eager: bool = False
    needs: str = ""
    not_for: tuple[str, ...] = ()
    again: bool = False
    notes: tuple[str, ...] = ()


_HEADS = "tokens are masked head by head, and stay in memory"
_DECODES = (
    "it compresses while an answer is written; here a document is compressed, once for all of its "
    "questions"
)
_TWICE = (
    "reads the document once more to see what matters: that is in prefill_seconds, and its FLOPs "
    "are not known"
)

TRAITS: Mapping[str, Traits] = {
    "AdaKVPress": Traits(masks=_HEADS),
    "BasePress": Traits(refused="it is what presses are made from"),
    "BlockPress": Traits(),
    "CAMPress": Traits(refused=_DECODES),
    "CURPress": Traits(),
    "CapPress": Traits(),
    "ChunkKVPress": Traits(notes=("keeps whole chunks: up to chunk_length tokens fewer",)),
    "ChunkPress": Traits(notes=("rounds down in each chunk: up to one token fewer a chunk",)),
    "CompactorPress": Traits(),
    "ComposedPress": Traits(),
    "CompressionRatioDecodingPress": Traits(refused=_DECODES),
    "CriticalAdaKVPress": Traits(masks=_HEADS),
    "CriticalKVPress": Traits(),
    "DMSPress": Traits(size="threshold", masks=_HEADS),
    "DecodingPress": Traits(refused=_DECODES),
    "DuoAttentionPress": Traits(
        size="head_compression_ratio",
        masks=_HEADS,
        needs="attention patterns, published for a few models, or (on_the_fly_scoring=true) the "
        "data set kmfoda/booksum",
        not_for=("gemma3",),
    ),
    "EntropyGatedChunkKVPress": Traits(),
    "ExpectedAttentionPress": Traits(),
    "ExpectedAttentionStatsPress": Traits(
        needs="query statistics: a folder (stats_folder=FOLDER), or those published for the model"
    ),
    "FastKVzipPress": Traits(
        masks=_HEADS,
        needs="gates trained for the model (Jang-Hyun/Fast-KVzip)",
        not_for=("gemma3",),
    ),
    "FinchPress": Traits(
        refused="it must read the question with the document; here no press sees a question"
    ),
    "KVComposePress": Traits(
        again=True,
        notes=(_TWICE, "holds attention weights of all pairs of tokens"),
        not_for=("gemma3",),
    ),
    "KVgradPress": Traits(masks=_HEADS, again=True, notes=(_TWICE,), not_for=("gemma3",)),
    "KVzapPress": Traits(needs="a surrogate model trained for the model (nvidia/KVzap-...)"),
    "KVzipPress": Traits(masks=_HEADS, again=True, notes=(_TWICE,), not_for=("gemma3",)),
    "KeyDiffPress": Traits(),
    "KeyRerotationPress": Traits(),
    "KnormPress": Traits(),
    "LUKVPress": Traits(
        masks=_HEADS,
        needs="budget curves, published for meta-llama/Llama-3.1-8B-Instruct",
        notes=("its sizes are in steps of 1 % of the document",),
    ),
    "LagKVPress": Traits(),
    "LeverageScorePress": Traits(),
    "MergingPress": Traits(),
    "NonCausalAttnPress": Traits(),
    "ObservedAttentionPress": Traits(
        eager=True, notes=("holds attention weights of all pairs of tokens",)
    ),
    "PerLayerCompressionPress": Traits(size="compression_ratios"),
    "PrefillDecodingPress": Traits(
        refused="half of it compresses while an answer is written; its other half can be asked for "
        "by itself (kvpress:NAME)"
    ),
    "PyramidKVPress": Traits(),
    "QFilterPress": Traits(needs="filters trained for the model (nthngdy/MODEL_qfilt)"),
    "RandomPress": Traits(),
    "RestoreKVPress": Traits(
        refused="it puts trained adapters into the model, which are published for two models and "
        "were not tried here"
    ),
    "ScorerPress": Traits(refused="it is what presses are made from"),
    "SimLayerKVPress": Traits(size="lazy_threshold"),
    "SnapKVPress": Traits(),
    "StreamingLLMPress": Traits(),
    "TOVAPress": Traits(),
    "ThinKPress": Traits(
        size="key_channel_compression_ratio",
        masks="channels of keys are set to zero, and stay in memory",
    ),
}
"""Every press of the library, by class."""

_NO_WEIGHTS = (
    "AdaKVPress", "BlockPress", "ChunkKVPress", "ChunkPress", "CriticalAdaKVPress", "DMSPress",
    "EntropyGatedChunkKVPress", "LUKVPress",
)  # fmt: skip
"""Wrappers that refuse, or do not hand on, attention weights."""
_INNER = ("press", "presses")
_HIDDEN = {"DMSPress": ("decoding",), "CompactorPress": ("_leverage_press", "_non_causal_press")}
"""Arguments that are no options: `decoding` compresses answers; the others are its own parts."""
_CHOICES = {
    ("KVComposePress", name): ("max", "mean") for name in ("agg_task", "agg_group", "agg_head")
}
_MAY_BE_ZERO = (
    "keep_token_lower_bound", "n_initial", "n_sink", "num_sinks", "seed", "sink", "sink_size_end",
    "sink_size_start", "window",
)  # fmt: skip
_PROTECTED = (
    "n_sink", "num_sinks", "sink", "sink_size_end", "sink_size_start", "window", "window_size",
)  # fmt: skip
"""Settings of scorers that name tokens which are always kept."""


@lru_cache(maxsize=1)
def kvpress() -> Any:
    """The library.

    Raises:
        InputError: it is not installed, or in another version, or cannot be imported.
    """
    if find_spec("kvpress") is None:
        raise InputError(f"--variant kvpress: kvpress is not installed: {INSTALL}")
    version = metadata.version("kvpress")
    if version != VERSION:
        raise InputError(
            f"--variant kvpress: kvpress {version} is installed, and {VERSION} is needed: {INSTALL}"
        )
    try:
        return import_kvpress()
    except ImportError as error:
        raise InputError(
            f"--variant kvpress: kvpress {version} cannot be imported ({error}): {INSTALL}"
        ) from error


def press_names() -> dict[str, str]:
    """Class of every press that the library has, by the name that it is asked for by."""
    library = kvpress()
    exported = (getattr(library, name) for name in library.__all__)
    classes = [c for c in exported if isinstance(c, type) and issubclass(c, library.BasePress)]
    return {_plain(c.__name__): c.__name__ for c in sorted(classes, key=lambda c: c.__name__)}


@dataclass(frozen=True)
class Size:
    """How many tokens of a document are kept. None of the two: the run's budget, or the press' own.

    Attributes:
        keep: tokens a layer.
        ratio: share of the tokens that is dropped, exactly as it was written.
    """

    keep: int | None = None
    ratio: Fraction | None = None

    def tokens(self, document: int) -> int | None:
        """Tokens a layer to be kept of so many; None: something else decides."""
        if self.keep is not None:
            return self.keep
        if self.ratio is not None:
            return max(1, math.floor(document * (1 - self.ratio)))
        return None

    def described(self) -> Mapping[str, Any]:
        """As JSON."""
        ratio = None if self.ratio is None else float(self.ratio)
        given = {"keep": self.keep, "ratio": ratio}
        return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class PressSpec:
    """A press as it was asked for; `make` gives one.

    Attributes:
        name: class.
        fields: all arguments of its constructor, defaults included, but for the share that is
            dropped and other presses.
        inner: presses that it works through.
    """

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    inner: tuple[PressSpec, ...] = ()

    @property
    def traits(self) -> Traits:
        """What is to be known about it."""
        return TRAITS[self.name]

    @property
    def all(self) -> Iterator[PressSpec]:
        """It and all presses inside of it."""
        yield self
        for inner in self.inner:
            yield from inner.all

    @property
    def sized(self) -> PressSpec | None:
        """The one among `all` whose share of dropped tokens is chosen; None: own settings do."""
        if self.name == "ComposedPress":
            return next((inner.sized for inner in self.inner if inner.sized is not None), None)
        return None if self.traits.size else self

    @property
    def masks(self) -> str:
        """What is masked rather than removed, in words; empty where nothing is."""
        if self.name == "KVComposePress" and not self.fields["structured"]:
            return _HEADS
        return "; ".join(dict.fromkeys(s.traits.masks for s in self.all if s.traits.masks))

    @property
    def rotates(self) -> bool:
        """Whether keys are rotated to positions that stand side by side."""
        return any(spec.name == "KeyRerotationPress" for spec in self.all)

    @property
    def eager(self) -> bool:
        """Whether the model must compute attention weights."""
        return any(spec.traits.eager for spec in self.all)

    @property
    def least(self) -> int:
        """Tokens that it always keeps. With a target below that, ties decide what is kept."""
        scorer = self
        while scorer.inner and scorer.name != "ComposedPress":
            scorer = scorer.inner[0]
        if scorer.sized is None or scorer.name == "FastKVzipPress":
            return 0
        return sum(scorer.fields.get(name, 0) for name in _PROTECTED)

    def make(self) -> Any:
        """A new press, which drops nothing as yet."""
        arguments = dict(self.fields)
        if self.inner:
            inner = [spec.make() for spec in self.inner]
            if self.name == "ComposedPress":
                arguments["presses"] = inner
            else:
                arguments["press"] = inner[0]
        with quiet():
            return getattr(kvpress(), self.name)(**arguments)

    def described(self) -> dict[str, Any]:
        """As JSON; of a folder only that one is given: what is in it counts as weights."""
        found: dict[str, Any] = {"press": self.name, **self.fields}
        if found.get("stats_folder") is not None:
            found["stats_folder"] = "given"
        if self.inner:
            found["inner"] = [spec.described() for spec in self.inner]
        return found


def read_request(
    request: VariantRequest, others: Mapping[str, Callable[[str], Any]] | None = None
) -> tuple[PressSpec, Size]:
    """The press that a request asks for, and how much of a document is to be kept.

    Args:
        request: see the module's head.
        others: options that are read elsewhere.

    Raises:
        InputError: all that is wrong with it.
    """
    where = f"--variant {request}"
    readers: dict[str, Callable[[str], Any]] = {
        "press": str,
        "inner": str,
        "keep": _at_least_one,
        "ratio": _share,
        "compression_ratio": _share,
        **(others or {}),
    }
    if "press" not in request.options:
        raise InputError(f"{where}: which press? (kvpress:snapkv, kvpress:knorm ...)")
    asked = _named(request.options["press"], "", request.options, where)
    for part in asked.all:
        readers |= {part.prefix + key: read for key, read in _readers(part.name).items()}
        readers[f"{part.prefix}inner"] = str
    values = request.take(**readers)
    problems = Problems()
    if sum(key in values for key in ("keep", "ratio", "compression_ratio")) > 1:
        problems.add(f"{where}: keep and ratio: only one of them can be given")
    spec = _filled(asked, values)
    size = Size(values.get("keep"), values.get("ratio", values.get("compression_ratio")))
    problems.add(*(f"{where}: {problem}" for problem in _problems(spec, size)))
    problems.check()
    try:
        spec.make()
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"{where}: {spec.name}: {error}") from error
    return spec, size


@dataclass(frozen=True)
class _Named:
    """A press that was named, with those inside of it: what its options are follows from that.

    Attributes:
        name: class.
        prefix: what stands before its options: nothing, or `snapkv.`, as it was written.
        inner: presses that it works through.
    """

    name: str
    prefix: str
    inner: tuple[_Named, ...] = ()

    @property
    def all(self) -> Iterator[_Named]:
        """It and all presses inside of it."""
        yield self
        for inner in self.inner:
            yield from inner.all


def _named(
    text: str, prefix: str, options: Mapping[str, str], where: str, around: tuple[str, ...] = ()
) -> _Named:
    """The press of a name with those inside of it; `around` are the prefixes of those around it."""
    if prefix in around:
        raise InputError(f"{where}: {prefix}inner: a press cannot work through itself")
    names = press_names()
    found = names.get(_plain(text))
    if found is None:
        known = [name for name, cls in names.items() if not TRAITS[cls].refused]
        raise InputError(
            f"{where}: kvpress has no press {text!r} (known: {', '.join(known)})"
            f"{did_you_mean(_plain(text), names)}"
        )
    if TRAITS[found].refused:
        raise InputError(f"{where}: {found} cannot be used: {TRAITS[found].refused}")
    parameters = _parameters(found)
    takes = next((name for name in _INNER if name in parameters), None)
    asked = options.get(f"{prefix}inner")
    if takes is None or asked is None:
        if takes and parameters[takes].default in (inspect.Parameter.empty, None):
            raise InputError(
                f"{where}: {found} works through another press: {prefix}inner=snapkv, for example"
            )
        if asked is not None:
            raise InputError(f"{where}: {found} works through no other press ({prefix}inner)")
        return _Named(found, prefix)
    several = asked.split("+")
    if takes == "press" and len(several) > 1:
        raise InputError(f"{where}: {found} works through one other press, not {len(several)}")
    within = (*around, prefix)
    inner = tuple(_named(name, f"{name}.", options, where, within) for name in several)
    return _Named(found, prefix, inner)


def _filled(asked: _Named, values: Mapping[str, Any]) -> PressSpec:
    """The press that was named with its settings: those given, and defaults."""
    fields = {}
    for key in _readers(asked.name):
        default = _parameters(asked.name)[key].default
        if asked.prefix + key in values:
            fields[key] = values[asked.prefix + key]
        elif default is not inspect.Parameter.empty:
            fields[key] = default
    inner = tuple(_filled(part, values) for part in asked.inner)
    if not inner and "press" in _parameters(asked.name):  # LUKV has one by default
        inner = (PressSpec("ExpectedAttentionPress", _lukv_scorer()),)
    return PressSpec(asked.name, fields, inner)


def _lukv_scorer() -> dict[str, Any]:
    press = kvpress().LUKVPress().press
    return {key: getattr(press, key) for key in _readers("ExpectedAttentionPress")}


def _problems(spec: PressSpec, size: Size) -> Iterator[str]:
    """What is wrong with the settings of a press."""
    fields, own = spec.fields, spec.traits.size
    names = [part.name for part in spec.all]
    for part in spec.all:
        needed = part.traits.size
        if needed and part.fields.get(needed) in (None, 0.0, 1.0) and needed != "threshold":
            yield f"{part.name}: {needed} must be given, above 0 and below 1: it decides its size"
        if needed == "threshold" and part.fields.get(needed) is None:
            yield f"{part.name}: {needed} must be given: scores below it are masked"
        if part.name in _NO_WEIGHTS and any(inner.eager for inner in part.inner):
            yield f"{part.name} cannot work through ObservedAttentionPress"
    if spec.name == "SimLayerKVPress" and fields["n_recent"] <= fields["n_last"]:
        yield "SimLayerKVPress: n_recent must be above n_last"
    if spec.name == "ComposedPress":
        others = [inner for inner in spec.inner if inner.name != "ThinKPress"]
        if len(spec.inner) != 2 or len(others) != 1 or not _composes(others[0]):
            yield (
                "ComposedPress: works with a press that drops tokens from all heads alike, and "
                f"ThinK (inner=snapkv+think); here: {', '.join(names[1:])}"
            )
    elif own and size.described():
        yield f"{spec.name}: keep and ratio cannot be chosen: its size follows from {own}"
    if size.keep is not None and size.keep < spec.least:
        yield (
            f"keep={size.keep} is fewer than the {spec.least} tokens that {spec.name} always keeps "
            f"({_protected(spec)})"
        )


def _composes(spec: PressSpec) -> bool:
    """Whether a press works through its hook alone, which is all that ComposedPress calls."""
    library = kvpress()
    cls = getattr(library, spec.name)
    own = cls.forward_hook, cls.__call__
    plain = own == (library.BasePress.forward_hook, library.BasePress.__call__)
    return plain and not spec.masks and not spec.traits.size


def _protected(spec: PressSpec) -> str:
    while spec.inner:
        spec = spec.inner[0]
    return ", ".join(f"{k}={spec.fields[k]}" for k in _PROTECTED if spec.fields.get(k))


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    parameters = inspect.signature(getattr(kvpress(), name).__init__).parameters
    hidden = ("self", "compression_ratio", *_HIDDEN.get(name, ()))
    return {key: value for key, value in parameters.items() if key not in hidden}


def _readers(name: str) -> dict[str, Callable[[str], Any]]:
    """What makes a value of an option's text, by the arguments of a press' constructor."""
    hints = typing.get_type_hints(getattr(kvpress(), name).__init__)
    return {key: _reader(name, key, hints[key]) for key in _parameters(name) if key not in _INNER}


def _reader(press: str, key: str, hint: Any) -> Callable[[str], Any]:
    if (press, key) in _CHOICES:
        return _one_of(_CHOICES[press, key])
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return _one_of(inside)
    if origin in (Union, types.UnionType):
        (kind,) = (part for part in inside if part is not type(None))
        read = _reader(press, key, kind)
        return lambda text: None if text.lower() == "none" else read(text)
    if origin is list:
        return _shares
    if hint is bool:
        return _yes_or_no
    if hint is int:
        return lambda text: _whole(text, 0 if key in _MAY_BE_ZERO else 1)
    if hint is float:
        return _share_or_number if key.endswith("ratio") else _number
    return str


def _whole(text: str, least: int) -> int:
    value = tokens(text)
    if value < least:
        raise ValueError(f"{text!r} is less than {least}")
    return value


def _at_least_one(text: str) -> int:
    return _whole(text, 1)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a number")
    return value


def _share_or_number(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is not a share from 0 to 1")
    return value


def _share(text: str) -> Fraction:
    _number(text)
    value = Fraction(text)
    if not 0 <= value < 1:
        raise ValueError(f"{text!r} is not a share from 0 to below 1")
    return value


def _shares(text: str) -> list[float]:
    values = [_share_or_number(part) for part in text.split("/")]
    if max(values) >= 1:
        raise ValueError(f"{text!r}: each share must be below 1 (0.5/0.6/0.7, one for each layer)")
    return values


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            hint = did_you_mean(text, choices)
            raise ValueError(f"{text!r} is none of {', '.join(choices)}{hint}")
        return text

    return read


def _plain(name: str) -> str:
    """A name without case, `-`, `_` and `press` at its end."""
    return name.lower().replace("_", "").replace("-", "").removesuffix("press")
