"""Settings of a command: one pydantic model, filled from a YAML file and from flags.

Each field is a key of the file and a flag: `max_length` is `max_length:` or `max-length:` in YAML,
`--max-length` or `--max_length` at the shell. Flags win over the file. What is wrong with a value
is said with the place where it was written: file and line, or flag.

`common.commands` makes a command out of such a model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    ValidationError,
)
from pydantic.fields import FieldInfo

from common import yaml
from common.errors import InputError, Problems, shown
from common.files import read_text
from common.quantities import dtype_name, token_count
from common.validation import messages

Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """Base of the models: unknown keys are refused, and so are numbers that are not finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-4, without a point, as text
    return float(value) if isinstance(value, str) and _SCIENTIFIC.fullmatch(value) else value


_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")

Whole = StrictInt
"""A whole number; `true` and `4.0` are none."""
Number = Annotated[
    StrictFloat, BeforeValidator(_number, json_schema_input_type=float), Field(allow_inf_nan=False)
]
"""A finite number."""
Tokens = Annotated[StrictInt, BeforeValidator(token_count, json_schema_input_type=int)]
"""A number of tokens, also written `128k` or `1m`."""
Seed = Annotated[StrictInt, Field(ge=0, lt=2**32)]
"""What every generator of random numbers takes as a seed."""
as_dtype = BeforeValidator(dtype_name)
"""For a field that takes the name of a number type: `bf16` is `bfloat16`."""


@dataclass(frozen=True, init=False)
class Flag:
    """How a field is written on the command line, where its name and type do not say it.

    Attributes:
        names: other spellings, the first of which is shown (`--variant` for `variants`). One that
            begins with `--` may be a key of the file, too.
        metavar: what stands for the value in the help.
        off: the flag that switches a yes/no field off. Default: `--no-` and the name.
        own_form: the texts of the command line go to the model's own validator as they are.
        argument: a word without a flag.
    """

    names: tuple[str, ...]
    metavar: str | None = None
    off: str | None = None
    own_form: bool = False
    argument: bool = False

    def __init__(
        self,
        *names: str,
        metavar: str | None = None,
        off: str | None = None,
        own_form: bool = False,
        argument: bool = False,
    ) -> None:
        for name, value in list(locals().items())[1:]:
            object.__setattr__(self, name, value)


_NO_FLAG = Flag()


def flag_of(option: FieldInfo) -> Flag:
    """The `Flag` in a field's annotation; a plain one where there is none."""
    return next((item for item in option.metadata if isinstance(item, Flag)), _NO_FLAG)


def key_of(flag: str) -> str:
    """The key that a flag stands for: `max_length` for `--max-length`."""
    return flag.lstrip("-").replace("-", "_")


def flag_for(key: str) -> str:
    """The flag of a key: `--max-length` for `max_length`, `--json` for `json_`."""
    return f"--{key.strip('_').replace('_', '-')}"


def flags_of(key: str, option: FieldInfo) -> list[str]:
    """All spellings of a field's flag; the one that help and messages show comes first."""
    names = [*flag_of(option).names, flag_for(key)]
    return sorted(dict.fromkeys(names), key=lambda name: not name.startswith("--"))


@dataclass(frozen=True)
class SettingsFile:
    """What a YAML file says.

    Attributes:
        name: of the file, for messages.
        values: by key.
        lines: where each key stands, counted from 1.
    """

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)

    def without(self, keys: Collection[str]) -> SettingsFile:
        """The same without the values of some keys."""
        kept = {key: value for key, value in self.values.items() if key not in keys}
        return replace(self, values=kept)


def read_file(model: type[BaseModel], path: str | Path) -> SettingsFile:
    """Read a YAML file with settings of `model`; see `parse_file`."""
    return parse_file(model, read_text(path, yaml.MOST_BYTES), shown(path))


