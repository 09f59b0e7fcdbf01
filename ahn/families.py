"""The model families: one table of all that differs between them. Data, no torch.

A family is a row. Every family here is a decoder of Llama's shape: RMS norm, attention with grouped
queries and RoPE, RMS norm, gated MLP, and one name for each weight (`ahn.checkpoints.keys`). What
differs is which projections have biases, whether q and k are normed, what a missing key of
`config.json` means, and whether the base model has a sliding window of its own.

transformers' classes are named here and imported by `ahn.models.causal_lm`, which mixes our
attention into them. So what they compute beside attention needs no row.

A family of another package is a row too (`docs/recipes/family.md`): `ahn.register_family(row)`, or
an entry point, which is named after the model type and found without importing the package first:

    [project.entry-points."ahn_bench.families"]
    my_model = "my_package.my_module:MY_ROW"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from common.errors import InputError
from common.plugins import installed, load, where

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINTS = "ahn_bench.families"

#: End of our own model types: a folder with base and memory weights is a `qwen2_ahn`.
_OURS = "_ahn"
#: Keys by which configurations describe a sliding window of the base model.
_WINDOW_KEYS = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
_BIASES = ("qkv_bias", "output_bias", "mlp_bias")


@dataclass(frozen=True)
class Family:
    """One family of base models.

    A bias is True or False, or the name of the configuration's key that says which.

    Attributes:
        model_type: of the base models' `config.json`, e.g. `qwen2`.
        title: for people, e.g. `Qwen2 and Qwen2.5`.
        prefix: of transformers' class names: `Qwen2` for `Qwen2Config`, `Qwen2Attention`,
            `Qwen2DecoderLayer`, `Qwen2Model` and `Qwen2ForCausalLM`.
        modeling: module with those classes; default: transformers' own for this `model_type`.
        qkv_bias: biases of the projections to queries, keys and values.
        output_bias: bias of attention's output projection.
        mlp_bias: biases of the MLP's three projections.
        qk_norm: RMS norms on each head of q and k, before RoPE.
        defaults: values of keys that a `config.json` may leave out, as transformers' configuration
            class has them; None, or no entry: `num_key_value_heads` is `num_attention_heads`,
            `head_dim` is `hidden_size / num_attention_heads`, `rope_theta` is 10,000, and any
            other key is False.
        own_window: how `config.json` gives layers a sliding window of the base model's own.
            `switch`: `use_sliding_window` does, from layer `max_window_layers` on, or
            `layer_types`; `size`: `sliding_window` does, for every layer, unless it is null;
            None: it cannot.
        chat_template_options: further arguments of the tokenizer's chat template.
    """

    model_type: str
    title: str
    prefix: str
    modeling: str = ""
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)
    own_window: Literal["switch", "size"] | None = None
    chat_template_options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        given: dict[str, Any] = vars(self)
        problems = [
            f"{name} must be a name of letters, digits and _, not {given[name]!r}"
            for name in ("model_type", "prefix")
            if not isinstance(given[name], str) or not given[name].isidentifier()
        ]
        if not problems and self.model_type.endswith(_OURS):
            problems.append(f"names that end with {_OURS} are those of merged models")
        for name in _BIASES:
            if not isinstance(given[name], bool | str):
                problems.append(
                    f"{name} must be True, False or a configuration's key, not {given[name]!r}"
                )
        if not isinstance(given["qk_norm"], bool):
            problems.append(f"qk_norm must be True or False, not {self.qk_norm!r}")
        if self.own_window not in ("switch", "size", None):
            problems.append(f"own_window must be 'switch', 'size' or None, not {self.own_window!r}")
        if problems:
            raise InputError(*(f"family {self.model_type!r}: {problem}" for problem in problems))
        if not self.modeling:
            name = self.model_type
            object.__setattr__(self, "modeling", f"transformers.models.{name}.modeling_{name}")

    @property
    def built_in(self) -> bool:
        """Whether this is a row of this package, whose tests hold it to transformers' model."""
        return self in _BUILT_IN

    @property
    def ahn_model_type(self) -> str:
        """Model type of a folder with base and memory weights: `qwen2_ahn`."""
        return self.model_type + _OURS

    @property
    def stock_class(self) -> str:
        """transformers' causal language model: `Qwen2ForCausalLM`."""
        return f"{self.prefix}ForCausalLM"

    @property
    def ahn_class(self) -> str:
        """Our causal language model: `Qwen2AHNForCausalLM`."""
        return f"{self.prefix}AHNForCausalLM"

    @property
    def released_layer(self) -> str:
        """`_layer_implementation` of AHN weights in the released form: `Qwen2MemDecoderLayer`."""
        return f"{self.prefix}MemDecoderLayer"

    def value(self, config: Mapping[str, Any], key: str, otherwise: Any = None) -> Any:
        """A key of a `config.json`; where that leaves it out, its default in this family."""
        return config[key] if key in config else self.defaults.get(key, otherwise)

    def biases(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Which biases a model has: `qkv_bias`, `output_bias` and `mlp_bias`, unchecked."""
        said = {name: getattr(self, name) for name in _BIASES}
        return {
            name: self.value(config, key, False) if isinstance(key, str) else key
            for name, key in said.items()
        }

    def sliding_layers(self, config: Mapping[str, Any]) -> list[int]:
        """Layers that the base model itself gives a sliding window, as transformers does."""
        layers, kinds = config.get("num_hidden_layers"), config.get("layer_types")
        if self.own_window is None or not isinstance(layers, int):
            return []
        if self.own_window == "size":
            return [] if self.value(config, "sliding_window") is None else list(range(layers))
        if isinstance(kinds, list):
            return [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]
        if not config.get("use_sliding_window") or config.get("sliding_window", 4096) is None:
            return []
        first = config.get("max_window_layers", 28)
        return list(range(first, layers)) if isinstance(first, int) else []

    def window_switch(self, config: Mapping[str, Any]) -> tuple[str, str]:
        """What gives layers a window in `config.json`, and what takes it away; for messages."""
        if self.own_window == "size":
            size = self.value(config, "sliding_window")
            return f"sliding_window: {size}", "set sliding_window to null"
        return "use_sliding_window: true", "set use_sliding_window to false"

    @property
    def window_default(self) -> dict[str, Any]:
        """What a configuration without a window of the base model's own must say."""
        return {"sliding_window": None} if self.own_window == "size" else {}

    def without_own_window(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration without the base's own sliding window: the layout's replaces it.

        Keys that mean nothing in this family stay, as transformers keeps them.
        """
        if self.own_window is None:
            return dict(config)
        kept = {key: value for key, value in config.items() if key not in _WINDOW_KEYS}
        return kept | self.window_default


#: What transformers ignores in a `config.json` is ignored here, too: Llama's `pretraining_tp` (the
#: pieces that products are cut into), `attention_bias` of a Mistral or Qwen2.
_BUILT_IN = (
    Family(
        "qwen2",
        "Qwen2 and Qwen2.5",
        "Qwen2",
        qkv_bias=True,
        own_window="switch",
    ),
    Family(
        "qwen3",
        "Qwen3",
        "Qwen3",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm=True,
        defaults={"head_dim": 128},
        own_window="switch",
        chat_template_options={"enable_thinking": False},  # it answers, and does not think aloud
    ),
    Family(
        "llama",
        "Llama",
        "Llama",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
    ),
    Family(
        "mistral",
        "Mistral",
        "Mistral",
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
        own_window="size",
    ),
)
_FAMILIES: dict[str, Family] = {family.model_type: family for family in _BUILT_IN}


def register_family(family: Family) -> None:
    """Add a family to the table, for this process.

    Raises:
        InputError: not a `Family`, or one whose model type or class names another row has.
    """
    if not isinstance(family, Family):
        raise InputError(f"a family is an ahn.Family, not {type(family).__name__}")
    for other in _FAMILIES.values():
        if other == family:
            return
        if other.model_type == family.model_type or other.prefix == family.prefix:
            raise InputError(
                f"family {family.model_type!r} ({family.prefix}...): the table has "
                f"{other.model_type!r} ({other.prefix}...) already"
            )
    _FAMILIES[family.model_type] = family


def _load(point: EntryPoint) -> Family:
    """The row that an entry point names, in the table from now on.

    Raises:
        InputError: it cannot be imported, or is no row of the model type that it is named after.
    """
    family = load(point, "family")
    if not isinstance(family, Family) or family.model_type != point.name:
        raise InputError(
            f"{where(point, 'family')} must be the ahn.Family of that model type, not {family!r}"
        )
    register_family(family)
    return family


def families() -> Iterator[Family]:
    """Every family: the built-in and registered ones, then those of installed packages.

    Raises:
        InputError: the row of an installed package cannot be loaded.
    """
    yield from tuple(_FAMILIES.values())
    for name, point in installed(ENTRY_POINTS).items():
        if name not in _FAMILIES:
            yield _load(point)


def find_family(model_type: Any) -> Family | None:
    """The family of a base model's type or of ours (`qwen2`, `qwen2_ahn`); None: there is none.

    Raises:
        InputError: the row of an installed package cannot be loaded.
    """
    name = str(model_type).removesuffix(_OURS)
    if name not in _FAMILIES and (point := installed(ENTRY_POINTS).get(name)) is not None:
        return _load(point)
    return _FAMILIES.get(name)


def family_of(config: Mapping[str, Any], where: str | Path | None = None) -> Family:
    """The family of a model's `config.json`.

    Args:
        config: its content.
        where: its folder or hub id, for the message.

    Raises:
        InputError: the `model_type` is of no family.
    """
    given = config.get("model_type")
    family = find_family(given)
    if family is None:
        *others, last = dict.fromkeys([*_FAMILIES, *installed(ENTRY_POINTS)])
        place = "" if where is None else f"{where}: config.json: "
        raise InputError(
            f"{place}model_type {given!r} is not supported; {', '.join(others)} and {last} are"
        )
    return family
