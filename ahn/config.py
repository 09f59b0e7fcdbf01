"""What a model sees of the past: the cell, the window, the sinks, and which layers keep all.

Pure data, no torch: a plan can be checked without loading a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from ahn.cells.registry import CELLS
from ahn.ops.names import BACKENDS, Backend
from common.errors import InputError, Problems
from common.suggestions import did_you_mean

__all__ = [
    "BACKENDS",
    "CELLS",
    "MOST_TOKENS",
    "PAPER_SINKS",
    "PAPER_WINDOW",
    "VARIANTS",
    "AHNConfig",
    "Backend",
    "LayerLayout",
    "Variant",
]

Variant = Literal["full", "window", "ahn", "no-write"]
#: `full`: attention over everything; `window`: sinks and sliding window; `ahn`: the same and a
#: memory of what left the window; `no-write`: the same memory, never written to.
VARIANTS: tuple[str, ...] = get_args(Variant)

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
        cell: memory of what left the window; None: what leaves is dropped.
        write: whether the memory is written to.

    Raises:
        InputError: values that no layer can have.
    """

    window: int | None = None
    sinks: int = 0
    cell: str | None = None
    write: bool = True

    def __post_init__(self) -> None:
        if problems := _layer_problems(vars(self)):
            raise InputError(*problems)
        if self.window is None and self.cell is not None:
            raise InputError(
                f"cell {self.cell!r}: nothing leaves a layer without a window, so that it can have "
                "no memory; give it a window"
            )


