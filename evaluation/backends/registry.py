"""The kinds of back-ends, by name: those of this package, and those from outside it.

From outside, a kind is an entry point of the group `ahn_bench.backends` that names a
`evaluation.backends.base.Make`, or is registered by `register_backend`.
"""

from __future__ import annotations

import re

from common.errors import InputError
from common.plugins import installed, load
from common.suggestions import did_you_mean
from evaluation.backends import stock, streaming
from evaluation.backends.base import Make
from evaluation.backends.endpoint.backend import EndpointBackend
from evaluation.backends.presses.backend import PressBackend
from evaluation.backends.quantized.backend import QuantizedBackend

GROUP = "ahn_bench.backends"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_KINDS: dict[str, Make] = {
    **{kind: streaming.make_variant for kind in streaming.KINDS},
    "hf": stock.StockBackend,
    "quantized": QuantizedBackend,
    "kvpress": PressBackend,
    "endpoint": EndpointBackend,
}


def register_backend(kind: str, make: Make) -> None:
    """Make a kind of back-end known in this process.

    Args:
        kind: what `--variant` calls it: letters, digits, `.`, `_`, `+`, `-`.
        make: makes a variant of it; a subclass of `Backend` whose arguments are a request and the
            run's settings will do.

    Raises:
        ValueError: the name cannot be used, or is another back-end's.
    """
    if not _NAME.fullmatch(kind):
        raise ValueError(f"{kind!r} cannot be the name of a back-end")
    if _KINDS.get(kind, make) is not make or kind in installed(GROUP):
        raise ValueError(f"there is a back-end {kind!r} already")
    _KINDS[kind] = make


def backend_kinds() -> list[str]:
    """Names of all kinds, those of this package first."""
    return list(dict.fromkeys([*_KINDS, *sorted(installed(GROUP))]))


def find_backend(kind: str, known: list[str] | None = None) -> Make:
    """What makes variants of a kind.

    Args:
        kind: its name.
        known: names to be told where there is no such kind; default: all kinds.

    Raises:
        InputError: no such kind, or its package cannot be imported.
    """
    entry = installed(GROUP).get(kind)
    if kind in _KINDS and entry is not None:
        raise InputError(
            f"--variant {kind}: the entry point {entry.value} has the name of another back-end; "
            "rename it, or remove its package"
        )
    if kind in _KINDS:
        return _KINDS[kind]
    if entry is None:
        names = known or backend_kinds()
        raise InputError(
            f"--variant: unknown variant {kind!r} (known: {', '.join(names)})"
            f"{did_you_mean(kind, names, most=1)}"
        )
    make: Make = load(entry, "--variant")
    if not callable(make):
        raise InputError(f"--variant {kind}: {entry.value} is not what makes a back-end")
    return make
