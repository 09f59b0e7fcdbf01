"""The ways of seeing the past that can be compared, and how each model is built.

A new variant is a new entry in `VARIANTS` beside its implementation in `ahn`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ahn


@dataclass(frozen=True)
class Variant:
    """What a variant needs in order to be built."""

    name: str
    summary: str
    needs_window: bool
    needs_memory: bool


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant("full", "every token sees every earlier token", False, False),
        Variant("window", "sinks and a sliding window, nothing else", True, False),
        Variant("ahn", "sinks, window, and a memory of what left the window", True, True),
        Variant("no-write", "as ahn, but nothing is written into the memory", True, True),
    )
}


@dataclass(frozen=True)
class NamedVariant:
    """A variant as it is called in a run: with several AHN weights, once for each."""

    name: str
    """In records and of its folder: ``ahn``, or ``ahn-gdn`` for the weights named ``gdn``."""
    kind: Variant
    memory: str | None
    """Name of its AHN weights, '' for those without one; None for a variant without memory."""


def named_variants(memories: Sequence[str]) -> dict[str, NamedVariant]:
    """Every variant that there is with AHN weights of these names, by its own name."""
    found = {}
    for kind in VARIANTS.values():
        for memory in (memories or [""]) if kind.needs_memory else [None]:
            name = f"{kind.name}-{memory}" if memory else kind.name
            found[name] = NamedVariant(name, kind, memory)
    return found


def choose_variants(
    names: Sequence[str], memories: Sequence[str], problems: list[str]
) -> list[NamedVariant]:
    """What `names` stand for, each once: a variant, or one for every AHN weights (``ahn``)."""
    known = named_variants(memories)
    chosen: dict[str, NamedVariant] = {}
    for name in names:
        of_kind = [v for v in known.values() if v.kind.name == name]
        if name in known:
            of_kind = [known[name]]
        if not of_kind:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            problems.append(
                f"--variant: unknown variant {name!r} (known: {', '.join(known)}){hint}"
            )
        chosen |= {v.name: v for v in of_kind}
    return list(chosen.values())


def default_variants(has_window: bool, has_memory: bool) -> list[str]:
    """What is compared when no variant is named."""
    if has_memory:
        return ["full", "window", "ahn"]
    return ["full", "window"] if has_window else ["full"]


@dataclass(frozen=True)
class ModelSpec:
    """One variant of one model, with everything that decides what is loaded."""

    name: str  # in records: "ahn-gdn"
    variant: str  # how it sees the past: "ahn"
    path: str
    ahn: str | None
    window: int | None  # tokens, None for full attention
    sinks: int | None
    cell: str | None
    dtype: str
    device: str
    full_attention_layers: tuple[int, ...] = ()  # layers that keep full attention nevertheless
    yarn_factor: float | None = None  # None: positions as the model's config.json has them

    def check(self) -> list[str]:
        """Problems that can be read without loading weights; empty when it fits."""
        return list(
            ahn.check_model(
                self.path,
                self.variant,
                self.ahn,
                self.window,
                self.sinks,
                yarn_factor=self.yarn_factor,
            )
        )

    def load(self) -> Any:
        """The model, in evaluation mode."""
        return ahn.load_model(
            self.path,
            variant=self.variant,
            ahn=self.ahn,
            window=self.window,
            sinks=self.sinks,
            dtype=self.dtype,
            device=self.device,
            yarn_factor=self.yarn_factor,
        )

    def weight_files(self) -> Sequence[Path]:
        """The safetensors files that it is loaded from."""
        files = list(ahn.weight_files(self.path))
        if self.ahn is not None and VARIANTS[self.variant].needs_memory:
            files += ahn.weight_files(self.ahn)
        return files

    def as_dict(self) -> dict[str, Any]:
        """For ``run.json``."""
        return asdict(self)


def model_path(name: str | None) -> str | None:
    """`name`, with ``pocket`` standing for the embedded model."""
    return str(ahn.POCKET_PATH) if name == "pocket" else name


def ahn_path(name: str) -> str:
    """`name`, with ``pocket`` standing for the embedded memory (GatedDeltaNet) and
    ``pocket/dn`` for the one in that folder of the embedded model."""
    if name == "pocket":
        return str(ahn.POCKET_PATH / "gdn")
    if name.startswith("pocket/"):
        return str(ahn.POCKET_PATH / name.removeprefix("pocket/"))
    return name
