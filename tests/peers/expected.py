"""Tests of transformers that cannot pass here, each with its reason.

`refused`: our model raises, and says why: it would otherwise compute something else than was asked.
`not applicable`: the test is about something that this model has not.

The list is strict: what is listed must fail with the message that is named, and every failure must
be listed (`verdict`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = ("refused", "not applicable")


@dataclass(frozen=True)
class Expected:
    """One test, or several, that fail for one reason.

    Attributes:
        tests: regular expression for the whole name.
        kind: one of `KINDS`.
        error: regular expression that is found in `Type: message` of what is raised.
        reason: for the reader.
        classes: regular expression for the whole name of the test class.
    """

    tests: str
    kind: str
    error: str
    reason: str
    classes: str = ".*"


_ATTENTIONS = r"attn_implementation='eager' is refused|output_attentions is refused"
_CACHE = "cache_implementation is refused: the cache of this model is an AHNCache"

EXPECTED: tuple[Expected, ...] = (
    Expected(
        r"test_(greedy|sample|beam_search|beam_sample)_generate_dict_outputs?(_use_cache)?"
        r"|test_attention_outputs|test_retain_grad_hidden_states_attentions"
        r"|test_model_outputs_equivalence|test_capture_outputs_decorator",
        "refused",
        _ATTENTIONS,
        "attention weights are asked for, and no layer ever forms them; what else these tests look "
        "at is looked at by those that end with _without_attentions",
    ),
    Expected(
        "test_sliding_window_mask",
        "refused",
        _ATTENTIONS,
        "attention weights are asked for; a Llama and a Mistral are not asked",
        classes="TestQwen.*",
    ),
    Expected(
        r"test_eager_matches_sdpa_inference_.*|test_can_set_attention_dynamically"
        r"|test_sdpa_can_dispatch_non_composite_models",
        "refused",
        _ATTENTIONS,
        "eager attention is asked for: there is one attention over sinks and window, and no switch",
    ),
    Expected(
        r"test_generate_compilation_all_outputs",
        "refused",
        f"{_ATTENTIONS}|{_CACHE}",
        "eager attention and a static cache are asked for; ahn.compile_decode compiles the decode",
    ),
    Expected(
        r"test_generate_with_static_cache|test_generate_from_inputs_embeds_with_static_cache"
        r"|test_static_cache_no_recompile_with_smaller_length",
        "refused",
        _CACHE,
        "another cache is asked for; an AHNCache has a fixed size already",
    ),
    Expected(
        r"test_custom_4d_attention_mask",
        "refused",
        r"attention_mask must be \[1, 6\].*, not \(1, 1, 6, 6\)",
        "a mask of query and key is asked for, and window and sinks say which query sees which key",
    ),
    Expected(
        r"test_past_key_values_format",
        "not applicable",
        r"^AssertionError: torch.Size\(\[2, 2, (10|256), 8\]\) != \(2, 2, 20, 8\)",
        "a slot for each of 20 tokens is expected: sinks and window keep 10, and full attention "
        "allocates 256 at a time",
    ),
    Expected(
        r"test_generate_compile_model_forward_fullgraph",
        "not applicable",
        "^AssertionError: False is not true",
        "generate's own cache is expected to be transformers' DynamicCache",
    ),
    Expected(
        r"test_inherits_generation_mixin",
        "not applicable",
        "^AssertionError: False is not true",
        "GenerationMixin is looked for among a class's own bases; it comes with Qwen2ForCausalLM",
    ),
)


def listed(test: str, owner: str) -> Expected | None:
    """What is expected of a test of a class; None: that it passes or skips itself."""
    for expected in EXPECTED:
        if re.fullmatch(expected.tests, test) and re.fullmatch(expected.classes, owner):
            return expected
    return None


def verdict(expected: Expected, outcome: str, errors: Sequence[str]) -> str | None:
    """What is wrong with a listed test that ended so; None: it failed as it should.

    Args:
        expected: its entry.
        outcome: `passed`, `skipped` or `failed`.
        errors: `Type: message` of what it, or each of its subtests, raised.
    """
    if outcome != "failed":
        return f"listed as {expected.kind}, but {outcome}: take it off the list"
    others = [error for error in errors if not re.search(expected.error, error)]
    if others or not errors:
        raised = "; ".join(others) or "nothing"
        return f"listed as {expected.kind} with {expected.error!r}, but it raised {raised}"
    return None
