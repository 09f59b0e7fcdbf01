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
    "MOST_RATE",
    "MOST_TOKENS",
    "PAPER_RATE",
    "PAPER_SINKS",
    "PAPER_WINDOW",
    "POOLINGS",
    "VARIANTS",
    "AHNConfig",
    "Backend",
    "LayerLayout",
    "Variant",
    "example_layout",
]

Variant = Literal["full", "window", "ahn", "no-write", "memory-only", "compressive"]
#: `full`: attention over everything; `window`: sinks and sliding window; `ahn`: the same and a
#: memory of what left the window; `no-write`: the same memory, never written to; `memory-only`: the
#: memory of all tokens, without sinks and window (the paper's pure RNN); `compressive`: sinks,
#: window, and the pooled keys and values of what left the window, without training.
VARIANTS: tuple[str, ...] = get_args(Variant)

#: Defaults of the paper for LV-Eval and InfiniteBench: 128 + 32,640 = 32,768 positions.
PAPER_WINDOW, PAPER_SINKS = 32_640, 128
#: How a compressive layout makes one key (and one value) of several: their mean, or the largest
#: number of each dimension.
POOLINGS: tuple[str, ...] = ("mean", "max")
#: The paper's compression rate: 4 tokens to one.
PAPER_RATE = 4
#: Most tokens that one pooled slot stands for.
MOST_RATE = 10**6
#: Largest window, and most sinks and tokens that are counted: beyond any model, within 64 bits.
MOST_TOKENS = 10**12


