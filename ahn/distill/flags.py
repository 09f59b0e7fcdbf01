"""Recipe options as flags: `--loss_type kl+ce --sliding_window=64`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import yaml

from ahn.config import InputError
from ahn.distill.recipe import Recipe


def parse_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Values by option name; hyphens and underscores are the same, values are read as YAML.

    A flag without a value is true. Options of a mapping take a dot: `--base.offset_logit 10`,
    `--training_arguments.deepspeed ds.json`.

    Raises:
        InputError: one line for each word that is no flag, and each flag that no recipe has.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            problems.append(f"{word}: a flag was expected (--option value)")
            continue
        name, separator, text = word[2:].partition("=")
        if not separator:
            text = words.pop(0) if words and not words[0].startswith("--") else "true"
        first, *rest = name.replace("-", "_").split(".")
        if first not in Recipe.model_fields:
            close = difflib.get_close_matches(first, Recipe.model_fields, n=1)
            hint = f"; did you mean --{close[0]}?" if close else ""
            problems.append(f"--{name}: a recipe has no such option{hint}")
            continue
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        target = values
        for part in (first, *rest)[:-1]:
            target = target.setdefault(part, {})
        target[(first, *rest)[-1]] = _number(value)
    if problems:
        raise InputError("\n".join(problems))
    return values


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
