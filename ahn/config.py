"""What a model sees of the past: the cell, the window, the sinks, and which layers keep all.

Pure data, no torch: a plan can be checked without loading a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from common.errors import InputError
from common.suggestions import did_you_mean

Cell = Literal["GatedDeltaNet", "DeltaNet", "Mamba2"]
CELLS: tuple[str, ...] = get_args(Cell)

Variant = Literal["full", "window", "ahn", "no-write"]
#: `full`: attention over everything; `window`: sinks and sliding window; `ahn`: the same and a
#: memory of what left the window; `no-write`: the same memory, never written to.
VARIANTS: tuple[str, ...] = get_args(Variant)

Backend = Literal["recurrent", "chunked", "fla", "mamba_ssm"]
#: Forms of the memory's recurrence, see `ahn.ops`; `AHN_BACKEND` in the environment overrides.
BACKENDS: tuple[str, ...] = get_args(Backend)

#: Defaults of the paper for LV-Eval and InfiniteBench: 128 + 32,640 = 32,768 positions.
PAPER_WINDOW, PAPER_SINKS = 32_640, 128
#: Largest window, and most sinks and tokens that are counted: beyond any model, within 64 bits.
MOST_TOKENS = 10**12


@dataclass(frozen=True)
class LayerLayout:
    """What one layer sees of the past.

    Attributes:
        window: sliding window in tokens, the current one included; None: full attention.
        sinks: first tokens that stay visible.
        cell: memory of what left the window; None: no memory.
        write: whether the memory is written to.
    """

    window: int | None = None
    sinks: int = 0
    cell: str | None = None
    write: bool = True


@dataclass(frozen=True)
class AHNConfig:
    """What AHN adds to a base model's configuration.

    Attributes:
        cell: recurrence that compresses what leaves the window.
        window: sliding window W in tokens, the current one included, sinks not.
        sinks: attention sinks S in tokens.
        full_attention_layers: layers that keep full attention and have no memory
            (`fa_layer_ids` of released configurations).
        variant: how the past is seen; see `VARIANTS`.
        backend: form of the memory's recurrence, see `BACKENDS`; None: the fastest that fits.
    """

    cell: str = "GatedDeltaNet"
    window: int = PAPER_WINDOW
    sinks: int = PAPER_SINKS
    full_attention_layers: tuple[int, ...] = field(default_factory=tuple)
    variant: str = "ahn"
    backend: str | None = None

    def __post_init__(self) -> None:
        problems = self.problems(
            self.variant,
            self.cell,
            self.window,
            self.sinks,
            self.full_attention_layers,
            backend=self.backend,
        )
        if problems:
            raise InputError(*problems)
        object.__setattr__(self, "full_attention_layers", tuple(self.full_attention_layers))

    @staticmethod
    def problems(
        variant: str,
        cell: str | None,
        window: int | None,
        sinks: int | None,
        full_attention_layers: Sequence[int] = (),
        num_hidden_layers: int | None = None,
        backend: str | None = None,
    ) -> list[str]:
        """Everything that is wrong with these values, a line each; None is not looked at."""
        found = []
        if variant not in VARIANTS:
            hint = did_you_mean(variant, VARIANTS, most=1) if isinstance(variant, str) else ""
            found.append(f"variant {variant!r} is unknown; one of {', '.join(VARIANTS)}{hint}")
        if cell is not None and cell not in CELLS:
            found.append(f"cell {cell!r} is unknown; one of {', '.join(CELLS)}")
        for name, value, least in (("window", window, 1), ("sinks", sinks, 0)):
            if value is None:
                continue
            wanted = f"at least {least} token" if least else "0 or more tokens"
            if not isinstance(value, int) or isinstance(value, bool):
                found.append(f"{name} must be a whole number, {wanted}, not {value!r}")
            elif value < least:
                found.append(f"{name} must be {wanted}, not {value}")
            elif value > MOST_TOKENS:
                found.append(f"{name} must be at most {MOST_TOKENS:,} tokens, not {value}")
        for layer in full_attention_layers:
            if not isinstance(layer, int) or isinstance(layer, bool):
                found.append(f"full_attention_layers: {layer!r} is not the number of a layer")
            elif layer < 0 or (num_hidden_layers is not None and layer >= num_hidden_layers):
                found.append(f"full_attention_layers: the model has no layer {layer}")
        if backend is not None and backend not in BACKENDS:
            found.append(f"backend {backend!r} is unknown; one of {', '.join(BACKENDS)}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The fields as `AHNConfig(**fields)` takes them; `backend` only where one is set."""
        fields = asdict(self)
        if self.backend is None:
            del fields["backend"]
        return fields

    def layer(self, index: int) -> LayerLayout:
        """The layout of layer `index`."""
        if self.variant == "full" or index in self.full_attention_layers:
            return LayerLayout()
        if self.variant == "window":
            return LayerLayout(self.window, self.sinks)
        return LayerLayout(self.window, self.sinks, self.cell, write=self.variant == "ahn")
