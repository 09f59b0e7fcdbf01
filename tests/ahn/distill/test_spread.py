"""The loss that keeps keys apart: its value, its reach, and what it does to a training."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ahn
from ahn.distill.recipe import load_recipe
from ahn.distill.spread import collected_keys, key_overlap
from common.errors import InputError

RECIPES = Path(__file__).resolve().parents[3] / "configs" / "train"


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3), st.integers(1, 5)),
    layers=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_overlap_is_the_mean_squared_cosine_of_all_pairs(
    shape: tuple[int, int, int, int], layers: int, seed: int
) -> None:
    batch, tokens, heads, d = shape
    generator = torch.Generator().manual_seed(seed)
    keys = [torch.randn(batch, tokens, heads * d, generator=generator) for _ in range(layers)]
    lengths = torch.randint(1, tokens + 1, (batch,), generator=generator)
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    means = []
    for key in keys:
        for row in range(batch):
            count = int(lengths[row])
            for head in range(heads):
                own = key[row, :count, head * d : (head + 1) * d]
                cosines = torch.nn.functional.cosine_similarity(own[:, None], own[None], dim=-1)
                means.append(cosines.pow(2).mean())
    torch.testing.assert_close(key_overlap(keys, d, mask), torch.stack(means).mean())


def test_overlap_is_one_for_parallel_and_least_for_even_keys() -> None:
    mask = torch.ones(1, 8, dtype=torch.long)
    parallel = torch.tensor([1.0, -2.0, 0.5, 0.0]).expand(1, 8, 4) * torch.arange(1, 9)[:, None]
    assert key_overlap([parallel], 4, mask).item() == pytest.approx(1)
    even = torch.eye(4).repeat(2, 1)[None]
    assert key_overlap([even], 4, mask).item() == pytest.approx(1 / 4)


def test_the_first_layer_is_left_out_and_gradients_reach_the_others() -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(ahn.POCKET_PATH, dtype=torch.float32)
    ids = torch.randint(4, 500, (2, 40), generator=torch.Generator().manual_seed(0))
    keys: list[torch.Tensor] = []
    with collected_keys(model, keys):
        model.model(ids)
    assert len(keys) == model.config.num_hidden_layers - 1
    model.model(ids)
    assert len(keys) == model.config.num_hidden_layers - 1  # nothing is collected afterwards
    mask = torch.ones_like(ids)
    before = key_overlap(keys, model.config.head_dim, mask)
    before.backward()
    weights = [layer.self_attn.k_proj.weight for layer in model.model.layers]
    assert all(weight.grad.abs().sum() > 0 for weight in weights[1:])
    with torch.no_grad():
        for weight in weights[1:]:
            weight -= 1e-2 * weight.grad / weight.grad.norm()
    after = copy.copy(keys)
    after.clear()
    with torch.no_grad(), collected_keys(model, after):
        model.model(ids)
    assert key_overlap(after, model.config.head_dim, mask) < before


def test_it_is_refused_where_no_keys_are_trained() -> None:
    with pytest.raises(InputError, match="key_spread is for stage pretrain"):
        load_recipe(RECIPES / "pocket-gdn.yaml", {"key_spread": 1.0})
