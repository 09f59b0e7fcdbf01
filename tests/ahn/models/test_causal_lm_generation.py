"""`generate` with our cache, against a plain loop over whole sequences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ahn.config import VARIANTS
from tests.ahn.conftest import SINKS, WINDOW, tokens

NEW = 24


@torch.no_grad()
def greedy(model: Any, ids: Tensor, steps: int = NEW) -> Tensor:
    """Greedy tokens by running the whole sequence anew at every step."""
    for _ in range(steps):
        following = model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, following], 1)
    return ids


def generate(model: Any, ids: Tensor, **options: Any) -> Tensor:
    options.setdefault("attention_mask", torch.ones_like(ids))
    return model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0, **options)


@pytest.mark.parametrize("length", [1, WINDOW, SINKS + WINDOW + 1, 60])
@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_generation_equals_whole_passes(models: Any, variant: str, length: int) -> None:
    model, ids = models(variant), tokens(length, rows=2)
    assert torch.equal(generate(model, ids), greedy(model, ids))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_left_padded_batch_generates_what_its_rows_do(models: Any, variant: str) -> None:
    model = models(variant)
    rows = [tokens(n, seed=n) for n in (50, 23, 6)]
    ids = torch.cat([torch.nn.functional.pad(row, (50 - row.shape[1], 0)) for row in rows])
    mask = torch.stack([(torch.arange(50) >= 50 - row.shape[1]).long() for row in rows])
    together = generate(model, ids, attention_mask=mask)
    for number, row in enumerate(rows):
        assert torch.equal(together[number, 50:], generate(model, row)[0, row.shape[1] :])


@torch.no_grad()
def test_a_document_is_read_once_and_asked_twice(models: Any) -> None:
    model, document = models("ahn"), tokens(80)
    cache = model.new_cache()
    model(document, past_key_values=cache, logits_to_keep=1)
    before = cache.nbytes
    for seed in (1, 2):
        ids = torch.cat([document, tokens(7, seed=seed)], 1)
        fork = cache.copy()
        answer = generate(model, ids, past_key_values=fork, attention_mask=torch.ones_like(ids))
        assert torch.equal(answer, generate(model, ids))
    assert cache.nbytes == before and cache.get_seq_length() == 80


@pytest.mark.parametrize("variant", VARIANTS)
def test_beam_search_reorders_the_memory(models: Any, variant: str) -> None:
    model, ids = models(variant), tokens(45)
    with_cache = generate(model, ids, num_beams=4)
    without = generate(model, ids, num_beams=4, use_cache=False)
    assert torch.equal(with_cache, without)


def test_sampling_and_several_sequences(models: Any) -> None:
    model, ids = models("ahn"), tokens(45)
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        drawn.append(
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=12,
                do_sample=True,
                top_k=5,
                num_return_sequences=3,
                pad_token_id=0,
                use_cache=use_cache,
            )
        )
    assert drawn[0].shape == (3, 57)
    assert torch.equal(*drawn)


def test_a_cache_of_another_kind_is_refused(models: Any) -> None:
    from transformers import DynamicCache

    with pytest.raises(ValueError, match="must be an AHNCache"):
        models("ahn")(tokens(5), past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="another layout"):
        models("ahn")(tokens(5), past_key_values=models("window").new_cache())
    with pytest.raises(ValueError, match="cache_implementation is refused"):
        generate(models("ahn"), tokens(5), cache_implementation="static")
