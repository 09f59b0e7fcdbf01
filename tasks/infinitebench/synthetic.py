"""InfiniteBench's six synthetic tasks at any length, without the hub.

Without a length the rows have the size of the published ones. A length is a number of tokens of
Qwen2.5's tokenizer that the prompt comes close to and does not exceed by more than chance (see
`units_for`); for another tokenizer it is a measure of size only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from random import Random
from typing import Any

from common.errors import InputError
from tasks.infinitebench import constructions as c
from tasks.lengths import parse_length


@dataclass(frozen=True)
class _Kind:
    """One task: its construction, its published size, and how tokens become units."""

    build: c.Construction
    rows: int
    """Rows of the published file."""
    units: int
    """Size of each published row."""
    overhead: int
    """Tokens of the prompt besides the units: instruction, evidence, question."""
    tokens: Callable[[int, int], float]
    """(units, index of a row): expected tokens of that many units."""
    least: int
    """Fewest units of which the question has a sensible answer."""


def _each(tokens: float) -> Callable[[int, int], float]:
    return lambda units, index: units * tokens


def _code_tokens(units: int, index: int) -> float:
    """Tokens of a module: 11 a function, 8 in the last layer (9 with constant 0), 3 for a constant
    but 0, and one for each digit. Names are drawn from 1 to twice the units.
    """
    depth = c.code_depth(index)
    low, high = c.CODE_CONSTANTS[depth]
    values = range(low, high + 1)
    constant = sum(3 + len(str(abs(value))) for value in values if value) / len(values)
    name = _digits_up_to(2 * units) / (2 * units)
    calling = (depth - 1) / depth
    per_function = 8 + name + constant + calling * (3 + name) + (1 - calling) / len(values)
    return units // depth * depth * per_function


def _digits_up_to(number: int) -> int:
    """How many digits it takes to write 1, 2, ..., `number`."""
    return sum(number - 10**power + 1 for power in range(len(str(number))))


# Tokens a unit, measured with Qwen2.5's tokenizer, which makes one token of each digit. math_find:
# 3.88 to 3.92, and 4 where no number has one digit; the greatest, so that no row is too long.
_KINDS = {
    "passkey": _Kind(c.passkey, c.POSITIONS * c.REPEATS, 5220, 75, _each(24), 1),
    "number_string": _Kind(c.number_string, c.POSITIONS * c.REPEATS, 5220, 90, _each(24), 1),
    "kv_retrieval": _Kind(c.kv_retrieval, c.KV_ROWS, 2500, 90, _each(67.7), 2),
    "math_find": _Kind(c.math_find, len(c.FIND_TARGETS) * c.FIND_REPEATS, 30000, 50, _each(4), 50),
    "math_calc": _Kind(c.math_calc, 50, 15000, 90, _each(3.62), 2),
    "code_run": _Kind(c.code_run, len(c.CODE_DEPTHS) * c.CODE_REPEATS, 4400, 75, _code_tokens, 20),
}

SYNTHETIC_TASKS = tuple(_KINDS)
"""The tasks that can be generated."""


def units_for(task_name: str, tokens: int, index: int = 0) -> int:
    """The most units with which the prompt of row `index` is expected to have at most `tokens`.

    Units are filler sentences, pairs, numbers, operands or functions. InputError when there is
    no room for as many as the question needs.
    """
    kind = _kind(task_name)
    room = tokens - kind.overhead
    units = bisect_right(range(tokens), room, key=lambda units: ceil(kind.tokens(units + 1, index)))
    if units < kind.least:
        needed = kind.overhead + int(kind.tokens(kind.least, index)) + 1
        raise InputError(
            f"--length: {tokens} is too short for {task_name}, which needs at least {needed} tokens"
        )
    return units


def generate(
    task_name: str, length: str | int | None = None, limit: int | None = None, seed: int = 0
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows in the published schema (`id`, `context`, `input`, `answer`, `options`), in order.

    With each comes what is known of it: `units`, `length` (tokens asked for, or None), and the
    construction's attributes. Without `limit` there are as many rows as in the published file.
    With it, that many of them, evenly spaced and both ends included, so that depths and kinds of
    question are covered evenly by few rows as by many; beyond the published number, the whole
    design over and over. A row depends on task, length, seed and its id, not on `limit`; raising
    the limit from n to 2n - 1 keeps all n.

    Lazy, because a whole file at 1m is gigabytes. InputError, at once, for a task that is not
    synthetic, a length that is none or too short, or a limit below 1.
    """
    kind = _kind(task_name)
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, not {limit}")
    tokens = None if length is None else parse_length(length)
    ids = _spread(row_count(task_name, limit), kind.rows)
    units = [
        kind.units if tokens is None else units_for(task_name, tokens, row_id % kind.rows)
        for row_id in ids
    ]

    def rows() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        for row_id, size in zip(ids, units, strict=True):
            rng = Random(f"{seed}:{task_name}:{size}:{row_id}")
            built = kind.build(rng, size, row_id % kind.rows)
            row = {
                "id": row_id,
                "context": built.context,
                "input": built.input,
                "answer": built.answer,
                "options": [],
            }
            yield row, {"units": size, "length": tokens, **built.attributes}

    return rows()


def row_count(task_name: str, limit: int | None) -> int:
    """How many rows `generate` gives: `limit`, else as many as the published file has."""
    return _kind(task_name).rows if limit is None else limit


def _spread(count: int, of: int) -> list[int]:
    """`count` ids of a design with `of` rows, evenly spaced; whole designs first."""
    rounds, rest = divmod(count, of)
    start = rounds * of
    if rest == 1:
        return [*range(start), start + of // 2]
    return [*range(start), *(start + round(i * (of - 1) / (rest - 1)) for i in range(rest))]


def _kind(task_name: str) -> _Kind:
    if task_name not in _KINDS:
        raise InputError(
            f"task {task_name!r} has no synthetic rows (known: {', '.join(SYNTHETIC_TASKS)})"
        )
    return _KINDS[task_name]
