"""Flags of a command from the fields of a pydantic model: names, help, and what a word means.

A word is read as YAML where the field takes such a value (`--layers [0,2]`, `--max-samples null`),
and as it stands otherwise: a folder called 2024 is a folder. Ranges are for the model to check.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import click
from click.shell_completion import CompletionItem
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from common import yaml
from common.errors import InputError
from common.settings import as_number, flag_of, flags_of, inner_model, kinds_of

_METAVARS = {int: "N", float: "X"}


def parameters_of(
    model: type[BaseModel], helps: Mapping[str, str], without: Sequence[str]
) -> dict[str, click.Parameter]:
    """The flags and arguments of a model's fields, by key.

    Args:
        model: its class variable `groups` gives the headings of the help, by the first field of
            each group.
        helps: help of fields that is another than the model's.
        without: fields that are left out.
    """
    heading, found = "Options", dict[str, click.Parameter]()
    for key, field in model.model_fields.items():
        heading = getattr(model, "groups", {}).get(key, heading)
        text = helps.get(key) or field.description or ""
        if key in without:
            continue
        if flag_of(field).argument:
            several = any(get_origin(kind) is list for kind in kinds_of(field.annotation))
            metavar, nargs = flag_of(field).metavar, -1 if several else 1
            required = field.is_required()
            found[key] = click.Argument(
                [key], help=text, nargs=nargs, required=required, metavar=metavar
            )
        else:
            found[key] = Option(key, field, text, heading)
    return found


class Option(click.Option):
    """The flag of a field.

    Args:
        key: of the field.
        field: its type and default.
        text: its help.
        heading: of its group in the help.

    Attributes:
        of_mapping: each value has a name: `--base.NAME VALUE`.
    """

    def __init__(self, key: str, field: FieldInfo, text: str, heading: str) -> None:
        flag = flag_of(field)
        self.kinds = kinds_of(field.annotation)
        self.heading = heading
        self._own_form = flag.own_form
        self._default = field.get_default(call_default_factory=True)
        self._items = [get_args(kind)[0] for kind in self.kinds if get_origin(kind) is list]
        self._choices = [
            str(c) for kind in self.kinds if get_origin(kind) is Literal for c in get_args(kind)
        ]
        self.of_mapping = not flag.own_form and (
            inner_model(field.annotation) is not None
            or any(get_origin(kind) is dict for kind in self.kinds)
        )
        first, *others = flags_of(key, field)
        text += " [required]" if field.is_required() else self._default_in_words(text)
        if self.kinds == [bool]:
            off = f"--{flag.off}" if flag.off else first.replace("--", "--no-", 1)
            self._hides_off = not flag.off and self._default is False
            super().__init__([f"{first}/{off}", *others, key], default=None, help=text)
        else:
            several = bool(flag.own_form or self.of_mapping or self._items)
            metavar = flag.metavar or self._metavar()
            names = [first, *others, key]
            super().__init__(names, type=str, multiple=several, metavar=metavar, help=text)

    def _default_in_words(self, text: str) -> str:
        default = self._default
        if default is False or default in (None, {}, [], "") or "default" in text.lower():
            return ""
        if default is True:
            return " [default: yes]"
        listed = ",".join(map(str, default)) if isinstance(default, list) else default
        return f" [default: {listed}]"

    def _metavar(self) -> str:
        """What stands for a value: the values that there are, or what kind of thing it is."""
        kinds = [kind for kind in self.kinds if get_origin(kind) is not list]
        kinds += [kind for item in self._items for kind in kinds_of(item)]
        named = "|".join(dict.fromkeys(_METAVARS.get(kind, "TEXT") for kind in kinds))
        return "|".join(self._choices) or named + (",..." if self._items else "")

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The flag and its meaning, without a `--no-x` that would change nothing."""
        record = super().get_help_record(ctx)
        if record and self.of_mapping:
            return f"{self.opts[0]}.NAME VALUE", record[1]
        if record and self.is_flag and self._hides_off:
            return ", ".join(self.opts), record[1]
        return record

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The values that there are, where there are only some."""
        found = [
            CompletionItem(choice) for choice in self._choices if choice.startswith(incomplete)
        ]
        return found or super().shell_complete(ctx, incomplete)

    def value_of(self, given: Any) -> Any:
        """What the words of a command line mean.

        Args:
            given: a word, several of a list, `NAME=VALUE` words of a mapping; or a boolean.

        Raises:
            InputError: a mapping is given both as a whole and in parts.
        """
        if isinstance(given, bool):
            return given
        if isinstance(given, str):
            return _value(given, self.kinds)
        if self._own_form:
            return list(given)
        if self.of_mapping:
            return _mapping(given, self.opts[0])
        if len(given) == 1 and len(self.kinds) > 1:
            return _value(given[0], self.kinds)  # it may be something else than a list
        return [item for word in given for item in self._listed(word)]

    def _listed(self, word: str) -> list[Any]:
        """The items of a list that a word gives: `a,b`, or a list in YAML."""
        whole = _value(word, [list])
        if isinstance(whole, list):
            return whole
        parts = (part.strip() for part in word.split(","))
        return [_value(part, kinds_of(self._items[0])) for part in parts if part]


def _mapping(words: Iterable[str], flag: str) -> Any:
    found: dict[str, Any] = {}
    whole: list[Any] = []
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or path.startswith("{"):
            whole.append(_value(word, [dict]))
            continue
        *parents, last = path.replace("-", "_").split(".")
        inner: Any = found
        for part in parents:
            inner = inner.setdefault(part, {}) if isinstance(inner, dict) else None
        if not isinstance(inner, dict):
            whole.append(inner)
            break
        inner[last] = _value(text, [Any])
    if len(whole) + bool(found) > 1:
        raise InputError(f"{flag}: given both as a whole and in parts")
    return whole[0] if whole else found


def _value(word: str, kinds: Sequence[Any]) -> Any:
    """A word as a value of one of these types, as YAML reads it; else as it stands."""
    try:
        value = yaml.parse(word, "flag")
    except InputError:
        return word
    if kinds == [Any]:
        return value if not isinstance(value, str) else as_number(word)
    if value is None:
        return None if word == "null" else word  # "" and "~" are texts, whatever YAML says
    return value if any(_is(value, kind) for kind in kinds) else word


def _is(value: Any, kind: Any) -> bool:
    """Whether a value that YAML gave is of a type, as far as that decides how to read it."""
    if isinstance(value, (list, str)):
        return isinstance(value, list) and list in (kind, get_origin(kind))
    return type(value) is (get_origin(kind) or kind) or (type(value) is int and kind is float)
