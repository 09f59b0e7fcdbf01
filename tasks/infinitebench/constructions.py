"""How the authors build a row of each of InfiniteBench's six synthetic tasks.

Source: OpenBMB/InfiniteBench 88b3daa, data/construct_synthetic_dataset.py, and for the key-value
pairs nelson-liu/lost-in-the-middle 70fcd76, scripts/make_kv_retrieval_data.py. Where the script
and the published files differ (separator of the filler, constants of the functions), the
published files are followed. The authors set no seed, so rows equal theirs in distribution only.

A construction is a function (random generator, units, index) -> `Built`: `units` is the size
(filler sentences, pairs, numbers, operands, functions), and `index` the row's place in the
published design, which says where the evidence stands or what is asked.
"""

from __future__ import annotations

import statistics
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any


@dataclass(frozen=True)
class Built:
    """A row without its number, and where its evidence is."""

    context: str
    input: str
    answer: list[Any]
    """With the JSON types of the published rows: [str], [int], [float] or [[int, ...]]."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """`evidence_depths`: for each piece of evidence its first character's place as a share of the
    context, in the order in which a reader needs them. Missing where it is spread over all."""


# -- passkey, number_string ---------------------------------------------------------------------

FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)
PASSKEY = "The pass key is {key}. Remember it. {key} is the pass key. "
PASSKEY_INPUT = "What is the pass key?"
NUMBER_STRING = "The sequence of digits is {key}. Remember it. {key} is the sequence of digits. "
NUMBER_STRING_INPUT = "What is the sequence of digits?"
POSITIONS = 59
"""Depths in the published files, from before the first filler sentence to behind the last."""
REPEATS = 10
"""Rows that differ in their key only, at each depth."""


def passkey(rng: Random, units: int, index: int) -> Built:
    """A five-digit key among `units` copies of the filler."""
    return _hidden(PASSKEY, PASSKEY_INPUT, "".join(rng.choices("0123456789", k=5)), units, index)


def number_string(rng: Random, units: int, index: int) -> Built:
    """A ten-digit string of five runs among `units` copies of the filler."""
    digits = rng.choices("0123456789", k=5)
    for k in range(5):
        position = rng.randint(0, 4 + k)
        digits.insert(position, digits[position])
    return _hidden(NUMBER_STRING, NUMBER_STRING_INPUT, "".join(digits), units, index)


def _hidden(needle: str, question: str, key: str, units: int, index: int) -> Built:
    before = round(units * (index // REPEATS) / (POSITIONS - 1))
    start = before * len(FILLER)
    context = FILLER * before + needle.format(key=key) + FILLER * (units - before)
    return Built(context, question, [key], {"evidence_depths": [start / len(context)]})


# -- kv_retrieval -------------------------------------------------------------------------------

KV_ROWS = 500


def kv_retrieval(rng: Random, units: int, index: int) -> Built:
    """`units` pairs of UUIDs as JSON; the target's place runs evenly through the rows."""
    pairs: dict[str, str] = {}
    while len(pairs) < units:
        pairs[_uuid4(rng)] = _uuid4(rng)
    texts = [f'"{key}": "{value}"' for key, value in pairs.items()]
    context = "JSON data:\n{" + ", ".join(texts) + "}"
    key, value = list(pairs.items())[index * units // KV_ROWS]
    question = f'\nKey: "{key}"\nThe value associated with the specified key is: '
    depth = context.index(f'"{key}": ') / len(context)
    return Built(context, question, [value], {"evidence_depths": [depth]})


def _uuid4(rng: Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


# -- math_find ----------------------------------------------------------------------------------

FIND_REPEATS = 50
_RANKS = ("", "second ", "third ")
FIND_TARGETS = (
    *(f"{rank}largest number" for rank in _RANKS),
    *(f"{rank}smallest number" for rank in _RANKS),
    "median number",
)


def math_find(rng: Random, units: int, index: int) -> Built:
    """A list of `units` integers of which an order statistic of *distinct* values is asked."""
    kind = index // FIND_REPEATS
    low, high = 0, 99
    lowered = kind < 3 or (kind == 6 and rng.random() <= 0.5)
    if lowered:
        high = rng.randint(79, 99)
    else:
        low = rng.randint(0, 19)
    numbers = rng.choices(range(low, high + 1), k=units)
    if kind == 6:
        answer: Any = statistics.median(numbers)  # a float for an even number of them
    else:
        distinct = sorted(set(numbers), reverse=kind < 3)
        answer = distinct[kind % 3]
    question = (
        "You should answer with only one number, no other words. "
        f"The {FIND_TARGETS[kind]} of the list is: "
    )
    attributes: dict[str, Any] = {"target": FIND_TARGETS[kind]}
    if kind < 6:
        attributes["evidence_count"] = numbers.count(answer)
    return Built(str(numbers), question, [answer], attributes)


# -- math_calc ----------------------------------------------------------------------------------

CALC_INPUT = "The value of the numerical expression is: "


def math_calc(rng: Random, units: int, index: int) -> Built:
    """A sum of `units` operands whose running values, asked for, stay within 0..99."""
    value = rng.randint(0, 99)
    parts, values = [str(value)], []
    for _ in range(units - 1):
        operand = rng.randint(0, 99)
        if rng.random() > 0.5:
            if value + operand > 99:
                operand = rng.randint(0, 99 - value)
            value += operand
            parts.append(f" + {operand}")
        else:
            if value - operand < 0:
                operand = rng.randint(0, value)
            value -= operand
            parts.append(f" - {operand}")
        values.append(value)
    return Built("".join(parts), CALC_INPUT, [values])


# -- code_run -----------------------------------------------------------------------------------

CODE_DEPTHS = (2, 4, 6, 8, 10)
"""Functions in the chain of calls."""
CODE_REPEATS = 80
CODE_CONSTANTS = {2: (-8, 12), 4: (-10, 10), 6: (-8, 16), 8: (-10, 12), 10: (-12, 17)}
"""Least and greatest constant by depth, in the published files."""
CODE_HEAD = "\nHere is the content of functions_module.py:\n\n"


def code_depth(index: int) -> int:
    """The length of the chain of calls in row `index`."""
    return CODE_DEPTHS[index // CODE_REPEATS]


def code_run(rng: Random, units: int, index: int) -> Built:
    """A module of about `units` functions, each calling one of the next layer; the last add."""
    depth = code_depth(index)
    size = units // depth
    names = rng.sample(range(1, 2 * units + 1), size * depth)
    layers = [names[layer * size : (layer + 1) * size] for layer in range(depth)]
    callee: dict[int, int] = {}
    constant: dict[int, int] = {}
    for layer, members in enumerate(layers):
        for name in members:
            if layer + 1 < depth:
                callee[name] = rng.choice(layers[layer + 1])
            constant[name] = rng.randint(*CODE_CONSTANTS[depth])
    name, argument = rng.choice(layers[0]), rng.randint(-10, 10)

    texts = {a: _function(a, callee.get(a), constant[a]) for a in sorted(names)}
    context = CODE_HEAD + "".join(texts.values())
    chain = [name]
    while chain[-1] in callee:
        chain.append(callee[chain[-1]])
    question = (
        f"Please give me the exact number of the return value of func_{name}({argument}). "
        "Your response should end with the sentence 'The return value is:'."
    )
    attributes = {
        "calls": depth,
        "evidence_depths": [context.index(texts[a]) / len(context) for a in chain],
    }
    return Built(context, question, [argument + sum(constant[a] for a in chain)], attributes)


def _function(name: int, callee: int | None, constant: int) -> str:
    value = "x" if callee is None else f"func_{callee}(x)"
    if constant:
        value += f" {'+' if constant > 0 else '-'} {abs(constant)}"
    return f"def func_{name}(x):\n    return {value}\n\n"


Construction = Callable[[Random, int, int], Built]
