"""Every family of `ahn.families`: `full` is the stock model, and memories are what the oracle says.

`tests/ahn/dense_oracle.py` computes the expected values in float64, with numpy alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ahn.cells.registry import CELLS
from tests.ahn.conftest import FAMILIES, SINKS, WINDOW, stock_model, tokens, variant_model
from tests.ahn.dense_oracle import DenseModel, Run

#: float32 through three layers; chunks only change the order of sums
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-4}
#: a family, and options of its configuration that change what is computed
KINDS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}),
    ("llama", {"pretraining_tp": 2, "num_key_value_heads": 4, "tie_word_embeddings": True}),
    ("mistral", {"num_key_value_heads": 1, "hidden_act": "gelu"}),
    ("qwen3", {"attention_bias": True}),
]

every_family = pytest.mark.parametrize("family", FAMILIES)
every_cell = pytest.mark.parametrize("cell", CELLS.builtin)


def each_of(kinds: list[tuple[str, dict[str, Any]]]) -> pytest.MarkDecorator:
    names = [f"{family}-{'-'.join(given)}" for family, given in kinds]
    return pytest.mark.parametrize(("family", "options"), kinds, ids=names)


every_kind = each_of(KINDS)
every_kind_of_the_oracle = each_of([kind for kind in KINDS if "hidden_act" not in kind[1]])


@torch.no_grad()
@every_kind
def test_full_is_the_stock_model_to_the_last_bit(family: str, options: dict[str, Any]) -> None:
    """Both multiply the same float64 numbers in the same order."""
    stock = stock_model(family, **options).double()
    model = variant_model("full", family=family, options=options).double()
    ids = tokens(3 * WINDOW + 5, rows=2)
    assert torch.equal(model(ids).logits, stock(ids).logits)


@torch.no_grad()
@every_kind
def test_full_generates_what_the_stock_model_generates(
    family: str, options: dict[str, Any]
) -> None:
    stock = stock_model(family, **options)
    model = variant_model("full", family=family, options=options)
    ids = tokens(40, rows=2)
    asked: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None}
    expected = stock.generate(ids, pad_token_id=0, **asked)
    model.prefill_chunk_size = 7
    assert torch.equal(model.generate(ids, pad_token_id=0, **asked), expected)
    assert expected.unique().numel() > 10  # it says something


@torch.no_grad()
@every_family
def test_padding_changes_nothing(family: str) -> None:
    stock = stock_model(family)
    ids = tokens(40, rows=2)
    mask = torch.ones_like(ids)
    mask[0, :13] = 0
    for variant in ("full", "window", "ahn"):
        model = variant_model(variant, family=family)
        found = model(ids, attention_mask=mask).logits
        alone = model(ids[:1, 13:]).logits
        torch.testing.assert_close(found[:1, 13:], alone, **CLOSE)
        torch.testing.assert_close(found[1:], model(ids[1:]).logits, **CLOSE)
        if variant == "full":
            torch.testing.assert_close(alone, stock(ids[:1, 13:]).logits, **CLOSE)


def oracle(model: Any) -> DenseModel:
    """The same model in numpy, from its configuration and weights."""
    settings = model.config.ahn
    config = model.config.to_dict() | {"_ahn_implementation": settings["cell"], "fa_layer_ids": ""}
    weights = {name: t.detach().double().numpy() for name, t in model.state_dict().items()}
    return DenseModel(config, weights)


def check(model: Any, found: Tensor, past: Any, expected: Run) -> None:
    """Logits `[1, L, V]` and states are the oracle's."""
    torch.testing.assert_close(found[0], torch.from_numpy(expected.logits).float(), **CLOSE)
    for layer, state in zip(past.layers, expected.states, strict=True):
        if layer.state is not None:
            held = layer.state[0].numpy()
            held = held.swapaxes(-1, -2) if model.config.ahn["cell"] == "Mamba2" else held
            assert np.abs(held - state).max() < 1e-4


@every_kind_of_the_oracle
@every_cell
def test_prefill_decode_and_training_are_the_oracles(
    family: str, options: dict[str, Any], cell: str
) -> None:
    model = variant_model("ahn", cell, family, options=options)
    ids = tokens(2 * WINDOW + 11)
    expected = oracle(model).run(ids[0].numpy(), WINDOW, SINKS)
    with torch.no_grad():
        past = model.new_cache()
        check(model, model(ids, past_key_values=past).logits, past, expected)
        past, pieces = model.new_cache(), []
        for piece in ids.split([WINDOW + SINKS - 2, *[1] * 8, 7, *[1] * 11], 1):
            pieces.append(model(piece, past_key_values=past).logits)
        check(model, torch.cat(pieces, 1), past, expected)
    logits = model.train()(ids, use_cache=False).logits  # with gradients: one chunk, no cache
    assert logits.requires_grad
    torch.testing.assert_close(logits[0], torch.from_numpy(expected.logits).float(), **CLOSE)


@torch.no_grad()
@every_family
def test_the_window_is_the_oracles_and_no_write_is_the_window(family: str) -> None:
    ids = tokens(2 * WINDOW + 11)
    window = variant_model("window", family=family)
    dense = oracle(variant_model("ahn", family=family))
    expected = dense.run(ids[0].numpy(), WINDOW, SINKS, memory=False).logits
    found = window(ids).logits
    torch.testing.assert_close(found[0], torch.from_numpy(expected).float(), **CLOSE)
    assert torch.equal(variant_model("no-write", family=family)(ids).logits, found)


@torch.no_grad()
def test_mistrals_own_window_is_a_window_without_sinks() -> None:
    """What is said instead of `sliding_window`: the same tokens, the current one among them."""
    stock = stock_model("mistral", sliding_window=WINDOW)
    model = variant_model("window", family="mistral", sinks=0)
    ids = tokens(4 * WINDOW)
    torch.testing.assert_close(model(ids).logits, stock(ids).logits, **CLOSE)
    full = stock_model("mistral")(ids).logits
    assert (stock(ids).logits - full).abs().max() > 0.1  # the window is felt


@every_family
def test_caches_are_saved_and_read(family: str, tmp_path: Any) -> None:
    from ahn.models.cache import AHNCache

    model, ids = variant_model("ahn", family=family), tokens(60)
    with torch.no_grad():
        whole = model(ids).logits
        past = model.new_cache()
        model(ids[:, :50], past_key_values=past)
        past.save(tmp_path / "past")
        again = AHNCache.load(tmp_path / "past", model)
        found = model(ids[:, 50:], past_key_values=again).logits
    torch.testing.assert_close(found, whole[:, 50:], **CLOSE)