@dataclass(frozen=True)
class LayerLayout:
    """What one layer sees of the past.

    Attributes:
        window: sliding window in tokens, the current one included; None: full attention; 0: no
            token is seen as it is, and the memory takes each before its own query reads.
        sinks: first tokens that stay visible; none without a window.
        cell: memory of what left the window; None: what leaves is dropped.
        write: whether the memory is written to.
        rate: tokens of a group that one pooled slot stands for. A group is pooled once all of its
            tokens have left the window; until then they wait, and are seen as they are.
        slots: so many of the latest pooled groups stay visible; 0: what leaves is not pooled.
        pooling: one of `POOLINGS`.

    Raises:
        InputError: values that no layer can have.
    """

    window: int | None = None
    sinks: int = 0
    cell: str | None = None
    write: bool = True
    rate: int = 1
    slots: int = 0
    pooling: str = POOLINGS[0]

    def __post_init__(self) -> None:
        settings = dict(vars(self))
        pools = type(self.slots) is not int or self.slots != 0
        if not pools:
            del settings["slots"]
        if not self.attends and self.cell is not None:
            del settings["window"]
        if problems := _layer_problems(settings):
            raise InputError(*problems)
        if not pools and (self.rate, self.pooling) != (1, POOLINGS[0]):
            raise InputError(
                f"rate {self.rate}, pooling {self.pooling}: nothing is pooled without slots; give "
                "the number of pooled slots"
            )
        if pools and (self.window is None or self.cell is not None):
            raise InputError(
                f"slots {self.slots}: tokens are pooled when they leave a window, in place of "
                "being written to a memory; give the layer a window and no cell"
            )
        if self.window is None and self.cell is not None:
            raise InputError(
                f"cell {self.cell!r}: nothing leaves a layer without a window, so that it can have "
                "no memory; give it a window"
            )
        if not self.attends and self.sinks:
            raise InputError(
                f"sinks {self.sinks}: a layer without a window (0) hears its memory alone, and has "
                "no sinks"
            )

    @property
    def attends(self) -> bool:
        """Whether its queries see any token as it is."""
        return type(self.window) is not int or self.window != 0

    @property
    def span(self) -> tuple[int | None, int, int, int, str]:
        """What decides which keys a query sees; the memory does not."""
        return self.window, self.sinks, self.rate, self.slots, self.pooling

    @property
    def pooled(self) -> dict[str, Any]:
        """The fields of pooled slots, by name; empty where there are none."""
        if not self.slots:
            return {}
        return {"rate": self.rate, "slots": self.slots, "pooling": self.pooling}

    @property
    def ring(self) -> int | None:
        """Slots of the ring behind the sinks: the window, and tokens that wait to be pooled."""
        return None if self.window is None else self.window + self.rate - 1

    def groups(self, tokens: int) -> int:
        """Groups of `rate` tokens that have left the window after so many tokens."""
        if self.window is None:
            return 0
        return max(tokens - self.sinks - self.window, 0) // self.rate

    def lossless(self, tokens: int) -> int:
        """Tokens that are seen as they are after so many: sinks, window, and those that wait."""
        if self.window is None:
            return tokens
        gone = max(tokens - self.sinks - self.window, 0)
        return tokens - gone + gone % self.rate


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
            `{0: {"window": 512}, 5: {"cell": "Mamba2"}}`. Variants `full`, `window` and
            `compressive` have no memory in these layers either; `memory-only` takes nothing but
            their cells.
        rate: of `compressive`: tokens that one pooled slot stands for.
        pooling: of `compressive`: one of `POOLINGS`.
        slots: of `compressive`: pooled slots of a layer; None: as many as take the bytes of the
            paper's recurrent state, see `with_default_slots`.

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
    rate: int = PAPER_RATE
    pooling: str = POOLINGS[0]
    slots: int | None = None

    def __post_init__(self) -> None:
        problems = self.problems(
            self.variant,
            self.cell,
            self.window,
            self.sinks,
            self.full_attention_layers,
            backend=self.backend,
            layers=self.layers,
            rate=self.rate,
            pooling=self.pooling,
            slots=self.slots,
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
        rate: int | None = None,
        pooling: str | None = None,
        slots: int | None = None,
    ) -> list[str]:
        """Everything that is wrong with these values, a line each; None is not looked at."""
        found = Problems()
        if variant not in VARIANTS:
            hint = did_you_mean(str(variant), VARIANTS)
            found.add(f"variant {variant!r} is unknown; one of {', '.join(VARIANTS)}{hint}")
        settings = {"cell": cell, "window": window, "sinks": sinks}
        found.add(*_layer_problems(settings | {"rate": rate, "slots": slots, "pooling": pooling}))
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
            if variant == "memory-only":
                found.add(
                    *(
                        f"layers: layer {number} has no memory (cell: null), and variant "
                        f"{variant!r} has nothing else"
                        for number, own in layers.items()
                        if isinstance(own, Mapping) and own.get("cell", "") is None
                    )
                )
        if backend is not None and backend not in BACKENDS:
            found.add(f"backend {backend!r} is unknown; one of {', '.join(BACKENDS)}")
        return list(found)

    def to_dict(self) -> dict[str, Any]:
        """The fields as `AHNConfig(**fields)` takes them, for JSON.

        `backend`, `layers` and what only `compressive` has are left out where they are not set.
        """
        fields = asdict(self)
        if self.backend is None:
            del fields["backend"]
        for name, default in (("rate", PAPER_RATE), ("pooling", POOLINGS[0]), ("slots", None)):
            if fields[name] == default:
                del fields[name]
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
        if self.variant == "compressive":
            if self.slots is None:
                raise InputError(
                    "slots: a compressive layout needs their number (with_default_slots: the "
                    "paper's, which depends on the model's heads)"
                )
            pooled = {"rate": self.rate, "slots": self.slots, "pooling": self.pooling}
            return LayerLayout(**own | pooled | {"cell": None})
        if self.variant == "memory-only":
            return LayerLayout(0, cell=own["cell"])
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

    def with_default_slots(self, heads: int, key_heads: int, head_dim: int) -> AHNConfig:
        """The same with the paper's pooled slots, where the variant needs a number and has none.

        Pooled slots then take the bytes of the paper's recurrent states, both in the model's type:
        `H d^2` elements to `2 K d` of a slot.

        Args:
            heads: H, query heads.
            key_heads: K, heads of keys and values.
            head_dim: d.
        """
        if self.variant != "compressive" or self.slots is not None:
            return self
        return replace(self, slots=max(1, heads * head_dim // (2 * key_heads)))

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


def example_layout(variant: str) -> LayerLayout:
    """A layout of this variant, which tells whether it has a window, a memory, pooled slots."""
    return AHNConfig(variant=variant, slots=1).layer(0)


#: settings of a layer that are numbers: least, most, and what they count
_NUMBERS = {
    "window": (1, MOST_TOKENS, "tokens"),
    "sinks": (0, MOST_TOKENS, "tokens"),
    "rate": (1, MOST_RATE, "tokens"),
    "slots": (1, MOST_TOKENS, "slots"),
}


def _layer_problems(settings: Mapping[str, Any]) -> list[str]:
    """What is wrong with the settings of a layer; None is not looked at."""
    found = []
    cell = settings.get("cell")
    if cell is not None and (problem := CELLS.problem(cell)) is not None:
        found.append(problem)
    pooling = settings.get("pooling")
    if pooling is not None and pooling not in POOLINGS:
        hint = did_you_mean(str(pooling), POOLINGS)
        found.append(f"pooling {pooling!r} is unknown; one of {', '.join(POOLINGS)}{hint}")
    for name, (least, most, unit) in _NUMBERS.items():
        value = settings.get(name)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            found.append(f"{name} must be a whole number of {unit}, not {value!r}")
        elif value < least:
            found.append(f"{name} must be at least {least}, not {value}")
        elif value > most:
            found.append(f"{name} must be at most {most:,} {unit}, not {value}")
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
