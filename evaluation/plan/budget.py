"""How many bytes a variant may keep of a document: `--budget`, resolved.

All variants whose size can be chosen are sized for each document, to hold what the named variant
holds of that document, or a share of what full attention does, or a fixed number of bytes. The
bytes are those after the document, before the question: "exact" accounting, what is measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ahn.checkpoints.placement import DTYPE_BYTES
from ahn.cost.accounting import cache_bytes
from ahn.cost.shapes import ModelShape
from common.errors import InputError, shown
from evaluation.backends.base import Backend, RunSettings
from evaluation.backends.registry import find_backend
from evaluation.backends.streaming import StreamingModels
from evaluation.plan.variants import asked_variants

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(B|kB|KiB|MB|MiB|GB|GiB|)", re.IGNORECASE)
_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
_SHARE = re.compile(r"(0?\.[0-9]+|1\.0+)|([0-9]+(?:\.[0-9]+)?)\s*%")


@dataclass(frozen=True)
class Budget:
    """A budget of bytes per document.

    Attributes:
        text: as given.
        of: bytes for a document of so many tokens.
        identity: all that decides them, as JSON.
    """

    text: str
    of: Callable[[int], int]
    identity: Mapping[str, Any]


def find_budget(settings: RunSettings, models: Mapping[str, Backend]) -> Budget:
    """The budget that a run's `--budget` means.

    Args:
        settings: of the run.
        models: its variants, by name; one of another name is made for its size alone.

    Raises:
        InputError: it is no size and no variant, or of a variant whose size cannot be computed.
    """
    text = (settings.budget or "").strip()
    if (match := _SHARE.fullmatch(text)) is not None:
        share = float(match[1]) if match[1] else float(match[2]) / 100
        return _share(text, share, settings)
    if (match := _SIZE.fullmatch(text)) is not None:
        size = int(float(match[1]) * _UNITS[match[2].lower()])
        if not 0 < size < 2**50:
            raise InputError(f"--budget: {shown(text)} is no number of bytes that can be held")
        return Budget(text, lambda tokens: size, {"bytes": size})
    return _as_variant(text, settings, models)


def _share(text: str, share: float, settings: RunSettings) -> Budget:
    """A share of the keys and values of every token."""
    if not 0 < share <= 1:
        raise InputError(f"--budget: {shown(text)}: a share is above 0 and at most 1")
    models = settings.once(StreamingModels)
    config = models.config
    try:
        shape = ModelShape.from_config(config)
    except InputError as error:
        raise InputError(
            f"--budget: {shown(text)}: the bytes of this model's keys and values are not known "
            f"({error}); give a number of bytes, or name a variant whose size is known"
        ) from None
    of_element = DTYPE_BYTES[models.device_and_dtype[1]]

    def of(tokens: int) -> int:
        whole = cache_bytes(shape, "full", tokens, dtype_bytes=of_element, accounting="paper")
        return int(share * whole.total)

    return Budget(text, of, {"share_of_keys_and_values": share, "element_bytes": of_element})


def _as_variant(text: str, settings: RunSettings, models: Mapping[str, Backend]) -> Budget:
    """What another variant holds."""
    backend = models.get(text)
    if backend is None:
        # It is not asked, so nothing sizes it: it has the size that it has without a budget.
        own = replace(settings, budget=None)
        try:
            asked = asked_variants(text, own)
        except InputError:
            known = ", ".join(n for n, m in models.items() if m.document_bytes(1) is not None)
            raise InputError(
                f"--budget: {shown(repr(text))} is no variant, share (0.26, 26%) or number of "
                f"bytes (1200000, 1.2GiB); variants whose size is known: {known or 'none'}"
            ) from None
        made = [find_backend(request.kind)(request, run) for request, run in asked]
        if len({made_of.document_bytes(2**20) for made_of in made}) > 1:
            names = ", ".join(request.name for request, _ in asked)
            raise InputError(
                f"--budget: {text} is several variants, which hold different numbers of bytes; "
                f"name one of them: {names}"
            )
        backend = made[0]
    if backend.sizable:
        raise InputError(f"--budget: {text} is itself sized by the budget; name another variant")
    if backend.document_bytes(1) is None:
        raise InputError(
            f"--budget: {text} cannot say how many bytes it holds; name another variant, or give "
            "a share or bytes"
        )

    named = backend

    def of(tokens: int) -> int:
        held = named.document_bytes(tokens)
        assert held is not None, "it has said so for one token"
        return held

    return Budget(text, of, {"as": dict(backend.identity()), "kind": backend.describe()["variant"]})
