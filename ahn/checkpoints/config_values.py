"""Values in a checkpoint's JSON files that no model can be computed with. No torch.

Kinds of values are transformers' business; here are numbers that it takes without a word.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ahn.checkpoints.rope import rope_config_problems
from common.errors import InputError


def non_finite(content: Any, name: str = "") -> list[str]:
    """The numbers of a JSON document that are none (`NaN`, `Infinity`, `1e999`), a line each.

    Strict JSON has no such numbers; Python's reader takes them.
    """
    if isinstance(content, float) and not math.isfinite(content):
        return [f"{name or 'the document'}: {json.dumps(content)} is not a finite number"]
    entries: Any = []
    if isinstance(content, Mapping):
        entries = [(f"{name}.{key}" if name else str(key), value) for key, value in content.items()]
    elif isinstance(content, list):
        entries = [(f"{name}[{index}]", value) for index, value in enumerate(content)]
    return [problem for key, value in entries for problem in non_finite(value, key)]


def check_values(config: Mapping[str, Any], where: str | Path) -> None:
    """Refuse a model's configuration with numbers that cannot be.

    Raises:
        InputError: names every one.
    """
    problems = rope_config_problems(config)
    epsilon, positions = config.get("rms_norm_eps"), config.get("max_position_embeddings")
    if isinstance(epsilon, int | float) and not epsilon > 0:
        problems.append(f"rms_norm_eps must be above 0, not {epsilon!r}")
    if positions is not None and (type(positions) is not int or positions < 1):
        problems.append(f"max_position_embeddings must be a positive integer, not {positions!r}")
    if problems:
        raise InputError(*(f"{where}: config.json: {problem}" for problem in problems))


def stop_problems(stops: Any, vocab_size: int) -> list[str]:
    """What keeps an `eos_token_id` from ending an answer, a line each; None: nothing is said."""
    if stops is None:
        return []
    ids = stops if isinstance(stops, list) else [stops]
    if not ids:
        return ["eos_token_id: names no token"]
    return [
        f"eos_token_id: {json.dumps(stop)} is none of the model's {vocab_size} tokens"
        for stop in ids
        if type(stop) is not int or not 0 <= stop < vocab_size
    ]
