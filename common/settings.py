"""Settings of a command: one pydantic model, filled from a YAML file and from flags.

Each field is a key of the file and a flag: `max_length` is `max_length:` or `max-length:` in YAML,
`--max-length` or `--max_length` at the shell. Flags win over the file. What is wrong with a value
is said with the place where it was written: file and line, or flag.

`common.commands` makes a command out of such a model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    TypeAdapter,
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
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,  # a field's help is the docstring below it
    )


def as_number(value: Any) -> Any:
    """A text that is a number to everybody but YAML as that number; other values as they are."""
    # YAML 1.1 reads 1e-4, without a point, as text
    return float(value) if isinstance(value, str) and _TAKEN_FOR_TEXT.fullmatch(value) else value


_TAKEN_FOR_TEXT = re.compile(r"[-+]?(\d+(\.\d*)?[eE][-+]?\d+|nan|inf)")

Whole = StrictInt
"""A whole number; `true` and `4.0` are none."""
Number = Annotated[
    StrictFloat,
    BeforeValidator(as_number),
    Field(allow_inf_nan=False),
]
"""A finite number."""
Tokens = Annotated[StrictInt, BeforeValidator(token_count)]
"""A number of tokens, also written `128k` or `1m`."""
Several = int | list[int]
"""A number of tokens, or several: at least two, all different; see `one_or_several`."""
Seed = Annotated[StrictInt, Field(ge=0, lt=2**32)]
"""What every generator of random numbers takes as a seed."""
as_dtype = BeforeValidator(dtype_name)
"""For a field that takes the name of a number type: `bf16` is `bfloat16`."""


def one_or_several(most: int, least: int | None = None) -> BeforeValidator:
    """For a field of type `Several`: `1024`, `1k`, a list of these, or a text `1k,2k`.

    A list of one is that one. Several are at least 1 each, and none is given twice.

    Args:
        most: what each may be at most.
        least: what one alone must be at least; None: whoever takes it says so.
    """
    one: TypeAdapter[int] = TypeAdapter(Annotated[Tokens, Field(ge=least, le=most)])
    each: TypeAdapter[int] = TypeAdapter(Annotated[Tokens, Field(ge=1, le=most)])

    def read(value: Any) -> Any:
        if value is None:
            return None
        given = value if isinstance(value, list | tuple) else [value]
        parts = [part for item in given for part in _parts(item)]
        if not parts:
            raise ValueError("the list names none")
        if len(parts) == 1:
            return one.validate_python(parts[0])
        found = [each.validate_python(part) for part in parts]
        twice = [number for number in found if found.count(number) > 1]
        if twice:
            raise ValueError(f"{twice[0]:,} is given twice")
        return found

    return BeforeValidator(read)


def _parts(item: Any) -> list[Any]:
    """The items of a text with commas, whole numbers among them as such; anything else alone."""
    if not isinstance(item, str) or "," not in item:
        return [item]
    parts = [part.strip() for part in item.split(",")]
    return [int(part) if _WHOLE.fullmatch(part) else part for part in parts]


_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,18})")


@dataclass(frozen=True)
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

    names: tuple[str, ...] = ()
    metavar: str | None = None
    off: str | None = None
    own_form: bool = False
    argument: bool = False


_NO_FLAG = Flag()


def flag_of(option: FieldInfo) -> Flag:
    """The `Flag` in a field's annotation; a plain one where there is none."""
    return next((item for item in option.metadata if isinstance(item, Flag)), _NO_FLAG)


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
        spelling.lstrip("-").replace("-", "_"): key
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
        inner = None if option is None else inner_model(option.annotation)
        if inner is None:
            return ()
        model = inner
    return model.model_fields


def inner_model(annotation: Any) -> type[BaseModel] | None:
    """The model that a field's value is, if it is one."""
    for kind in kinds_of(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def kinds_of(annotation: Any) -> list[Any]:
    """The types of an annotation without `None` and metadata: `[int]` of `Tokens | None`."""
    if get_origin(annotation) is Annotated:
        return kinds_of(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        parts = (part for part in get_args(annotation) if part is not NoneType)
        return [kind for part in parts for kind in kinds_of(part)]
    return [annotation]