#: what `AHNConfig.layers` may say of a layer
_OF_A_LAYER = ("window", "sinks", "cell")


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
        layers: settings of single layers, by number, that replace the ones above: `window`,
            `sinks` and `cell` (None: what leaves this layer's window is dropped), as in
            `{0: {"window": 512}, 5: {"cell": "Mamba2"}}`. Variants `full` and `window` have no
            memory in these layers either.

    Raises:
        InputError: everything that is wrong with the values, a line each.
    """

    cell: str = CELLS.builtin[0]
    window: int = PAPER_WINDOW
    sinks: int = PAPER_SINKS
    full_attention_layers: tuple[int, ...] = field(default_factory=tuple)
    variant: str = "ahn"
    backend: str | None = None
    layers: Mapping[int, Mapping[str, Any]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        problems = self.problems(
            self.variant,
            self.cell,
            self.window,
            self.sinks,
            self.full_attention_layers,
            backend=self.backend,
            layers=self.layers,
        )
        if problems:
            raise InputError(*problems)
        object.__setattr__(self, "full_attention_layers", tuple(self.full_attention_layers))
        own = {int(number): dict(settings) for number, settings in self.layers.items()}
        object.__setattr__(self, "layers", dict(sorted(own.items())))

    @staticmethod
    def problems(
        variant: str,
        cell: str | None,
        window: int | None,
        sinks: int | None,
        full_attention_layers: Sequence[int] = (),
        num_hidden_layers: int | None = None,
        backend: str | None = None,
        layers: Mapping[Any, Any] | None = None,
    ) -> list[str]:
        """Everything that is wrong with these values, a line each; None is not looked at."""
        found = Problems()
        if variant not in VARIANTS:
            hint = did_you_mean(str(variant), VARIANTS)
            found.add(f"variant {variant!r} is unknown; one of {', '.join(VARIANTS)}{hint}")
        found.add(*_layer_problems({"cell": cell, "window": window, "sinks": sinks}))
        for layer in full_attention_layers:
            if not isinstance(layer, int) or isinstance(layer, bool):
                found.add(f"full_attention_layers: {layer!r} is not the number of a layer")
            elif not _within(layer, num_hidden_layers):
                found.add(f"full_attention_layers: the model has no layer {layer}")
        found.add(*_own_problems({} if layers is None else layers, num_hidden_layers))
        if isinstance(layers, Mapping):
            for number in full_attention_layers:
                if isinstance(number, int) and (number in layers or str(number) in layers):
                    found.add(
                        f"layers: layer {number} keeps full attention (full_attention_layers), so "
                        "that it has no window, sinks or memory of its own"
                    )
        if backend is not None and backend not in BACKENDS:
            found.add(f"backend {backend!r} is unknown; one of {', '.join(BACKENDS)}")
        return list(found)

    def to_dict(self) -> dict[str, Any]:
        """The fields as `AHNConfig(**fields)` takes them, for JSON.

        `backend` and `layers` only where they are set.
        """
        fields = asdict(self)
        if self.backend is None:
            del fields["backend"]
        del fields["layers"]
        if self.layers:
            fields["layers"] = {str(number): dict(own) for number, own in self.layers.items()}
        return fields

    def layer(self, index: int) -> LayerLayout:
        """The layout of layer `index`."""
        if self.variant == "full" or index in self.full_attention_layers:
            return LayerLayout()
        own: dict[str, Any] = {"window": self.window, "sinks": self.sinks, "cell": self.cell}
        own |= self.layers.get(index, {})
        if self.variant == "window":
            return LayerLayout(**own | {"cell": None})
        return LayerLayout(**own, write=self.variant == "ahn" or own["cell"] is None)

    def layouts(self, num_hidden_layers: int) -> tuple[LayerLayout, ...]:
        """The layout of each layer; layers that are alike share one object.

        Raises:
            InputError: settings for a layer that the model does not have.
        """
        problems = self.problems(
            self.variant,
            None,
            None,
            None,
            self.full_attention_layers,
            num_hidden_layers,
            layers=self.layers,
        )
        if problems:
            raise InputError(*problems)
        made: dict[LayerLayout, LayerLayout] = {}
        return tuple(
            made.setdefault(layout, layout)
            for layout in (self.layer(index) for index in range(num_hidden_layers))
        )

    def with_span(self, window: int | None, sinks: int | None) -> AHNConfig:
        """The same with another window or other sinks in every layer that has a window.

        Raises:
            InputError: single layers have windows or sinks of their own, which one number cannot
                replace; or a value that no layer can have.
        """
        given: dict[str, Any] = {
            name: value
            for name, value in (("window", window), ("sinks", sinks))
            if value is not None and value != getattr(self, name)
        }
        for name, value in given.items():
            numbers = [str(number) for number, own in self.layers.items() if name in own]
            if numbers:
                raise InputError(
                    f"{name} {value}: layers {', '.join(numbers)} have {name} of their own (layers "
                    "in the AHN configuration), which one number cannot replace; change the "
                    "configuration"
                )
        return replace(self, **given) if given else self

    def cells(self, num_hidden_layers: int) -> list[str]:
        """Names of the memory cells of all layers, each once."""
        found = (layout.cell for layout in self.layouts(num_hidden_layers))
        return list(dict.fromkeys(cell for cell in found if cell is not None))


def _layer_problems(settings: Mapping[str, Any]) -> Iterable[str]:
    """What is wrong with window, sinks and cell of a layer; None is not looked at."""
    found = []
    cell = settings.get("cell")
    if cell is not None and (problem := CELLS.problem(cell)) is not None:
        found.append(problem)
    for name, least in (("window", 1), ("sinks", 0)):
        value = settings.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            found.append(f"{name} must be a whole number of tokens, not {value!r}")
        elif value < least:
            found.append(f"{name} must be at least {least}, not {value}")
        elif value > MOST_TOKENS:
            found.append(f"{name} must be at most {MOST_TOKENS:,} tokens, not {value}")
    return found


def _own_problems(layers: Any, num_hidden_layers: int | None) -> Iterable[str]:
    """What is wrong with the settings of single layers."""
    if not isinstance(layers, Mapping):
        return [f"layers must be settings by number of the layer, not {layers!r}"]
    found, numbers = [], set()
    for key, settings in layers.items():
        number = key
        if isinstance(key, str) and key.isascii() and key.isdigit():
            number = int(key)  # JSON has no other keys
        if not isinstance(number, int) or isinstance(number, bool):
            found.append(f"layers: {key!r} is not the number of a layer")
            continue
        if not _within(number, num_hidden_layers):
            found.append(f"layers: the model has no layer {number}")
        if number in numbers:
            found.append(f"layers: layer {number} is set twice")
        numbers.add(number)
        where = f"layers, {number}: "
        if not isinstance(settings, Mapping):
            found.append(f"{where}must be a mapping of {', '.join(_OF_A_LAYER)}, not {settings!r}")
            continue
        for name in settings:
            if name not in _OF_A_LAYER:
                hint = did_you_mean(str(name), _OF_A_LAYER)
                found.append(f"{where}{name!r} is unknown; one of {', '.join(_OF_A_LAYER)}{hint}")
        for name in ("window", "sinks"):
            if name in settings and settings[name] is None:
                found.append(
                    f"{where}{name} must be a number of tokens; a layer without a window is named "
                    "in full_attention_layers"
                )
        found += [f"{where}{problem}" for problem in _layer_problems(settings)]
    return found


def _within(layer: int, num_hidden_layers: int | None) -> bool:
    return layer >= 0 and (num_hidden_layers is None or layer < num_hidden_layers)