def parse_file(model: type[BaseModel], text: str, name: str) -> SettingsFile:
    """The settings in a YAML text. A value of null means the default: it was not said.

    Raises:
        InputError: it is not YAML, not a mapping, or says one key under two spellings.
    """
    content = yaml.parse(text, name)
    if content is None:
        return SettingsFile(name)
    if not isinstance(content, Mapping):
        raise InputError(f"{name} must hold 'key: value' lines")
    other = {
        key_of(spelling): key
        for key, option in model.model_fields.items()
        for spelling in flag_of(option).names
        if spelling.startswith("--")
    }
    lines = yaml.key_lines(text)
    values: dict[str, Any] = {}
    places: dict[str, int] = {}
    problems = Problems()
    for written, value in content.items():
        key = written.replace("-", "_")
        key = other.get(key, key)
        if key in places:
            problems.add(
                f"{name}:{lines.get(written, 1)}: {written!r} is given twice under two spellings"
            )
        places[key] = lines.get(written, 0)  # 0: merged in from an anchor
        if value is not None or key not in model.model_fields:
            values[key] = value
    problems.check()
    return SettingsFile(name, values, places)


class SettingsError(InputError):
    """What is wrong with settings.

    Attributes:
        keys: whose values cannot be used.
    """

    keys: frozenset[str] = frozenset()


def settings(
    model: type[Model], given: Mapping[str, Any], file: SettingsFile | None = None
) -> Model:
    """The settings that flags and a file say together.

    Args:
        model: their names, types, ranges and defaults.
        given: values of flags by key; they win. Mappings are merged into the file's.
        file: read before.

    Raises:
        SettingsError: one message per problem, each with file and line, or flag.
    """
    of_file = {} if file is None else file.values
    values = merged(of_file, given)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = []
        for place, text in messages(error, lambda place: known_names(model, place), "option"):
            found.append(f"{_source(model, place, given, file)}{text}")
        refused = SettingsError(*found)
        refused.keys = frozenset(str(entry["loc"][0]) for entry in error.errors() if entry["loc"])
        raise refused from None


def _source(
    model: type[BaseModel],
    place: tuple[str, ...],
    given: Mapping[str, Any],
    file: SettingsFile | None,
) -> str:
    """Where a value was written, to be put before what is wrong with it."""
    if not place:
        return f"{file.name}: " if file is not None and file.name else ""
    name = ".".join(place)
    if file is None or not file.name or place[0] in given:
        option = model.model_fields.get(place[0])
        if option is not None and flag_of(option).argument:
            return f"{name.upper()}: "
        shown_as = flag_for(place[0]) if option is None else flags_of(place[0], option)[0]
        return ".".join([shown_as, *place[1:]]) + ": "
    line = file.lines.get(place[0])
    return f"{file.name}:{line}: {name}: " if line else f"{file.name}: {name}: "


def merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with those of `over` in their place; a mapping within both is merged likewise."""
    found = dict(values)
    for key, value in over.items():
        mine = found.get(key)
        both = isinstance(value, Mapping) and isinstance(mine, Mapping)
        found[key] = merged(mine, value) if both else value  # type: ignore[arg-type]
    return found


def known_names(model: type[BaseModel], place: tuple[str, ...]) -> Collection[str]:
    """The keys that there are where an unknown one stands."""
    for key in place[:-1]:
        option = model.model_fields.get(key)
        inner = None if option is None else _inner_model(option.annotation)
        if inner is None:
            return ()
        model = inner
    return model.model_fields


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    for kind in _kinds(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _kinds(annotation: Any) -> list[Any]:
    """The types of an annotation, `None` left out: `[int]` of `Annotated[int, ...] | None`."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (list, dict) or not get_args(annotation):
        return [annotation]
    if str(get_origin(annotation)) == "typing.Literal":
        return [annotation]
    return [k for part in get_args(annotation) if part is not NoneType for k in _kinds(part)]


# -- flags -------------------------------------------------------------------------------------


