"""Which variants a run compares: `--variant`, the names of the AHN weights, and the windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from common.errors import InputError
from evaluation.backends.base import RunSettings
from evaluation.backends.registry import backend_kinds, find_backend
from evaluation.backends.requests import VariantRequest, parse_request
from evaluation.backends.streaming import KINDS

Asked = tuple[VariantRequest, RunSettings]
"""A variant, and the settings of the run as they are for it: of several windows, with its own."""


def asked_variants(text: str, settings: RunSettings) -> list[Asked]:
    """What one item of `--variant` asks for: a variant, or one of each AHN weights and window.

    Where the run has several windows, a variant that has none of its own and takes the run's is one
    for each, with the size behind its name: `window` is `window-1024` and `window-2048`, and
    `window-1024` the one of them alone. A variant whose window a budget chooses stays single.

    Args:
        text: see `variant_requests`.
        settings: of the run.

    Raises:
        InputError: it cannot be read, or there is no such kind.
    """
    weights = list(settings.ahn)
    kind, colon, options = text.partition(":")
    for window in settings.windows:
        plain = kind.removesuffix(f"-{window}")
        if plain == kind:
            continue
        try:
            variant_requests(text, weights)
        except InputError:  # no kind or weights are called so
            of_all = asked_variants(f"{plain}{colon}{options}", settings)
            alone = [asked for asked in of_all if asked[1].window == window]
            if alone:
                return alone
    return [
        asked for request in variant_requests(text, weights) for asked in _at(request, settings)
    ]


def _at(request: VariantRequest, settings: RunSettings) -> list[Asked]:
    """A request at each window of the run, or once where it has none or one of its own."""
    if not settings.windows or not takes_window(request, settings):
        return [(request, settings)]
    return [
        (replace(request, name=f"{request.name}-{window}"), settings.at(window))
        for window in settings.windows
    ]


def takes_window(request: VariantRequest, settings: RunSettings) -> bool:
    """Whether a variant has the run's window: it keeps one, and neither says nor is given its size.

    A budget gives windows their size.
    """
    if "window" in request.options:
        return False
    kind = KINDS.get(request.kind)
    if kind is None:
        return bool(getattr(find_backend(request.kind), "has_window", False))
    return kind.needs_window and not (kind.sizable and settings.budget is not None)


def variant_requests(text: str, weights: Sequence[str]) -> list[VariantRequest]:
    """What one item of `--variant` asks for: one variant, or one of each AHN weights.

    Args:
        text: `KIND[:key=value,...]`. With several AHN weights, a kind that has a memory (`ahn`)
            stands for one variant of each, and `ahn-gdn` for that of the weights `gdn`.
        weights: names of the AHN weights; one without a name is ''.

    Raises:
        InputError: it cannot be read, or there is no such kind.
    """
    if not text:
        raise InputError("--variant: no name is given")
    requests = list(_of_weights(parse_request(text), weights))
    for request in requests:
        find_backend(request.kind, _known(weights))
    return requests


def _of_weights(request: VariantRequest, weights: Sequence[str]) -> Iterator[VariantRequest]:
    """The request itself or, of a kind with a memory, one for each AHN weights."""
    named = [name for name in weights if name]
    for kind in (kind for kind, what in KINDS.items() if what.needs_memory):
        if request.kind == kind and named and "weights" not in request.options:
            for name in named:
                options = {**request.options, "weights": name}
                yield replace(request, options=options, name=f"{request.name}-{name}")
            return
        for name in named:
            if request.kind == f"{kind}-{name}":
                yield replace(request, kind=kind, options={**request.options, "weights": name})
                return
    yield request


def _known(weights: Sequence[str]) -> list[str]:
    """Names that can be asked for, as messages list them."""
    named = [name for name in weights if name]
    known: list[str] = []
    for kind in backend_kinds():
        has_memory = kind in KINDS and KINDS[kind].needs_memory
        known += [f"{kind}-{name}" for name in named] if has_memory and named else [kind]
    return known
