"""transformers' own tests of a causal language model, on ours: `make peers`.

Every built-in family of `ahn.families`, with five ways of seeing the past. Their inputs have 20
tokens, of which a window of 8 and 2 sinks keep half, and the memories are not zero. What must be
refused, or has no meaning here, is listed in `tests/peers/expected.py` with its reason.
"""

from __future__ import annotations

import unittest
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import initialization as init
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from ahn.cells import MemoryCell
from ahn.cells.base import HeadLinear
from ahn.families import families
from ahn.models.causal_lm import family_classes
from ahn.models.stack import InitialisesCells
from tests.peers import conftest, source

#: rows and tokens of an input
ROWS, TOKENS = 2, 20
WINDOW, SINKS = 8, 2

FAMILIES: dict[str, tuple[Any, Any, Any]] = {
    family.prefix: (classes.config, classes.stack, classes.causal_lm)
    for family in families()
    if family.built_in
    for classes in [family_classes(family)]
}
SETTINGS: dict[str, dict[str, Any]] = {
    "Full": {"variant": "full"},
    "Window": {"variant": "window"},
    "GatedDeltaNet": {"variant": "ahn", "cell": "GatedDeltaNet"},
    "DeltaNet": {"variant": "ahn", "cell": "DeltaNet"},
    "Mamba2": {"variant": "ahn", "cell": "Mamba2"},
}


class ModelTester:
    """What the mixins ask for: a small configuration and an input for it."""

    config_class: Any
    base_model_class: Any
    causal_lm_class: Any
    settings: dict[str, Any]
    batch_size, seq_length = ROWS, TOKENS
    vocab_size, hidden_size, intermediate_size = 99, 32, 32
    num_hidden_layers, num_attention_heads, num_key_value_heads = 2, 4, 2
    is_training, use_cache, use_labels = True, True, True
    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent

    def get_config(self) -> Any:
        """The configuration that every test starts from."""
        names = (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads",
            "pad_token_id", "bos_token_id", "eos_token_id",
        )  # fmt: skip
        extra = {"head_dim": 8} if "Qwen3" in self.config_class.__name__ else {}
        settings = {"window": WINDOW, "sinks": SINKS, **self.settings}
        values = {name: getattr(self, name) for name in names}
        return self.config_class(
            ahn=settings, max_position_embeddings=512, hidden_act="gelu", **values, **extra
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, Any]]:
        """A configuration, and token ids with a mask that hides nothing."""
        ids = torch.randint(3, self.vocab_size, (self.batch_size, self.seq_length))
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(autouse=True)
def _in_transformers_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mixins ask transformers' tables of names whether a class has a loss, or generates."""
    for family, (config, stack, causal) in FAMILIES.items():
        assert config.model_type == f"{family.lower()}_ahn"
        monkeypatch.setitem(MODEL_MAPPING_NAMES, config.model_type, stack.__name__)
        monkeypatch.setitem(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, config.model_type, causal.__name__)


@pytest.fixture(autouse=True)
def _memories_that_are_not_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh memory adds nothing; with a random read-out a test sees what it does."""
    fresh = InitialisesCells._init_weights

    def random_readout(self: Any, module: torch.nn.Module) -> None:
        fresh(self, module)
        for part in [module] if isinstance(module, HeadLinear) else module.modules():
            if isinstance(module, HeadLinear | MemoryCell) and isinstance(part, HeadLinear):
                init.normal_(part.weight, std=0.3)

    monkeypatch.setattr(InitialisesCells, "_init_weights", random_readout)


class PeerCase(unittest.TestCase):
    """A test's subtests (one for each model class, most often) all run, and count as one test."""

    def _callTestMethod(self, method: Any) -> None:
        self._errors: list[Exception] = []
        self._skips: list[unittest.SkipTest] = []
        self._done = 0
        method()
        if self._errors:
            raise ExceptionGroup(f"{len(self._errors)} subtests failed", self._errors)
        if self._skips and not self._done:
            raise self._skips[0]

    @contextmanager
    def subTest(self, msg: Any = None, **params: Any) -> Iterator[None]:
        """Go on after a subtest that failed or skipped itself."""
        try:
            yield
            self._done += 1
        except unittest.SkipTest as skip:
            self._skips.append(skip)
        except Exception as error:
            self._errors.append(error)


#: tests that ask for attention weights among other outputs
_WITH_ATTENTIONS = (
    "test_model_outputs_equivalence",
    "test_greedy_generate_dict_outputs",
    "test_sample_generate_dict_output",
    "test_beam_search_generate_dict_output",
    "test_beam_sample_generate_dict_output",
)


def _without_attentions(test: Any) -> Any:
    """The same test for a model that says it has no attention weights to show."""

    def run(self: Any) -> None:
        self.has_attentions = False
        test(self)

    return run


def _make(family: str, name: str, mixins: dict[str, Any]) -> type:
    """The test class of one model."""
    config, stack, causal = FAMILIES[family]
    own = {
        "config_class": config,
        "base_model_class": stack,
        "causal_lm_class": causal,
        "settings": SETTINGS[name],
    }
    tester = type("ModelTester", (ModelTester,), own)

    def set_up(self: Any) -> None:
        self.model_tester = tester(self)

    bases = (*mixins.values(), PeerCase)
    further = {
        f"{test}_without_attentions": _without_attentions(getattr(base, test))
        for base in bases
        for test in _WITH_ATTENTIONS
        if hasattr(base, test)
    }
    return type(
        f"Test{family}{name}",
        bases,
        further
        | {
            "setUp": set_up,
            "all_model_classes": (stack, causal),
            "all_generative_model_classes": (causal,),
            "__module__": __name__,
            "__doc__": f"{family}, {SETTINGS[name]}.",
        },
    )


try:
    _mixins, conftest.NOTES[:] = source.load()
except source.Unavailable as _reason:
    _why = str(_reason)

    def test_the_mixins_can_be_had() -> None:
        pytest.skip(_why)

else:
    globals().update(
        (made.__name__, made)
        for made in (_make(family, name, _mixins) for family in FAMILIES for name in SETTINGS)
    )
