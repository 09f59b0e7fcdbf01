"""A family from outside is loaded only where `full` is transformers' model, option by option."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    HeliumConfig,
    HeliumForCausalLM,
    LlamaForCausalLM,
    MinistralConfig,
    MinistralForCausalLM,
    SeedOssConfig,
    SeedOssForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

import ahn
from ahn import families
from ahn.families import Family
from common.errors import InputError
from tests.ahn.conftest import SIZES, tokens

GRANITE = Family("granite", "Granite", "Granite", qkv_bias="attention_bias", mlp_bias="mlp_bias")


@pytest.fixture(autouse=True)
def _own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))


def saved(folder: Path, config: Any, model: Any, **options: Any) -> Path:
    """A tiny random stock model on disk."""
    torch.manual_seed(0)
    special = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": 1}
    model(config(**SIZES | special | options)).save_pretrained(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"residual_multiplier": 0.2}, {"attention_multiplier": 0.3}]
)
def test_options_that_the_stock_layers_compute_are_right(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    ahn.register_family(GRANITE)
    folder = saved(tmp_path, GraniteConfig, GraniteForCausalLM, **options)
    before = torch.get_rng_state()
    model = ahn.load_model(folder, variant="full")
    assert torch.equal(torch.get_rng_state(), before)
    expected = GraniteForCausalLM.from_pretrained(folder)(tokens(50)).logits
    torch.testing.assert_close(model(tokens(50)).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"embedding_multiplier": 12.0}, {"logits_scaling": 8.0}])
def test_options_that_would_be_ignored_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    ahn.register_family(GRANITE)
    folder = saved(tmp_path, GraniteConfig, GraniteForCausalLM, **options)
    with pytest.raises(InputError, match="other logits than transformers' GraniteForCausalLM"):
        ahn.load_model(folder, variant="window", window=8, sinks=0)


@pytest.mark.parametrize(
    ("prefix", "config", "model", "options"),
    [
        # pairs of RoPE lie beside one another
        ("Helium", HeliumConfig, HeliumForCausalLM, {"head_dim": 12}),
        # every fourth layer has no positions
        ("SmolLM3", SmolLM3Config, SmolLM3ForCausalLM, {"num_hidden_layers": 4}),
        # sliding windows of 4096 tokens, which the row does not mention
        ("Ministral", MinistralConfig, MinistralForCausalLM, {"head_dim": 12}),
    ],
)
def test_models_that_only_look_like_a_llama_are_refused(
    tmp_path: Path, prefix: str, config: Any, model: Any, options: dict[str, Any]
) -> None:
    ahn.register_family(Family(prefix.lower(), prefix, prefix))
    folder = saved(tmp_path, config, model, **options)
    with pytest.raises(InputError, match="it is not of Llama's shape, or its row"):
        ahn.load_model(folder, variant="full")


def test_training_with_dropout_between_layers_is_refused(tmp_path: Path) -> None:
    """Attention and memory drop nothing, so no other part of the layer may."""
    options = {"attention_dropout": 0.0, "residual_dropout": 0.1, "head_dim": 12}
    ahn.register_family(Family("seed_oss", "Seed-OSS", "SeedOss", qkv_bias="attention_bias"))
    folder = saved(tmp_path, SeedOssConfig, SeedOssForCausalLM, attention_bias=True, **options)
    model = ahn.load_model(folder, variant="full")
    model(tokens(9))
    with pytest.raises(ValueError, match="config.residual_dropout=0.1 is refused"):
        model.train()(tokens(9))


def test_a_stock_model_that_cannot_be_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahn.register_family(GRANITE)
    folder = saved(tmp_path, GraniteConfig, GraniteForCausalLM)

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("no such thing")

    monkeypatch.setattr(GraniteForCausalLM, "forward", broken)
    with pytest.raises(InputError, match="cannot be compared .*: ZeroDivisionError: no such thing"):
        ahn.load_model(folder, variant="full")


def test_built_in_families_are_not_compared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests hold them to transformers' models; a load takes no longer for it."""
    from ahn.models import family_check

    def never(*args: Any) -> None:
        raise AssertionError("a built-in family was compared")

    monkeypatch.setattr(family_check, "check_family", never)
    from tests.ahn.conftest import stock_model

    stock: LlamaForCausalLM = stock_model("llama")
    stock.save_pretrained(tmp_path)
    ahn.load_model(tmp_path, variant="full")
