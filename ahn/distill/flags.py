"""Recipe options as flags: `--loss_type kl+ce --sliding_window=64`, and their list for `--help`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ahn.distill.recipe import Recipe
from common import yaml
from common.errors import InputError


def parse_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Values by option name; hyphens and underscores are the same, values are read as YAML.

    A yes/no option without a value is true. Options of a mapping take a dot:
    `--base.offset_logit 10`, `--training_arguments.deepspeed ds.json`.

    Raises:
        InputError: one line for each word that is no flag, flag without its value, and flag that
            no recipe has.
    """
    recipe, values = parse_words(arguments)
    if recipe is not None:
        raise InputError(f"{recipe}: a flag was expected (--option value)")
    return values


def parse_words(arguments: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """The recipe file among the words of a command line, if there is one, and its flags' values.

    Raises:
        InputError: as of `parse_flags`; more than one recipe.
    """
    recipe: str | None = None
    values: dict[str, Any] = {}
    problems: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            if recipe is None:
                recipe = word
            else:
                problems.append(
                    f"{word}: a flag was expected (--option value); the recipe is {recipe}"
                )
            continue
        name, separator, text = word[2:].partition("=")
        path = name.replace("-", "_").split(".")
        field = Recipe.model_fields.get(path[0])
        if not separator:
            switch = field is not None and field.annotation is bool
            if words and _is_value(words[0], switch):
                text = words.pop(0)
            elif switch:
                text = "true"
            elif field is not None:
                problems.append(f"--{name}: its value is missing")
                continue
        if field is None:
            close = difflib.get_close_matches(path[0], Recipe.model_fields, n=1)
            hint = f"; did you mean --{close[0]}?" if close else ""
            problems.append(f"--{name}: a recipe has no such option{hint}")
        elif not _put(values, path, _value(text, None if path[1:] else field)):
            problems.append(f"--{name}: given both as a whole and in parts")
    if problems:
        raise InputError(*problems)
    return recipe, values


def _is_value(word: str, switch: bool) -> bool:
    return not word.startswith("--") and not (switch and word.endswith((".yaml", ".yml")))


def _put(values: dict[str, Any], path: list[str], value: Any) -> bool:
    """Whether there was a place for it."""
    *parents, last = path
    inner: Any = values
    for part in parents:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            return False
    inner[last] = value
    return True


def _value(text: str, field: FieldInfo | None) -> Any:
    """As YAML where the option may have that value, else as it stands (a folder called 2024)."""
    try:
        value = yaml.parse(text, "option")
    except InputError:
        return text
    with suppress(ValueError):
        value = float(value) if isinstance(value, str) else value  # YAML 1.1 reads 1e-4 as text
    if field is None:
        return value
    kind: Any = field.annotation
    for candidate in (value, text):
        with suppress(ValidationError):
            TypeAdapter(kind).validate_python(candidate)
            return candidate
    return value


def option_lines() -> list[tuple[str, str]]:
    """For each option of a recipe: `--name` with what it takes, and its meaning and default."""
    lines = []
    for name, field in Recipe.model_fields.items():
        meaning = [field.description or ""]
        default = field.get_default(call_default_factory=True)
        if field.is_required():
            meaning.append("(required)")
        elif default not in (None, {}, []):
            shown = ",".join(map(str, default)) if isinstance(default, list) else str(default)
            meaning.append(f"(default: {shown.lower() if isinstance(default, bool) else shown})")
        takes = _takes(field.annotation)
        lines.append((f"--{name} {takes}".strip(), " ".join(filter(None, meaning))))
    return lines


def _takes(annotation: Any) -> str:
    """What an option's value looks like."""
    if annotation is bool:
        return "[true|false]"
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _takes(get_args(annotation)[0])
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    if get_origin(annotation) is list:
        return f"[{_takes(kinds[0])},...]"
    if get_origin(annotation) is dict or annotation is Recipe.model_fields["base"].annotation:
        return "MAPPING"
    if kinds:
        return "|".join(dict.fromkeys(_takes(kind) for kind in kinds))
    return {"str": "TEXT", "int": "INT", "float": "FLOAT"}.get(annotation.__name__, "TEXT")
