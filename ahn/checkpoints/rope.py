"""RoPE scaling (YaRN and others): read from a configuration, or asked for at load. No torch.

transformers keeps it as `rope_parameters`; older configurations as `rope_scaling` beside
`rope_theta`. Both are read, the former is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ahn.families import find_family
from common.errors import InputError

_THETA = 10_000.0
#: largest `factor`: 32 million positions of 32 thousand
MOST_STRETCH = 1000.0
#: keys that a scaling must have, and those that it may have. `dynamic` and `longrope` are absent:
#: they change with the length that was seen, so that cached keys and new ones would not agree.
_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "yarn": (
        ("factor",),
        (
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ),
    ),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        (),
    ),
}


def rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE as a configuration says it, in transformers' form: `rope_type`, `rope_theta` ..."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        return {"rope_type": given}  # refused by `rope_problems`
    values = {key: value for key, value in given.items() if key != "type"}
    values["rope_type"] = given.get("rope_type", given.get("type", "default"))
    theta = config.get("rope_theta")
    if theta is None:
        family = find_family(config.get("model_type"))
        theta = _THETA if family is None else family.defaults.get("rope_theta", _THETA)
    values.setdefault("rope_theta", theta)
    return values


def rope_problems(parameters: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with RoPE parameters, a line each."""
    kind = parameters.get("rope_type")
    if not isinstance(kind, str) or kind not in _KEYS:
        reason = (
            " (it depends on the length seen, which a streamed prompt changes)"
            if kind in ("dynamic", "longrope")
            else ""
        )
        return [f"rope_type {kind!r} is not supported{reason}; one of {', '.join(_KEYS)}"]
    needed, allowed = _KEYS[kind]
    known = {*needed, *allowed, "rope_type", "rope_theta"}
    problems = [
        f"rope_scaling: unknown key {key!r} for {kind}" for key in parameters if key not in known
    ]
    problems += [f"rope_scaling: {kind} needs {key!r}" for key in needed if key not in parameters]
    for key, value in parameters.items():
        if key in ("rope_type", "truncate") or key not in known or value is None:
            continue
        least = 1.0 if key == "factor" else 0.0
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        most = MOST_STRETCH if key == "factor" else 1e308  # infinity and NaN are not up to it
        if not number or value == 0 or not least <= value <= most:
            wanted = f"at least 1 and at most {most:g}" if least else "above 0"
            problems.append(f"rope_scaling: {key} must be a number {wanted}, not {value!r}")
    return problems


def rope_config_problems(config: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with the RoPE of a `config.json`, a line each."""
    parameters = rope_parameters(config)
    problems = rope_problems(parameters)
    given, used = config.get("rope_theta"), parameters.get("rope_theta")
    if given is not None and given != used:
        problems.append(f"rope_theta {given!r} contradicts {used!r} in the RoPE parameters")
    return problems


def with_rope(
    config: Mapping[str, Any],
    rope_scaling: Mapping[str, Any] | None,
    yarn_factor: float | None,
) -> dict[str, Any]:
    """The configuration with the RoPE scaling that was asked for; its own where none was.

    Args:
        config: a `config.json`.
        rope_scaling: as in transformers, e.g. `{"rope_type": "yarn", "factor": 4.0}`; the theta
            and, for YaRN, the original positions are the configuration's where it has none.
        yarn_factor: short for YaRN with this factor.

    Raises:
        InputError: both are given, or a value is wrong.
    """
    if rope_scaling is not None and yarn_factor is not None:
        raise InputError("give rope_scaling or yarn_factor, not both")
    own = rope_parameters(config)
    if yarn_factor is not None:
        rope_scaling = {"rope_type": "yarn", "factor": yarn_factor}
    if rope_scaling is None:
        if problems := rope_config_problems(config):
            raise InputError(*(f"config.json: {problem}" for problem in problems))
        return dict(config)
    if not isinstance(rope_scaling, Mapping):
        raise InputError(f"rope_scaling must be a mapping like config.json's, not {rope_scaling!r}")
    asked = rope_parameters({"rope_theta": own.get("rope_theta"), "rope_scaling": rope_scaling})
    if asked["rope_type"] == "yarn":
        positions = own.get(
            "original_max_position_embeddings", config.get("max_position_embeddings")
        )
        if positions is not None:
            asked.setdefault("original_max_position_embeddings", positions)
    if problems := rope_problems(asked):
        raise InputError(*problems)
    kept = {k: v for k, v in config.items() if k not in ("rope_scaling", "rope_theta")}
    return kept | {"rope_parameters": asked}


def rope_summary(config: Mapping[str, Any]) -> str:
    """One line for people: `none`, or `yarn, factor 4, from 32,768 positions`."""
    rope = rope_parameters(config)
    if rope["rope_type"] == "default":
        return "none"
    text = f"{rope['rope_type']}, factor {rope.get('factor')}"
    positions = rope.get("original_max_position_embeddings", config.get("max_position_embeddings"))
    return text + (f", from {positions:,} positions" if isinstance(positions, int) else "")


def context_length(config: Mapping[str, Any]) -> int | None:
    """Positions that a model was made for: its maximum, stretched by YaRN where set.

    Args:
        config: a `config.json`.
    """
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int):
        return None
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "yarn" and "original_max_position_embeddings" in scaling:
        stretched = scaling.get("factor", 1.0) * scaling["original_max_position_embeddings"]
        return max(positions, int(stretched))
    return positions