def kinds_of(option: FieldInfo) -> list[Any]:
    """The types that a field's value may have, `None` left out."""
    return _kinds(option.annotation)


def item_kinds(kind: Any) -> list[Any]:
    """The types that the items of a list may have; none where `kind` is no list."""
    return _kinds(get_args(kind)[0]) if get_origin(kind) is list else []


def is_switch(option: FieldInfo) -> bool:
    """Whether a field says yes or no."""
    return kinds_of(option) == [bool]


def is_mapping(option: FieldInfo) -> bool:
    """Whether a field holds values by name, each with a flag of its own: `--base.tokenizer`."""
    if flag_of(option).own_form:
        return False
    return any(get_origin(k) is dict for k in kinds_of(option)) or (
        _inner_model(option.annotation) is not None
    )


def is_list(option: FieldInfo) -> bool:
    """Whether a flag may be repeated."""
    return flag_of(option).own_form or any(get_origin(k) is list for k in kinds_of(option))


def flag_values(model: type[BaseModel], words: Mapping[str, Any]) -> dict[str, Any]:
    """The values of flags: their words, read as YAML where the field may have that value.

    Args:
        model: whose fields the flags are.
        words: by key: a word, several of a list, `NAME=VALUE` words of a mapping, or True or False
            of a switch.

    Raises:
        InputError: a mapping is given both as a whole and in parts.
    """
    problems = Problems()
    values: dict[str, Any] = {}
    for key, given in words.items():
        option = model.model_fields[key]
        if isinstance(given, bool):
            values[key] = given
        elif isinstance(given, str):
            values[key] = _value(given, option.annotation)
        elif is_mapping(option):
            with problems.collecting(f"{flag_for(key)}: "):
                values[key] = _mapping(given)
        elif flag_of(option).own_form:
            values[key] = list(given)
        elif len(given) == 1 and len(kinds_of(option)) > 1:
            values[key] = _value(given[0], option.annotation)  # may be something else than a list
        else:
            values[key] = [item for word in given for item in _items(word, option)]
    problems.check()
    return values


def _items(word: str, option: FieldInfo) -> list[Any]:
    """The items of a list that a word gives: `a,b`, or a list in YAML."""
    (kind,) = (kind for kind in kinds_of(option) if get_origin(kind) is list)
    whole = _value(word, kind)
    if isinstance(whole, list):
        return whole
    parts = (part.strip() for part in word.split(","))
    return [_value(part, get_args(kind)[0]) for part in parts if part]


def _mapping(words: Iterable[str]) -> Any:
    found: dict[str, Any] = {}
    whole: list[Any] = []
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or path.startswith("{"):
            whole.append(_value(word, dict[str, Any]))
            continue
        *parents, last = path.replace("-", "_").split(".")
        inner: Any = found
        for part in parents:
            inner = inner.setdefault(part, {}) if isinstance(inner, dict) else None
        if not isinstance(inner, dict):
            raise InputError("given both as a whole and in parts")
        inner[last] = _value(text, Any)
    if len(whole) + bool(found) > 1:
        raise InputError("given both as a whole and in parts")
    return whole[0] if whole else found


def _value(word: str, kind: Any) -> Any:
    """A word as a number, list ... where a field of type `kind` takes such; else as it stands."""
    try:
        value = yaml.parse(word, "flag")
    except InputError:
        return word
    if kind is Any:
        return value if not isinstance(value, str) else _number(word)
    fits = word == "null" if value is None else any(_is(value, each) for each in _kinds(kind))
    return value if fits else word  # "" and "~" are texts, too, whatever YAML makes of them


def _is(value: Any, kind: Any) -> bool:
    """Whether a value that YAML gave is of a type. Ranges are for the model to check."""
    if get_origin(kind) is list:
        return isinstance(value, list)
    if isinstance(value, dict):
        return get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, BaseModel))
    return type(value) is kind and kind is not str or (type(value) is int and kind is float)
