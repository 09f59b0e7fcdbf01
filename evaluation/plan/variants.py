"""Which variants a run compares: `--variant` and the names of the AHN weights, as requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from common.errors import InputError
from evaluation.backends.registry import backend_kinds, find_backend
from evaluation.backends.requests import VariantRequest, parse_request
from evaluation.backends.streaming import KINDS


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
